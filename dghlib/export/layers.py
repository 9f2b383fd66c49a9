"""Convolutions and linear layers in ONNX, in float and with integer weights and biases."""

from typing import Any

import torch
from onnx import TensorProto
from torch import fx, nn

from dghlib.export.integers import integers, quantized_weight
from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation, shape_of, source
from dghlib.quantizers.biases import LARGEST, bias_steps, fits_32_bits, grid_of
from dghlib.quantizers.layers import QuantizedLayer, channel_axis


def quantized_layer(graph: OnnxGraph, node: fx.Node) -> str:
    """A layer with integer weights. A layer with 2 calls has them twice: onnxruntime fails on shared weights."""
    module: Any = graph.module(node)
    path = str(node.target)
    name = f"{path}.weight" if f"{path}.weight.codes" not in graph.constants else f"{node.name}.weight"
    codes, axis = module.weight_quantizer.to_codes(module.layer.weight), channel_axis(module.layer)
    if _is_matmul(node, module.layer):
        codes, axis = codes.T, 1
    weight = quantized_weight(graph, codes, module.weight_quantizer, axis, name)
    return _sum_of_products(graph, node, module.layer, weight, _bias(graph, node, module))


def _bias(graph: OnnxGraph, node: fx.Node, module: QuantizedLayer) -> str | None:
    """Store the bias of a layer, as 32-bit integers on the grid of its products if there is one and the bias fits."""
    grid, bias = grid_of(graph.traced, node.all_input_nodes[0]), module.layer.bias
    if bias is None:
        return None
    name = f"{node.name}.bias"
    if grid is None:
        return graph.constant(name, bias)
    steps = bias_steps(module, grid.scale)
    codes = (bias.double() / steps).round()
    if not fits_32_bits(module, grid) or not (codes.abs() <= LARGEST).all():
        return None
    whole = integers(graph, f"{name}.codes", codes, TensorProto.INT32)
    zero_point = integers(graph, f"{name}.zero_point", torch.zeros_like(codes), TensorProto.INT32)
    scale = graph.constant(f"{name}.scale", steps)
    return graph.add("DequantizeLinear", [whole, scale, zero_point], name, axis=0)


def float_layer(graph: OnnxGraph, node: fx.Node) -> str:
    """A layer in float."""
    layer: Any = graph.module(node)
    weight = layer.weight.T if _is_matmul(node, layer) else layer.weight
    name = f"{node.target}.weight"
    bias = None if layer.bias is None else graph.constant(f"{node.target}.bias", layer.bias)
    return _sum_of_products(graph, node, layer, graph.constant(name, weight), bias)


def _sum_of_products(graph: OnnxGraph, node: fx.Node, layer: Any, weight: str, bias: str | None) -> str:
    """A layer with its bias; a float bias of a layer with integer weights is added separately.

    onnxruntime would otherwise convert it to 32-bit integers, without checking its size.
    """
    inputs = [source(graph, node), weight]
    if bias is not None or layer.bias is None:
        return _product(graph, node, layer, inputs, bias, node.name)
    column = layer.bias if isinstance(layer, nn.Linear) else layer.bias.reshape(-1, *[1] * (layer.weight.ndim - 2))
    product = _product(graph, node, layer, inputs, None, f"{node.name}.product")
    return graph.add("Add", [product, graph.constant(f"{node.name}.bias", column)], node.name)


def _product(graph: OnnxGraph, node: fx.Node, layer: Any, inputs: list[str], bias: str | None, name: str) -> str:
    if isinstance(layer, nn.Linear):
        return _linear(graph, node, layer, inputs, bias, name)
    if layer.padding_mode != "zeros":
        raise UnsupportedOperation(
            f"convolution {node.target} pads with mode {layer.padding_mode!r}; only zeros can be written"
        )
    attributes = {"strides": list(layer.stride), "dilations": list(layer.dilation), "group": layer.groups}
    attributes["pads"] = _pads(layer)
    operation = "Conv"
    if isinstance(layer, nn.ConvTranspose2d):
        operation = "ConvTranspose"
        attributes["output_padding"] = list(layer.output_padding)
    return graph.add(operation, inputs + ([bias] if bias else []), name, **attributes)


def _pads(layer: Any) -> list[int]:
    """Return the zeros around a convolution's input: all starts, then all ends, which get the odd ones."""
    if layer.padding == "valid":
        return [0] * 2 * len(layer.kernel_size)
    if layer.padding != "same":
        return list(layer.padding) * 2
    totals = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def _is_matmul(node: fx.Node, layer: Any) -> bool:
    """Return whether a layer is written as MatMul, with its weight transposed: Gemm takes only 2 axes."""
    return isinstance(layer, nn.Linear) and len(shape_of(node)) != 2


def _linear(graph: OnnxGraph, node: fx.Node, layer: Any, inputs: list[str], bias: str | None, name: str) -> str:
    if not _is_matmul(node, layer):
        return graph.add("Gemm", inputs + ([bias] if bias else []), name, transB=1)
    product = graph.add("MatMul", inputs, f"{node.name}.products" if bias else name)
    return graph.add("Add", [product, bias], name) if bias else product
