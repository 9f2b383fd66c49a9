"""Operations that change the size of a map, in ONNX: interpolation, adaptive pooling, pixels from channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dghlib.export.indexing import gathered
from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation, reshaped, shape_of, source

_SETTINGS = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")


def interpolate(graph: OnnxGraph, node: fx.Node) -> str:
    """Interpolation: nearest, linear or cubic."""
    found = graph.settings(node, *_SETTINGS)
    mode = found.setdefault("mode", "nearest")
    if mode.startswith("nearest"):
        return _nearest(graph, node, found)
    modes = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
    if mode not in modes or found.get("antialias"):
        raise UnsupportedOperation(f"{node.name} interpolates with mode {mode!r} and antialias or by area")
    settings: dict[str, Any] = {"coordinate_transformation_mode": "half_pixel"}
    if found.get("align_corners"):
        settings["coordinate_transformation_mode"] = "align_corners"
    if modes[mode] == "cubic":
        settings["cubic_coeff_a"] = -0.75
    before, after = shape_of(node.all_input_nodes[0])[2:], shape_of(node)[2:]
    if (scale := found.get("scale_factor")) and not found.get("recompute_scale_factor"):
        factors = [float(each) for each in scale] if isinstance(scale, list | tuple) else [float(scale)] * len(after)
    else:
        factors = [_factor(old, new) for old, new in zip(before, after, strict=True)]
    # Factors for all axes: onnxruntime's optimizer loses sizes and their axes when it moves channels.
    names = [source(graph, node), "", graph.constant(f"{node.name}.scales", [1.0, 1.0, *factors])]
    return graph.add("Resize", names, node.name, mode=modes[mode], **settings)


def _factor(old: int, new: int) -> float:
    """Return the float32 factor by which `old` becomes `new`, rounded down: the quotient, or the next above it."""
    factor = torch.tensor(new / old)
    while int(old * factor) < new:
        factor = torch.nextafter(factor, torch.tensor(torch.inf))
    return factor.item()


def _nearest(graph: OnnxGraph, node: fx.Node, found: dict[str, Any]) -> str:
    """Select pixels at the positions of torch; for integer factors, Resize selects the same."""
    before, after = shape_of(node.all_input_nodes[0])[2:], shape_of(node)[2:]
    if found["mode"] == "nearest" and not any(new % old for new, old in zip(after, before, strict=True)):
        factors = [1.0, 1.0, *(new / old for new, old in zip(after, before, strict=True))]
        names = [source(graph, node), "", graph.constant(f"{node.name}.scales", factors)]
        settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return graph.add("Resize", names, node.name, mode="nearest", **settings)
    value = source(graph, node)
    for axis, size in enumerate(before):
        numbers = torch.arange(float(size)).reshape([-1 if place == axis else 1 for place in range(len(before))])
        taken = F.interpolate(numbers.expand(1, 1, *before), **found)
        places = taken.transpose(2, axis + 2)[0, 0].flatten(1)[:, 0] if len(before) > 1 else taken.flatten()
        value = gathered(graph, value, places.long(), axis + 2, f"{node.name}.{axis}")
    return graph.add("Identity", [value], node.name)


def overlapping_average(graph: OnnxGraph, node: fx.Node) -> str:
    """Adaptive average pooling with overlapping windows: a product with a constant matrix on either side.

    They add, and a division follows: sums of values on a grid are exact, and so is an average between 2 codes.
    """
    before, after = shape_of(node.all_input_nodes[0])[2:], shape_of(node)[2:]
    rows, columns = (_windows(old, new) for old, new in zip(before, after, strict=True))
    across = graph.add(
        "MatMul", [source(graph, node), graph.constant(f"{node.name}.columns", columns.T)], f"{node.name}.across"
    )
    sums = graph.add("MatMul", [graph.constant(f"{node.name}.rows", rows), across], f"{node.name}.sums")
    counts = graph.constant(f"{node.name}.counts", rows.sum(1)[:, None] * columns.sum(1))
    return graph.add("Div", [sums, counts], node.name)


def _windows(size: int, windows: int) -> Tensor:
    """Return which positions are in each window, (windows, size), as 0 and 1: torch rounds windows outwards."""
    inside = torch.zeros(windows, size)
    for number in range(windows):
        inside[number, number * size // windows : -(-(number + 1) * size // windows)] = 1
    return inside


def pixel_shuffle(graph: OnnxGraph, node: fx.Node) -> str:
    """Pixels from channels, in torch's order."""
    factor = int(graph.settings(node, "upscale_factor")["upscale_factor"])
    return graph.add("DepthToSpace", [source(graph, node)], node.name, blocksize=factor, mode="CRD")


def pixel_unshuffle(graph: OnnxGraph, node: fx.Node) -> str:
    """Channels from pixels: the inverse of `pixel_shuffle`."""
    factor = int(graph.settings(node, "downscale_factor")["downscale_factor"])
    _, channels, height, width = shape_of(node.all_input_nodes[0])
    inner = [-1, channels, height // factor, factor, width // factor, factor]
    blocks = graph.constant(f"{node.name}.blocks", inner, "int64")
    parts = graph.add("Reshape", [source(graph, node), blocks], f"{node.name}.parts")
    turned = graph.add("Transpose", [parts], f"{node.name}.turned", perm=[0, 1, 3, 5, 2, 4])
    return reshaped(graph, node, turned, node.name)
