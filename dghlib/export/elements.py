"""Operations element by element in ONNX: activation functions and arithmetic."""

from typing import Any

from torch import fx

from dghlib.export.onnx_graph import OnnxGraph, Translation, UnsupportedOperation, shape_of, source
from dghlib.quantizers.biases import grid_of
from dghlib.quantizers.grid import UniformQuantizer

_BITS_OF_SUMS = 14  # of the 24 of a float, beside the 9 of two codes and a zero point, and a half


def simple(operation: str, **attributes: Any) -> Translation:
    """Return the translation of an operation that ONNX has, on a single tensor, without settings."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        return graph.add(operation, [source(graph, node)], node.name, **attributes)

    return translate


def with_setting(operation: str, attribute: str, name: str, default: float) -> Translation:
    """Return the translation of an operation with a number for which torch and ONNX have different names."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        number = float(graph.settings(node, name).get(name, default))
        return graph.add(operation, [source(graph, node)], node.name, **{attribute: number})

    return translate


def clip(low: float, high: float) -> Translation:
    """Return the translation of relu6 and hardtanh, whose limits may be set."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        ends = {"min_val": low, "max_val": high} | graph.settings(node, "min_val", "max_val")
        least, most = (graph.constant(f"{node.name}.{name}", float(end)) for name, end in ends.items())
        return graph.add("Clip", [source(graph, node), least, most], node.name)

    return translate


def hardsigmoid(graph: OnnxGraph, node: fx.Node) -> str:
    """Clip(x + 3, 0, 6) / 6, step by step as in torch: ONNX multiplies by 1/6, which rounds midpoints differently."""
    name = node.name
    least, three, six = (graph.constant(f"{name}.{number}", float(number)) for number in (0, 3, 6))
    raised = graph.add("Add", [source(graph, node), three], f"{name}.raised")
    return graph.add("Div", [graph.add("Clip", [raised, least, six], f"{name}.clip"), six], name)


def hardswish(graph: OnnxGraph, node: fx.Node) -> str:
    """X clip(x + 3, 0, 6) / 6, step by step as in torch."""
    name, value = node.name, source(graph, node)
    least, three, six = (graph.constant(f"{name}.{number}", float(number)) for number in (0, 3, 6))
    clipped = graph.add("Clip", [graph.add("Add", [value, three], f"{name}.raised"), least, six], f"{name}.clip")
    return graph.add("Div", [graph.add("Mul", [value, clipped], f"{name}.product"), six], name)


def silu(graph: OnnxGraph, node: fx.Node) -> str:
    """X sigmoid(x)."""
    value = source(graph, node)
    return graph.add("Mul", [value, graph.add("Sigmoid", [value], f"{node.name}.sigmoid")], node.name)


def softplus(graph: OnnxGraph, node: fx.Node) -> str:
    """The logarithm of 1 + exp(beta x), divided by beta."""
    value, beta = source(graph, node), float(graph.settings(node, "beta", "threshold").get("beta", 1))
    if beta == 1:
        return graph.add("Softplus", [value], node.name)
    steepness = graph.constant(f"{node.name}.beta", beta)
    steep = graph.add("Mul", [value, steepness], f"{node.name}.steep")
    return graph.add("Div", [graph.add("Softplus", [steep], f"{node.name}.soft"), steepness], node.name)


def gelu(graph: OnnxGraph, node: fx.Node) -> str:
    """Gelu, exact or by tanh."""
    how = graph.settings(node, "approximate").get("approximate", "none")
    return graph.add("Gelu", [source(graph, node)], node.name, approximate=how)


def prelu(graph: OnnxGraph, node: fx.Node) -> str:
    """PReLU, with slopes along the channels."""
    module: Any = graph.module(node)
    if module is None:
        raise UnsupportedOperation(f"{node.name} calls prelu as a function; use the module nn.PReLU")
    shape = (-1, *[1] * (len(shape_of(node)) - 2))
    slope = graph.constant(f"{node.target}.weight", module.weight.reshape(shape))
    return graph.add("PRelu", [source(graph, node), slope], node.name)


def arithmetic(operation: str) -> Translation:
    """Return the translation of +, -, * and /, of 2 tensors or a tensor and a number."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            raise UnsupportedOperation(f"{node.name} has settings that its translation does not support: {node.kwargs}")
        second = node.args[1] if len(node.args) > 1 else node.kwargs["other"]
        names = [source(graph, node), graph.value(second, f"{node.name}.other")]
        if operation == "Add" and _loses_bits(graph, node):
            return graph.add("Sub", [names[0], graph.add("Neg", names[1:], f"{node.name}.negative")], node.name)
        return graph.add(operation, names, node.name)

    return translate


def _loses_bits(graph: OnnxGraph, node: fx.Node) -> bool:
    """Return whether the step sizes of a sum and its parts differ so much that floats cannot hold it exactly.

    onnxruntime converts it to an integer sum, which adds the zero point in float before it rounds; not for differences.
    """
    grids = [grid_of(graph.traced, read) for read in node.all_input_nodes] + [graph.module(user) for user in node.users]
    steps = [grid.scale.item() for grid in grids if isinstance(grid, UniformQuantizer)]
    return bool(steps) and max(steps) > 2**_BITS_OF_SUMS * min(steps)
