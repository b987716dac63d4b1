"""PixelCNN (van den Oord et al. 2016, arXiv:1601.06759): the likelihood of an image, level by level.

Rows go from top to bottom, pixels from left to right, channels in their order; each level has a softmax given all that
come before. `greedy` goes that way once, and computes each feature once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

REACH = 3  # the first layer sees so many rows above, and so many pixels to the left and right


class PixelCNN(nn.Module):
    """A softmax over `levels` for each channel of each pixel of images (C, H, W), given what comes before.

    Two stacks, so that there is no blind spot (van den Oord et al. 2016, arXiv:1606.05328): the vertical one sees the
    rows above, the horizontal one the pixels to the left and the vertical one's features. Masks are paddings on one
    side (Salimans et al. 2017, arXiv:1701.05517). The first layers leave out the pixel itself (type A), those of the
    residual blocks, one for each of `dilations`, need not (type B). The head of a channel also sees the channels before
    it of its own pixel.

    Raises ValueError for a shape, width or dilation below 1, and for fewer than 2 levels.
    """

    def __init__(
        self, shape: tuple[int, int, int], width: int = 128, dilations: Sequence[int] = (1, 2, 4), levels: int = 256
    ) -> None:
        super().__init__()
        if len(shape) != 3 or min(*shape, width) < 1:
            raise ValueError(f"a PixelCNN needs a shape (C, H, W) and a width from 1, got {shape} and {width}")
        if any(dilation < 1 for dilation in dilations):
            raise ValueError(f"dilations of a PixelCNN are whole numbers from 1, got {tuple(dilations)}")
        if levels < 2:
            raise ValueError(f"a PixelCNN needs at least 2 levels, got {levels}")
        self.levels, self.dilations = levels, tuple(dilations)
        self.above = nn.Conv2d(shape[0], width, (REACH, 2 * REACH + 1))
        self.left = nn.Conv2d(shape[0], width, (1, REACH), bias=False)
        self.across = nn.Conv2d(width, width, 1)
        self.blocks = nn.ModuleList(Block(width, dilation) for dilation in dilations)
        self.heads = nn.ModuleList(  # one a channel; it takes the channels before it, too
            nn.Sequential(nn.Linear(width + k, width), nn.ReLU(), nn.Linear(width, levels)) for k in range(shape[0])
        )

    def scaled(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """What the net sees of whole levels: numbers in [-1, 1], same shape."""
        return levels.to(dtype) * (2 / (self.levels - 1)) - 1

    def forward(self, levels: Tensor) -> Tensor:
        """Logits (N, C, H, W, levels) of each level of images (N, C, H, W), which hold whole numbers from 0."""
        return torch.stack(list(self._logits(levels)), dim=1)

    def bits(self, levels: Tensor) -> Tensor:
        """Bits per dimension, (N,): minus the binary logarithm of the likelihood of images (N, C, H, W) of whole
        levels, divided by C * H * W."""
        nats = [
            cross_entropy(logits.flatten(0, 2), levels[:, k].flatten(), reduction="none")  # (N * H * W,)
            for k, logits in enumerate(self._logits(levels))
        ]
        return torch.stack(nats).view(levels.shape[1], len(levels), -1).mean(dim=(0, 2)) / math.log(2)

    def _logits(self, levels: Tensor) -> Iterator[Tensor]:
        """Those of one channel after the other, (N, H, W, levels)."""
        pixels = self.scaled(levels, self.above.weight.dtype)
        vertical = self.above(pad(pixels, (REACH, REACH, REACH, 0))[:, :, :-1])  # (N, width, H, W)
        horizontal = self.left(pad(pixels, (REACH, 0))[..., :-1]) + self.across(vertical.relu())
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal)
        context = horizontal.relu().movedim(1, 3).contiguous()  # (N, H, W, width): a product for all pixels is fastest
        for k, head in enumerate(self.heads):
            known = torch.cat([context, pixels[:, :k].movedim(1, 3)], dim=3) if k else context
            yield head(known)

    @torch.no_grad()
    def greedy(self, low: Tensor, high: Tensor) -> Tensor:
        """The most likely level from `low` to `high` at each place, given those chosen before it: whole levels
        (N, C, H, W), as both bounds. Of equally likely ones the lowest.

        In double precision: how sums round depends on the batch, and would decide between levels that are nearly as
        likely, and so all that follows.
        """
        kept = _Kept(self, low)
        every = torch.arange(self.levels, device=low.device)
        rows = []
        for i in range(low.shape[2]):
            kept.next_row()
            least, most = (bound[:, :, i].permute(2, 1, 0)[..., None] for bound in (low, high))
            outside = ((every < least) | (every > most)).flatten(0, 1).unbind()  # of (N, levels), pixel by pixel
            row: list[Tensor] = []
            for j in range(low.shape[3]):
                context = kept.context(j)
                for k in range(low.shape[1]):
                    row.append(kept.logits(context, j, k).masked_fill_(outside[len(row)], -math.inf).argmax(dim=1))
                    kept.put(row[-1], j, k)
            rows.append(torch.stack(row).view(low.shape[3], low.shape[1], -1))
        return torch.stack(rows).permute(3, 2, 0, 1).contiguous()  # (H, W, C, N) before


class Block(nn.Module):
    """A residual step of both stacks; at dilation d the vertical one looks at this row and the d-th above, d pixels to
    the left and right, the horizontal one at this pixel and the d-th to the left."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.vertical = nn.Conv2d(width, width, (2, 3), dilation=dilation)
        self.vertical_out = nn.Conv2d(width, width, 1, bias=False)
        self.horizontal = nn.Conv2d(width, width, (1, 2), dilation=dilation, bias=False)
        self.across = nn.Conv2d(width, width, 1)
        self.horizontal_out = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks' features (N, width, H, W), one step on."""
        d = self.dilation
        vertical = vertical + self.vertical_out(self.vertical(pad(vertical.relu(), (d, d, d, 0))).relu())
        seen = self.horizontal(pad(horizontal.relu(), (d, 0))) + self.across(vertical.relu())
        return vertical, horizontal + self.horizontal_out(seen.relu())


