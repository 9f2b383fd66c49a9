"""Biases in the form in which integer hardware adds them.

The product of 2 codes is a whole number of step(input) x step(weight of the channel). Hardware adds products in 32 bits
and starts the sum with the bias, so the bias is a whole number of the same steps.

There are 3 special cases:

* a layer that reads a tensor in float, or codes of 16 bits, which no 32-bit sum can hold, keeps its bias in float;
* a layer that is called with tensors on several grids gets its bias on the coarsest grid, whose points lie on all other
  grids if step sizes are powers of two;
* a channel whose weights are so small that 32 bits cannot represent its bias gets a coarser grid for its weights, which
  hardly matter compared with the bias. A channel without any weights gets the coarsest grid of its layer.
"""

import logging

import torch
from torch import Tensor, fx

from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import QuantizedLayer, channel_axis, frozen
from dghlib.quantizers.operations import MOVEMENTS, called_module, does
from dghlib.quantizers.quantized_model import QuantizedModel

log = logging.getLogger(__name__)

LARGEST = 2**31 - 1  # of a bias, in steps of the sum
_WIDEST = 8  # bits of codes whose products are added in 32 bits


def round_biases(quantized: QuantizedModel) -> None:
    """Round every bias to the grid of the sum to which it is added, in place; log the channels with coarser weights."""
    for path in quantized.weight_quantizers():
        layer = quantized.graph.get_submodule(path)
        calls = [node for node in quantized.graph.graph.nodes if node.op == "call_module" and node.target == path]
        grids = [grid_of(quantized.graph, call.all_input_nodes[0]) for call in calls]
        if isinstance(layer, QuantizedLayer) and layer.layer.bias is not None and fits_32_bits(layer, *grids):
            coarsest = max(grid.scale.double() for grid in grids if grid is not None)
            if count := _make_room(layer, coarsest):
                log.warning(
                    "layer %s: in %d channels the bias exceeds 32 bits on the grid of the products, because the "
                    "weights are very small; these channels get coarser grids",
                    path,
                    count,
                )
            steps = bias_steps(layer, coarsest)
            layer.layer.bias = frozen((layer.layer.bias.double() / steps).round() * steps)


def grid_of(graph: fx.GraphModule, node: fx.Node) -> UniformQuantizer | None:
    """Return the quantizer on whose grid the values of a node lie, also after movements; None for float values."""
    while does(graph, node, MOVEMENTS):
        node = node.all_input_nodes[0]
    module = called_module(graph, node)
    return module if isinstance(module, UniformQuantizer) else None


def fits_32_bits(layer: QuantizedLayer, *inputs: UniformQuantizer | None) -> bool:
    """Return whether a layer's weights and inputs are all codes of at most 8 bits."""
    grids = (layer.weight_quantizer, *inputs)
    return all(isinstance(grid, UniformQuantizer) and grid.bits <= _WIDEST for grid in grids)


def bias_steps(layer: QuantizedLayer, input_scale: Tensor) -> Tensor:
    """Return the step sizes (C_out,), in float64, of a layer's sums: an input's step size times a weight's."""
    channels = _scales(layer) * input_scale.double()
    groups = getattr(layer.layer, "groups", 1) if channel_axis(layer.layer) else 1
    return channels.repeat(groups)  # a transposed convolution has the channels of one group


def _scales(layer: QuantizedLayer) -> Tensor:
    assert isinstance(layer.weight_quantizer, UniformQuantizer)
    return layer.weight_quantizer.scale.double().flatten()


def _make_room(layer: QuantizedLayer, input_scale: Tensor) -> int:
    """Give channels coarser grids, by powers of two, until the bias fits; return how many with weights needed it."""
    grid, axis = layer.weight_quantizer, channel_axis(layer.layer)
    assert isinstance(grid, UniformQuantizer)
    scales = _scales(layer)
    used = (grid.to_codes(layer.layer.weight) != grid.zero_point).transpose(0, axis).flatten(1).any(1)
    assert layer.layer.bias is not None
    largest = layer.layer.bias.double().abs().reshape(-1, len(scales)).amax(0)
    roomy = torch.where(used, scales, scales.max())
    beyond = largest / (LARGEST * roomy * input_scale)
    roomy = roomy * torch.where(beyond > 1, 2 ** beyond.log2().ceil(), 1)
    if (roomy != scales).any():
        grid.scale = roomy.to(grid.scale).reshape(grid.zero_point.shape)
    return int((used & (beyond > 1)).sum())
