"""Equalization across layers: channels are scaled until neighbouring layers' weights reach alike far.

What lies between two layers, ReLU for instance, does the same to a channel at every scale. So a channel may leave the
first layer divided by a factor and enter the second multiplied by it, and the network computes what it did. The factor
is the one with which both layers' weights of the channel reach alike far. It makes the channels of a weight alike,
which matters where one grid serves them all.

Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019.

Differences:
1. ReLU6 between two layers becomes ReLU, as in the paper. What it cut off, the grid of the tensor has to.
2. High biases are absorbed where the next layer pads nothing: padding would have to be moved with the tensor.
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

_ROUNDS = 20  # over all pairs; a chain of three layers is equal to a thousandth after ten
_TAIL = 3.0  # deviations below the mean that a channel hardly ever falls
_EVERY_SCALE = {*RELU, *RELU6, nn.LeakyReLU, F.leaky_relu, nn.PReLU, F.prelu, *MAX_POOLING, *AVERAGES}


@dataclass(frozen=True)
class Pair:
    """Two layers, the second of which alone reads the first.

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

    With `absorb`, what a channel behind ReLU has at least moves from the first layer's bias into the second's.
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
    """Yield every pair of layers, both called once, with nothing between them to which a scale matters."""
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
    factors = torch.where(factors.isfinite() & (factors > 0), factors, 1.0)  # a channel without weights stays
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
    """Say whether a layer reads zeros around its input."""
    padding = getattr(layer, "padding", 0)
    return padding == "same" or (padding != "valid" and any(torch.tensor(padding).flatten().tolist()))


def _by_input(layer: Layer) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return magnitudes of a weight, a row for each input channel, and what makes factors (C_in,) broadcast to it."""
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
    """Multiply what a layer does with every input channel (C_in,) by a factor, through a new weight."""
    layer.weight = frozen(layer.weight.detach() * _by_input(layer)[1](factors))
