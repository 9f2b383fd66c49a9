"""The values of a network's tensors, predicted from its batch norms alone, without images.

A batch norm has the mean and the standard deviation of every channel of its output on the training data. Channels are
assumed to be normal and independent, cut off at a number of standard deviations, and followed from there: value by
value through activation functions, pair by pair through sums and products. The result has the form of the observations
that `calibration.observe` makes from images.

Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019, which predicts the ranges and means of a layer's inputs in this way.

Differences:
1. The paper has formulas for the output of ReLU. Here functions are applied to points on the normal distribution, so
   that any function can be used.
2. The paper uses batch norms directly before a layer. Here sums, gates, averages and concatenations are followed as
   well. Averages keep the standard deviation of their input, because most of a channel's variance is between images.
3. A layer without a batch norm, such as the last one, reads channels that vary together, as the features of a class do.
   They are not independent there: its output reaches as far as `_LEANING` standard deviations of all inputs at once.
4. Pixels may have any value in their range, and often all have the same value.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from dghlib.models import FloatModel
from dghlib.quantizers.calibration import Histogram, Observations
from dghlib.quantizers.folding import moments_after
from dghlib.quantizers.graph import device_of
from dghlib.quantizers.layers import mean_response
from dghlib.quantizers.operations import AVERAGES, Kind, Layer, called_module, does, kind_of, layer_calls, source_of
from dghlib.quantizers.sites import site_of

_DEVIATIONS = 6.0  # standard deviations at which the paper cuts off distributions
_LEANING = 3.0
_POINTS = 97  # means of rectified distributions are correct to 1/1000 of a standard deviation


def expect(graph: fx.GraphModule, tensors: Collection[str], model: FloatModel) -> Observations:
    """Return histograms of the named tensors and the mean input of every layer, predicted from the batch norms.

    Args:
        graph: from `folded_graph(model)`, or the same after its channels were scaled.
        tensors: names of nodes.
        model: gives the range of pixels in its normalised space.

    Raises:
        ValueError: a tensor cannot be predicted from batch norms; the message names it and the remedy.
    """
    teller = _Teller(graph, tensors, model)
    with torch.no_grad():
        teller.run(torch.zeros(2, *model.image_shape, device=device_of(graph)))
    return Observations(teller.histograms, teller.input_means)


class _Teller(fx.Interpreter):
    """Runs a graph on tensors that hold the indices of channels, so that movements show where each channel goes.

    `told` has, for every node that computes, the values (P, C) of its channels at points on the normal distribution;
    the points have the weights `weights` (P,).
    """

    def __init__(self, graph: fx.GraphModule, tensors: Collection[str], model: FloatModel):
        super().__init__(graph)
        self.points = torch.linspace(-_DEVIATIONS, _DEVIATIONS, _POINTS, dtype=torch.float64)
        self.weights = torch.exp(-self.points.square() / 2)
        self.weights /= self.weights.sum()
        self.model = model
        self.histograms = {name: Histogram() for name in tensors}
        self.input_means: dict[str, Tensor] = {}
        self.layers = dict(layer_calls(graph))
        self.told: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        kind = kind_of(self.module, n)  # type: ignore[arg-type]
        if kind is Kind.NOTHING:
            return result
        if kind is not Kind.MOVEMENT:
            self.told[n] = self._computed(n, kind)
            result = _numbered(result)
        if site_of(n) in self.histograms:
            values = self._values(n, result).float()
            self.histograms[site_of(n)].update(values, self.weights[:, None].expand_as(values))
        return result

    def _values(self, node: fx.Node, numbers: Tensor | None = None) -> Tensor:
        """Return the values (P, C) of a node's channels."""
        numbers = self.env[node] if numbers is None else numbers
        return self.told[source_of(self.module, node)][:, _channels(numbers)]  # type: ignore[arg-type]

    def _computed(self, node: fx.Node, kind: Kind) -> Tensor:
        graph: Any = self.module
        if kind is Kind.IMAGE:
            return self._pixels()
        read = node.all_input_nodes[0]
        if kind is Kind.LAYER:
            return self._of_layer(node, self.layers[node])
        if kind is Kind.BATCH_NORM:
            return self._normal(*moments_after(called_module(graph, node)))
        if kind is Kind.ACTIVATION:
            return self._call(node, {read: self._values(read).float()})
        if kind is Kind.ARITHMETIC:
            return self._arithmetic(node)
        if does(graph, node, AVERAGES):
            return self._values(read)
        if node.target is torch.cat:
            return torch.cat([self._values(part) for part in node.all_input_nodes], dim=1)
        raise ValueError(
            f"tensor {node.name!r} cannot be predicted from batch norms: {node.target} cannot be followed. "
            "Calibrate with images"
        )

    def _pixels(self) -> Tensor:
        mean, std = torch.tensor(self.model.mean), torch.tensor(self.model.std)
        return (torch.special.ndtr(self.points)[:, None] - mean) / std

    def _of_layer(self, node: fx.Node, layer: Layer) -> Tensor:
        read = self._values(node.all_input_nodes[0])
        mean, spread = self._moments(read)
        self.input_means[str(node.target)] = mean
        if "moments" in node.meta:
            return self._normal(*node.meta["moments"])
        bias = 0 if layer.bias is None else layer.bias.cpu()
        weight = layer.weight.cpu()
        leaning = mean_response(layer, weight.abs(), spread) * (_LEANING / _DEVIATIONS)
        return self._normal(mean_response(layer, weight, mean) + bias, leaning)

    def _arithmetic(self, node: fx.Node) -> Tensor:
        """Return the result for every value with a number, or for every pair of values of two tensors."""
        graph: Any = self.module
        read = [each for each in node.all_input_nodes if source_of(graph, each) in self.told]
        if len(read) == 1:
            return self._call(node, {read[0]: self._values(read[0])})
        first, second = (self._values(each) for each in read)
        pairs = self._call(node, {read[0]: first[:, None], read[1]: second[None]}).flatten(0, 1)
        weights = torch.outer(self.weights, self.weights).flatten()
        mean = weights @ pairs
        spread = (weights @ (pairs - mean).square()).sqrt()
        return self._normal(mean, spread).clamp(pairs.amin(0), pairs.amax(0))

    def _call(self, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
        """Return the result of a node for these values of its tensors; constants are per channel."""

        def given(each: fx.Node) -> Any:
            if each in values:
                return values[each]
            constant = self.env[each]
            return constant.flatten().cpu() if isinstance(constant, Tensor) and constant.ndim else constant

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
        return getattr(self, node.op)(node.target, args, kwargs).double()

    def _normal(self, mean: Tensor, spread: Tensor) -> Tensor:
        return mean.cpu() + self.points[:, None] * spread.cpu()

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.weights @ values
        return mean, (self.weights @ (values - mean).square()).sqrt()


def _numbered(like: Tensor) -> Tensor:
    """Return a tensor whose values are the index of their channel, from 1 on: zeros come from padding."""
    numbers = torch.arange(1.0, like.shape[1] + 1, device=like.device)
    return numbers.reshape(1, -1, *[1] * (like.ndim - 2)).expand(like.shape).clone()


def _channels(numbers: Tensor) -> Tensor:
    """Return which channel is at each position (C,) of a tensor of indices."""
    return numbers.movedim(1, 0).flatten(1).amax(1).long().cpu() - 1
