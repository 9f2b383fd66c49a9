"""Curved activation functions in files: the same code of each code, whatever the last bits of a runtime's functions.

Where the input and the result of a SiLU lie on grids, the function is a table of at most 256 codes. A runtime computes
it in float, and its exponential has other last bits than torch's. Among 256 results one may lie so close to the middle
between two codes that these bits decide, and every pixel of that code then differs. So where a result is that close,
the function reads its input with a step that is longer or shorter by less than a 4000th: the table is that of the
simulation, and no result is near a middle any more. It costs no time.

Far from 0 a SiLU is the identity, and where the grid of its input is finer, every other result lies in a middle:
halves go to even codes, and no change of the step gives that. Such a SiLU is written as torch computes it.
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
_ERROR = 2.0**-20  # of a result, as a part of itself and of what the function reads: 8 units in the last place
_CHANGES = [0.0, *(sign * 2.0**power for power in range(-20, -11) for sign in (1, -1))]  # of the step, relative


@contextmanager
def away_from_middles(graph: OnnxGraph, node: fx.Node) -> Iterator[Translation | None]:
    """Let a node read its input with another step, if results are close to middles otherwise.

    Yields:
        How the node is to be written if no change of the step will do, and there is another way; else None.
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
    """X / (1 + exp(-x)), as torch has it: of large x nothing but x is left, where a runtime's sigmoid may miss 1."""
    name, value = node.name, source(graph, node)
    power = graph.add("Exp", [graph.add("Neg", [value], f"{name}.negative")], f"{name}.power")
    below = graph.add("Add", [power, graph.constant(f"{name}.one", 1.0)], f"{name}.below")
    return graph.add("Div", [value, below], name)


def _change(graph: OnnxGraph, node: fx.Node) -> float | None:
    """Return the relative change of the step by which a node reads its input, None if it needs one and none will do."""
    if not does(graph.traced, node, TRANSCENDENTAL) or len(node.users) != 1:
        return 0.0
    given, made = grid_of(graph.traced, node.all_input_nodes[0]), graph.module(next(iter(node.users)))
    if not isinstance(made, UniformQuantizer) or given is None or max(given.bits, made.bits) > _BITS:
        return 0.0
    return change_of_step(function_of(graph.traced, node), given, made)


def change_of_step(
    function: Callable[[Tensor], Tensor], given: UniformQuantizer, made: UniformQuantizer
) -> float | None:
    """Return the smallest relative change of a step that keeps all results of a function away from middles.

    Args:
        function: element by element.
        given: the grid of its input, of one step.
        made: the grid of its result, of one step.

    Returns:
        0 if the step may stay, None if no change will do.
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
    """Append a second reading of the codes that a value stands for, by a step so much longer."""
    codes, scale, zero_point = next(each for each in graph.nodes if value in each.output).input
    step = graph.constant(f"{name}.scale", graph.number(scale) * factor)
    return graph.add("DequantizeLinear", [codes, step, zero_point], name)
