"""Operations that select values by index, or repeat them, in ONNX: indices, slices, rolls, repetitions."""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from dghlib.export.onnx_graph import OnnxGraph, UnsupportedOperation, reshaped, shape_of, source

_END = torch.iinfo(torch.int64).max


def gathered(graph: OnnxGraph, value: str, places: Tensor, axis: int, name: str) -> str:
    """Append a selection of indices (K,) along an axis; return the name of the result."""
    places = graph.constant(f"{name}.places", places, dtype="int64")  # type: ignore[assignment]
    return graph.add("Gather", [value, str(places)], name, axis=axis)


def pick(graph: OnnxGraph, node: fx.Node) -> str:
    """`x[...]`: one of several tensors, or a part of one: by slices, numbers, a list of indices, new axes."""
    origin: Any = node.args[0]
    index: Any = node.args[1]
    held = graph.values[origin]
    if isinstance(held, list):
        return held[index]
    value, axis = held, 0
    for number, part in enumerate(_without_ellipsis(index, len(shape_of(origin)))):
        name = f"{node.name}.{number}"
        if part is None:
            continue
        if isinstance(part, slice):
            value = _slice(graph, value, part, axis, name)
        elif type(part) is int:
            end = part + 1 if part != -1 else _END
            value = _slice(graph, value, slice(part, end), axis, name)
        else:
            value = gathered(graph, value, _places(graph, node, part), axis, name)
        axis += 1
    return reshaped(graph, node, value, node.name)


def _without_ellipsis(index: Any, count: int) -> list[Any]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis not in [part for part in parts if not isinstance(part, fx.Node)]:
        return parts
    place = next(k for k, part in enumerate(parts) if part is Ellipsis)
    missing = count - sum(part is not None for part in parts) + 1
    return parts[:place] + [slice(None)] * missing + parts[place + 1 :]


def _slice(graph: OnnxGraph, value: str, part: slice, axis: int, name: str) -> str:
    bounds = {"starts": part.start or 0, "ends": _END if part.stop is None else part.stop, "axes": axis}
    bounds["steps"] = part.step or 1
    if (bounds["starts"], bounds["ends"], bounds["steps"]) == (0, _END, 1):
        return value
    if any(isinstance(bound, fx.Node) for bound in bounds.values()):
        raise UnsupportedOperation(f"{name} is a slice whose ends depend on the number of images")
    names = [graph.constant(f"{name}.{what}", [bound], dtype="int64") for what, bound in bounds.items()]
    return graph.add("Slice", [value, *names], name)


def _places(graph: OnnxGraph, node: fx.Node, part: Any) -> Tensor:
    """Return the integers of a constant index, as a row."""
    if isinstance(part, fx.Node) and part.op == "get_attr":
        part = attrgetter(str(part.target))(graph.traced)
    places = torch.as_tensor(part) if isinstance(part, Tensor | list) else None
    if places is None or places.ndim != 1 or places.is_floating_point():
        raise UnsupportedOperation(f"{node.name} picks by {part!r}; only slices, numbers and rows can be written")
    return places.nonzero().flatten() if places.dtype is torch.bool else places


def select(graph: OnnxGraph, node: fx.Node) -> str:
    """One index, several consecutive indices, or a list of indices along an axis."""
    name = getattr(node.target, "__name__", str(node.target))
    axis = int(graph.settings(node, "dim", "index", "start", "length", "end")["dim"])
    if name == "index_select":
        return gathered(graph, source(graph, node), _places(graph, node, node.args[2]), axis, node.name)
    if name == "narrow":
        start, length = node.args[2:4]
        return _slice(graph, source(graph, node), slice(start, int(start) + int(length)), axis, node.name)  # type: ignore[arg-type]
    place: Any = node.args[2]
    part = _slice(
        graph, source(graph, node), slice(place, place + 1 if place != -1 else None), axis, f"{node.name}.one"
    )
    return reshaped(graph, node, part, node.name)


def unfold(graph: OnnxGraph, node: fx.Node) -> str:
    """Windows along an axis, which may overlap; the positions in a window become the last axis."""
    found = graph.settings(node, "dimension", "size", "step")
    count = len(shape_of(node))
    axis = int(found["dimension"]) % (count - 1)
    places = torch.arange(shape_of(node)[axis])[:, None] * int(found["step"]) + torch.arange(int(found["size"]))
    value = gathered(graph, source(graph, node), places, axis, f"{node.name}.windows")
    order = [place for place in range(count) if place != axis + 1] + [axis + 1]
    return graph.add("Transpose", [value], node.name, perm=order)


