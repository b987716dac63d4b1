"""What a purification costs, counted and not timed: in forward and backward passes of the classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench import draws
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
    attacked with less effort, so nobody may buy it. 0 where the defense fails, as it then does in its cells.
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
    except (Exception, SystemExit):
        return 0.0


def budget(units: float) -> Budget:
    """The budget class of a purification that costs so many units."""
    return next(name for name, most in BUDGETS.items() if units <= most)


def _operations(work: Callable[[], object]) -> int:
    with _Operations() as counted:
        work()
    return int(counted.total)
