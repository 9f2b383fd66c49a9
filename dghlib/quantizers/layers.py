"""Convolutions and linear layers that compute with a quantized weight."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dghlib.quantizers.operations import Layer


class QuantizedLayer(nn.Module):
    """A layer that keeps its weight in float and computes with the quantized one.

    Args:
        layer: a convolution or linear layer; its bias is used unchanged (see `biases`).
        weight_quantizer: maps the weight to the weight that is used, with the same shape.
    """

    def __init__(self, layer: Layer, weight_quantizer: nn.Module):
        super().__init__()
        self.layer = layer
        self.weight_quantizer = weight_quantizer

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.layer, {"weight": self.quantized_weight()}, (x,))

    def quantized_weight(self) -> Tensor:
        """Return the weight as the layer uses it."""
        return self.weight_quantizer(self.layer.weight)


def channel_axis(layer: Layer) -> int:
    """Return the axis of the weight along which grids differ: output channels (per group, if transposed)."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def along_channels(values: Tensor, layer: Layer) -> Tensor:
    """Reshape values, one for each index of the channel axis, so that they broadcast against the weight."""
    shape = [1] * layer.weight.ndim
    shape[channel_axis(layer)] = -1
    return values.reshape(shape)


def scale_output(layer: Layer, factors: Tensor) -> None:
    """Multiply every output channel (C_out,) of a layer by a factor, in float64, through a new weight.

    The old weight is not changed, because another layer may share it. The bias is not changed.
    """
    if isinstance(layer, nn.ConvTranspose2d):  # (C_in, C_out / groups, ...)
        by_group = factors.reshape(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, dim=0)
        factors = by_group.reshape(*by_group.shape, *[1] * (layer.weight.ndim - 2))
    else:
        factors = along_channels(factors, layer)
    layer.weight = frozen(layer.weight.double() * factors.double())


def frozen(value: Tensor) -> nn.Parameter:
    """Return a float32 parameter that is not trained."""
    return nn.Parameter(value.float(), requires_grad=False)


def mean_response(layer: Layer, weight: Tensor, input_mean: Tensor) -> Tensor:
    """Return the mean output (C_out,), without bias, of a layer with this weight and inputs of mean (C_in,).

    Borders are neglected: padding counts as if it had the mean of its channel.
    """
    kernel = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    groups = getattr(layer, "groups", 1)
    mean = input_mean.double().reshape(groups, -1)
    if isinstance(layer, nn.ConvTranspose2d):
        taps = layer.stride[0] * layer.stride[1]  # an output pixel uses one in so many of the kernel's weights
        grouped = kernel.reshape(groups, -1, kernel.shape[1])
        return torch.einsum("gio,gi->go", grouped, mean).flatten() / taps
    grouped = kernel.reshape(groups, -1, kernel.shape[1])
    return torch.einsum("goi,gi->go", grouped, mean).flatten()
