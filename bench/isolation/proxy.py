"""A defense whose methods are answered by a child process: to the campaign, a class like any other."""

from __future__ import annotations

import copy
import inspect
import io
import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from bench.data import Dataset
from bench.defense import Defense, Fact, source_of
from bench.errors import BenchError
from bench.isolation.box import Limits
from bench.isolation.channel import Channel, ChildError, ChildMemoryError, home_of, printable
from bench.isolation.wire import Message, tuples
from bench.progress import Advance, Progress

LARGEST_ANSWER = 64  # times the bytes sent, and at least a megabyte for each image: more is no answer


class Isolated(Defense):
    """The base of the classes that `isolated` makes."""

    name: ClassVar[str]
    channel: ClassVar[Channel]
    sees_gpu: ClassVar[bool] = False  # whether torch finds one in the child

    def __init__(self, classifier: nn.Module, **settings: Any) -> None:
        super().__init__(classifier)
        self._given, self._settings = classifier, settings
        self._place, self._seed = "cpu", torch.initial_seed()
        self._number, self._generation = next(_NUMBERS), -1
        self._tensors: dict[str, Tensor] = {}
        self._shared: list[str] = []
        self._frozen = self._changed = False
        self._whole: Isolated | None = None  # of a hurried form: what it was made of
        self._build()
        weakref.finalize(self, _forget, self.channel, self._number)

    def _build(self) -> None:
        """Make the child's instance, as it was before a restart."""
        if self._whole is not None:
            answer = self._whole.request("hurry", {"as": self._number})
            if not answer.header.get("same_classifier"):
                raise ChildError("hurried brought another classifier; it must have the same one")
            self._generation = self.channel.generation
            return
        self.channel.start()
        file = io.BytesIO()
        torch.save(self._given, file)
        header = {"op": "build", "id": self._number, "settings": self._settings, "seed": self._seed % 2**63}
        answer = self.channel.ask(Message({**header, "device": self._place}, (), file.getvalue()))
        self._generation = self.channel.generation
        if self._changed:
            names = list(self._tensors)
            self._raw("load_state", {"names": names}, [self._tensors[name] for name in names])
        else:
            self._tensors = _named(answer.header.get("names"), answer.tensors)
        if self._frozen:
            self._raw("freeze", {"flag": False})
        shared = answer.header.get("shared")
        self._shared = [str(name) for name in shared][:1] if isinstance(shared, list) else []
        if answer.header.get("own_classifier"):
            object.__setattr__(self, "classifier", OwnClassifier(self))

    def _raw(
        self, op: str, header: Mapping[str, Any], tensors: Sequence[Tensor] = (), most: int = 0, **how: Any
    ) -> Message:
        full = {"op": op, "id": self._number, "device": self._place, "seed": torch.initial_seed() % 2**63, **header}
        return self.channel.ask(Message(full, tensors), most=most, **how)

    def request(self, op: str, header: Mapping[str, Any], tensors: Sequence[Tensor] = (), **how: Any) -> Message:
        """An answer of the child's instance, which is made again where the child had ended."""
        self.channel.start()
        if self._generation != self.channel.generation:
            self._build()
        return self._raw(op, header, tensors, **how)

    def through(self, door: str, images: Tensor, generator: Generator | None) -> tuple[Tensor, ...]:
        """What a method of the child's instance returns, differentiable where it is."""
        outputs = _Through.apply(images, self, door, generator)  # type: ignore[no-untyped-call]
        return cast("tuple[Tensor, ...]", outputs)

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """Images moved back towards the clean data, by the child."""
        return self.through("purify", images, generator)[0]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The child's parameters and buffers."""
        answer = self.request("state", {})
        self._tensors = _named(answer.header.get("names"), answer.tensors)
        return dict(self._tensors)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Set the child's parameters and buffers."""
        names = list(state_dict)
        self.request("load_state", {"names": names}, [state_dict[name] for name in names])
        self._tensors, self._changed = {name: state_dict[name].detach().cpu().clone() for name in names}, True

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the shared classifier that the child's instance holds as its own: none, if it behaves."""
        for name in self._shared:
            yield printable(name, 100), next(self._given.parameters())

    def train(self, mode: bool = True) -> Isolated:
        """Put the child's instance in training or, from `eval()`, in eval mode."""
        self.request("mode", {"flag": mode})
        self.training = mode
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Isolated:
        """Freeze the child's weights, or free them."""
        self.request("freeze", {"flag": requires_grad})
        self._frozen = not requires_grad
        return self

    def to(self, *args: Any, **kwargs: Any) -> Isolated:
        """Move the child's instance to a device."""
        place = str(args[0] if args else kwargs.get("device", "cpu"))
        if place != self._place:
            self._place, self._generation = place, -1
        return self

    @property
    def computes_on(self) -> torch.device:
        """The device of the child's instance, whose parameters are not here."""
        return torch.device(self._place)

    def units(self, images: Tensor) -> float:
        """What a purification costs (bench.cost), counted in the child: it may lie, and the docs say so."""
        try:
            found = self.request("cost", {}, [images[:16]]).header.get("units")
        except ChildMemoryError:
            raise
        except ChildError:
            return 0.0
        return float(found) if isinstance(found, int | float) and 0 <= found < 1e12 else 0.0

    def _hurried(self) -> Isolated:
        """The hurried form of the child's instance, which lives in the same child."""
        found = copy.copy(self)
        found.__dict__.update(_whole=self, _number=next(_NUMBERS))
        found._build()
        weakref.finalize(found, _forget, self.channel, found._number)
        return found

    def _facts(self, clean: Tensor, attacked: Tensor, correct: Tensor) -> Mapping[str, Fact]:
        """What a child tells of attacked images (bench.facts checks it). One that is started for it and ends with the
        answer: it hears which images were classified correctly, which nobody who answers later may know."""
        asked, channel = copy.copy(self), self.channel.another()
        asked.__dict__.update(channel=channel, _generation=-1)
        try:
            told = asked.request("facts", {}, [clean, attacked, correct], most=1).header.get("facts")
        finally:
            channel.close()
        if not isinstance(told, Mapping):
            raise ChildError("told no facts")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}

    def _fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        parts = [data.train.images, data.train.labels, data.validation.images, data.validation.labels]
        header = {
            "name": data.name, "split": data.split, "class_names": list(data.class_names),
            "initial_seed": generator.initial_seed(),
        }  # fmt: skip
        raised: list[BaseException] = []
        with ExitStack() as tasks:
            shown = _Shown(progress, tasks)

            def event(message: Message) -> str:
                try:
                    shown.hear(message)
                except Exception as problem:  # an outside reason to stop: the training ends before it is raised here
                    raised.append(problem)
                return "stop" if raised else "go_on"

            seconds = self.channel.limits.fit_seconds
            answer = self.request("fit", header, [generator.get_state(), *parts], seconds=seconds, event=event)
        state, *tensors = answer.tensors
        _set(generator, state)
        self._tensors, self._changed = _named(answer.header.get("names"), tensors), True
        for problem in raised:
            raise problem
        if answer.header.get("touched"):
            raise RuntimeError("the defense changed the shared classifier's weights or mode")
        if answer.header.get("wrote"):
            raise RuntimeError("fit wrote to the training images")


