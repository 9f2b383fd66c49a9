"""Grids with any step size and a zero point: the grid with the smallest error in the 2.4th power.

`ranges` searches thresholds that hardware with shifts can use. The reconstruction methods use any step size and shift
the grid so that it covers the values. Each search tries a list of grids for every row of values at once and keeps, per
row, the grid with the smallest sum of |x - quantized x| ** p, where p is 2.4 unless the name of the search has another
power.

Sources: BRECQ's code (80 shrinking ranges); QDrop's (ranges of every width at every zero point); GENIE's (100
ranges, for activations without a zero point).

Differences from them:
1. Every range is extended to include zero, so that the zero point is a code. Integer hardware needs this; the authors'
   grids of channels whose weights all have the same sign may lack it.
2. Activations are searched on a histogram of all calibration images; the authors take the values of 64 (BRECQ),
   256 (QDrop) or 32 (GENIE) images.
3. QDrop's search tries at most 64 evenly spaced zero points, so that 8 bits do not take 25 600 tries.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dghlib.quantizers.calibration import Histogram
from dghlib.quantizers.grid import UniformQuantizer, code_limits
from dghlib.quantizers.layers import along_channels, channel_axis
from dghlib.quantizers.operations import Layer

_POWER = 2.4
_OTHER_POWERS = {"l1": 1.0, "l2": 2.0, "l3": 3.0, "l4": 4.0}  # tried by GENIE, appendix D, Eq. A3
_SMALLEST_SCALE = 1e-8
_PERCENT = 100
_MOST_ZERO_POINTS = 64
_AT_ONCE = 2**18  # values that stay in a processor's cache while all grids are tried

Grids = Iterator[tuple[Tensor, Tensor]]  # scales (R, 1) and zero points (R, 1), a pair per try


class Search(Protocol):
    """Yields the grids to try for rows whose values lie in [low, high], both (R, 1), low <= 0 <= high."""

    def __call__(self, low: Tensor, high: Tensor, bits: int) -> Grids: ...


def min_max(low: Tensor, high: Tensor, bits: int) -> Grids:
    """Take the whole range, as fine-tuning in the family of GDFQ does."""
    return _shrunk(low, high, bits, 1)


def shrink_80(low: Tensor, high: Tensor, bits: int) -> Grids:
    """Try 100, 99, ... 21 % of the range: BRECQ."""
    return _shrunk(low, high, bits, 80)


def shrink_100(low: Tensor, high: Tensor, bits: int) -> Grids:
    """Try 100, 99, ... 1 % of the range: GENIE's weights."""
    return _shrunk(low, high, bits, _PERCENT)


def _shrunk(low: Tensor, high: Tensor, bits: int, tries: int) -> Grids:
    for percent in range(_PERCENT, _PERCENT - tries, -1):
        scale = _scale((high - low) * percent / _PERCENT, 2**bits - 1)
        yield scale, (-low * percent / _PERCENT / scale).round()


def two_sided(low: Tensor, high: Tensor, bits: int) -> Grids:
    """Try every percentage of the range's width at every zero point: QDrop."""
    codes = 2**bits - 1
    zero_points = list(range(0, codes + 1, max(1, 2**bits // _MOST_ZERO_POINTS))) if (low < 0).any() else [0]
    for percent in range(_PERCENT, 0, -1):
        scale = _scale((high - low) * percent / _PERCENT, codes)
        for zero_point in zero_points:
            yield scale, torch.full_like(scale, zero_point)


def symmetric_100(low: Tensor, high: Tensor, bits: int) -> Grids:
    """Try every percentage of the largest magnitude, zero point 0: GENIE's activations."""
    width = torch.where(low < 0, 2 * torch.maximum(-low, high), high)
    for percent in range(_PERCENT, 0, -1):
        scale = _scale(width * percent / _PERCENT, 2**bits - 1)
        yield scale, torch.zeros_like(scale)


def _scale(width: Tensor, steps: int) -> Tensor:
    return (width / steps).clamp(min=_SMALLEST_SCALE)


WEIGHT_SEARCHES: Mapping[str, Search] = {
    "min_max": min_max,
    "shrink_80": shrink_80,
    "shrink_100": shrink_100,
    "two_sided": two_sided,
    **dict.fromkeys(_OTHER_POWERS, shrink_100),
}
ACTIVATION_SEARCHES: Mapping[str, Search] = {**WEIGHT_SEARCHES, "symmetric_100": symmetric_100}


def weight_grid(layer: Layer, bits: int, search: str) -> UniformQuantizer:
    """Return the best grids, one per output channel, for a layer's weight; a channel of zeros gets the finest grid."""
    rows = layer.weight.detach().transpose(0, channel_axis(layer)).flatten(1)
    found = [_best(part, None, bits, search) for part in rows.split(max(1, _AT_ONCE // rows.shape[1]))]
    scales, zero_points = (torch.cat(parts) for parts in zip(*found, strict=True))
    return UniformQuantizer(along_channels(scales, layer), along_channels(zero_points, layer), bits=bits, signed=False)


def activation_grid(histogram: Histogram, bits: int, search: str) -> UniformQuantizer:
    """Return the best grid for a tensor."""
    seen = histogram.counts > 0
    centres, counts = histogram.centres()[seen], histogram.counts[seen]
    signed = ACTIVATION_SEARCHES[search] is symmetric_100 and histogram.minimum < 0
    centres = centres.clamp(histogram.minimum, histogram.maximum)  # a bin's centre may lie beyond all its values
    scale, zero_point = _best(centres[None], counts, bits, search, signed)
    return UniformQuantizer(scale[0].float(), zero_point[0], bits=bits, signed=signed)


def _best(rows: Tensor, counts: Tensor | None, bits: int, search: str, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Return scales (R,) and zero points (R,) for rows (R, K), whose values have the weights `counts` (K,)."""
    low, high = (bound.unsqueeze(1) for bound in rows.aminmax(dim=1))
    low, high = low.clamp(max=0), high.clamp(min=0)
    limits = code_limits(bits, signed)
    power = _OTHER_POWERS.get(search, _POWER)
    smallest = torch.full_like(low, torch.inf)
    best_scale, best_zero_point = torch.ones_like(low), torch.zeros_like(low)
    for scale, zero_point in ACTIVATION_SEARCHES[search](low, high, bits):
        codes = rows.div(scale).round_().add_(zero_point).clamp_(*limits)
        error = codes.sub_(zero_point).mul_(scale).sub_(rows).abs_().pow_(power)
        total = error.sum(1, keepdim=True) if counts is None else (error @ counts).unsqueeze(1)
        better = total < smallest
        smallest = torch.where(better, total, smallest)
        best_scale = torch.where(better, scale, best_scale)
        best_zero_point = torch.where(better, zero_point, best_zero_point)
    return best_scale.squeeze(1), best_zero_point.squeeze(1)
