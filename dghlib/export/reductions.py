"""Operations over windows and axes in ONNX: pooling, averages, softmax."""

import math
from typing import Any

import torch
from torch import fx

from dghlib.export.onnx_graph import (
    OnnxGraph,
    Translation,
    UnsupportedOperation,
    reshaped,
    shape_of,
    sizes,
    source,
)
from dghlib.export.resizing import overlapping_average
from dghlib.quantizers.grid import UniformQuantizer


def pooling(operation: str) -> Translation:
    """Return the translation of maximum and average pooling over windows.

    Windows beyond the end in ceil mode are written as padding at the end, on which onnx and onnxruntime agree: their
    results for ceil mode together with padding differ from those of torch.
    """

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        names = ["kernel_size", "stride", "padding", "dilation", "ceil_mode"]
        if operation == "AveragePool":
            names = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"]
        found = graph.settings(node, *names)
        if found.get("divisor_override"):
            raise UnsupportedOperation(f"{node.name} overrides the divisor of an average")
        count = len(shape_of(node)) - 2
        window, dilation = sizes(found["kernel_size"], count), sizes(found.get("dilation", 1), count)
        stride = sizes(found.get("stride") or found["kernel_size"], count)
        padding = sizes(found.get("padding", 0), count)
        overhang = _overhang(node, window, stride, padding, dilation) if found.get("ceil_mode") else [0] * count
        attributes: dict[str, Any] = {"kernel_shape": window, "strides": stride}
        value, ends = source(graph, node), [side + more for side, more in zip(padding, overhang, strict=True)]
        if operation == "MaxPool":
            return graph.add(operation, [value], node.name, pads=padding + ends, dilations=dilation, **attributes)
        counts = found.get("count_include_pad", True) and any(padding)
        if counts and any(overhang):  # zeros of the padding count, those beyond it do not
            value, counts = zeros_around(graph, value, padding, node.name), False
            padding, ends = [0] * count, overhang
        attributes["count_include_pad"] = int(counts)
        return graph.add(operation, [value], node.name, pads=padding + ends, **attributes)

    return translate


def _overhang(
    node: fx.Node, window: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """Return by how much the last windows extend beyond the padded tensor, on each axis."""
    before, after = shape_of(node.all_input_nodes[0])[2:], shape_of(node)[2:]
    reach = [(after[k] - 1) * stride[k] + dilation[k] * (window[k] - 1) + 1 for k in range(len(window))]
    return [max(0, reach[k] - before[k] - 2 * padding[k]) for k in range(len(window))]


def zeros_around(graph: OnnxGraph, value: str, padding: list[int], name: str) -> str:
    """Append zeros on all sides of the axes behind the channels."""
    pads = graph.constant(f"{name}.pads", [*padding, *padding], dtype="int64")
    axes = graph.constant(f"{name}.axes", range(2, 2 + len(padding)), dtype="int64")
    return graph.add("Pad", [value, pads, graph.constant(f"{name}.zero", 0.0), axes], f"{name}.padded")


def adaptive_pooling(operation: str) -> Translation:
    """Return the translation of pooling to a fixed size; if windows overlap, only to averages."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        before, after = shape_of(node.all_input_nodes[0])[2:], shape_of(node)[2:]
        if any(size % windows for size, windows in zip(before, after, strict=True)):
            if operation == "AveragePool":
                return overlapping_average(graph, node)
            raise UnsupportedOperation(f"{node.name} pools {before} to {after}: its windows overlap")
        window = [size // windows for size, windows in zip(before, after, strict=True)]
        return graph.add(operation, [source(graph, node)], node.name, kernel_shape=window, strides=window)

    return translate


def mean(graph: OnnxGraph, node: fx.Node) -> str:
    """The average over some axes; over a whole map, a single window, for which runtimes have an integer kernel."""
    found = graph.settings(node, "dim", "keepdim")
    axes = found["dim"] if isinstance(found.get("dim"), list | tuple) else [found["dim"]]
    before = shape_of(node.all_input_nodes[0])
    if len(before) == 4 and {axis % 4 for axis in axes} == {2, 3} and node.meta.get("batch_axis", 0) < 2:
        window = list(before[2:])
        average = graph.add("AveragePool", [source(graph, node)], f"{node.name}.average", kernel_shape=window)
        return reshaped(graph, node, average, node.name)
    names = [source(graph, node), graph.constant(f"{node.name}.axes", list(axes), dtype="int64")]
    return graph.add("ReduceMean", names, node.name, keepdims=int(found.get("keepdim", False)))


def softmax(operation: str) -> Translation:
    """Return the translation of softmax or its logarithm."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        axis = int(graph.settings(node, "dim")["dim"])
        reach = _reach(graph, node)
        if reach >= 1:
            return graph.add(operation, [source(graph, node)], node.name, axis=axis)
        whole = graph.add(operation, [source(graph, node)], f"{node.name}.whole", axis=axis)
        return graph.add("Min", [whole, graph.constant(f"{node.name}.reach", reach)], node.name)

    return translate


def _reach(graph: OnnxGraph, node: fx.Node) -> float:
    """Return the largest value on the grid of a result, infinite without a grid.

    onnxruntime's integer softmax does not clip what lies beyond, but begins at 0 again. A minimum keeps it from that.
    """
    grids = [graph.module(user) for user in node.users]
    ends = [
        grid.from_codes(torch.tensor(grid.quant_max)).item() for grid in grids if isinstance(grid, UniformQuantizer)
    ]
    return min(ends, default=math.inf)
