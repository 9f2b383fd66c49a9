"""The values of a network's tensors for calibration images: histograms, ranges and means, in a single sweep.

Images pass in batches, and the memory does not grow with their number.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from dghlib.models import FloatModel
from dghlib.quantizers.graph import device_of
from dghlib.quantizers.operations import Layer, layer_calls
from dghlib.quantizers.sites import site_of

log = logging.getLogger(__name__)

HALF_BINS = 2048
_AT_ONCE = 2**16  # values that stay in a processor's cache: 3 times as fast as all at once
_ROWS = 4  # of counters
_UNLIKELY = 20  # times the brightest pixel: larger values do not come from normalised images,
_FEW = 1e-3  # unless their share is smaller: generators without clipping leave single pixels far outside


def check_images(images: Tensor, model: FloatModel) -> Tensor:
    """Return calibration images unchanged, detached, if `model` can be calibrated with them.

    Raises:
        TypeError: not a tensor, or not float32.
        ValueError: wrong shape, no images, NaN or Inf, or many values far outside normalised pixels.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"calibration images must be a single tensor (N, C, H, W), got {type(images).__name__}")
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(model.image_shape):
        shape = ", ".join(map(str, model.image_shape))
        raise ValueError(f"{model.name} is calibrated with images (N, {shape}), got {tuple(images.shape)}")
    if images.dtype != torch.float32:
        raise TypeError(
            f"calibration images must be float32, normalised with the network's mean and std; got {images.dtype}"
        )
    if len(images) == 0:
        raise ValueError("calibration needs at least one image, got none")
    images = images.detach()
    extremes = images.aminmax()  # makes no copy; NaN if any value is NaN
    largest = max(-extremes.min.item(), extremes.max.item())
    if not math.isfinite(largest):
        broken = int((~images.isfinite().flatten(1).all(1)).sum())
        raise ValueError(f"{broken} of {len(images)} calibration images hold NaN or Inf")
    _warn_of_pixels(extremes.min.item(), extremes.max.item(), model)
    brightest = max(max(m / s, (1 - m) / s) for m, s in zip(model.mean, model.std, strict=True))
    if largest > _UNLIKELY * brightest and (share := _share_beyond(images, _UNLIKELY * brightest)) > _FEW:
        raise ValueError(
            f"calibration images reach {largest:.4g}, but normalised pixels end at {brightest:.3g}, and {share:.2%} "
            f"of the values are beyond {_UNLIKELY} times that: "
            "scale pixels to 0..1, then subtract the mean and divide by the std of the network"
        )
    return images


def _share_beyond(images: Tensor, limit: float) -> float:
    """Return the share of values whose magnitude exceeds a limit."""
    return sum(int((image.abs() > limit).sum()) for image in images) / images.numel()


def _warn_of_pixels(low: float, high: float, model: FloatModel) -> None:
    """Warn of images that are constant, or seem to be pixels without normalisation."""
    darkest = min(-mean / std for mean, std in zip(model.mean, model.std, strict=True))
    if low == high:
        log.warning("all values of the calibration images are %g: nothing can be learned from them", low)
    elif low >= 0 > darkest:
        log.warning(
            "no value of the calibration images is below 0, and normalised pixels of %s begin at %.3g: if these are "
            "pixels, subtract the mean and divide by the std of the network",
            *(model.name, darkest),
        )


