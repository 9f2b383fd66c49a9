"""Patches of maps in ONNX: a convolution that picks one pixel for each channel, and its transpose, which adds up."""

from typing import Any

import torch
from torch import Tensor, fx

from dghlib.export.onnx_graph import OnnxGraph, reshaped, shape_of, sizes, source

_SETTINGS = ("kernel_size", "dilation", "padding", "stride")


def patches(graph: OnnxGraph, node: fx.Node) -> str:
    """Windows of a map (N, C, H, W) as columns (N, C window, L)."""
    found = graph.settings(node, *_SETTINGS)
    channels = shape_of(node.all_input_nodes[0])[1]
    pick = graph.constant(f"{node.name}.pick", _one_pixel_each(channels, found["kernel_size"]))
    windows = graph.add("Conv", [source(graph, node), pick], f"{node.name}.windows", **_windows(found, channels))
    return reshaped(graph, node, windows, node.name)


def from_patches(graph: OnnxGraph, node: fx.Node) -> str:
    """The map (N, C, H, W) of which windows are columns; where they overlap, their sum."""
    found = graph.settings(node, "output_size", *_SETTINGS)
    channels, settings = shape_of(node)[1], _windows(found, shape_of(node)[1])
    size, window = sizes(found["output_size"], 2), sizes(found["kernel_size"], 2)
    counts, more = [], []
    for axis, step in enumerate(settings["strides"]):
        reach = size[axis] + 2 * settings["pads"][axis] - settings["dilations"][axis] * (window[axis] - 1) - 1
        counts.append(reach // step + 1)
        more.append(reach % step)
    shape = graph.constant(f"{node.name}.grid", [-1, channels * window[0] * window[1], *counts], "int64")
    columns = graph.add("Reshape", [source(graph, node), shape], f"{node.name}.columns")
    pick = graph.constant(f"{node.name}.pick", _one_pixel_each(channels, window))
    return graph.add("ConvTranspose", [columns, pick], node.name, output_padding=more, **settings)


def _one_pixel_each(channels: int, kernel_size: Any) -> Tensor:
    """Return kernels (C window, 1, height, width), each of which picks another pixel of the window."""
    height, width = sizes(kernel_size, 2)
    return torch.eye(height * width).reshape(-1, 1, height, width).repeat(channels, 1, 1, 1)


def _windows(found: dict[str, Any], channels: int) -> dict[str, Any]:
    stride, dilation, padding = (
        sizes(found.get(name, usual), 2) for name, usual in (("stride", 1), ("dilation", 1), ("padding", 0))
    )
    return {"strides": stride, "dilations": dilation, "pads": padding * 2, "group": channels}
