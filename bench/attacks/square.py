"""Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search that sees scores and no gradient.

Each query changes a window of the best image so far at a random place, and the change stays if the loss grew. The
window shrinks on a fixed schedule. Ours is batched: every image has its own windows and its own random numbers.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.attacks import Attacked, Logits, Look, balls, look, losses
from bench.draws import ImageDraws

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: after these the window's area halves
CURVE_POINTS = 200
TINY = 1e-12


def square(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    loss: str = "margin",
    queries: int = 5000,
    p_init: float | None = None,
    stop_when_broken: bool = False,
) -> Attacked:
    """Square Attack in the "linf" or "l2" ball (algorithms 1 to 3) with any loss of bench.attacks.losses.

    Query 0 looks at the clean image, query 1 at the published start, every later one at a changed window. `p_init` is
    the first window's share of the image: None is 0.8 for Linf (AutoAttack's value, arXiv:2003.01690) and 0.1 for L2
    (the paper's). The best image seen is returned: a broken one before an unbroken one, then that of higher loss.

    `stop_when_broken` takes broken images out of the batch: sound where `logits` is the very model that is scored.
    Where it answers with draws, (draws, N, K), one answer proves nothing: nothing leaves, and mean losses alone
    compare. A lucky answer then raises the bar for all later proposals. That costs queries but flatters no number,
    since fresh draws score the image; and on noisy classifiers it ended at higher true losses than asking the best
    image again every 2nd, 4th or 10th query, as a bar that comes down lets worse images in.

    `losses` holds the loss of the best image after each of CURVE_POINTS evenly spaced queries (all of them if there are
    fewer), 0 and the last among them; `step_of_success` counts queries. Deviations: windows reach the last row and
    column, as in the paper but not in its code; in an image that is not square they have the same share of its area,
    cut to the shorter side. Raises ValueError for eps < 0, queries < 1, p_init outside (0, 1] or an unknown norm.
    """
    measure = losses.get(loss)

    def seen(rows: Tensor, proposals: Tensor) -> Look:
        return look(logits, proposals, labels[rows], measure, last=True)

    return random_search(
        seen, images, eps=eps, draws=draws, norm=norm, queries=queries, p_init=p_init, stop_when_broken=stop_when_broken
    )


class Seen(Protocol):
    """What one query told of each image (N,): the loss to raise, whether it is broken, and whether that is sure."""

    @property
    def loss(self) -> Tensor: ...

    @property
    def broken(self) -> Tensor: ...

    @property
    def certain(self) -> Tensor | bool: ...


def random_search(
    query: Callable[[Tensor, Tensor], Seen],
    images: Tensor,
    *,
    eps: float,
    draws: ImageDraws,
    norm: str = "linf",
    queries: int = 5000,
    p_init: float | None = None,
    stop_when_broken: bool = False,
) -> Attacked:
    """The search of `square`, whatever is looked for: `query` tells of proposals (M, C, H, W) for the images at the
    indices (M,), and the best image seen is returned, a broken one before an unbroken one, then that of higher loss."""
    if eps < 0 or queries < 1 or (p_init is not None and not 0 < p_init <= 1):
        raise ValueError(f"square needs eps >= 0, queries >= 1 and p_init in (0, 1], got {eps}, {queries}, {p_init}")
    ball, search, everyone = balls.get(norm), SEARCHES[norm], torch.arange(len(images), device=images.device)
    clean = seen = query(everyone, images)
    best, best_loss, best_broken = images.clone(), clean.loss.clone(), clean.broken & clean.certain
    success = torch.where(clean.broken, 0, torch.full_like(everyone, -1))
    recorded = {round(point * queries / (CURVE_POINTS - 1)) for point in range(CURVE_POINTS)}
    curve = [clean.loss]
    left, noise = everyone, draws  # the images still under attack
    for asked in range(1, queries + 1):
        if stop_when_broken:
            unbroken = ~best_broken[left]
            left, noise = left[unbroken], noise.rows(unbroken)
        if len(left) == 0:
            break
        centre, current = images[left], best[left]
        if asked == 1:
            proposal = search.start(centre, eps, noise)
        else:
            side = search.side(p_init or search.p_init, (asked - 2) / queries, images.shape)
            proposal = search.propose(centre, current, eps, side, noise)
        proposal = ball.project(proposal, centre, eps)
        seen = query(left, proposal)
        broken = seen.broken & seen.certain
        better = _better(broken, seen.loss, best_broken[left], best_loss[left])
        taken = left if asked == 1 else left[better]
        rows = slice(None) if asked == 1 else better
        best[taken], best_loss[taken], best_broken[taken] = proposal[rows], seen.loss[rows], broken[rows]
        success[left[seen.broken & (success[left] < 0)]] = asked
        if asked in recorded:
            curve.append(best_loss.clone())
    curve += [best_loss] * (len(recorded) - len(curve))
    unmoved = _better(clean.broken & clean.certain, clean.loss, best_broken, best_loss)
    best[unmoved] = images[unmoved]
    return Attacked(best, torch.stack(curve), success, best_broken | (clean.broken & clean.certain))


def _better(broken: Tensor, loss: Tensor, than_broken: Tensor, than_loss: Tensor) -> Tensor:
    return (broken & ~than_broken) | ((broken == than_broken) & (loss > than_loss))


# ------------------------------------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class Search:
    """How a norm's random search starts, proposes (images, best, eps, side, draws), and sizes its windows in pixels."""

    start: Callable[[Tensor, float, ImageDraws], Tensor]
    propose: Callable[[Tensor, Tensor, float, int, ImageDraws], Tensor]
    p_init: float
    odd: bool

    def side(self, p: float, progress: float, shape: torch.Size) -> int:
        """The window's side after this share of all queries, in images of `shape` (N, C, H, W)."""
        area = p * 0.5 ** bisect_left(HALVINGS, int(progress * 10_000)) * shape[2] * shape[3]
        side = max(round(math.sqrt(area)), 3 if self.odd else 1)
        return min(side + (self.odd and side % 2 == 0), shape[2], shape[3])


def _window(images: Tensor, place: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An index of one window an image, images[window] being (N, C, side, side); `place` (N, 2) is uniform on [0, 1)."""
    n, channels, height, width = images.shape
    corner = (place * torch.tensor([height - side + 1, width - side + 1], device=place.device)).long()
    reach = torch.arange(side, device=images.device)
    rows, columns = corner[:, :1] + reach, corner[:, 1:] + reach  # (N, side)
    image, channel = torch.arange(n, device=images.device), torch.arange(channels, device=images.device)
    return image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]


def _signs(uniform: Tensor, like: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)


# ---------------------------------------------------------------------------------------------------------- Linf


def _stripes(images: Tensor, eps: float, draws: ImageDraws) -> Tensor:
    """Vertical stripes one pixel wide, each channel moved by eps up or down."""
    return images + eps * _signs(draws.uniform(images.shape[1], 1, images.shape[3]), images)


def _recolour(images: Tensor, best: Tensor, eps: float, side: int, draws: ImageDraws) -> Tensor:
    """A window of which each channel moves by 2 eps up or down, hence after projection to one face of the ball."""
    uniform = draws.uniform(images.shape[1] + 2)
    window = _window(images, uniform[:, :2], side)
    proposal = best.clone()
    proposal[window] += 2 * eps * _signs(uniform[:, 2:, None, None], images)
    return proposal


# ------------------------------------------------------------------------------------------------------------ L2


def _tiles(images: Tensor, eps: float, draws: ImageDraws) -> Tensor:
    """A grid of double pyramids with random signs and orientations, five to the shorter side, of length eps in all."""
    n, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    uniform = draws.uniform(channels + 1, down, across)[..., None, None]
    tiles = _signs(uniform[:, 1:], images) * _turned(uniform[:, :1], side, images)  # (N, C, down, across, side, side)
    grid = tiles.transpose(3, 4).reshape(n, channels, down * side, across * side)
    top, start = (height - down * side) // 2, (width - across * side) // 2
    change = torch.zeros_like(images)
    change[:, :, top : top + grid.shape[2], start : start + grid.shape[3]] = grid
    return images + eps * change / _length(change, (1, 2, 3))


def _move_mass(images: Tensor, best: Tensor, eps: float, side: int, draws: ImageDraws) -> Tensor:
    """The change of one window goes, with what is left of eps, to another that is pushed towards a double pyramid."""
    channels = images.shape[1]
    uniform = draws.uniform(channels + 5)
    to, source = _window(images, uniform[:, :2], side), _window(images, uniform[:, 2:4], side)
    uniform = uniform[:, 4:, None, None]  # (N, 1 + C, 1, 1)
    change = best - images
    emptied = change.clone()
    emptied[to] = 0
    emptied[source] = 0
    mass = (change.square() - emptied.square()).sum(dim=(2, 3), keepdim=True)  # (N, C, 1, 1), of both windows
    unused = (eps**2 - change.square().sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0)
    pushed = change[to] / _length(change[to], (2, 3))
    pushed = pushed + _signs(uniform[:, 1:], images) * _turned(uniform[:, :1], side, images)
    emptied[to] = pushed / _length(pushed, (2, 3)) * (mass + unused / channels).sqrt()
    return images + eps * emptied / _length(emptied, (1, 2, 3))


def _turned(uniform: Tensor, side: int, like: Tensor) -> Tensor:
    """The double pyramid, or its transpose, by the toss of a coin; (..., side, side) for `uniform` (..., 1, 1)."""
    pyramids = _double_pyramid(side).to(like)
    return torch.where(uniform < 0.5, pyramids, pyramids.T)


@functools.cache
def _double_pyramid(side: int) -> Tensor:
    """Eta of the paper (eq. 2): a positive pyramid over a negative one, of length 1 in all; (side, side), float64."""
    upper, lower = _pyramid(side // 2, side), -_pyramid(side - side // 2, side)
    both = torch.cat([upper, lower])
    return both / _length(both, (0, 1))


def _pyramid(height: int, width: int) -> Tensor:
    """Rectangles stacked around a centre, the k-th smallest of them 1 / k^2 high, of length 1; (height, width)."""
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns)  # the number of the smallest rectangle around a pixel, from 0
    steps = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64).square()
    stacked = steps.flip(0).cumsum(0).flip(0)[ring]
    return stacked / _length(stacked, (0, 1))


def _length(change: Tensor, dims: tuple[int, ...]) -> Tensor:
    return change.square().sum(dim=dims, keepdim=True).sqrt().clamp(min=TINY)


SEARCHES = {"linf": Search(_stripes, _recolour, 0.8, odd=False), "l2": Search(_tiles, _move_mass, 0.1, odd=True)}
