"""Operations that move values, in ONNX: reshapes, parts, padding."""

from typing import Any

import torch
from torch import fx, nn

from dghlib.export.onnx_graph import OnnxGraph, batched, reshaped, shape_of, source


def arguments(node: fx.Node) -> Any:
    """Return the arguments of a call; their meaning depends on the operation."""
    return node.args


def reshape(graph: OnnxGraph, node: fx.Node) -> str:
    """Any operation that only changes the shape, to the shape that was observed in tracing."""
    return reshaped(graph, node, source(graph, node), node.name)


def permute(graph: OnnxGraph, node: fx.Node) -> str:
    """A new order of the axes."""
    order: Any = node.kwargs.get("dims") or arguments(node)[1:]
    order = order[0] if isinstance(order[0], list | tuple) else order
    axes = [axis % len(order) for axis in order]
    return graph.add("Transpose", [source(graph, node)], node.name, perm=axes)


def transpose(graph: OnnxGraph, node: fx.Node) -> str:
    """Two axes exchanged."""
    count = len(shape_of(node))
    axes = list(range(count))
    found = graph.settings(node, "dim0", "dim1")
    first, second = found["dim0"] % count, found["dim1"] % count
    axes[first], axes[second] = second, first
    return graph.add("Transpose", [source(graph, node)], node.name, perm=axes)


def concatenate(graph: OnnxGraph, node: fx.Node) -> str:
    """Tensors concatenated."""
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    if isinstance(parts, fx.Node):  # the result of `split` or `chunk`, unchanged
        names = list(graph.values[parts])
    else:
        names = [graph.value(part, f"{node.name}.{k}") for k, part in enumerate(parts)]
    return graph.add("Concat", names, node.name, axis=int(graph.settings(node, "dim").get("dim", 0)))


def split(graph: OnnxGraph, node: fx.Node) -> list[str]:
    """A tensor in several parts, whose sizes are those of the parts that are read."""
    found = graph.settings(node, "size", "dim")
    axis, amount = int(found.get("dim", 0)), found["size"]
    whole = shape_of(node.all_input_nodes[0])[axis]
    if node.target in (torch.chunk, "chunk"):
        amount = -(-whole // amount)
    sizes = list(amount) if isinstance(amount, list | tuple) else [amount] * (whole // amount)
    sizes += [whole - sum(sizes)] if sum(sizes) < whole else []
    names = [f"{node.name}.{k}" for k in range(len(sizes))]
    length = graph.constant(f"{node.name}.sizes", sizes, dtype="int64")
    graph.add_several("Split", [source(graph, node), length], names, node.name, axis=axis)
    return names


def pad(graph: OnnxGraph, node: fx.Node) -> str:
    """Zeros, or copies, around a tensor."""
    found = graph.settings(node, "pad", "mode", "value", "padding")
    module_modes: dict[Any, str] = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
    mode = module_modes.get(type(graph.module(node)), found.get("mode", "constant"))
    amounts = found["pad"] if "pad" in found else found["padding"]
    pairs = [(amounts[k], amounts[k + 1]) for k in range(0, len(amounts), 2)][::-1]  # torch has the last axis first
    pairs = [(0, 0)] * (len(shape_of(node)) - len(pairs)) + pairs
    pads = [before for before, _ in pairs] + [after for _, after in pairs]
    names = [source(graph, node), graph.constant(f"{node.name}.pads", pads, dtype="int64")]
    if mode == "constant":
        names.append(graph.constant(f"{node.name}.value", float(found.get("value") or 0.0)))
        # all axes are named: otherwise onnxruntime makes zeros before a maximum invisible to the maximum
        names.append(graph.constant(f"{node.name}.axes", range(len(pairs)), dtype="int64"))
    return graph.add("Pad", names, node.name, mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode))


def channel_shuffle(graph: OnnxGraph, node: fx.Node) -> str:
    """Channels of several groups, interleaved."""
    _, channels, *sides = shape_of(node)
    groups = graph.settings(node, "groups")["groups"]
    inner = graph.constant(f"{node.name}.grouped", [-1, groups, channels // groups, *sides], dtype="int64")
    grouped = graph.add("Reshape", [source(graph, node), inner], f"{node.name}.in_groups")
    turned = graph.add("Transpose", [grouped], f"{node.name}.turned", perm=[0, 2, 1, *range(3, 3 + len(sides))])
    shape = graph.constant(f"{node.name}.shape", batched(node), dtype="int64")
    return graph.add("Reshape", [turned, shape], node.name)
