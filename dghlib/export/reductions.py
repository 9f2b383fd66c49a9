"""Operations over windows and axes in ONNX: pooling, averages, softmax."""

from typing import Any

from torch import fx

from dghlib.export.onnx_graph import OnnxGraph, Translation, UnsupportedOperation, both_sides, pair, shape_of, source
from dghlib.export.resizing import overlapping_average


def pooling(operation: str) -> Translation:
    """Return the translation of maximum and average pooling over windows."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        names = ["kernel_size", "stride", "padding", "dilation", "ceil_mode"]
        if operation == "AveragePool":
            names = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"]
        found = graph.settings(node, *names)
        if found.get("divisor_override"):
            raise UnsupportedOperation(f"{node.name} overrides the divisor of an average")
        attributes: dict[str, Any] = {
            "kernel_shape": pair(found["kernel_size"]),
            "strides": pair(found.get("stride") or found["kernel_size"]),
            "pads": both_sides(found.get("padding", 0)),
            "ceil_mode": int(found.get("ceil_mode", False)),
        }
        if operation == "AveragePool":
            # without padding both mean the same, but onnxruntime would count what overhangs with ceil_mode
            counts = found.get("count_include_pad", True) and any(attributes["pads"])
            attributes["count_include_pad"] = int(counts)
        else:
            attributes["dilations"] = pair(found.get("dilation", 1))
        return graph.add(operation, [source(graph, node)], node.name, **attributes)

    return translate


def adaptive_pooling(operation: str) -> Translation:
    """Return the translation of pooling to a fixed size; where windows overlap, to averages alone."""

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
    """The average over some axes."""
    found = graph.settings(node, "dim", "keepdim")
    axes = found["dim"] if isinstance(found.get("dim"), list | tuple) else [found["dim"]]
    names = [source(graph, node), graph.constant(f"{node.name}.axes", list(axes), dtype="int64")]
    return graph.add("ReduceMean", names, node.name, keepdims=int(found.get("keepdim", False)))


def softmax(operation: str) -> Translation:
    """Return the translation of softmax or its logarithm."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        return graph.add(operation, [source(graph, node)], node.name, axis=int(graph.settings(node, "dim")["dim"]))

    return translate
