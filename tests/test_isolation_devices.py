"""Which device a defense in a child process computes on, and where its answers arrive: looked at without any GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import draws, planning, training
from bench.defense import Defense
from bench.errors import BenchError
from bench.isolation import Isolated, box, child
from bench.isolation.wire import Message
from bench.progress import Progress
from bench.protocols import get

CUDA = torch.device("cuda")
META = torch.device("meta")  # stands for a GPU where tensors only have to be there


class Told:
    """A channel that notes what it is told, and answers as a child on a CPU would: what arrives is on the CPU."""

    def __init__(self) -> None:
        self.generation, self.dropped, self.freed, self.asked = 1, [], [], []
        self.limits = SimpleNamespace(fit_seconds=1)

    def start(self) -> None:
        return None

    def ask(self, message: Message, **how: object) -> Message:
        self.asked.append(message)
        here = [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in message.tensors]
        names = {"names": [], "graph": [True], "used": True}
        return Message(names, here[-1:] if message.header["op"] in ("call", "vjp") else here[:1])


@pytest.fixture
def remote():
    """A class whose child is `Told`."""
    members = {"name": "remote", "channel": Told(), "title": "Remote", "__module__": __name__, "fit": Isolated._fit}
    return type("Remote", (Isolated,), members)


def places(remote) -> list[str]:
    return [message.header["device"] for message in remote.channel.asked]


def test_an_instance_is_built_again_where_it_is_moved_and_every_request_names_that_device(remote):
    defense = remote(nn.Flatten())
    assert places(remote) == ["cpu"]
    defense.to(CUDA).eval().requires_grad_(False)
    assert [message.header["op"] for message in remote.channel.asked] == ["build", "build", "mode", "freeze"]
    assert set(places(remote)[1:]) == {"cuda"} and defense.computes_on == CUDA
    defense.to(CUDA)
    defense.train(False)
    assert [message.header["op"] for message in remote.channel.asked].count("build") == 2, "it is there already"


def test_answers_and_gradients_arrive_where_the_images_are(remote):
    defense = remote(nn.Flatten()).to(META)
    images = torch.empty(2, 1, 4, 4, device=META, requires_grad=True)
    (codes,) = defense.through("encode", images, None)
    assert codes.device == META and codes.requires_grad
    (gradient,) = torch.autograd.grad(codes, images, torch.empty_like(codes))
    assert gradient.device == META and gradient.shape == images.shape


def test_a_training_draws_from_a_generator_on_the_childs_device(remote, monkeypatch, tmp_path):
    monkeypatch.setenv("PURIFYBENCH_HOME", str(tmp_path))
    found = []

    def generator(device, *parts):
        found.append(torch.device(device))
        raise KeyboardInterrupt  # there is no such generator here

    monkeypatch.setattr(training.draws, "generator", generator)
    with pytest.raises(KeyboardInterrupt):
        training.load_or_fit(remote(nn.Flatten()).to(CUDA), "remote", {}, pytest.fail, Progress())
    with pytest.raises(KeyboardInterrupt):
        training.load_or_fit(nn.Linear(2, 2), "here", {}, pytest.fail, Progress())
    assert found == [CUDA, torch.device("cpu")]


class Encodes(Defense):
    title, paper, year = "Encodes", "https://example.org", 2026

    def encode(self, images):
        return images.flatten(1)

    def purify(self, images, generator):
        return images * torch.rand(1, generator=generator)


def test_a_door_without_a_generator_needs_none_on_the_childs_device(monkeypatch):
    """The state of a CPU's generator would be none of a GPU's."""
    served = child.Child(None)
    served.instances[1] = (Encodes(nn.Flatten()), nn.Flatten())
    asked = {"id": 1, "device": "cpu", "grad": False, "seed": 1, "call": 1}
    images, generator = torch.rand(2, 1, 4, 4), draws.generator("cpu", "x")
    drawn = served.on_call(Message({**asked, "door": "purify"}, [generator.get_state(), images]))
    assert torch.equal(drawn.tensors[1], images * torch.rand(1, generator=generator))
    assert torch.equal(drawn.tensors[0], generator.get_state())
    monkeypatch.setattr(child, "Generator", lambda place: pytest.fail("a generator was made"))
    (codes,) = served.on_call(Message({**asked, "door": "encode"}, [images])).tensors
    assert torch.equal(codes, images.flatten(1))


def test_the_child_sees_the_gpus_that_the_parent_may_use(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_SECRET", "x")
    kept = box.environment(tmp_path, 1)
    assert kept["CUDA_VISIBLE_DEVICES"] == "1" and "CUDA_SECRET" not in kept


def test_a_child_without_a_gpu_is_no_failure_of_its_defense(remote, monkeypatch):
    remote.recipes, remote.stochastic = {"paper": {}}, False
    monkeypatch.setattr(planning.device, "prepare", lambda on: CUDA)
    with pytest.raises(
        BenchError, match="remote: torch finds a GPU here and none in its own process; use --device cpu"
    ):
        planning.plan([remote], get("digits-v1-quick"), on="cuda")
    remote.sees_gpu = True
    assert planning.plan([remote], get("digits-v1-quick"), on="cuda").device == CUDA
