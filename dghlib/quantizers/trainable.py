"""Quantizers that are trained with the weights of a network; they replace its quantizers during fine-tuning.

Each returns the plain `UniformQuantizer` that it has become, and the weight on its grid; a fine-tuned network is an
ordinary `QuantizedModel`.

Sources: S. Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020 (min-max grids that follow the
weight, gradients that ignore them); S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020 (learned steps).
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dghlib.quantizers.grid import UniformQuantizer, fake_quantize
from dghlib.quantizers.layers import QuantizedLayer, along_channels, channel_axis, frozen
from dghlib.quantizers.learners import LearnedStep
from dghlib.quantizers.operations import Layer
from dghlib.quantizers.scale_search import min_max


class TrainableWeight(Protocol):
    """Replaces a weight's quantizer: a module that can return its current grid."""

    def __call__(self, weight: Tensor) -> Tensor: ...

    def grid_of(self, weight: Tensor) -> UniformQuantizer:
        """Return the grid on which the quantized `weight` lies."""
        ...


class _StraightThrough(torch.autograd.Function):
    """Rounds to codes from `low` to `high` forward; its gradient is the identity's, also for clamped values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Any, low: Any, high: Any) -> Tensor:
        return x.div(scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None


class _ScaledGradient(torch.autograd.Function):
    """Leaves a tensor unchanged, bit for bit, and multiplies its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.factor, None


def _scaled_as_lsq(scale: Tensor, values: int, largest_code: int) -> Tensor:
    """Return the step sizes of grids with gradients divided by sqrt(values of a grid * largest code), as in LSQ."""
    return _ScaledGradient.apply(scale, (values / scale.numel() * max(1, largest_code)) ** -0.5)


class MinMaxWeight(nn.Module):
    """A weight quantizer whose grids, one per channel, always range from the smallest to the largest weight.

    Args:
        layer: the layer of the weight, which gives the axis of the channels.
        bits: of the codes.
    """

    def __init__(self, layer: Layer, bits: int):
        super().__init__()
        self.axis, self.bits = channel_axis(layer), bits
        self._shape = tuple(along_channels(torch.zeros(layer.weight.shape[self.axis]), layer).shape)

    def forward(self, weight: Tensor) -> Tensor:
        scale, zero_point = self._grids(weight.detach())
        return _StraightThrough.apply(weight, scale, -zero_point, 2**self.bits - 1 - zero_point)

    def grid_of(self, weight: Tensor) -> UniformQuantizer:
        scale, zero_point = self._grids(weight)
        return UniformQuantizer(scale, zero_point, bits=self.bits, signed=False)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the integers in which a weight would be stored."""
        scale, zero_point = self._grids(weight)
        return (weight / scale).round_().add_(zero_point)

    def _grids(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = weight.transpose(0, self.axis).flatten(1).aminmax(dim=1, keepdim=True)
        ((scale, zero_point),) = min_max(low.clamp(max=0), high.clamp(min=0), self.bits)
        return scale.reshape(self._shape), zero_point.reshape(self._shape)


class TrainedStep(LearnedStep):
    """A quantizer of weights or tensors whose step sizes are learned as in LSQ; it starts at the grid of a search."""

    def forward(self, x: Tensor) -> Tensor:
        scale = _scaled_as_lsq(self.scale, x.numel(), self.limits[1])
        return fake_quantize(x, scale, self.zero_point, *self.limits)

    def grid_of(self, weight: Tensor) -> UniformQuantizer:
        return self.harden()


class FixedRange(nn.Module):
    """An activation quantizer with a fixed range and the gradient of the identity.

    It keeps plain numbers, with which processors are 3 times as fast as with tensors of a single value.
    """

    def __init__(self, quantizer: UniformQuantizer):
        super().__init__()
        self.quantizer, zero_point = quantizer, int(quantizer.zero_point)
        self._numbers = quantizer.scale.item(), quantizer.quant_min - zero_point, quantizer.quant_max - zero_point

    def forward(self, x: Tensor) -> Tensor:
        return _StraightThrough.apply(x, *self._numbers)

    def harden(self) -> UniformQuantizer:
        """Return the grid, which has not changed."""
        return self.quantizer


@torch.no_grad()
def settle(layer: QuantizedLayer, quantizer: TrainableWeight) -> None:
    """Give a layer the weight and the grid of a trainable quantizer."""
    weight, grid = layer.quantized_weight(), quantizer.grid_of(layer.layer.weight)
    layer.layer.weight = frozen(weight)
    layer.weight_quantizer = grid
