"""What an attack raises: losses of logits (..., N, K) against labels (N,), one value for each image and draw (..., N).

Each is larger the more wrong the model is; targeted ones aim at one wrong class for each image, `target` (N,). Logits
of a random defense have a leading dimension of draws; losses are averaged over it, not logits, since the mean of logits
is another model (Athalye et al. 2018, arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bench.errors import unknown

Loss = Callable[..., Tensor]  # of (logits, labels), or (logits, labels, target)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-probability of the true class."""
    return -_at(logits.log_softmax(dim=-1), labels)


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


def targeted_margin(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the true one: where it is positive the image is misclassified."""
    return _at(logits, target) - _at(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """The targeted difference-of-logits ratio (Croce and Hein 2020, arXiv:2003.01690, eq. 7).

    Raises ValueError for fewer than four classes, for which it is not defined.
    """
    if logits.shape[-1] < 4:
        raise ValueError(
            f"the targeted DLR loss needs at least 4 classes, got {logits.shape[-1]}; use the targeted margin loss"
        )
    ordered = logits.sort(dim=-1, descending=True).values
    spread = ordered[..., 0] - (ordered[..., 2] + ordered[..., 3]) / 2
    return targeted_margin(logits, labels, target) / (spread + 1e-12)


LOSSES: Mapping[str, Loss] = MappingProxyType({"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr})


def get(name: str) -> Loss:
    """The loss of that name. Raises BenchError, with the nearest names, if there is none."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def true_gap(logits: Tensor, labels: Tensor) -> Tensor:
    """The true logit minus the best other one, (..., N): negative where the image is misclassified."""
    return _at(logits, labels) - without(logits, labels).amax(dim=-1)


def without(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits with the true class at minus infinity, so that the largest are the best wrong classes."""
    return logits.scatter(-1, _index(logits, labels), -torch.inf)


def mean_over_draws(values: Tensor) -> Tensor:
    """(N,) from (N,) or (draws, N). A draw that is not finite counts as the highest of the others, without a gradient;
    the mean is not finite only where no draw is."""
    if values.ndim == 1:
        return values
    finite = values.isfinite()
    highest = torch.where(finite, values, -torch.inf).amax(dim=0).detach()
    return torch.where(finite, values, highest).mean(dim=0)


def evened(logits: Tensor) -> Tensor:
    """Logits (draws, N, K) scaled so that each draw's range is the median one: no draw drowns the others in a mean."""
    extent = (logits.amax(dim=-1) - logits.amin(dim=-1)).detach()  # (draws, N)
    scale = extent.nanmedian(dim=0).values / extent
    return logits * torch.where(scale.isfinite(), scale, 1.0)[..., None]


def is_broken(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is misclassified, (N,) boolean; for logits with draws, in more than half of them. Logits that
    are not finite are wrong."""
    wrong = (logits.argmax(dim=-1) != labels) | ~logits.isfinite().all(dim=-1)
    return mean_over_draws(wrong.to(torch.float32)) > 0.5


def _at(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(-1, _index(logits, labels)).squeeze(-1)


def _index(logits: Tensor, labels: Tensor) -> Tensor:
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)
