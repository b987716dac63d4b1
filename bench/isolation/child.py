"""The child: imports one plugin and answers the parent. Run as `python -m bench.isolation.child FD LIMIT_MB`.

It believes the parent; the parent does not believe it.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import random
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from bench import cost, device, memory, training
from bench.data import Dataset, Split
from bench.defense import Defense, has_door, source_hash
from bench.isolation import stranger, wire
from bench.isolation.wire import Message
from bench.plugins import settings_kept
from bench.progress import Advance, Progress

DOORS = ("fit", "logits", "approximate", "surrogate_logits", "encode", "posterior", "decode", "start_codes", "hurried",
         "rejection_score", "class_scores", "facts")  # fmt: skip
FACTS = ("title", "paper", "year", "kind", "stochastic", "differentiable", "per_classifier", "trained_on", "version")


class _StoppedError(BaseException):
    """The parent has seen enough of a training."""


class Child:
    """The plugin's class, its instances by number, and the graphs that the parent may still differentiate."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.cls: type[Defense] | None = None
        self.instances: dict[int, tuple[Defense, nn.Module]] = {}
        self.graphs: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def serve(self, until: tuple[str, ...] = ()) -> str:
        """Answer until the parent is gone, or sends one of `until`, whose name is returned."""
        while True:
            request = wire.receive(self.channel)
            op = str(request.header["op"])
            for call in request.header.get("drop", ()):
                self.graphs.pop(call, None)
            for number in request.header.get("free", ()):
                self.instances.pop(number, None)
            if op in until:
                return op
            try:
                answer = getattr(self, f"on_{op}")(request)
            except _StoppedError:
                raise
            except (Exception, SystemExit) as problem:
                said = f"{type(problem).__name__}: {problem}"[:2000]
                answer = Message({"error": said, "full": memory.is_full(problem)})
            wire.send(self.channel, answer)

    def on_load(self, request: Message) -> Message:
        """Import the class and say what it declares."""
        module, _, name = request.header["point"].partition(":")
        with settings_kept():
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        if not (isinstance(found, type) and issubclass(found, Defense)):
            raise TypeError(f"{request.header['point']} is {found!r}, expected a subclass of bench.defense.Defense")
        self.cls = found
        parameters = list(inspect.signature(found.__init__).parameters.values())[2:]
        facts = {fact: getattr(found, fact, None) for fact in FACTS}
        return Message(
            {
                "facts": {name: value for name, value in facts.items() if isinstance(value, str | int | bool)},
                "doc": (found.__doc__ or "")[:4000],
                "recipes": {str(name): _plain(dict(recipe)) for name, recipe in found.recipes.items()},
                "parameters": [
                    [p.name, p.kind.name, p.default is not inspect.Parameter.empty, _plain(p.default)]
                    for p in parameters
                ],
                "doors": [door for door in DOORS if has_door(found, door)],
                "source": source_hash(found),
                "gpu": torch.cuda.is_available(),
            }
        )

    def on_build(self, request: Message) -> Message:
        """Make an instance in front of a net."""
        assert self.cls is not None
        header = request.header
        net = torch.load(io.BytesIO(request.blob), weights_only=False, map_location=header["device"])  # our own parent
        with self._seeded(header["seed"]):
            built = self.cls(net, **wire.tuples(header["settings"])).to(header["device"]).eval()
        self.instances[header["id"]] = (built, net)
        shared = {id(parameter) for parameter in net.parameters()}
        mine = [name for name, parameter in built.named_parameters() if id(parameter) in shared]
        return Message({"own_classifier": built.classifier is not net, "shared": mine, **self._state_header(built)},
                       self._state(built))  # fmt: skip

    def on_hurry(self, request: Message) -> Message:
        """Make the hurried form of an instance."""
        header = request.header
        defense, net = self.instances[header["id"]]
        with self._seeded(header["seed"]):
            found: Any = defense.hurried()
        if not isinstance(found, Defense):
            raise TypeError(f"hurried returned {type(found).__name__}, expected a Defense")
        self.instances[header["as"]] = (found, net)
        return Message({"same_classifier": found.classifier is defense.classifier})

    def on_call(self, request: Message) -> Message:
        """Go through a door of an instance, and keep the graph where the parent asked for one."""
        header = request.header
        defense, _ = self.instances[header["id"]]
        place = torch.device(header["device"])
        *state, given = request.tensors  # a state where the door is given a generator
        images = given.to(place).requires_grad_(bool(header["grad"]))
        before = images.detach().clone()
        generator = Generator(place).set_state(state[0]) if state else None
        function: Callable[..., Any]
        if header["door"] == "classifier":
            function = lambda images, _: defense.classifier(images)  # noqa: E731
        elif header["door"] in ("encode", "posterior", "decode"):
            function = lambda images, _: getattr(defense, header["door"])(images)  # noqa: E731
        else:
            function = getattr(defense, header["door"])
        with self._seeded(header["seed"]), torch.set_grad_enabled(bool(header["grad"])):
            result = function(images, generator)
        outputs = result if isinstance(result, tuple) else (result,)
        if not all(isinstance(output, Tensor) for output in outputs):
            raise TypeError(f"{header['door']} returned {type(result).__name__}, expected a tensor")
        graph = [output.requires_grad for output in outputs]
        if any(graph):
            self.graphs[header["call"]] = (images, outputs)
        facts = {
            "graph": graph, "wrote": not torch.equal(images.detach(), before),
            "training": any(module.training for module in defense.modules()),
        }  # fmt: skip
        after = [generator.get_state()] if generator is not None else []
        return Message(facts, [*after, *(output.detach() for output in outputs)])

    def on_vjp(self, request: Message) -> Message:
        """The gradient with respect to the images of a call, given that of its outputs."""
        images, outputs = self.graphs[request.header["call"]]
        weighed = [(o, g.to(o.device)) for o, g in zip(outputs, request.tensors, strict=True) if o.requires_grad]
        (gradient,) = torch.autograd.grad(
            [output for output, _ in weighed], images, [weight for _, weight in weighed], retain_graph=True,
            allow_unused=True,
        )  # fmt: skip
        return Message({"used": gradient is not None}, [] if gradient is None else [gradient])

    def on_state(self, request: Message) -> Message:
        """Parameters and buffers of an instance, or of its own classifier."""
        defense, _ = self.instances[request.header["id"]]
        module = defense.classifier if request.header.get("of") == "classifier" else defense
        return Message(self._state_header(module), self._state(module))

    def on_load_state(self, request: Message) -> Message:
        """Set parameters and buffers."""
        defense, _ = self.instances[request.header["id"]]
        defense.load_state_dict(dict(zip(request.header["names"], request.tensors, strict=True)))
        defense.eval()
        return Message({})

    def on_mode(self, request: Message) -> Message:
        """Training or eval mode."""
        self.instances[request.header["id"]][0].train(bool(request.header["flag"]))
        return Message({})

    def on_freeze(self, request: Message) -> Message:
        """No gradients for weights from here on."""
        defense, _ = self.instances[request.header["id"]]
        defense.requires_grad_(bool(request.header["flag"]))
        return Message({})

    def on_cost(self, request: Message) -> Message:
        """What a purification costs, counted here, where it happens."""
        defense, net = self.instances[request.header["id"]]
        return Message(
            {"units": cost.purification_units(defense, net, request.tensors[0].to(request.header["device"]))}
        )

    def on_facts(self, request: Message) -> Message:
        """What an instance tells of attacked images; this process ends with the answer."""
        header = request.header
        defense, _ = self.instances[header["id"]]
        clean, attacked, correct = (tensor.to(header["device"]) for tensor in request.tensors)
        with self._seeded(header["seed"]), torch.no_grad():
            told = defense.facts(clean, attacked, correct)
        return Message({"facts": {name: _numbers(value) for name, value in told.items()}})

    def on_fit(self, request: Message) -> Message:
        """Train an instance; the parent hears of the progress and may end it."""
        header = request.header
        defense, net = self.instances[header["id"]]
        place = torch.device(header["device"])
        state, *parts = request.tensors
        train_images, train_labels, images, labels = (part.to(place) for part in parts)
        nothing = Split(train_images[:0], train_labels[:0])
        data = Dataset(
            header["name"], Split(train_images, train_labels), Split(images, labels), nothing,
            tuple(header["class_names"]), header["split"],
        )  # fmt: skip
        generator = Generator(place)
        generator.manual_seed(header["initial_seed"])
        generator.set_state(state)
        before = training.weights_hash(net)
        stopped = False
        try:
            with self._seeded(header["seed"]), torch.enable_grad():
                defense.fit(data, generator, _Reported(self))
        except _StoppedError:
            stopped = True
        touched = any(module.training for module in net.modules()) or training.weights_hash(net) != before
        return Message(
            {"stopped": stopped, "touched": touched,
             "wrote": not torch.equal(train_images, parts[0].to(place)), **self._state_header(defense)},
            [generator.get_state(), *self._state(defense)],
        )  # fmt: skip

    def _state_header(self, module: nn.Module) -> dict[str, Any]:
        return {"names": list(module.state_dict())}

    def _state(self, module: nn.Module) -> list[Tensor]:
        return [tensor.detach() for tensor in module.state_dict().values()]

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Whoever draws from a global generator gets numbers that follow from the parent's global seed."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        with settings_kept():
            yield


