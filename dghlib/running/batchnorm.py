"""Batch-norm statistics: those that a network stored during training, and those of images in it.

All layers are concatenated to vectors of K channels. A *moment* is a mean or a mean of squares. Moments of equal parts
average exactly, and variances do not; therefore moments are measured, stored and averaged (DGH, Eq. 5), and a variance
is computed from them at the end. `variance` is the biased variance everywhere.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dghlib.running import processes
from dghlib.running.copies import output_for, private_copy, to_channels_last
from dghlib.running.hooks import recorded_inputs
from dghlib.running.stems import Stem
from dghlib.running.winograd import Winograd

log = logging.getLogger(__name__)


class _Layer(NamedTuple):
    """The running statistics (C,) of a batch norm, float32."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> "_Layer | None":
        """Return a module's statistics, or None if it has none.

        A batch norm is recognised by its statistics, not by its class, because frozen ones are often hand-written.
        Instance norms with running statistics normalise by them in eval mode, as batch norms do.
        """
        mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            return None
        if mean.ndim != 1 or mean.shape != variance.shape:
            return None
        return cls(mean.float(), variance.float())


class NoBatchNorm(ValueError):
    """The network has no batch norm that its images reach, so there are no statistics to generate images from."""


def working_copy(net: nn.Module, device: torch.device | str, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return a copy of `net` on `device` in eval mode, in float32 with frozen weights; `net` itself does not change.

    The weights are frozen so that a backward pass computes gradients of images only. The copy runs channels_last, where
    the channels of a moment lie together, unless the network calls `view` on a feature map and needs the usual layout.
    With channels_last, `MeasuringNorm` replaces its batch norms, and `Stem` and `Winograd` some of its convolutions.

    Raises:
        ValueError: the network cannot be copied.
    """
    usual = private_copy(net).to(device)
    fast = copy.deepcopy(usual)
    to_channels_last(fast)
    for module in fast.modules():
        MeasuringNorm.replace(module)
        Stem.replace(module)
        Winograd.replace(module)
    try:
        with torch.no_grad():
            fast(torch.zeros(2, *image_shape, device=device))
    except RuntimeError:
        return usual
    return fast


DEAD = 1e-3  # a layer with a smaller spread has no unit; this is the root of 1/10 of the usual epsilon, 1e-5


@dataclass(frozen=True, eq=False)
class StoredStatistics:
    """The stored statistics of the batch-norm layers of a network, concatenated.

    Attributes:
        names: the layers, in the order in which a forward pass reaches them.
        sizes: channels per layer; they sum to K.
        mean: running means, (K,) float32.
        variance: running variances, (K,) float32.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    mean: Tensor
    variance: Tensor

    def per_layer(self, values: Tensor) -> Sequence[Tensor]:
        """Split (..., K) into one (..., C) per layer."""
        return values.split(self.sizes, dim=-1)

    def units(self) -> Tensor:
        """Return the divisors (2, K) that bring moments (..., 2, K) to units of their layers.

        The unit of a layer is the root of its mean variance over channels, so a constant channel causes no division by
        0. The unit is 1 for a layer whose channels are all almost constant: a spread below `DEAD`, which the epsilon of
        a batch norm hides, would make the quotients too large.
        """
        spread = [part.mean().sqrt().expand_as(part) for part in self.per_layer(self.variance)]
        unit = torch.cat(spread)
        unit = torch.where(unit > DEAD, unit, 1.0)
        return torch.stack([unit, unit.square()])

    def divided_by(self, units: Tensor) -> "StoredStatistics":
        """Return the same statistics in other `units`, (2, K)."""
        mean, variance = torch.stack([self.mean, self.variance]) / units
        return replace(self, mean=mean, variance=variance)


def stored_statistics(net: nn.Module, image_shape: tuple[int, int, int]) -> StoredStatistics:
    """Return the running statistics of the batch norms that an image (C, H, W) reaches in `net`.

    Layers that are never reached (auxiliary heads in eval mode) are left out, with a log line.

    Raises:
        NoBatchNorm: there is no batch norm with running statistics, or the image reaches none.
        ValueError: weights or running statistics are not finite, or a running variance is negative; the network takes
            images of another shape.
    """
    layers = {name: layer for name, module in net.named_modules() if (layer := _Layer.of(module))}
    if not layers:
        raise NoBatchNorm(
            f"{type(net).__name__} has no batch norm with running statistics, from which images are made. "
            "Calibrate with real images, or with images of another network for the same task; "
            "for a vision transformer there are the methods psaq_vit, mimiq and dgh_vit"
        )
    check_finite(net)
    device = next(iter(layers.values())).mean.device
    with torch.no_grad(), recorded_inputs(net, layers) as inputs:
        output_for(net, torch.zeros(2, *image_shape, device=device))
    if not inputs:
        raise NoBatchNorm(f"an image of shape {image_shape} reaches none of {', '.join(layers)}")
    if missed := [name for name in layers if name not in inputs]:
        log.info("batch norms that the images never reach are left out: %s", ", ".join(missed))
    reached = [layers[name] for name in inputs]
    for name, layer in zip(inputs, reached, strict=True):
        if (layer.variance < 0).any():
            raise ValueError(f"the running variance of {name!r} is negative ({layer.variance.min():g})")
    return StoredStatistics(
        names=tuple(inputs),
        sizes=tuple(len(layer.mean) for layer in reached),
        mean=torch.cat([layer.mean for layer in reached]),
        variance=torch.cat([layer.variance for layer in reached]),
    )


def check_finite(net: nn.Module) -> None:
    """Raise ValueError, naming the tensor, if a weight or a buffer of `net` holds NaN or infinity."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{count} of {tensor.numel()} values of {name!r} are NaN or infinite: "
                "the checkpoint is damaged or training diverged"
            )


def moments(x: Tensor, groups: int = 1) -> Tensor:
    """Return the mean and mean of squares of every channel, (groups, 2, C) float32, over equal groups of images.

    Args:
        x: (N, C) or (N, C, ...), any floating dtype: squares overflow half precision, so sums are in float32.
        groups: N / groups successive images are pooled; N gives the moments of each image.
    """
    return _Moments.apply(_rows(x, groups).float())


def _rows(x: Tensor, groups: int = 1) -> Tensor:
    """Return (N, C, ...) as (groups, M, C): a view when x is channels_last."""
    last = x.permute(0, 2, 3, 1) if x.ndim == 4 else x.movedim(1, -1)
    return last.reshape(groups, -1, x.shape[1])


def _moments_of_rows(rows: Tensor) -> Tensor:
    """Return the moments (groups, 2, C) of (groups, M, C) float32, without a graph."""
    groups, count, channels = rows.shape
    if groups > 1 or rows.device.type not in ("cpu", "cuda"):
        return torch.stack([rows.mean(1), torch.linalg.vecdot(rows, rows, dim=1) / count], dim=1)
    # The measurement of batch norm in training, in one pass. It is fast for many channels: several rows form one.
    abreast = gcd(count, 512 // channels) if channels < 64 else 1
    wide = rows.reshape(1, -1, 1, abreast * channels).permute(0, 3, 1, 2)
    mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
    both = torch.stack([mean, torch.addcmul(variance, mean, mean)])
    return both.unsqueeze(0) if abreast == 1 else both.view(1, 2, abreast, channels).mean(2)


def _gradient_of_rows(rows: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient (groups, M, C) of rows from the gradient of their moments (groups, 2, C), in one pass."""
    of_mean, of_mean_square = (gradient / rows.shape[1]).split(1, dim=1)
    return torch.addcmul(of_mean, rows, of_mean_square, value=2)


class _Moments(torch.autograd.Function):
    """Moments of rows, with both gradients in a single pass over the rows.

    With autograd, each moment creates a gradient of the size of the rows, and the two are then added.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _moments_of_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return _gradient_of_rows(rows, gradient)


class _NormaliseAndMeasure(torch.autograd.Function):
    """x times scale plus shift, and the moments of x, whose gradients are added in a single pass.

    This saves an addition. It also saves an operation of torch's batch norm, which sums the gradients of its scale and
    shift even if nobody needs them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale)
        ctx.groups = groups
        rows = _rows(x, groups)
        output = torch.empty_like(x, memory_format=torch.channels_last)
        torch.addcmul(shift, rows, scale, out=_rows(output, groups))
        return output, _moments_of_rows(rows)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, of_moments: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale = ctx.saved_tensors
        gradient = _gradient_of_rows(_rows(x, ctx.groups), of_moments).addcmul_(_rows(of_output, ctx.groups), scale)
        size, channels, height, width = x.shape
        return gradient.view(size, height, width, channels).permute(0, 3, 1, 2), None, None, None