def roll(graph: OnnxGraph, node: fx.Node) -> str:
    """Values that leave an axis at its end and return at its start."""
    found = graph.settings(node, "shifts", "dims")
    shifts, axes = (each if isinstance(each, list | tuple) else [each] for each in (found["shifts"], found["dims"]))
    value, shape = source(graph, node), shape_of(node)
    for shift, axis in zip(shifts, axes, strict=True):
        places = torch.arange(shape[axis]).roll(shift)
        value = gathered(graph, value, places, axis, f"{node.name}.{axis % len(shape)}")
    return graph.add("Identity", [value], node.name)


def flip(graph: OnnxGraph, node: fx.Node) -> str:
    """Some axes reversed."""
    given: Any = node.args[1:] or node.kwargs["dims"]
    axes = given[0] if isinstance(given[0], list | tuple) else given
    value, shape = source(graph, node), shape_of(node)
    for axis in axes:
        value = gathered(graph, value, torch.arange(shape[axis]).flip(0), axis, f"{node.name}.{axis % len(shape)}")
    return graph.add("Identity", [value], node.name)


def expand(graph: OnnxGraph, node: fx.Node) -> str:
    """A tensor that is repeated along axes of size 1, also for each image."""
    shape, axis = list(shape_of(node)), node.meta.get("batch_axis")
    if axis is None or "batch_axis" in node.all_input_nodes[0].meta:
        sizes = [1 if place == axis else size for place, size in enumerate(shape)]  # for any number of images
        return graph.add(
            "Expand", [source(graph, node), graph.constant(f"{node.name}.shape", sizes, "int64")], node.name
        )
    images = next(each for each in graph.values if each.op == "placeholder")
    count = graph.add("Shape", [graph.value(images, "")], f"{node.name}.count", start=0, end=1)
    before, after = (
        graph.constant(f"{node.name}.{name}", part, "int64")
        for name, part in (("before", shape[:axis]), ("after", shape[axis + 1 :]))
    )
    whole = graph.add("Concat", [before, count, after], f"{node.name}.shape", axis=0)
    return graph.add("Expand", [source(graph, node), whole], node.name)


def repeat(graph: OnnxGraph, node: fx.Node) -> str:
    """A tensor concatenated with itself; repetitions for each image are expanded first."""
    given: Any = node.args[1:]
    times = given[0] if isinstance(given[0], list | tuple) else given
    if any(isinstance(number, fx.Node) for number in times):
        if any(number != 1 for number in times if not isinstance(number, fx.Node)):
            raise UnsupportedOperation(f"{node.name} repeats by the number of images and along other axes at once")
        return expand(graph, node)
    rows = len(times) - len(shape_of(node.all_input_nodes[0]))
    value = source(graph, node)
    if rows:
        padded = graph.constant(f"{node.name}.padded", [1] * rows + list(shape_of(node.all_input_nodes[0])), "int64")
        value = graph.add("Reshape", [value, padded], f"{node.name}.more_axes")
    return graph.add("Tile", [value, graph.constant(f"{node.name}.times", list(times), "int64")], node.name)


def stack(graph: OnnxGraph, node: fx.Node) -> str:
    """Tensors along a new axis."""
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    axis = int(graph.settings(node, "dim").get("dim", 0)) % len(shape_of(node))
    axes = graph.constant(f"{node.name}.axes", [axis], "int64")
    values = [graph.value(part, f"{node.name}.part{k}") for k, part in enumerate(parts)]
    names = [graph.add("Unsqueeze", [value, axes], f"{node.name}.{k}") for k, value in enumerate(values)]
    return graph.add("Concat", names, node.name, axis=axis)


def unbind(graph: OnnxGraph, node: fx.Node) -> list[str]:
    """The slices of a tensor along an axis, as separate tensors."""
    axis = int(graph.settings(node, "dim").get("dim", 0))
    count = shape_of(node.all_input_nodes[0])[axis]
    value = source(graph, node)
    return [
        graph.add("Gather", [value, graph.constant(f"{node.name}.place{k}", k, "int64")], f"{node.name}.{k}", axis=axis)
        for k in range(count)
    ]
