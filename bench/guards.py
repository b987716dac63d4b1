"""What stands around a defense's code while the harness calls it: its faults stay its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bench import training
from bench.errors import BenchError


@contextmanager
def untouched(classifier: nn.Module) -> Iterator[None]:
    """Raises RuntimeError on leaving if the classifier's weights or mode were changed inside, after mending them."""
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    expected = training.weights_hash(classifier)
    try:
        yield
    finally:
        changed = training.weights_hash(classifier) != expected
        in_training = any(module.training for module in classifier.modules())
        if changed:
            classifier.load_state_dict(before)
        classifier.eval()
    if changed or in_training:
        what = "changed the shared classifier's weights" if changed else "put the shared classifier in training mode"
        raise RuntimeError(f"the defense {what}")


@contextmanager
def its_own_fault() -> Iterator[None]:
    """Around the code of a defense: a BenchError that leaves it is its failure, and ends nobody else's run."""
    try:
        yield
    except BenchError as problem:
        raise RuntimeError(str(problem)) from problem
