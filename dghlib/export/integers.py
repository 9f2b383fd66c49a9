"""Grids in ONNX: tensors as unsigned integers, weights as integers, biases as 32-bit integers.

The form is chosen such that onnxruntime fuses operations into integer kernels:

* all codes of up to 8 bits are unsigned bytes, including the zero point: codes of 2 types are not fused;
* narrower grids and activation functions that clip are clips of codes, after QuantizeLinear: a clip between a
  convolution and QuantizeLinear would prevent their fusion;
* movements of a tensor are followed by a pair of QuantizeLinear and DequantizeLinear, as computations are.

None of this changes a value: rounding is monotone, so the clip of a code is the code of the clipped value, and values
on a grid do not change when they are rounded to it again.
"""

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from dghlib.export.onnx_graph import OnnxGraph, source
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.operations import MOVEMENTS, RELU, does

_BYTE = 8  # bits
_TYPES = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}
_SIGNED_TYPES = {4: TensorProto.INT4, 8: TensorProto.INT8}
_ENDS = {
    **dict.fromkeys(RELU, (0.0, math.inf)),
    **dict.fromkeys((nn.ReLU6, F.relu6), (0.0, 6.0)),
    **dict.fromkeys((nn.Hardtanh, F.hardtanh), (-1.0, 1.0)),
}


def clip_ends(graph: OnnxGraph, node: fx.Node) -> tuple[float, float]:
    """Return the limits between which a node clips its input, infinite ones for any other node."""
    module = graph.module(node)
    operation: Any = type(module) if module is not None else node.target
    low, high = _ENDS.get(operation, (-math.inf, math.inf))
    found = graph.settings(node, "min_val", "max_val") if operation in (nn.Hardtanh, F.hardtanh) else {}
    return float(found.get("min_val", low)), float(found.get("max_val", high))


def clips_codes(graph: OnnxGraph, node: fx.Node) -> bool:
    """Return whether a node only clips for a quantizer, so that it can clip codes instead.

    This is not possible for quantized inputs: onnxruntime merges 2 successive quantizations, on a grid of its own.
    """
    readers = [graph.module(reader) for reader in node.users]
    clips = clip_ends(graph, node) != (-math.inf, math.inf) and node.all_input_nodes[0] not in graph.grids
    return clips and all(isinstance(reader, UniformQuantizer) and reader.bits <= _BYTE for reader in readers)


def quantize(graph: OnnxGraph, node: fx.Node, quantizer: UniformQuantizer) -> str:
    """Append a quantization to unsigned integers and back; return the name of the result.

    The grid begins at code 0. If it, or a clip before it, ends within the range of the integers, codes are clipped.
    """
    read = node.all_input_nodes[0]
    kind = _TYPES[_BYTE if quantizer.bits <= _BYTE else 16]
    grid = graph.grids[node] = read.name
    graph.constant(f"{grid}.scale", quantizer.scale)
    integers(graph, f"{grid}.zero_point", quantizer.zero_point - quantizer.quant_min, kind)
    codes = _to_codes(graph, source(graph, node), grid, f"{read.name}.codes")
    if quantizer.bits <= _BYTE:
        codes = _clipped(graph, codes, quantizer, clip_ends(graph, read), read.name)
    return _from_codes(graph, codes, grid, f"{read.name}.quantized")


def _clipped(graph: OnnxGraph, codes: str, quantizer: UniformQuantizer, ends: tuple[float, float], name: str) -> str:
    least, most = quantizer.to_codes(quantizer.scale.new_tensor(ends)) - quantizer.quant_min
    if (least, most) == (0, 2**_BYTE - 1):
        return codes
    low = integers(graph, f"{name}.least", least, TensorProto.UINT8)
    high = integers(graph, f"{name}.most", most, TensorProto.UINT8)
    return graph.add("Clip", [codes, low, high], f"{name}.clipped")


def keep_grid(graph: OnnxGraph, node: fx.Node, value: str | list[str]) -> str | list[str]:
    """Quantize the result of a movement again, if it lay on a grid and still does."""
    origin = node.all_input_nodes[0] if node.all_input_nodes else None
    if origin not in graph.grids or not does(graph.traced, node, MOVEMENTS) or _brings_others(graph, node):
        return value
    grid = graph.grids[node] = graph.grids[origin]
    if isinstance(graph.values[origin], list):
        return value  # one of several parts, which have all been quantized
    if isinstance(value, list):
        return [_again(graph, part, grid) for part in value]
    return _again(graph, value, grid)


def _brings_others(graph: OnnxGraph, node: fx.Node) -> bool:
    """Return whether a node adds values other than zero and those that it moves."""
    return node.target is F.pad and bool(graph.settings(node, "pad", "mode", "value").get("value"))


def _again(graph: OnnxGraph, value: str, grid: str) -> str:
    return _from_codes(graph, _to_codes(graph, value, grid, f"{value}.codes"), grid, f"{value}.quantized")


def _to_codes(graph: OnnxGraph, value: str, grid: str, name: str) -> str:
    return graph.add("QuantizeLinear", [value, f"{grid}.scale", f"{grid}.zero_point"], name)


def _from_codes(graph: OnnxGraph, codes: str, grid: str, name: str) -> str:
    return graph.add("DequantizeLinear", [codes, f"{grid}.scale", f"{grid}.zero_point"], name)


def integers(graph: OnnxGraph, name: str, codes: Tensor, kind: int) -> str:
    """Store integer codes in an ONNX integer type; 4-bit codes are packed 2 to a byte."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    array = codes.cpu().contiguous().numpy().astype(dtype)
    graph.constants[name] = numpy_helper.from_array(np.asarray(array), name)
    return name


def quantized_weight(graph: OnnxGraph, codes: Tensor, quantizer: UniformQuantizer, axis: int, name: str) -> str:
    """Store the codes of a weight; append their conversion to real values; return the name of the result.

    Integers of up to 4 bits are stored 2 to a byte; a runtime converts them to bytes once, when it loads the file.
    """
    width = next(width for width in _TYPES if quantizer.bits <= width)
    signed = graph.signed_weights and width <= _BYTE
    shift = quantizer.quant_min + (2 ** (quantizer.bits - 1) if signed else 0)
    types = _SIGNED_TYPES if signed else _TYPES
    kind = types[width]
    stored = integers(graph, f"{name}.codes", codes - shift, kind)
    if width < _BYTE:
        kind = types[_BYTE]
        stored = graph.add("Cast", [stored], f"{name}.bytes", to=kind)
    scale = graph.constant(f"{name}.scale", quantizer.scale.flatten())
    zero_point = integers(graph, f"{name}.zero_point", quantizer.zero_point.flatten() - shift, kind)
    return graph.add("DequantizeLinear", [stored, scale, zero_point], f"{name}.quantized", axis=axis)