class OwnClassifier(nn.Module):
    """A classifier that a defense brings, in the child."""

    def __init__(self, owner: Isolated) -> None:
        super().__init__()
        object.__setattr__(self, "_owner", owner)
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """The child's logits."""
        owner: Isolated = self._owner  # type: ignore[assignment]
        return owner.through("classifier", images, None)[0]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The child's parameters and buffers."""
        owner: Isolated = self._owner  # type: ignore[assignment]
        answer = owner.request("state", {"of": "classifier"})
        return dict(_named(answer.header.get("names"), answer.tensors))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Nothing: what changed in the child is the child's fault, and said."""


class _Shown:
    """Repeats a child's progress on the parent's."""

    def __init__(self, progress: Progress, tasks: ExitStack) -> None:
        self.progress, self.tasks = progress, tasks
        self.open: list[tuple[AbstractContextManager[Advance], Advance]] = []

    def hear(self, message: Message) -> None:
        """Show one event. Raises whatever the parent's progress raises."""
        told = message.header
        if told["event"] == "say":
            self.progress.say(printable(told.get("message"), 500))
        elif told["event"] == "begin" and len(self.open) < 8:
            label = printable(told.get("label"), 200)
            task = self.progress.task(label, float(told.get("total", 1)), float(told.get("done", 0)))
            self.open.append((task, task.__enter__()))
        elif told["event"] == "advance" and self.open:
            self.open[-1][1](float(told.get("units", 0)))
        elif told["event"] == "end" and self.open:
            self.open.pop()[0].__exit__(None, None, None)


