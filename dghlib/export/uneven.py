"""Uneven grids in ONNX: a logarithmic grid looks its codes up in a table, a twin grid takes the nearer of 2 points.

ONNX has no type for such codes, so both are written in the arithmetic of the simulation, operation by operation.
"""

from torch import Tensor, fx

from dghlib.export.onnx_graph import OnnxGraph, source
from dghlib.quantizers.uneven import STEPS_OF_LOGARITHM, TINY, LogQuantizer, TwinQuantizer


def quantize_unevenly(graph: OnnxGraph, node: fx.Node, quantizer: LogQuantizer | TwinQuantizer) -> str:
    """Append a quantization to an uneven grid; return the name of the result."""
    name, value = node.all_input_nodes[0].name, source(graph, node)
    if isinstance(quantizer, LogQuantizer):
        return _logarithmic(graph, quantizer, value, name)
    fine = _on_range(graph, value, quantizer.fine, quantizer.fine_codes, f"{name}.fine")
    coarse = _on_range(graph, value, quantizer.coarse, (0, quantizer.each - 1), f"{name}.coarse")
    far, near = (
        graph.add("Abs", [graph.add("Sub", [value, point], f"{point}.error")], f"{point}.distance")
        for point in (coarse, fine)
    )
    nearer = graph.add("LessOrEqual", [near, far], f"{name}.nearer")
    return graph.add("Where", [nearer, fine, coarse], f"{name}.quantized")


def _logarithmic(graph: OnnxGraph, quantizer: LogQuantizer, value: str, name: str) -> str:
    share = graph.add("Div", [value, graph.constant(f"{name}.scale", quantizer.scale)], f"{name}.share")
    positive = graph.add("Max", [share, graph.constant(f"{name}.tiny", TINY)], f"{name}.positive")
    logarithm = graph.add("Log", [positive], f"{name}.logarithm")
    steps = graph.add("Mul", [logarithm, graph.constant(f"{name}.per_unit", STEPS_OF_LOGARITHM)], f"{name}.steps")
    codes = _codes(graph, steps, (0, 2**quantizer.bits - 1), name)
    places = graph.add("Cast", [codes], f"{name}.places", to=6)  # 32-bit integers
    points = graph.constant(f"{name}.points", quantizer.points())
    return graph.add("Gather", [points, places], f"{name}.quantized", axis=0)


def _on_range(graph: OnnxGraph, value: str, step: Tensor, codes: tuple[int, int], name: str) -> str:
    width = graph.constant(f"{name}.step", step)
    steps = graph.add("Div", [value, width], f"{name}.steps")
    return graph.add("Mul", [_codes(graph, steps, codes, name), width], f"{name}.point")


def _codes(graph: OnnxGraph, steps: str, ends: tuple[int, int], name: str) -> str:
    low, high = (
        graph.constant(f"{name}.{what}", float(end)) for what, end in zip(("first", "last"), ends, strict=True)
    )
    return graph.add("Clip", [graph.add("Round", [steps], f"{name}.rounded"), low, high], f"{name}.codes")
