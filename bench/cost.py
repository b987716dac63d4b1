"""What a purification costs, counted and not timed: in forward and backward passes of the classifier."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench import draws, memory
from bench.defense import Defense
from bench.protocol import BUDGETS, Budget

BATCHES = (1, 4, 16)  # sizes that are tried, with gradients and without: the cheapest way counts


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations of products and convolutions, and the numbers that all other operations return.

    torch's own FlopCounterMode has the formulas, but refuses to run around torch.autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        else:
            parts = result if isinstance(result, tuple | list) else (result,)
            self.total += sum(part.numel() for part in parts if isinstance(part, Tensor))
        return result


def purification_units(defense: Defense, classifier: nn.Module, images: Tensor) -> float:
    """The cost of a defense's answer to one image beyond the classifier's own, in forward and backward passes of
    `classifier` for one image.

    Floating-point operations of products and convolutions plus one for each number that any other operation returns,
    counted while the defense answers `images` (N, C, H, W), in relation to the same count of the classifier: the same
    on every machine. Of several sizes of batch, with gradients on and off, the least counts: a costlier class is
    attacked with less effort, so nobody may buy it. 0 where the defense fails, as it then does in its cells; a full
    memory is raised.
    """

    def unit(n: int) -> float:
        attacked = images[:n].clone().requires_grad_()
        return _operations(lambda: torch.autograd.grad(classifier(attacked).sum(), attacked)) / n

    def answer(n: int, gradients: bool) -> float:
        generator = draws.generator(images.device, "cost")
        with torch.set_grad_enabled(gradients):
            return _operations(lambda: defense.logits(images[:n].clone(), generator)) / n

    def bare(n: int) -> float:
        with torch.no_grad():
            return _operations(lambda: classifier(images[:n])) / n

    sizes = [size for size in BATCHES if size <= len(images)]
    try:
        least = min(answer(n, gradients) - bare(n) for n in sizes for gradients in (False, True))
        return max(0.0, least) / unit(sizes[-1])
    except (Exception, SystemExit) as problem:
        if memory.is_full(problem):
            raise
        return 0.0


def passes(defense: Defense, images: Tensor, generator: Generator) -> dict[str, tuple[float, float]]:
    """The rows that each net carries forward and backward while a defense answers `images` (N, C, H, W), for one image:
    "classifier", and by its name every module of the defense's own that its code calls, without what that calls in
    turn."""
    counted: dict[str, list[int]] = {}
    inside: list[str] = []
    nets = [("classifier", defense.classifier), *((name, part) for name, part in defense.named_modules() if name)]

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    def leave(module: nn.Module, given: object, result: object) -> None:
        name = inside.pop()
        if inside or not isinstance(result, Tensor) or not result.ndim:
            return
        rows = counted.setdefault(name, [0, 0])
        rows[0] += len(result)
        if result.requires_grad:

            def back(gradient: Tensor) -> None:
                rows[1] += len(gradient)

            result.register_hook(back)  # type: ignore[no-untyped-call]

    hooks = [
        hook
        for name, net in nets
        for hook in (net.register_forward_pre_hook(enter(name)), net.register_forward_hook(leave))
    ]
    try:
        with torch.no_grad():
            defense.logits(images, generator)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (ahead / len(images), back / len(images)) for name, (ahead, back) in counted.items()}


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that were made inside and are alive: `peak` is the most, the same on every machine.
    What a kernel needs for itself is not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._alive = 0
        self._seen = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(part.untyped_storage()) for part in args if isinstance(part, Tensor)}
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                if id(storage) not in given and storage not in self._seen:
                    self._seen.add(storage)
                    self._alive += storage.nbytes()
                    self.peak = max(self.peak, self._alive)
                    weakref.finalize(storage, self._gone, storage.nbytes())
        return result

    def _gone(self, size: int) -> None:
        self._alive -= size


def budget(units: float) -> Budget:
    """The budget class of a purification that costs so many units."""
    return next(name for name, most in BUDGETS.items() if units <= most)


def _operations(work: Callable[[], object]) -> int:
    with _Operations() as counted:
        work()
    return int(counted.total)
