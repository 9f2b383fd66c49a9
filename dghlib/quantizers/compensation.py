"""Compensation in closed form: after any quantizer, a scale and a shift for each output channel of every layer.

The correction brings each channel closest to that of the float network, by least squares on calibration images. Layer
after layer, with all earlier layers corrected, a channel's quantized output is compared with the float output. The
scale and the shift between them go into the step sizes of the channel's weight grid and into its bias. Codes do not
change, so integer hardware computes the same operations with other constants. Half of the images fit the correction,
and the other half decide whether it is kept, because a fit always looks good on its own images.

Source: M. Fu, H. Yu, J. Shao, J. Zhou, K. Zhu, J. Wu: "Quantization without Tears", CVPR 2025 (least squares after any
quantizer); Y. Zhong et al., "ERQ: Error Reduction for Post-Training Quantization of Vision Transformers", ICML 2024
(ridge).

Differences:
1. Both correct with a full matrix between channels: QwT with an additional layer in half precision, ERQ by changing
   weights before they are rounded. A linear correction for each channel costs hardware nothing.
2. QwT keeps a correction that fits its own images; here other images decide, channel by channel.
3. On grids with power-of-two step sizes, as in HPTQ, only biases are corrected: another step size would not be a power
   of two.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from dghlib.choices import check_between
from dghlib.models import FloatModel
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import check_images
from dghlib.quantizers.graph import device_of
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import QuantizedLayer, along_channels, frozen
from dghlib.quantizers.preparation import prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel

RIDGE = 0.01
_LARGEST_SCALE = 2.0  # and its inverse: a larger correction is fitted to noise


@torch.no_grad()
def compensate(model: FloatModel, quantized: QuantizedModel, images: Tensor, ridge: float = RIDGE) -> QuantizedModel:
    """Correct a quantized network, in place, and return it.

    Args:
        model: the float network that `quantized` was made from.
        quantized: from any quantizer; biases that it rounded to integers are rounded again.
        images: at least 2, normalised (N, C, H, W); all pass at once.
        ridge: strength of the regularization that holds a channel's scale at 1, relative to its energy.

    `quantized.about["compensation"]` has the number of corrected channels and of all channels.

    Raises:
        TypeError, ValueError: images that do not fit the model, or a single one; a negative ridge.
    """
    images = check_images(images, model)
    check_between(0, 1, "ridge", ridge)
    if len(images) < 2:
        raise ValueError("compensation needs at least 2 images, to fit and to judge, got 1")
    images = images.to(device_of(quantized.graph))
    wanted, found = Walk(prepared_graph(model, quantized.about), images), Walk(quantized.graph, images)
    corrected = total = 0
    for call, layer in _layers(quantized.graph):
        target, output = wanted.until(call.name), found.until(call.name)
        scale, shift = _line(output, target, ridge, _steps_are_free(layer), isinstance(layer.layer, nn.Linear))
        _apply(layer, scale, shift)
        found.env[call] = output * _beside(scale, output, layer) + _beside(shift, output, layer)
        corrected += int(((scale != 1) | (shift != 0)).sum())
        total += len(scale)
    quantized.about["compensation"] = {"channels": corrected, "of": total}
    if quantized.about["config"]["integer_biases"]:
        round_biases(quantized)
    return quantized.eval()


class Walk(fx.Interpreter):
    """Runs a graph on images up to a given node."""

    def __init__(self, graph: fx.GraphModule, images: Tensor):
        super().__init__(graph)
        self.args_iter: Iterator[Any] = iter([images])
        self.left = iter(graph.graph.nodes)

    def until(self, name: str) -> Tensor:
        """Return the value of a node after the current position."""
        for node in self.left:
            self.env[node] = self.run_node(node)
            for done in self.user_to_last_uses.get(node, []):
                del self.env[done]
            if node.name == name:
                return self.env[node]
        raise KeyError(f"the walk is past {name}")


def _layers(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, QuantizedLayer]]:
    """Yield every quantized layer that is called once, with its call."""
    times = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node in graph.graph.nodes:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        grouped = isinstance(getattr(layer, "layer", None), nn.ConvTranspose2d)  # its grids serve several channels
        if isinstance(layer, QuantizedLayer) and times[node.target] == 1 and not grouped:
            yield node, layer


def _steps_are_free(layer: QuantizedLayer) -> bool:
    """Return whether the step sizes of the weight's grids are not all powers of two."""
    grid = layer.weight_quantizer
    assert isinstance(grid, UniformQuantizer)
    return bool((grid.scale.log2() != grid.scale.log2().round()).any())


def _line(output: Tensor, target: Tensor, ridge: float, with_scale: bool, last: bool) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) that the first half of images fits and the second half confirms; else 1 and 0."""
    fit, judge = (
        [_rows(each[part], last) for each in (output, target)] for part in (slice(0, None, 2), slice(1, None, 2))
    )
    (x, y), ones = fit, torch.ones(fit[0].shape[0], dtype=torch.float64, device=output.device)
    centred = x - x.mean(1, keepdim=True)
    energy = centred.square().mean(1)
    slope = (centred * (y - x)).mean(1) / ((1 + ridge) * energy).clamp(min=torch.finfo(torch.float32).tiny)
    scale = (1 + slope).clamp(1 / _LARGEST_SCALE, _LARGEST_SCALE) if with_scale else ones
    shift = y.mean(1) - scale * x.mean(1)
    x, y = judge
    after = (scale[:, None] * x + shift[:, None] - y).square().sum(1)
    better = after < (x - y).square().sum(1)
    return torch.where(better, scale, 1.0).float(), torch.where(better, shift, 0.0).float()


def _rows(values: Tensor, last: bool) -> Tensor:
    """Return values (N, C, ...), or (N, ..., C) of a linear layer, as (C, values of a channel) in float64."""
    return values.movedim(-1 if last else 1, 0).flatten(1).double()


def _beside(values: Tensor, output: Tensor, layer: QuantizedLayer) -> Tensor:
    return values if isinstance(layer.layer, nn.Linear) else values.reshape(-1, *[1] * (output.ndim - 2))


def _apply(layer: QuantizedLayer, scale: Tensor, shift: Tensor) -> None:
    """Apply scale and shift to a layer's output channels; its codes do not change."""
    grid, inner = layer.weight_quantizer, layer.layer
    assert isinstance(grid, UniformQuantizer)
    factors = along_channels(scale, inner)
    inner.weight = frozen(layer.quantized_weight() * factors)
    layer.weight_quantizer = UniformQuantizer(grid.scale * factors, grid.zero_point, bits=grid.bits, signed=grid.signed)
    inner.bias = frozen((0 if inner.bias is None else inner.bias * scale) + shift)