class Histogram:
    """The counts of a tensor's values in each of 2 * HALF_BINS bins over [-reach, reach].

    The reach is a power of two. When values exceed it, it doubles and neighbouring bins merge. The counts are therefore
    exactly those of a histogram with the final reach, for any division into batches.
    """

    def __init__(self) -> None:
        self.reach = 0.0
        self.counts = torch.zeros(0)
        self.minimum, self.maximum = math.inf, -math.inf

    def update(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count the values of a finite tensor, or raise ValueError.

        Each value counts as 1, or as given in `weights`, of the shape of `values`.
        """
        low, high = (bound.item() for bound in values.aminmax())
        if not math.isfinite(low + high):
            raise ValueError(f"values reach from {low} to {high}")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._grow(max(abs(low), abs(high)))
        if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
            values = values.permute(0, 2, 3, 1)  # so that flatten need not copy
        parts = values.flatten().split(_AT_ONCE)
        counting = [None] * len(parts) if weights is None else weights.flatten().split(_AT_ONCE)
        for part, counted in zip(parts, counting, strict=True):
            bins = (part * (HALF_BINS / self.reach)).floor_().clamp_(-HALF_BINS, HALF_BINS - 1).add_(HALF_BINS)
            self.counts += _counts(bins.int(), counted).cpu()

    def _grow(self, extreme: float) -> None:
        needed = power_of_two_above(extreme)
        if self.counts.numel() == 0:
            self.reach, self.counts = needed, torch.zeros(2 * HALF_BINS, dtype=torch.float64)
        elif needed > self.reach:
            merged = min(int(needed / self.reach), HALF_BINS)  # number of bins that are merged
            kept = self.counts.reshape(-1, merged).sum(1)
            self.reach, self.counts = needed, torch.zeros_like(self.counts)
            self.counts[HALF_BINS - len(kept) // 2 : HALF_BINS + len(kept) // 2] = kept

    def centres(self) -> Tensor:
        """Return the middle of every bin, float64."""
        return (torch.arange(2 * HALF_BINS, dtype=torch.float64) + 0.5 - HALF_BINS) * (self.reach / HALF_BINS)


def _counts(bins: Tensor, weights: Tensor | None) -> Tensor:
    """Return how often each of 2 * HALF_BINS bins occurs, or the sum of its weights.

    Without weights, neighbours count in different rows: half of the values after a ReLU are zeros, and a processor
    waits for each increment of a counter before the next increment of the same counter.
    """
    if weights is not None:
        return torch.bincount(bins, weights, minlength=2 * HALF_BINS)
    rows = _rows(bins.device)[: len(bins)]
    return torch.bincount(bins + rows, minlength=_ROWS * 2 * HALF_BINS).view(_ROWS, -1).sum(0)


@cache
def _rows(device: torch.device) -> Tensor:
    """Return the start of the row of counters for each of _AT_ONCE values."""
    return (torch.arange(_AT_ONCE, dtype=torch.int32, device=device) % _ROWS) * (2 * HALF_BINS)


def power_of_two_above(extreme: float) -> float:
    """Return the smallest power of two that is at least `extreme`, and at least 2**-16."""
    return 2.0 ** max(math.ceil(math.log2(extreme)), -16) if extreme > 0 else 2.0**-16


@dataclass(frozen=True)
class Observations:
    """The observations of a network.

    Attributes:
        histograms: of the requested tensors, by node name.
        input_means: of every layer, by module path: the mean (C_in,) of its input.
    """

    histograms: dict[str, Histogram]
    input_means: dict[str, Tensor]


def observe(graph: fx.GraphModule, tensors: Collection[str], images: Tensor, batch_size: int) -> Observations:
    """Return histograms of the named tensors and the mean input of every layer, over all images and calls.

    Raises:
        ValueError: a tensor becomes NaN or Inf; its name is in the message.
    """
    observer = _Observer(graph, tensors)
    with torch.no_grad():
        batches = images.split(batch_size)
        for batch in tqdm(batches, desc="calibration", unit="batch", leave=False, delay=3):
            observer.run(batch.to(device_of(graph)))
    means = {path: total / count for path, (total, count) in observer.totals.items()}
    return Observations(observer.histograms, means)


class _Observer(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, tensors: Collection[str]):
        super().__init__(graph)
        self.histograms = {name: Histogram() for name in tensors}
        self.totals: dict[str, tuple[Tensor, int]] = {}
        self.layers = dict(layer_calls(graph))

    def run_node(self, n: fx.Node) -> Any:
        if n in self.layers:
            self._add_to_mean(str(n.target), self.env[n.all_input_nodes[0]], self.layers[n])
        result = super().run_node(n)
        if (site := site_of(n)) in self.histograms:
            try:
                self.histograms[site].update(result)
            except ValueError as error:
                raise ValueError(f"the network cannot be calibrated: in tensor {n.name!r}, {error}") from error
        return result

    def _add_to_mean(self, path: str, x: Tensor, layer: Layer) -> None:
        channels = x.ndim - 1 if isinstance(layer, nn.Linear) else 1
        total = x.sum([axis for axis in range(x.ndim) if axis != channels]).double()
        count = x.numel() // x.shape[channels]
        before, seen = self.totals.get(path, (torch.zeros_like(total), 0))
        self.totals[path] = (before + total, seen + count)
