"""How convolutions and linear layers are written in ONNX, with integer weights or in float."""

from typing import Any

from torch import fx, nn

from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation, shape_of, source
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import channel_axis
from dghlib.quantizers.operations import MOVEMENTS, does


def quantized_layer(graph: OnnxGraph, node: fx.Node) -> str:
    """A layer with integer weights. One that is called twice has them twice: onnxruntime fails on shared ones."""
    module: Any = graph.module(node)
    path = str(node.target)
    name = f"{path}.weight" if f"{path}.weight.codes" not in graph.constants else f"{node.name}.weight"
    weight = graph.quantized_weight(module.layer.weight, module.weight_quantizer, channel_axis(module.layer), name)
    return _sum_of_products(graph, node, module.layer, weight, bias_apart=_bias_overflows(graph, node, module))


def _bias_overflows(graph: OnnxGraph, node: fx.Node, module: Any) -> bool:
    """Say whether a bias is too large for 32 bits on the grid of the products.

    That is how onnxruntime rewrites it, without a look at its size: an addition of its own is left alone.
    """
    read = node.all_input_nodes[0]
    while does(graph.traced, read, MOVEMENTS):
        read = read.all_input_nodes[0]
    grid = graph.module(read)
    bias = module.layer.bias
    if bias is None or not isinstance(grid, UniformQuantizer):
        return False
    steps = grid.scale * module.weight_quantizer.scale.flatten()
    steps = steps.repeat(len(bias) // len(steps))  # a transposed convolution has those of one group
    return bool((bias.abs() >= 2**31 * steps).any())


def float_layer(graph: OnnxGraph, node: fx.Node) -> str:
    """A layer in float."""
    layer: Any = graph.module(node)
    return _sum_of_products(graph, node, layer, graph.constant(f"{node.target}.weight", layer.weight))


def _sum_of_products(graph: OnnxGraph, node: fx.Node, layer: Any, weight: str, bias_apart: bool = False) -> str:
    inputs = [source(graph, node), weight]
    if layer.bias is None or not bias_apart:
        bias = None if layer.bias is None else graph.constant(f"{node.target}.bias", layer.bias)
        return _product(graph, node, layer, inputs, bias, node.name)
    column = layer.bias if isinstance(layer, nn.Linear) else layer.bias.reshape(-1, *[1] * (layer.weight.ndim - 2))
    product = _product(graph, node, layer, inputs, None, f"{node.name}.product")
    return graph.add("Add", [product, graph.constant(f"{node.target}.bias", column)], node.name)


def _product(graph: OnnxGraph, node: fx.Node, layer: Any, inputs: list[str], bias: str | None, name: str) -> str:
    if isinstance(layer, nn.Linear):
        return _linear(graph, node, inputs, bias, name)
    if layer.padding_mode != "zeros":
        raise UnsupportedOperation(
            f"convolution {node.target} pads with mode {layer.padding_mode!r}, only zeros can be"
        )
    attributes = {"strides": list(layer.stride), "dilations": list(layer.dilation), "group": layer.groups}
    attributes["pads"] = _pads(layer)
    operation = "Conv"
    if isinstance(layer, nn.ConvTranspose2d):
        operation = "ConvTranspose"
        attributes["output_padding"] = list(layer.output_padding)
    return graph.add(operation, inputs + ([bias] if bias else []), name, **attributes)


def _pads(layer: Any) -> list[int]:
    """Return the zeros around a convolution's input: all beginnings, then all ends, which get the odd ones."""
    if layer.padding == "valid":
        return [0] * 2 * len(layer.kernel_size)
    if layer.padding != "same":
        return list(layer.padding) * 2
    totals = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def _linear(graph: OnnxGraph, node: fx.Node, inputs: list[str], bias: str | None, name: str) -> str:
    """Gemm takes matrices; of more axes the last is multiplied, by a transposed weight."""
    if len(shape_of(node)) == 2:
        return graph.add("Gemm", inputs + ([bias] if bias else []), name, transB=1)
    transposed = graph.add("Transpose", [inputs[1]], f"{node.name}.weight_t", perm=[1, 0])
    product = graph.add("MatMul", [inputs[0], transposed], f"{node.name}.products" if bias else name)
    return graph.add("Add", [product, bias], name) if bias else product