class MeasuringNorm(nn.BatchNorm2d):
    """A frozen batch norm that measures its input in the same pass if `run_and_measure` asks for this."""

    scale: Tensor
    shift: Tensor
    groups: int | None = None  # groups of images whose moments are measured; None: measure nothing
    measured: list[tuple[int, Tensor]]  # for each call, the size of the input and its moments

    @staticmethod
    def replace(module: nn.Module) -> None:
        """Give a module this class, if it is a batch norm in all respects that matter; it stays in eval mode."""
        if type(module) is not nn.BatchNorm2d or not module.affine or module.running_mean is None:
            return
        assert module.running_var is not None
        if module.weight.dtype == module.running_mean.dtype == torch.float32:
            scale = module.weight.detach() * (module.running_var + module.eps).rsqrt()
            module.scale, module.shift = (
                scale,
                torch.addcmul(module.bias.detach(), module.running_mean, scale, value=-1),
            )
            module.__class__ = MeasuringNorm

    def forward(self, input: Tensor) -> Tensor:
        if self.groups is None:
            return super().forward(input)
        output, measured = _NormaliseAndMeasure.apply(input, self.scale, self.shift, self.groups)
        self.measured.append((input.numel(), measured))
        return output


def run_and_measure(net: nn.Module, images: Tensor, groups: Mapping[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Run images (N, C, H, W) through `net`; return its output, and the moments at the inputs of the named modules.

    The moments (groups, 2, C) of a module are those of the given number of equal groups of images, over all calls of
    the module.
    """
    modules = {name: net.get_submodule(name) for name in groups}
    norms = {name: module for name, module in modules.items() if isinstance(module, MeasuringNorm)}
    for name, norm in norms.items():
        norm.groups, norm.measured = groups[name], []
    try:
        with recorded_inputs(net, groups.keys() - norms.keys()) as inputs:
            output = net(images)
        calls = {
            name: [(call.numel(), moments(call, groups[name])) for call in given] for name, given in inputs.items()
        }
        return output, {name: _pooled(norms[name].measured if name in norms else calls[name]) for name in groups}
    finally:
        for norm in norms.values():
            norm.groups, norm.measured = None, []


def _pooled(calls: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return the moments of all inputs of a layer: the mean over its calls, weighted by their sizes."""
    if len(calls) == 1:
        return calls[0][1]
    total = sum(size for size, _ in calls)
    return torch.stack([size / total * measured for size, measured in calls]).sum(0)


def variance_of(moments: Tensor) -> Tensor:
    """Return the biased variance (..., K) of moments (..., 2, K): Eq. 5b. It is never negative, despite rounding."""
    mean, mean_square = moments.unbind(-2)
    return (mean_square - mean.square()).clamp_min(0)


class MomentBank:
    """Moments of a whole image set, of which one batch at a time is optimized (DGH, Algorithm 1).

    The bank keeps the last known moments of every batch and their running total. `blend` gives the moments of the
    set with those of one batch replaced by new moments that carry their graph. The loss then sees all images, while
    gradients and memory are those of one batch. Its cost does not depend on the number of batches.

    The processes of a job share the total, and each has rows of its own. They store at the same time and then see each
    other's changes.

    Args:
        batch_sizes: images in each batch; a smaller batch weighs less.
        num_channels: K.
        own: the batches that this process stores; None: all.
    """

    def __init__(
        self,
        batch_sizes: Sequence[int],
        num_channels: int,
        device: torch.device | str = "cpu",
        own: Sequence[int] | None = None,
    ):
        self.shares = [size / sum(batch_sizes) for size in batch_sizes]
        self.rows = torch.full((len(batch_sizes), 2, num_channels), torch.nan, device=device)
        # float64: after a million additions and subtractions it is still the sum of the rows to float32 precision.
        self.total = torch.zeros(2, num_channels, dtype=torch.float64, device=device)
        self.unfilled = set(range(len(batch_sizes)) if own is None else own)

    def store(self, index: int, moments: Tensor) -> None:
        """Store the moments (2, K) of batch `index`, without their graph."""
        moments = moments.detach()
        change = moments.double() if index in self.unfilled else moments.double() - self.rows[index]
        self._add(self.shares[index] * change)
        self.rows[index] = moments
        self.unfilled.discard(index)

    def store_nothing(self) -> None:
        """Let other processes store a batch when this process has no batch left."""
        self._add(torch.zeros_like(self.total))

    def _add(self, change: Tensor) -> None:
        processes.add_up(change)
        self.total += change

    def blend(self, index: int, moments: Tensor) -> Tensor:
        """Return the moments (2, K) of the set if batch `index` had these `moments`.

        Raises:
            RuntimeError: another batch was never stored.
        """
        if self.unfilled - {index}:
            raise RuntimeError(f"batches {sorted(self.unfilled - {index})} were never stored in the bank")
        share = self.shares[index]
        rest = self.total if index in self.unfilled else self.total - share * self.rows[index].double()
        return rest.float() + share * moments

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bank's content, for a checkpoint; every batch must have been stored."""
        return {"rows": self.rows, "total": self.total}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the content of `state_dict`."""
        self.rows.copy_(state["rows"])
        self.total.copy_(state["total"])
        self.unfilled.clear()
