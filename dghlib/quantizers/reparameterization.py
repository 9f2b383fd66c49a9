"""Scale reparameterization: a layer norm brings its channels to a common range, and the next layers reverse this.

The output channels of a layer norm differ in range, so a common grid suits none of them. A norm ends in a scale and a
shift for each channel: y' = y / factor - shift can have any range, and a linear layer that reads y' with
W' = W factor and b' = b + W' shift computes the same as before. In float nothing changes.

This is possible if only linear layers read the values of a norm, each channel in its place. A norm that is also added
to a shortcut, as in transformers with the norm after the sum, is not changed. Neither is a norm of which only a class
token is read: with 1 token per image, the ranges of channels would be those of only a few values.

Source: Z. Li et al., "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers", ICCV
2023, Eq. 8 to 12.

Differences:
1. The zero point of the common grid is rounded and is a code; the shift takes up the difference, so this costs nothing.
   In the released code it is the mean of the channels' zero points, which is not an integer.
2. A channel that is (nearly) the same for all images has no range to divide by, and keeps its scale.
3. Channels are found by sending channel indices through the graph, so maps (N, H, W, C) and their windows can be used
   as well as sequences. The released code treats only (N, T, C) as having channels last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dghlib.quantizers.grid import code_limits
from dghlib.quantizers.layers import frozen
from dghlib.quantizers.operations import MOVEMENTS, called_module, does

_DEAD = 1e-4  # of the mean range of all channels


def is_layer_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node is a layer norm over only the last axis, with a scale and a shift of its own."""
    module = called_module(graph, node)
    return (
        isinstance(module, nn.LayerNorm)
        and len(module.normalized_shape) == 1
        and module.weight is not None
        and module.bias is not None
    )


def layers_behind_norms(graph: fx.GraphModule, images: Tensor) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the linear layers that are the only readers of each layer norm, and why other norms cannot be changed.

    Args:
        graph: from `folded_graph`.
        images: (N, C, H, W) of any values; two are enough.
    """
    walk = _ChannelNumbers(graph)
    with torch.no_grad():
        walk.run(images)
    return walk.layers, walk.refused


class _ChannelNumbers(fx.Interpreter):
    """Runs a graph, and sends channel indices from every layer norm to its readers."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.graph_module = graph
        self.numbers: dict[fx.Node, tuple[str, Tensor]] = {}
        self.layers: dict[str, list[str]] = {}
        self.refused: dict[str, str] = {}
        calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
        self.shared = {target for target in calls if calls.count(target) > 1}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for source in n.all_input_nodes:
            if source in self.numbers:
                self._follow(n, source)
        if is_layer_norm(self.graph_module, n):
            self._begin(n, result)
        return result

    def _begin(self, node: fx.Node, values: Tensor) -> None:
        numbers = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device).expand(values.shape)
        self.numbers[node] = (node.name, numbers)
        self.layers[node.name] = []
        if node.target in self.shared:
            self._refuse(node.name, "it is called more than once")

    def _follow(self, node: fx.Node, source: fx.Node) -> None:
        if not node.meta.get("holds", True) and node.op != "output":
            return  # a size
        norm, numbers = self.numbers[source]
        module = called_module(self.graph_module, node)
        if isinstance(module, nn.Linear):
            if node.target in self.shared:
                self._refuse(norm, f"{node.target} is called more than once")
            elif not torch.equal(numbers, torch.arange(numbers.shape[-1]).to(numbers).expand(numbers.shape)):
                self._refuse(norm, f"its channels are not those of {node.target}")
            elif norm in self.layers:
                self.layers[norm].append(str(node.target))
        elif does(self.graph_module, node, MOVEMENTS):
            moved = self._moved(node, source, numbers)
            if isinstance(moved, Tensor) and moved.numel() == numbers.numel():
                self.numbers[node] = (norm, moved)
            elif isinstance(moved, Tensor):
                self._refuse(norm, f"{node.name} picks a part, too few values to tell channels apart")
            else:
                self._refuse(norm, f"{node.name} splits it")
        else:
            self._refuse(norm, f"{node.name} reads it, too")

    def _moved(self, node: fx.Node, source: fx.Node, numbers: Tensor) -> Any:
        before = self.env[source]
        self.env[source] = numbers
        try:
            return super().run_node(node)
        finally:
            self.env[source] = before

    def _refuse(self, norm: str, why: str) -> None:
        self.layers.pop(norm, None)
        self.refused.setdefault(norm, why)


def common_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return factors (C,) and shifts (C,) that bring channels with these ranges to a common grid, and the grid.

    The grid is unsigned and affine; `low` and `high` (C,) are the ends of each channel's own grid.
    """
    scale = (high - low).double() / (2**bits - 1)
    alive = scale > _DEAD * scale.mean()
    common = scale[alive].mean() if alive.any() else scale.new_ones(())
    factors = torch.where(alive, scale / common, 1.0)
    least, most = code_limits(bits, signed=False)
    zero_point = (-low.double() / torch.where(alive, scale, common)).mean().round().clamp(least, most)
    shifts = torch.where(alive, low / factors + zero_point * common, (low + high) / 2)  # a constant becomes 0
    return factors, shifts, common, zero_point


def reparameterize(graph: fx.GraphModule, norms: Mapping[str, Sequence[Any]]) -> None:
    """Change layer norms and the layers that read them, in place; the graph computes the same.

    Args:
        graph: from `folded_graph`.
        norms: by the path of the norm's module: paths of layers, factors (C,), shifts (C,).
    """
    for path, (layers, factors, shifts) in norms.items():
        norm: Any = graph.get_submodule(path)
        factors, shifts = (torch.as_tensor(v, dtype=torch.float64).to(norm.weight.device) for v in (factors, shifts))
        norm.weight = frozen(norm.weight.double() / factors)
        norm.bias = frozen(norm.bias.double() / factors - shifts)
        for name in layers:
            layer: Any = graph.get_submodule(name)
            weight = layer.weight.double() * factors
            layer.bias = frozen((0 if layer.bias is None else layer.bias.double()) + weight @ shifts)
            layer.weight = frozen(weight)