class _Reported(Progress):
    """Tells the parent of a training's progress, and answers it until it says how to go on."""

    def __init__(self, child: Child) -> None:
        self.child = child

    def say(self, message: str) -> None:
        self._event({"event": "say", "message": str(message)[:500]})

    @contextlib.contextmanager
    def task(self, label: str, total: float, done: float = 0) -> Iterator[Advance]:
        def advance(units: float) -> None:
            self._event({"event": "advance", "units": float(units)})

        self._event({"event": "begin", "label": str(label)[:200], "total": float(total), "done": float(done)})
        yield advance
        self._event({"event": "end"})

    def _event(self, header: Mapping[str, Any]) -> None:
        wire.send(self.child.channel, Message(header))
        if self.child.serve(until=("go_on", "stop")) == "stop":
            raise _StoppedError


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; anything else as the object that says what it was."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return {"not plain": repr(value)[:200]}


def _numbers(value: Any) -> Any:
    """A fact as JSON can hold it."""
    return [float(part) for part in value] if isinstance(value, tuple | list) else float(value)


def _bounded(file_mb: int, processes: int) -> None:
    """Limits of this process and all that it starts, where the system has them. That on processes counts all of a
    user's, so it is for a user of its own alone."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = file_mb * 2**20
    limits = [(resource.RLIMIT_FSIZE, size), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 1024)]
    limits += [(resource.RLIMIT_NPROC, processes)] if stranger.FIRST <= os.getuid() <= stranger.LAST else []
    for kind, most in limits:
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _end_with_the_parent(channel: socket.socket) -> None:
    """End this process when the parent's is gone, whatever the defense is doing."""
    hung_up = select.POLLHUP | getattr(select, "POLLRDHUP", 0)
    poll = select.poll()
    poll.register(channel, getattr(select, "POLLRDHUP", 0))
    while not any(flags & hung_up for _, flags in poll.poll()):
        pass
    os._exit(0)


def main() -> None:
    """Serve on the file descriptor that the parent named."""
    descriptor, file_mb, processes, threads = (int(word) for word in sys.argv[1:5])
    channel = socket.socket(fileno=descriptor)
    _bounded(file_mb, processes)
    threading.Thread(target=_end_with_the_parent, args=(channel,), daemon=True).start()
    device.prepare("auto")
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError):  # the parent has what it wanted
        Child(channel).serve()


if __name__ == "__main__":
    main()
