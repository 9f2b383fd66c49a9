"""Rounding by flips: SQuant's closed form, for any grid.

Every weight is first rounded to the nearest code. For a constant input, the error of a sum of products is then the sum
of the rounding errors. So roundings are flipped to the code on the other side of the weight, beginning with those
closest to this code, until sums of errors are small: first that of every kernel (the weights between an input and an
output channel) is at most half a step; then that of every output channel is at most half a step, for which each kernel
gives at most 1 flip and ends with a sum of at most 1 step. At the ends of the grid nothing can be flipped outwards.

Source: C. Guo, Y. Qiu, J. Leng, X. Gao, C. Zhang, Y. Liu, F. Yang, Y. Zhu, M. Guo: "SQuant: On-the-Fly Data-Free
Quantization via Diagonal Hessian Approximation", ICLR 2022.

Differences from its code: a kernel's flip for the channel is that of its largest error in the direction of the
remaining sum. In the code it is the last flipped weight, which is flipped back, or the next weight. This is the same,
except for a sum of exactly zero, for which the code takes a weight before the first.
"""

import torch
from torch import Tensor

from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import channel_axis
from dghlib.quantizers.operations import Layer

FLIPS = ("none", "kernels", "channels", "both")


@torch.no_grad()
def flipped_weight(layer: Layer, quantizer: UniformQuantizer, flips: str = "both") -> Tensor:
    """Return a layer's weight on a grid, rounded as `flipped` says."""
    axis = channel_axis(layer)
    steps = (layer.weight.detach() / quantizer.scale).transpose(0, axis)
    zero_point = quantizer.zero_point.expand_as(layer.weight).transpose(0, axis)
    kernels = steps.reshape(*steps.shape[:2], -1)
    shift = zero_point.reshape_as(kernels)
    codes = flipped(kernels, quantizer.quant_min - shift, quantizer.quant_max - shift, flips)
    rounded = codes.reshape_as(steps).transpose(0, axis) * quantizer.scale
    return torch.empty_like(layer.weight).copy_(rounded)  # in the memory format that is fast


def flipped(steps: Tensor, low: Tensor, high: Tensor, flips: str = "both") -> Tensor:
    """Return whole numbers from `low` to `high` that replace `steps`, all (outputs, inputs, weights of a kernel).

    `flips`: those of "kernels", of "channels", of "both" in this order, or "none".
    """
    codes = steps.round().clamp(low, high)
    if flips in ("kernels", "both"):
        errors = codes - steps
        codes -= _flips(errors, errors.sum(2, keepdim=True), _can_flip(codes, errors, low, high))
    if flips in ("channels", "both"):
        errors = codes - steps
        codes -= _one_of_each_kernel(errors, _can_flip(codes, errors, low, high))
    return codes


def _can_flip(codes: Tensor, errors: Tensor, low: Tensor, high: Tensor) -> Tensor:
    other = codes - errors.sign()
    return (other >= low) & (other <= high)


def _flips(errors: Tensor, total: Tensor, allowed: Tensor) -> Tensor:
    """Return the changes to subtract from codes (..., N) so that the `total` (..., 1) of errors is at most 1/2 step."""
    useful = allowed & (errors * total > 0)
    order = torch.where(useful, errors.abs(), 0).argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(useful).scatter(-1, order, _first(total.abs().round(), errors.shape[-1]))
    return errors.sign() * (chosen & useful)


def _first(count: Tensor, length: int) -> Tensor:
    """Return (..., length), true in the first `count` (..., 1) positions."""
    return torch.arange(length, device=count.device) < count


def _one_of_each_kernel(errors: Tensor, allowed: Tensor) -> Tensor:
    """Return the changes to subtract from codes (O, I, K) so that a channel's errors sum to at most half a step."""
    left = errors.sum(2, keepdim=True)
    gain = torch.where(allowed & (errors * left > 0), errors.abs(), 0)
    best = gain.argmax(2, keepdim=True)
    candidates, useful = errors.gather(2, best).squeeze(2), gain.gather(2, best).squeeze(2) > 0
    flips = _flips(candidates, left.sum(1), useful)
    return torch.zeros_like(errors).scatter(2, best, flips.unsqueeze(2))
