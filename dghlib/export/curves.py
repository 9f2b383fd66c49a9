"""Curved activation functions in files: the same codes for every runtime, whatever the last bits of its functions.

If the input and the result of a SiLU lie on grids, the function is a table of at most 256 codes. A runtime computes it
in float, and the last bits of its exponential differ from those of torch. Among 256 results one may lie so close to the
midpoint of 2 codes that these bits decide, and every pixel with that code then differs. In this case, the function
reads its input with a step size that is changed by less than 1/4000: the table is that of the simulation, and no result
is close to a midpoint any more. This costs no time.

Far from 0 a SiLU is the identity. If the grid of its input is finer than that of its result, every other result lies on
a midpoint, which is rounded to the even code, and no change of the step size gives this. Such a SiLU is written as
torch computes it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from dghlib.export.onnx_graph import OnnxGraph, Translation, source
from dghlib.quantizers.biases import grid_of
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.operations import SILU, TRANSCENDENTAL, does
from dghlib.quantizers.tables import function_of

_BITS = 8
_ERROR = 2.0**-20  # of a result, relative to itself and to the function's input: 8 units in the last place
_CHANGES = [0.0, *(sign * 2.0**power for power in range(-20, -11) for sign in (1, -1))]  # of the step size, relative


@contextmanager
def away_from_middles(graph: OnnxGraph, node: fx.Node) -> Iterator[Translation | None]:
    """Let a node read its input with another step size, if results would otherwise be close to midpoints.

    Yields:
        How to write the node if no change of the step size is suitable, and there is another way; otherwise None.
    """
    change = _change(graph, node)
    if not change:
        yield careful_silu if change is None and does(graph.traced, node, SILU) else None
        return
    read = node.all_input_nodes[0]
    usual = graph.values[read]
    graph.values[read] = _with_step(graph, graph.value(read, ""), 1 + change, f"{node.name}.input")
    yield None
    graph.values[read] = usual


def careful_silu(graph: OnnxGraph, node: fx.Node) -> str:
    """X / (1 + exp(-x)), as in torch: for large x exactly x, where a runtime's sigmoid may differ from 1."""
    name, value = node.name, source(graph, node)
    power = graph.add("Exp", [graph.add("Neg", [value], f"{name}.negative")], f"{name}.power")
    below = graph.add("Add", [power, graph.constant(f"{name}.one", 1.0)], f"{name}.below")
    return graph.add("Div", [value, below], name)


def _change(graph: OnnxGraph, node: fx.Node) -> float | None:
    """Return the relative change of the step size for a node's input, None if it needs one and none is suitable."""
    if not does(graph.traced, node, TRANSCENDENTAL) or len(node.users) != 1:
        return 0.0
    given, made = grid_of(graph.traced, node.all_input_nodes[0]), graph.module(next(iter(node.users)))
    if not isinstance(made, UniformQuantizer) or given is None or max(given.bits, made.bits) > _BITS:
        return 0.0
    return change_of_step(function_of(graph.traced, node), given, made)


def change_of_step(
    function: Callable[[Tensor], Tensor], given: UniformQuantizer, made: UniformQuantizer
) -> float | None:
    """Return the smallest relative change of a step size that keeps all results of a function away from midpoints.

    Args:
        function: element by element.
        given: the grid of its input, with a single step size.
        made: the grid of its result, with a single step size.

    Returns:
        0 if the step size need not change, None if no change is suitable.
    """
    codes = torch.arange(given.quant_min, given.quant_max + 1, device=given.scale.device)
    with torch.no_grad():
        table = made.to_codes(function(given.from_codes(codes)))
        for change in _CHANGES:
            read = given.from_codes(codes).double() * (1 + change)
            result = function(read)
            error = _ERROR * (read.abs() + result.abs()) / made.scale
            above = result / made.scale + made.zero_point - table
            low = (above > error - 0.5) | (table == made.quant_min)
            high = (above < 0.5 - error) | (table == made.quant_max)
            if (low & high).all():
                return change
    return None


def _with_step(graph: OnnxGraph, value: str, factor: float, name: str) -> str:
    """Append a second reading of the codes of a value, with a step size that is changed by a factor."""
    codes, scale, zero_point = next(each for each in graph.nodes if value in each.output).input
    step = graph.constant(f"{name}.scale", graph.number(scale) * factor)
    return graph.add("DequantizeLinear", [codes, step, zero_point], name)