class _Kept:
    """The features of a net (see `PixelCNN.forward`) while N images are being chosen: those of the vertical stack a row
    at a time, those of the horizontal one a pixel at a time, each kept while others look back at it.

    Features of a row are (W, N, width), so that those of a pixel lie together; a convolution is a product with the
    places that it looks at side by side. The weights are the net's as it is now, in double precision.
    """

    def __init__(self, net: PixelCNN, images: Tensor) -> None:
        n, channels, _, self.row_length = images.shape
        self.net = net
        self.weights, self.biases = {}, {}
        for name, tensor in net.state_dict().items():
            layer, kind = name.rsplit(".", 1)
            if kind == "bias":
                self.biases[layer] = tensor.double()
            else:  # (rows * columns * in, out)
                kernel = tensor.double().view(*tensor.shape, *[1] * (4 - tensor.ndim))
                self.weights[layer] = kernel.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        self.blank = images.new_zeros(n, self.row_length + REACH, channels, dtype=torch.float64)
        self.rows = deque([self.blank] * REACH, maxlen=REACH)  # scaled pixels, padded on the left; the last is filled
        self.values = net.scaled(torch.arange(net.levels, device=images.device), torch.float64)
        self.nothing = self.blank.new_zeros(self.row_length, n, net.above.out_channels)
        self.above = [deque([self.nothing] * d, maxlen=d) for d in net.dilations]  # d rows, active, of a block each
        self.across: list[Tensor] = []  # what each layer of the horizontal stack takes from the vertical one, this row
        self.before: list[list[Tensor]] = []  # each block's active horizontal features on this row, after d of nothing

    def next_row(self) -> None:
        """Go to the next row: all vertical features there, which depend on the rows before alone."""
        rows = [pad(row, (0, 0, 0, REACH)).transpose(0, 1) for row in self.rows]  # (W + 2 REACH, N, C) each
        vertical = self._product("above", self._windows(rows, 1, 2 * REACH + 1))
        self.across = [self._product("across", vertical.relu())]
        for number, (d, above) in enumerate(zip(self.net.dilations, self.above, strict=True)):
            active = vertical.relu()
            rows = [pad(row, (0, 0, 0, 0, d, d)) for row in (above[0], active)]
            above.append(active)
            inner = self._product(f"blocks.{number}.vertical", self._windows(rows, d, 3))
            vertical = vertical + self._product(f"blocks.{number}.vertical_out", inner.relu())
            self.across.append(self._product(f"blocks.{number}.across", vertical.relu()))
        self.before = [[self.nothing[0]] * d for d in self.net.dilations]
        self.rows.append(self.blank.clone())

    def context(self, j: int) -> Tensor:
        """What the heads see at pixel j of the row, (N, width), once all pixels before it are put."""
        left = self.rows[-1][:, j : j + REACH].flatten(1)  # (N, REACH * C)
        horizontal = torch.addmm(self.across[0][j], left, self.weights["left"])
        for number, before in enumerate(self.before):
            before.append(horizontal.relu())
            both = torch.cat([before[j], before[-1]], dim=1)
            inner = torch.addmm(self.across[number + 1][j], both, self.weights[f"blocks.{number}.horizontal"])
            horizontal = torch.addmm(horizontal, inner.relu(), self.weights[f"blocks.{number}.horizontal_out"])
        return horizontal.relu()

    def logits(self, context: Tensor, j: int, k: int) -> Tensor:
        """The logits (N, levels) of channel k at pixel j, once the channels before it are put."""
        known = torch.cat([context, self.rows[-1][:, j + REACH, :k]], dim=1) if k else context
        return self._product(f"heads.{k}.2", self._product(f"heads.{k}.0", known).relu())

    def put(self, level: Tensor, j: int, k: int) -> None:
        """Say what channel k of pixel j is: whole levels (N,)."""
        self.rows[-1][:, j + REACH, k] = self.values[level]

    def _windows(self, rows: list[Tensor], step: int, columns: int) -> Tensor:
        """What a kernel sees of padded rows at each place, side by side, (W, N, rows * columns * in)."""
        return torch.cat([row[c * step :][: self.row_length] for row in rows for c in range(columns)], dim=2)

    def _product(self, layer: str, features: Tensor) -> Tensor:
        weight, bias = self.weights[layer], self.biases.get(layer)
        flat = features.flatten(0, -2)
        product = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return product if flat is features else product.view(*features.shape[:-1], -1)