class _Through(torch.autograd.Function):
    """A door of a child's instance: forward there, and the vector-Jacobian product there."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, owner: Isolated, door: str, generator: Generator | None
    ) -> tuple[Tensor, ...]:
        needed = bool(ctx.needs_input_grad[0])
        call = next(_NUMBERS)
        state = [generator.get_state()] if generator is not None else []
        most = max(2**24, len(images) * 2**20, LARGEST_ANSWER * images.numel() * images.element_size())
        header = {"door": door, "call": call, "grad": needed}
        answer = owner.request("call", header, [*state, images.detach()], most=most)
        after, outputs = list(answer.tensors[: len(state)]), list(answer.tensors[len(state) :])
        if not outputs or len(outputs) > 2:
            raise ChildError(f"{door} returned no tensor")
        if generator is not None:
            _set(generator, after[0])
        if answer.header.get("wrote"):
            raise ValueError("the defense wrote to its input images; work on images.clone()")
        owner.training = bool(answer.header.get("training"))
        outputs = [output.to(images.device) for output in outputs]
        graph = answer.header.get("graph")
        flags = [bool(flag) for flag in graph] if isinstance(graph, list) else []
        flags += [False] * (len(outputs) - len(flags))
        ctx.mark_non_differentiable(
            *(o for o, flag in zip(outputs, flags, strict=False) if not (flag and o.is_floating_point()))
        )
        ctx.set_materialize_grads(True)
        ctx.call, ctx.owner, ctx.shape, ctx.made = call, owner, images.shape, owner.channel.generation
        ctx.kept = _Kept(owner.channel, call) if any(flags) else None
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.owner.channel.generation != ctx.made:
            raise ChildError("the process that this gradient belongs to has ended")
        most = max(2**20, 2 * 8 * ctx.shape.numel())
        answer = ctx.owner.request("vjp", {"call": ctx.call}, gradients, most=most)
        if not answer.header.get("used"):
            return None, None, None, None
        if len(answer.tensors) != 1 or answer.tensors[0].shape != ctx.shape:
            raise ChildError(f"the gradient has another shape than the images, {tuple(ctx.shape)}")
        return answer.tensors[0].to(gradients[0].device), None, None, None


class _Kept:
    """A graph that the child keeps for as long as this exists."""

    def __init__(self, channel: Channel, call: int) -> None:
        self.channel, self.call = channel, call

    def __del__(self) -> None:
        self.channel.dropped.append(self.call)


def _set(generator: Generator, state: Tensor) -> None:
    """Move a generator to where the child's ended."""
    before = generator.get_state()
    if state.dtype != before.dtype or state.shape != before.shape:
        raise ChildError("sent no state of a generator")
    try:
        generator.set_state(state)
    except RuntimeError as problem:
        raise ChildError("sent no state of a generator") from problem


