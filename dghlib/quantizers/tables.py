"""Activation functions in the form of integer hardware: a table from the code of the input to the code of the result.

A ReLU, which only clips, is a clip of codes. Any other function (hard swish, SiLU, sigmoid, a leaky ReLU) needs its
input on a grid, too; otherwise the sum before it stays in float. The grid is the one for which the function's result
has the smallest error: a hard swish, for example, is flat below -3, so no codes are needed there.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dghlib.quantizers.calibration import Histogram, power_of_two_above
from dghlib.quantizers.grid import UniformQuantizer, fake_quantize
from dghlib.quantizers.operations import CURVED, Kind, called_module, does, kind_of
from dghlib.quantizers.ranges import halvings
from dghlib.quantizers.sites import site_of

BITS = 8  # of the input, at least
_HALVINGS, _SHIFTS = 12, 16  # numbers of widths of the grid, and of ends for each, that are tried

Function = Callable[[Tensor], Tensor]


def inputs_of_tables(graph: fx.GraphModule, tensors: Collection[str]) -> dict[str, Function]:
    """Return the sites of sums from which curved functions compute `tensors`, with the functions."""
    found: dict[str, Function] = {}
    for node in graph.graph.nodes:
        if site_of(node) in tensors and does(graph, node, CURVED):
            read = node.all_input_nodes[0]
            if site_of(read) not in tensors and kind_of(graph, read) in (Kind.LAYER, Kind.BATCH_NORM):
                found.setdefault(site_of(read), function_of(graph, node))
    return found


def function_of(graph: fx.GraphModule, node: fx.Node) -> Function:
    """Return the function that a node computes of a tensor, element by element."""
    module = called_module(graph, node)
    if isinstance(module, nn.PReLU) or node.target is F.prelu:
        return torch.clone  # for functions whose slopes differ by channel
    if module is not None:
        return module
    settings = {name: value for name, value in node.kwargs.items() if name != "input"}
    operation: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    return partial(_called, operation, node.args[1:], settings)


def _called(operation: Any, settings: tuple[Any, ...], named: dict[str, Any], x: Tensor) -> Tensor:
    return operation(x, *settings, **named)


def grid_for(function: Function, histogram: Histogram, bits: int) -> UniformQuantizer:
    """Return the grid with power-of-two steps for which a function of the values has the least squared error."""
    seen = histogram.counts > 0
    centres, counts = histogram.centres()[seen], histogram.counts[seen]
    largest = max(-histogram.minimum, histogram.maximum)
    steps = [torch.tensor(width / 2**bits) for width in halvings(2 * power_of_two_above(largest), _HALVINGS)]
    places = [torch.tensor(zero) for zero in range(0, 2**bits, 2**bits // _SHIFTS)]
    with torch.no_grad():
        wanted = function(centres)

        def error(step: Tensor, zero: Tensor) -> float:
            found = function(fake_quantize(centres, step, zero, 0, 2**bits - 1))
            return ((found - wanted).square() @ counts).item()

        errors = {(step, zero): error(step, zero) for step in steps for zero in places}
    return UniformQuantizer(*min(errors, key=lambda grid: errors[grid]), bits=bits, signed=False)
