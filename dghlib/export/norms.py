"""Norms and products of tensors in ONNX."""

from typing import Any

import torch
from torch import fx

from dghlib.export.onnx_graph import OnnxGraph, shape_of, source


def channel_affine(graph: OnnxGraph, node: fx.Node) -> str:
    """A batch norm that could not be folded: a product and a sum, as in the simulation."""
    module: Any = graph.module(node)
    shape = (-1, *[1] * (len(shape_of(node)) - 2))
    scale = graph.constant(f"{node.name}.factor", module.scale.reshape(shape))
    shift = graph.constant(f"{node.name}.offset", module.shift.reshape(shape))
    product = graph.add("Mul", [source(graph, node), scale], f"{node.name}.scaled")
    return graph.add("Add", [product, shift], node.name)


def group_norm(graph: OnnxGraph, node: fx.Node) -> str:
    """A norm over groups of channels of each image, as a module or a function."""
    module: Any = graph.module(node)
    channels = shape_of(node)[1]
    if module is not None:
        groups, eps, given = module.num_groups, module.eps, (module.weight, module.bias)
    else:
        found = graph.settings(node, "num_groups", "weight", "bias", "eps")
        groups, eps, given = found["num_groups"], found.get("eps", 1e-5), (found.get("weight"), found.get("bias"))
    usual = (torch.ones(channels), torch.zeros(channels))
    names = [
        graph.value(value if value is not None else default, f"{node.name}.{name}")
        for name, value, default in zip(("weight", "bias"), given, usual, strict=True)
    ]
    return graph.add("GroupNormalization", [source(graph, node), *names], node.name, num_groups=groups, epsilon=eps)


def matrix_product(graph: OnnxGraph, node: fx.Node) -> str:
    """The product of 2 tensors of the network."""
    return graph.add("MatMul", [source(graph, node), graph.value(node.args[1], f"{node.name}.other")], node.name)
