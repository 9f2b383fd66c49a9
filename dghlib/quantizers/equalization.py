"""Equalization across layers: channels are scaled until the weights of neighbouring layers have the same range.

A ReLU between 2 layers, for example, commutes with a positive scale. So the first layer can divide a channel by a
factor and the second multiply it by the same factor, and the network computes the same function. The factor gives the
weights of the channel the same range in both layers. It makes the channels of a weight similar, which matters if they
share a grid.

Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019.

Differences:
1. ReLU6 between 2 layers becomes ReLU, as in the paper. The grid of the tensor has to clip instead.
2. High biases are absorbed if the next layer has no padding: padding would have to be moved with the tensor.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dghlib.quantizers.layers import frozen, mean_response, scale_output
from dghlib.quantizers.operations import (
    AVERAGES,
    MAX_POOLING,
    RELU,
    RELU6,
    Layer,
    does,
    layer_calls,
)

_ROUNDS = 20  # over all pairs; after 10 rounds a chain of 3 layers is equal to 1/1000
_TAIL = 3.0  # standard deviations below the mean; a channel hardly ever falls further
_EVERY_SCALE = {*RELU, *RELU6, nn.LeakyReLU, F.leaky_relu, nn.PReLU, F.prelu, *MAX_POOLING, *AVERAGES}


@dataclass(frozen=True)
class Pair:
    """Two layers, where only the second reads the output of the first.

    Attributes:
        call: the node of the first.
        between: nodes between them, in order.
    """

    call: fx.Node
    between: tuple[fx.Node, ...]
    first: Layer
    second: Layer


def equalize(graph: fx.GraphModule, *, absorb: bool) -> None:
    """Scale the channels between all pairs of layers of a graph from `folded_graph`, in place.

    With `absorb`, the smallest usual value of a channel after ReLU moves from the bias of the first layer to that of
    the second.
    """
    pairs = list(pairs_of(graph))
    for pair in pairs:
        for node in pair.between:
            if does(graph, node, RELU6):
                node.op, node.target = "call_function", F.relu
                node.args, node.kwargs = (node.all_input_nodes[0],), {}
    with torch.no_grad():
        for _ in range(_ROUNDS):
            for pair in pairs:
                _equalize(pair)
        for pair in pairs if absorb else ():
            if any(does(graph, node, RELU) for node in pair.between) and not _pads(pair.second):
                _absorb(pair)
    graph.recompile()


def pairs_of(graph: fx.GraphModule) -> Iterator[Pair]:
    """Yield every pair of layers, both called once, with nothing between them that depends on the scale."""
    calls = dict(layer_calls(graph))
    times = Counter(node.target for node in calls)
    for call, layer in calls.items():
        between: list[fx.Node] = []
        node = call
        while len(node.users) == 1:
            node = next(iter(node.users))
            if node in calls:
                if times[call.target] == times[node.target] == 1:
                    yield Pair(call, tuple(between), layer, calls[node])
                break
            if not does(graph, node, _EVERY_SCALE):
                break
            between.append(node)


def _equalize(pair: Pair) -> None:
    first, second = _reach_of_outputs(pair.first), _reach_of_inputs(pair.second)
    factors = (first / second).sqrt()
    factors = torch.where(factors.isfinite() & (factors > 0), factors, 1.0)  # a channel without weights is unchanged
    scale_output(pair.first, 1 / factors)
    if pair.first.bias is not None:
        pair.first.bias = frozen(pair.first.bias / factors)
    _scale_input(pair.second, factors)
    if "moments" in pair.call.meta:
        mean, spread = pair.call.meta["moments"]
        pair.call.meta["moments"] = (mean / factors, spread / factors)


def _absorb(pair: Pair) -> None:
    if "moments" not in pair.call.meta or pair.first.bias is None:
        return
    mean, spread = pair.call.meta["moments"]
    least = (mean - _TAIL * spread).clamp(min=0)
    pair.first.bias = frozen(pair.first.bias - least)
    pair.second.bias = frozen((0 if pair.second.bias is None else pair.second.bias) + _response(pair.second, least))
    pair.call.meta["moments"] = (mean - least, spread)


def _response(layer: Layer, mean: Tensor) -> Tensor:
    return mean_response(layer, layer.weight, mean).float()


def _pads(layer: Any) -> bool:
    """Return whether a layer pads its input with zeros."""
    padding = getattr(layer, "padding", 0)
    return padding == "same" or (padding != "valid" and any(torch.tensor(padding).flatten().tolist()))


def _by_input(layer: Layer) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return magnitudes of a weight, a row per input channel, and a function that broadcasts factors (C_in,) to it."""
    weight, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    axes = [1] * (weight.ndim - 2)
    if isinstance(layer, nn.ConvTranspose2d):  # (C_in, C_out / groups, ...)
        return weight.abs().flatten(1), lambda factors: factors.reshape(-1, 1, *axes)
    rows = weight.abs().reshape(groups, -1, *weight.shape[1:]).movedim(2, 1).flatten(0, 1).flatten(1)

    def broadcast(factors: Tensor) -> Tensor:
        by_group = factors.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1)
        return by_group.reshape(len(weight), -1, *axes)

    return rows, broadcast


def _reach_of_inputs(layer: Layer) -> Tensor:
    return _by_input(layer)[0].amax(1)


def _reach_of_outputs(layer: Layer) -> Tensor:
    weight = layer.weight.detach().abs()
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.reshape(layer.groups, -1, *weight.shape[1:]).movedim(2, 1).flatten(0, 1).flatten(1).amax(1)
    return weight.flatten(1).amax(1)


def _scale_input(layer: Layer, factors: Tensor) -> None:
    """Multiply a layer's response to every input channel by a factor (C_in,), through a new weight."""
    layer.weight = frozen(layer.weight.detach() * _by_input(layer)[1](factors))
