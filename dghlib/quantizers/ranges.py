"""The range of a grid: the threshold with the smallest squared error.

A wide grid clips nothing and rounds coarsely; a narrow grid clips and rounds finely. Each search tries a list of
thresholds and keeps the one with the smallest squared error; of equal ones the smallest.

Source: H. V. Habi et al., "HPTQ: Hardware-Friendly Post Training Quantization" (2021), for the halving
search; numbers of candidates and smallest threshold as in its authors' Model Compression Toolkit (MCT).

Differences from MCT:
1. A histogram has bins of a power-of-two width, which merge exactly (see `calibration.Histogram`); MCT
   interpolates between the histograms of batches.
2. The error of a bin is that of its centre; MCT takes the left edge, which shifts every value by half a bin.
3. Free thresholds are the best of 100 evenly spaced ones; MCT narrows an interval in up to 15 rounds.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from dghlib.quantizers.calibration import Histogram, power_of_two_above
from dghlib.quantizers.grid import code_limits

SMALLEST_THRESHOLD = 2.0**-16
_HALVINGS_OF_TENSORS = 20
_HALVINGS_OF_WEIGHTS = 10
_FREE_CANDIDATES = 100
_HOPELESS = 1.001  # times the smallest error; a candidate is hopeless if clipping the largest value alone costs more
_AT_ONCE = 2**18  # weights that stay in a processor's cache while all candidates are tried

WEIGHT_THRESHOLDS = ("power_of_two", "free")


def activation_threshold(histogram: Histogram, bits: int, signed: bool) -> float:
    """Return the power of two for which a grid of `bits` has the smallest squared error on a histogram."""
    seen = histogram.counts > 0
    centres, counts = histogram.centres()[seen], histogram.counts[seen]
    largest = max(-histogram.minimum, histogram.maximum)
    best, smallest_error = 0.0, torch.inf
    for threshold in halvings(2 * power_of_two_above(largest), _HALVINGS_OF_TENSORS):
        quantized = _on_grid(centres, torch.tensor(threshold, dtype=torch.float64), bits, signed)
        error = (quantized.sub_(centres).square_() @ counts).item()
        if error <= smallest_error:
            best, smallest_error = threshold, error
    return best


def weight_thresholds(weight: Tensor, bits: int, search: str) -> Tensor:
    """Return the threshold (C,) of a signed grid per row of `weight` (C, ...), by the smallest squared error.

    `search` is "power_of_two" or "free". A row of zeros gets the smallest possible threshold, 2**-16.
    """
    rows = weight.flatten(1)
    at_once = max(1, _AT_ONCE // rows.shape[1])
    return torch.cat([_best_thresholds(part, bits, search) for part in rows.split(at_once)])


def _best_thresholds(rows: Tensor, bits: int, search: str) -> Tensor:
    low, high = rows.aminmax(dim=1)
    steps = 2 ** (bits - 1)
    reach = torch.maximum(-low, high * steps / (steps - 1)).clamp(min=SMALLEST_THRESHOLD)  # clips nothing
    candidates: Iterable[Tensor]
    if search == "power_of_two":
        widest = 2 * torch.exp2(reach.log2().ceil())
        candidates = (widest / 2**halvings for halvings in range(_HALVINGS_OF_WEIGHTS))
    else:
        candidates = (reach * part / _FREE_CANDIDATES for part in range(_FREE_CANDIDATES, 0, -1))
    best, smallest_error = reach, torch.full_like(reach, torch.inf)
    peak, done = torch.maximum(-low, high), torch.zeros_like(reach, dtype=torch.bool)
    for candidate in candidates:
        thresholds = candidate.clamp(min=SMALLEST_THRESHOLD)
        if (done | (peak - thresholds > _HOPELESS * smallest_error)).all():
            break  # later candidates are narrower
        done = thresholds == SMALLEST_THRESHOLD
        quantized = _on_grid(rows, thresholds[:, None], bits, signed=True)
        error = torch.linalg.vector_norm(quantized.sub_(rows), dim=1)
        better = error <= smallest_error
        best = torch.where(better, thresholds, best)
        smallest_error = torch.where(better, error, smallest_error)
    return best


def halvings(widest: float, count: int) -> list[float]:
    """Return `widest` and its halves, widest first, none below the smallest threshold."""
    return [t for t in (widest / 2**halving for halving in range(count)) if t >= SMALLEST_THRESHOLD]


def _on_grid(x: Tensor, threshold: Tensor, bits: int, signed: bool) -> Tensor:
    scale = threshold / 2 ** (bits - 1 if signed else bits)
    return x.div(scale).round_().clamp_(*code_limits(bits, signed)).mul_(scale)
