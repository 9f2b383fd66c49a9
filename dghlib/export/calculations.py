"""Operations that compute along axes, or with conditions, in ONNX: sums, norms, maxima, comparisons, einsum."""

from typing import Any

import torch
from torch import fx

from dghlib.export.onnx_graph import OnnxGraph, Translation, UnsupportedOperation, shape_of, source


def reduction(operation: str) -> Translation:
    """Return the translation of an operation over some axes."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        found = graph.settings(node, "dim", "keepdim")
        return _reduced(graph, node, operation, found["dim"], bool(found.get("keepdim", False)), node.name)

    return translate


def _reduced(graph: OnnxGraph, node: fx.Node, operation: str, dim: Any, keep: bool, name: str) -> str:
    axes = list(dim) if isinstance(dim, list | tuple) else [dim]
    names = [source(graph, node), graph.constant(f"{name}.axes", axes, "int64")]
    return graph.add(operation, names, name, keepdims=int(keep))


def norm(graph: OnnxGraph, node: fx.Node) -> str:
    """The first or second norm over some axes."""
    found = graph.settings(node, "p", "dim", "keepdim")
    kinds = {1: "ReduceL1", 2: "ReduceL2", "fro": "ReduceL2"}
    if (power := found.get("p", found.get("ord", 2))) not in kinds:
        raise UnsupportedOperation(f"{node.name} is a norm with p={power!r}; only 1 and 2 can be written")
    return _reduced(graph, node, kinds[power], found["dim"], bool(found.get("keepdim", False)), node.name)


def normalize(graph: OnnxGraph, node: fx.Node) -> str:
    """Vectors divided by their norm."""
    found = graph.settings(node, "p", "dim", "eps")
    if found.get("p", 2) != 2:
        raise UnsupportedOperation(f"{node.name} normalises with p={found['p']!r}; only 2 can be written")
    length = _reduced(graph, node, "ReduceL2", found.get("dim", 1), True, f"{node.name}.length")
    least = graph.constant(f"{node.name}.eps", float(found.get("eps", 1e-12)))
    return graph.add("Div", [source(graph, node), graph.add("Max", [length, least], f"{node.name}.safe")], node.name)


def extreme(operation: str) -> Translation:
    """Return the translation of torch.max or torch.min: of two tensors, or along an axis, with indices."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str | list[str]:
        second = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
        if isinstance(second, fx.Node):
            return graph.add(operation, [source(graph, node), graph.value(second, "")], node.name)
        found = graph.settings(node, "dim", "keepdim")
        keep = bool(found.get("keepdim", False))
        values = _reduced(graph, node, f"Reduce{operation}", found["dim"], keep, f"{node.name}.values")
        where = {"axis": int(found["dim"]), "keepdims": int(keep)}
        return [values, graph.add(f"Arg{operation}", [source(graph, node)], f"{node.name}.places", **where)]

    return translate


def of_two(operation: str, *, swapped: bool = False) -> Translation:
    """Return the translation of an operation on 2 tensors, or a tensor and a number."""

    def translate(graph: OnnxGraph, node: fx.Node) -> str:
        second = node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()))
        names = [source(graph, node), graph.value(second, f"{node.name}.other")]
        return graph.add(operation, names[::-1] if swapped else names, node.name)

    return translate


def not_equal(graph: OnnxGraph, node: fx.Node) -> str:
    """True where 2 tensors, or a tensor and a number, differ."""
    names = [source(graph, node), graph.value(node.args[1], f"{node.name}.other")]
    return graph.add("Not", [graph.add("Equal", names, f"{node.name}.equal")], node.name)


def clamp(graph: OnnxGraph, node: fx.Node) -> str:
    """Values between 2 limits, either of which may be missing."""
    name = getattr(node.target, "__name__", str(node.target))
    names = {"clamp_min": ("min",), "clamp_max": ("max",)}.get(name, ("min", "max"))
    found = graph.settings(node, *names)
    ends = ["" if found.get(end) is None else graph.value(found[end], f"{node.name}.{end}") for end in ("min", "max")]
    return graph.add("Clip", [source(graph, node), *ends], node.name)


def where(graph: OnnxGraph, node: fx.Node) -> str:
    """One tensor's values where a condition holds, the other's elsewhere."""
    names = [graph.value(part, f"{node.name}.{k}") for k, part in enumerate(node.args)]
    return graph.add("Where", names, node.name)


def masked_fill(graph: OnnxGraph, node: fx.Node) -> str:
    """A number where a condition is true."""
    value = graph.value(node.args[2] if len(node.args) > 2 else node.kwargs["value"], f"{node.name}.filling")
    return graph.add("Where", [graph.value(node.args[1], ""), value, source(graph, node)], node.name)


def to_float(graph: OnnxGraph, node: fx.Node) -> str:
    """Floats from booleans or integers."""
    if "shape" not in node.meta:
        raise UnsupportedOperation(f"{node.name} converts a tensor to {node.args[1:]}; only float32 can be written")
    return graph.add("Cast", [source(graph, node)], node.name, to=1)


def einsum(graph: OnnxGraph, node: fx.Node) -> str:
    """Sums of products, given by an equation."""
    equation: Any = node.args[0]
    operands: Any = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
    names = [graph.value(operand, f"{node.name}.{k}") for k, operand in enumerate(operands)]
    return graph.add("Einsum", names, node.name, equation=equation.replace(" ", ""))


def layer_norm(graph: OnnxGraph, node: fx.Node) -> str:
    """A norm over the last axes, as a module or a function."""
    module: Any = graph.module(node)
    if module is not None:
        axes, eps, weight, bias = len(module.normalized_shape), module.eps, module.weight, module.bias
        names = [
            graph.constant(f"{node.target}.{name}", value)
            for name, value in (("weight", weight), ("bias", bias))
            if value is not None
        ]
    else:
        found = graph.settings(node, "normalized_shape", "weight", "bias", "eps")
        axes, eps = len(found["normalized_shape"]), found.get("eps", 1e-5)
        given = [found.get(name) for name in ("weight", "bias")]
        names = [graph.value(value, "") for value in given if value is not None]
    if not names:
        names = [graph.constant(f"{node.name}.ones", torch.ones(shape_of(node)[-axes:]))]
    return graph.add("LayerNormalization", [source(graph, node), *names], node.name, axis=-axes, epsilon=eps)
