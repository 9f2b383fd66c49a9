"""Norms and products of tensors in ONNX."""

from typing import Any

import torch
from torch import fx

from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation, source


def batch_norm(graph: OnnxGraph, node: fx.Node) -> str:
    """A batch norm that could not be folded."""
    module: Any = graph.module(node)
    size = len(module.running_mean)
    weight = module.weight if module.weight is not None else torch.ones(size)
    bias = module.bias if module.bias is not None else torch.zeros(size)
    values = {"weight": weight, "bias": bias, "mean": module.running_mean, "var": module.running_var}
    names = [graph.constant(f"{node.target}.{name}", value) for name, value in values.items()]
    return graph.add("BatchNormalization", [source(graph, node), *names], node.name, epsilon=module.eps)


def group_norm(graph: OnnxGraph, node: fx.Node) -> str:
    """A norm over groups of channels of each image, as the heads of detectors have."""
    module: Any = graph.module(node)
    if module is None or module.weight is None:
        raise UnsupportedOperation(f"{node.name}: a group norm must be a module nn.GroupNorm with a weight and a bias")
    names = [graph.constant(f"{node.target}.{name}", getattr(module, name)) for name in ("weight", "bias")]
    settings = {"num_groups": module.num_groups, "epsilon": module.eps}
    return graph.add("GroupNormalization", [source(graph, node), *names], node.name, **settings)


def matrix_product(graph: OnnxGraph, node: fx.Node) -> str:
    """The product of two tensors of the network."""
    return graph.add("MatMul", [source(graph, node), graph.value(node.args[1], f"{node.name}.other")], node.name)
