"""Affine grids from percentiles: the best of a few ranges, each of which leaves out a share of the values at both ends.

Source: RepQ-ViT (Li et al., ICCV 2023) and its released code: the shares, and the squared error as the criterion.

Difference: a grid of a weight or of a whole tensor is extended to include 0, so that its zero point is a code. The
ranges of a layer norm's channels are not: `reparameterization` gives them a common zero point.
"""

import torch
from torch import Tensor

from dghlib.quantizers.calibration import Histogram
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import along_channels, channel_axis
from dghlib.quantizers.operations import Layer
from dghlib.quantizers.uneven import LogQuantizer

KEPT = (0.999, 0.9999, 0.99999)  # shares of the values, at each end
_AT_ONCE = 2**22  # values that are sorted together
_SMALLEST_SCALE = 1e-8


def weight_grid(layer: Layer, bits: int) -> UniformQuantizer:
    """Return affine grids for a layer's weight, one per output channel."""
    rows = layer.weight.detach().transpose(0, channel_axis(layer)).flatten(1)
    low, high = best_ranges(rows, bits, with_zero=True)
    scale = ((high - low) / (2**bits - 1)).clamp(min=_SMALLEST_SCALE)
    zero_point = (-low / scale).round()
    return UniformQuantizer(along_channels(scale, layer), along_channels(zero_point, layer), bits=bits, signed=False)


def tensor_grid(histogram: Histogram, bits: int) -> UniformQuantizer:
    """Return an affine grid for a tensor."""
    values, counts = _seen(histogram)
    ranges = [
        (min(_quantile(values, counts, 1 - kept), 0.0), max(_quantile(values, counts, kept), 0.0)) for kept in KEPT
    ]
    grids = []
    for low, high in ranges:
        scale = torch.tensor(max((high - low) / (2**bits - 1), _SMALLEST_SCALE), dtype=torch.float64)
        grids.append(UniformQuantizer(scale.float(), (-low / scale).round(), bits=bits, signed=False))
    return min(grids, key=lambda grid: _error(grid, values, counts))


def log_grid(histogram: Histogram, bits: int) -> LogQuantizer:
    """Return a logarithmic grid for a tensor without negative values that is not all 0."""
    values, counts = _seen(histogram)
    grids = [
        LogQuantizer(torch.tensor(max(_quantile(values, counts, kept), _SMALLEST_SCALE)), bits=bits) for kept in KEPT
    ]
    return min(grids, key=lambda grid: _error(grid, values, counts))


def best_ranges(rows: Tensor, bits: int, with_zero: bool) -> tuple[Tensor, Tensor]:
    """Return the lower and upper ends (R,) of the best affine grid for every row (R, K)."""
    found = [_best_ranges(part, bits, with_zero) for part in rows.split(max(1, _AT_ONCE // rows.shape[1]))]
    low, high = zip(*found, strict=True)
    return torch.cat(low), torch.cat(high)


def _best_ranges(rows: Tensor, bits: int, with_zero: bool) -> tuple[Tensor, Tensor]:
    ends = torch.tensor([*(1 - kept for kept in KEPT), *KEPT], dtype=rows.dtype, device=rows.device)
    lows, highs = rows.quantile(ends, dim=1).chunk(2)
    if with_zero:
        lows, highs = lows.clamp(max=0), highs.clamp(min=0)
    errors = []
    for low, high in zip(lows, highs, strict=True):
        scale = ((high - low) / (2**bits - 1)).clamp(min=_SMALLEST_SCALE)[:, None]
        codes = ((rows - low[:, None]) / scale).round().clamp(0, 2**bits - 1)
        errors.append((codes * scale + low[:, None] - rows).square().sum(1))
    best = torch.stack(errors).argmin(0, keepdim=True)
    return lows.gather(0, best)[0], highs.gather(0, best)[0]


def _seen(histogram: Histogram) -> tuple[Tensor, Tensor]:
    """Return the values that occur, ascending, and their counts, both in float64."""
    seen = histogram.counts > 0
    return histogram.centres()[seen].clamp(histogram.minimum, histogram.maximum), histogram.counts[seen].double()


def _quantile(values: Tensor, counts: Tensor, share: float) -> float:
    """Return the value below which this share of all values lies."""
    place = torch.searchsorted(counts.cumsum(0), share * counts.sum())
    return values[int(place.clamp(max=len(values) - 1))].item()


def _error(grid: UniformQuantizer | LogQuantizer, values: Tensor, counts: Tensor) -> float:
    return ((grid(values.float()).double() - values).square() @ counts).item()
