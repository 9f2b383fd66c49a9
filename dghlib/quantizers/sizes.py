"""The number of images: the only size that a network does not know, found by tracing the network twice.

Two traces with different numbers of images differ only in whole numbers that grow with the number of images; any other
difference means that the computation depends on this number. Such a number is computed anew in every pass, from a
tensor near its use. If it were read from the images at the start of the network, there would be a path from there to
its use, past all layers in between, and all of them would be a single unit of reconstruction.

Torchvision's detectors take images of many sizes (`any_size`), so all of their sizes are computed in every pass; for
them the number of images is only moved near its use.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate


class PathDependsOnNumber(ValueError):
    """Two traces with different numbers of images differ in more than numbers; the message says where."""


@dataclass(frozen=True)
class _Count:
    """Stands for a number among the arguments of a node: `slope` times the number of images, plus `offset`."""

    slope: int
    offset: int


def free_number_of_images(graph: fx.Graph, fewer: fx.Graph) -> None:
    """Make a graph that was traced with some images accept any number of them, in place.

    Args:
        graph: a trace, whose nodes know their `traced_shape`.
        fewer: another trace of the same network, with fewer images.

    Raises:
        PathDependsOnNumber: the traces compute different things.
    """
    images, twin_images = next(iter(graph.nodes)), next(iter(fewer.nodes))
    counts = (images.meta["traced_shape"][0], twin_images.meta["traced_shape"][0])
    twins: dict[fx.Node, fx.Node] = {}
    if len(graph.nodes) != len(fewer.nodes):
        raise PathDependsOnNumber(_place(graph, fewer))
    for node, twin in zip(list(graph.nodes), fewer.nodes, strict=True):
        twins[node] = twin
        if (node.op, str(node.target)) != (twin.op, str(twin.target)):
            raise PathDependsOnNumber(_where(node))
        try:
            args, kwargs = _merged((node.args, node.kwargs), (twin.args, twin.kwargs), counts, twins)
        except ValueError as error:
            raise PathDependsOnNumber(_where(node)) from error
        _mark_axis(node, twin)
        read = _Reader(node, twins, counts, images)
        node.args, node.kwargs = map_aggregate((args, kwargs), read)
    graph.lint()


def _place(graph: fx.Graph, fewer: fx.Graph) -> str:
    for node, twin in zip(graph.nodes, fewer.nodes, strict=False):
        if (node.op, str(node.target)) != (twin.op, str(twin.target)):
            return _where(node)
    return _where(list(graph.nodes)[-1])


def _where(node: fx.Node) -> str:
    stack = [entry for entry in node.meta.get("nn_module_stack", {}).values() if entry[0]]
    place = f"module {stack[-1][0]!r} ({stack[-1][1].__name__})" if stack else "the network's forward"
    return f"{place} computes {node.name!r} in two ways when it is called twice with different numbers of images"


def _merged(one: Any, other: Any, counts: tuple[int, int], twins: dict[fx.Node, fx.Node]) -> Any:
    """Return the merged arguments of both traces, with a _Count where they differ; or raise ValueError."""
    if isinstance(one, fx.Node):
        if twins.get(one) is not other:
            raise ValueError(f"{one} and {other}")
        return one
    if isinstance(one, tuple | list) and type(one) is type(other) and len(one) == len(other):
        return _sequence_like(one, [_merged(*each, counts, twins) for each in zip(one, other, strict=True)])
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: _merged(value, other[key], counts, twins) for key, value in one.items()}
    if isinstance(one, slice) and isinstance(other, slice):
        parts = [(one.start, other.start), (one.stop, other.stop), (one.step, other.step)]
        return slice(*(_merged(*each, counts, twins) for each in parts))
    if one == other or (one != one and other != other):  # the second: both are NaN
        return one
    if type(one) is type(other) is int:
        slope = (one - other) // (counts[0] - counts[1])
        if slope * (counts[0] - counts[1]) == one - other and slope > 0:
            return _Count(slope, one - slope * counts[0])
    raise ValueError(f"{one} and {other}")


def _sequence_like(one: Any, parts: list[Any]) -> Any:
    """Return a list unchanged, or otherwise a tuple; also for a torch.Size, which cannot hold computed values."""
    return parts if isinstance(one, list) else tuple(parts)


def _mark_axis(node: fx.Node, twin: fx.Node) -> None:
    """Write into `meta` the axis of a tensor that grows with the number of images, if there is exactly one."""
    shapes = zip(node.meta.get("traced_shape", ()), twin.meta.get("traced_shape", ()), strict=False)
    growing = [axis for axis, (size, twin_size) in enumerate(shapes) if size != twin_size]
    if len(growing) == 1:
        node.meta["batch_axis"] = growing[0]


class _Reader:
    """Inserts, before a node, the computation of a growing number from a nearby tensor."""

    def __init__(self, node: fx.Node, twins: dict[fx.Node, fx.Node], counts: tuple[int, int], images: fx.Node):
        self.node, self.images = node, images
        self.sources = [
            (source, axis, size // counts[0])
            for source in node.all_input_nodes
            for axis, (size, twin_size) in enumerate(
                zip(source.meta.get("traced_shape", ()), twins[source].meta.get("traced_shape", ()), strict=False)
            )
            if size != twin_size and size % counts[0] == 0 and size // counts[0] * counts[1] == twin_size
        ]

    def __call__(self, argument: Any) -> Any:
        if not isinstance(argument, _Count):
            return argument
        slope, offset = argument.slope, argument.offset
        fitting = [each for each in self.sources if slope % each[2] == 0 or each[2] % slope == 0]
        exact = [each for each in self.sources if each[2] == slope]
        source, axis, rows = next(iter([*exact, *fitting, (self.images, 0, 1)]))
        with self.node.graph.inserting_before(self.node):
            number = self.node.graph.call_method("size", (source, axis))
            if rows < slope:
                number = self.node.graph.call_function(operator.mul, (number, slope // rows))
            elif rows > slope:
                number = self.node.graph.call_function(operator.floordiv, (number, rows // slope))
            if offset:
                number = self.node.graph.call_function(operator.add, (number, offset))
        return number


def read_batch_size_nearby(graph: fx.GraphModule, images: Tensor) -> None:
    """Read the number of images near its use in a graph that computes sizes in every pass, in place.

    The number of images is recognised by passing twice as many as `images` (N, C, H, W).
    """
    if not any(_reads_size(node) for node in graph.graph.nodes):
        return
    few, many = _Values(graph, images), _Values(graph, torch.cat([images, images]))
    for node in list(graph.graph.nodes):
        beside = [each for each in node.all_input_nodes if few.has_batch(each) and many.has_batch(each)]
        for size in node.all_input_nodes:
            if beside and few.is_batch(size) and many.is_batch(size) and few.origin(size) is not beside[0]:
                with graph.graph.inserting_before(node):
                    node.replace_input_with(size, graph.graph.call_method("size", (beside[0], 0)))
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _reads_size(node: fx.Node) -> bool:
    return node.target == "size" or (node.target is getattr and node.args[1:2] == ("shape",))


class _Values(fx.Interpreter):
    """The value of every node of a graph for some images; for tensors, only their shapes."""

    def __init__(self, graph: fx.GraphModule, images: Tensor):
        super().__init__(graph)
        self.seen: dict[fx.Node, Any] = {}
        self.count = len(images)
        self.run(images)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.seen[n] = result.to("meta") if isinstance(result, Tensor) else result
        return result

    def is_batch(self, node: fx.Node) -> bool:
        """Say whether a node yields the number of images."""
        return isinstance(self.seen[node], int) and self.seen[node] == self.count

    def has_batch(self, node: fx.Node) -> bool:
        """Say whether a node holds a tensor whose first axis has the number of images."""
        value = self.seen[node]
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.count

    def origin(self, size: fx.Node) -> fx.Node:
        """Return the tensor that a size was read from."""
        while not isinstance(self.seen[size], Tensor):
            size = size.all_input_nodes[0]
        return size