def _named(names: object, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    if not isinstance(names, list) or len(names) != len(tensors) or len({str(name) for name in names}) != len(names):
        raise ChildError("sent tensors without names")
    return {str(name): tensor for name, tensor in zip(names, tensors, strict=True)}


def _forget(channel: Channel, number: int) -> None:
    channel.freed.append(number)


def _numbers() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


_NUMBERS = _numbers()
_DOORS: Mapping[str, Any] = {
    "logits": lambda self, images, generator: self.through("logits", images, generator)[0],
    "approximate": lambda self, images, generator: self.through("approximate", images, generator)[0],
    "surrogate_logits": lambda self, images, generator: self.through("surrogate_logits", images, generator)[0],
    "rejection_score": lambda self, images, generator: self.through("rejection_score", images, generator)[0],
    "class_scores": lambda self, images, generator: self.through("class_scores", images, generator)[0],
    "start_codes": lambda self, images, generator: self.through("start_codes", images, generator)[0],
    "encode": lambda self, images: self.through("encode", images, None)[0],
    "decode": lambda self, latents: self.through("decode", latents, None)[0],
    "posterior": lambda self, images: self.through("posterior", images, None)[:2],
    "hurried": Isolated._hurried,
    "fit": Isolated._fit,
    "facts": Isolated._facts,
}
_KINDS = {"title": str, "paper": str, "year": int, "kind": str, "stochastic": bool, "differentiable": bool,
          "per_classifier": bool, "trained_on": str, "version": int}  # fmt: skip


def isolated(
    name: str,
    point: str,
    *,
    python: Path | str = sys.executable,
    path: Sequence[Path] = (),
    limits: Limits = Limits(),  # noqa: B008 - frozen
    data_root: Path | None = None,
    own_harness: bool = False,
) -> type[Isolated]:
    """The class that the entry point `point` ("module:Class") names, in a child process of the interpreter `python`.

    `path` are folders from which the child may import, besides what its interpreter finds; `own_harness` says that the
    interpreter has PurifyBench installed, so that nothing is imported from here. `data_root` is hidden from the child,
    as are the data sets in their usual places. Raises BenchError where the child cannot be started, the class does
    not import, or what it declares makes no sense.
    """
    if os.name != "posix":
        raise BenchError(f"{name} cannot be run in a process of its own on this system; use Linux or macOS")
    folders = [*([] if own_harness else [home_of("bench")]), *(Path(one).resolve() for one in path)]
    channel = Channel(name, point, Path(python), folders, limits, data_root)
    try:
        said = channel.start().header
        facts = said["facts"]
        for fact, value in facts.items():
            if type(value) is not _KINDS[fact]:
                raise BenchError(f"{name}: {fact} is {value!r}, expected {_KINDS[fact].__name__}")
        if facts.get("kind") not in ("purifier", "selective", "hardened"):
            raise BenchError(f"{name}: kind is {facts.get('kind')!r}, expected purifier, selective or hardened")
        doors = {door: _DOORS[door] for door in said["doors"]}
        body: dict[str, Any] = {
            **{fact: printable(value, 300) if isinstance(value, str) else value for fact, value in facts.items()},
            **doors, "__init__": _constructor(said["parameters"]), "__doc__": str(said["doc"]),
            "__module__": __name__, "name": name, "channel": channel,
            "sees_gpu": said.get("gpu") is True, "recipes": _recipes(said["recipes"]),
        }  # fmt: skip
        cls = cast("type[Isolated]", type(name, (Isolated,), body))
        source_of(cls, str(said["source"])[:64])
    except ChildError as problem:
        channel.close()
        raise BenchError(f"the defense {name!r} does not start in its own process: {problem}") from problem
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        channel.close()
        if isinstance(problem, BenchError):
            raise
        raise BenchError(
            f"the defense {name!r} describes itself wrongly ({type(problem).__name__}: {problem})"
        ) from problem
    weakref.finalize(cls, channel.close)
    return cls


def _recipes(said: Any) -> dict[str, dict[str, Any]]:
    return {printable(name, 40): {str(k): tuples(v) for k, v in recipe.items()} for name, recipe in said.items()}


def _constructor(parameters: Any) -> Any:
    """An `__init__` with the signature of the child's."""

    def __init__(self: Isolated, classifier: nn.Module, **settings: Any) -> None:  # noqa: N807
        Isolated.__init__(self, classifier, **settings)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter("self", kind), inspect.Parameter("classifier", kind)]
    for name, how, has_default, default in parameters:
        given = tuples(default) if has_default else inspect.Parameter.empty
        listed.append(inspect.Parameter(str(name), getattr(inspect._ParameterKind, how), default=given))
    __init__.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    return __init__
