"""What an attack raises: losses of logits (..., N, K) against labels (N,), one value for each image and draw (..., N).

Each is larger the more wrong the model is. Logits of a random defense have a leading dimension of draws; losses are
averaged over it, not logits, since the mean of logits is another model (Athalye et al. 2018, arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bench.errors import unknown

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-probability of the true class."""
    return -logits.log_softmax(dim=-1).gather(-1, _index(logits, labels)).squeeze(-1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best other logit minus the true one: positive where the image is misclassified.

    It does not saturate, and steps that normalise their gradient make it independent of a model's temperature.
    """
    return -true_gap(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The difference-of-logits ratio (Croce and Hein 2020, arXiv:2003.01690, eq. 6).

    Raises ValueError for fewer than three classes, for which it is not defined.
    """
    if logits.shape[-1] < 3:
        raise ValueError(f"the DLR loss needs at least 3 classes, got {logits.shape[-1]}; use the margin loss")
    ordered = logits.sort(dim=-1, descending=True).values
    return -true_gap(logits, labels) / (ordered[..., 0] - ordered[..., 2] + 1e-12)


LOSSES: Mapping[str, Loss] = MappingProxyType({"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr})


def get(name: str) -> Loss:
    """The loss of that name. Raises BenchError, with the nearest names, if there is none."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def true_gap(logits: Tensor, labels: Tensor) -> Tensor:
    """The true logit minus the best other one, (..., N): negative where the image is misclassified."""
    index = _index(logits, labels)
    true = logits.gather(-1, index).squeeze(-1)
    return true - logits.scatter(-1, index, -torch.inf).amax(dim=-1)


def mean_over_draws(values: Tensor) -> Tensor:
    """(N,) from (N,) or (draws, N)."""
    return values if values.ndim == 1 else values.mean(dim=0)


def is_broken(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is misclassified, (N,) boolean; for logits with draws, in more than half of them."""
    wrong = (logits.argmax(dim=-1) != labels).to(torch.float32)
    return mean_over_draws(wrong) > 0.5


def _index(logits: Tensor, labels: Tensor) -> Tensor:
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)
