"""Outlier channel splitting: input channels with the largest weights are read twice, each time with half the weight.

If a whole layer has a single grid, a few large weights make its steps coarse for all others. A layer can read such a
channel twice with half of the weight each time. Its weights then have half the range, the network computes the same
function, and the layer has one more input per split.

Source: R. Zhao, Y. Hu, J. Dotzel, C. De Sa, Z. Zhang: "Improving Neural Network Quantization without Retraining using
Outlier Channel Splitting", ICML 2019, and its released code, cornell-zhang/dnn-quant-ocs.

Differences:
1. Linear layers and transposed convolutions are also split; the released code splits only convolutions.
2. Layers that read the image are not split, as in the code. Grouped convolutions, whose groups would need the same
   number of additional inputs, and layers that are called in several places are not split either.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from dghlib.quantizers.layers import channel_axis, frozen
from dghlib.quantizers.operations import Kind, Layer, kind_of, layer_calls, source_of


def split(graph: fx.GraphModule, *, expand: float) -> None:
    """Let layers of a graph from `folded_graph` read a share `expand` of their input channels twice, in place.

    In a layer with C input channels, the largest is split, ceil(expand * C) times, including halves. The call's
    `meta["split"]` has the original weight and the order of the splits, for `divided`.
    """
    calls = dict(layer_calls(graph))
    times = Counter(node.target for node in calls)
    for call, layer in calls.items():
        of_image = kind_of(graph, source_of(graph, call.all_input_nodes[0])) is Kind.IMAGE
        if expand > 0 and times[call.target] == 1 and getattr(layer, "groups", 1) == 1 and not of_image:
            _split(graph, call, layer, math.ceil(expand * layer.weight.shape[input_axis(layer)]))
    graph.recompile()


def input_axis(layer: Layer) -> int:
    """Return the axis of the input channels in the weight of an ungrouped layer."""
    return 1 - channel_axis(layer)


def outliers(layer: Layer, count: int) -> list[int]:
    """Return the input channels to split, in order; channels from splits come after the original ones."""
    reach = layer.weight.detach().abs().transpose(0, input_axis(layer)).flatten(1).amax(1).tolist()
    order = []
    for _ in range(count):
        largest = max(range(len(reach)), key=reach.__getitem__)
        reach[largest] /= 2
        reach.append(reach[largest])
        order.append(largest)
    return order


def divided(weight: Tensor, axis: int, order: Sequence[int], step: Tensor | float = 0.0) -> Tensor:
    """Return a weight whose input channels along `axis` are split in this order, into halves -/+ a quarter step.

    Rounded to whole steps, x / 2 - 1/4 and x / 2 + 1/4 add up to the rounded x, while two halves of x = 1 would add up
    to 0 or 2. `step` broadcasts against a channel's weights.
    """
    channels = list(weight.detach().unbind(axis))
    for channel in order:
        half = channels[channel] / 2
        channels[channel] = half - step / 4
        channels.append(half + step / 4)
    return torch.stack(channels, axis)


def _split(graph: fx.GraphModule, call: fx.Node, layer: Layer, count: int) -> None:
    weight, axis = layer.weight.detach(), input_axis(layer)
    order = outliers(layer, count)
    places = list(range(weight.shape[axis]))
    for channel in order:
        places.append(places[channel])
    call.meta["split"] = (weight, order)
    layer.weight = frozen(divided(weight, axis, order))
    _set_inputs(layer, len(places))
    _read_twice(graph, call, torch.tensor(places, device=weight.device))


def _set_inputs(layer: Layer, count: int) -> None:
    """Set the number of input channels of a layer to that of its weight."""
    setattr(layer, "in_features" if hasattr(layer, "in_features") else "in_channels", count)


def _read_twice(graph: fx.GraphModule, call: fx.Node, places: Tensor) -> None:
    """Insert, before a call of a layer, the selection of its input channels (K,)."""
    name, source = f"split_{call.name}", call.all_input_nodes[0]
    graph.register_buffer(name, places)
    shape = list(source.meta["shape"])
    axis = len(shape) - 1 if hasattr(graph.get_submodule(str(call.target)), "in_features") else 1
    shape[axis] = len(places)
    with graph.graph.inserting_before(call):
        index = graph.graph.get_attr(name)
        picked = graph.graph.call_function(torch.index_select, (source, axis, index))
    picked.meta = {"shape": tuple(shape), "nn_module_stack": call.meta.get("nn_module_stack", {})}
    call.replace_input_with(source, picked)
