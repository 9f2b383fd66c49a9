"""Units of reconstruction: pieces of a network that are learned one after the other.

A unit is a piece of the traced graph with 1 input tensor and 1 output tensor. "layer" makes every convolution or linear
layer a unit, with the activation function after it (AdaRound). "block" finds the blocks of the reconstruction papers
in any network, without knowing its name (BRECQ):

1. The graph is cut at every tensor on which all later computation depends. Between 2 cuts lies a residual block, or a
   single operation.
2. Neighbours are joined that come from the same block of the network's code: a module of a class that contains an
   addition. So an inverted residual without a shortcut is a unit, as is one with a shortcut.
3. An activation function belongs to the unit before it. Pieces without a layer (pooling, reshapes) belong to no unit.
4. A tensor that is read again much later (feature pyramids, U-Nets, dense blocks) leaves no cuts in between. Such a
   piece is far deeper than a block; it is taken apart into the parts that have 1 input tensor, as the other tensors go
   around them.

The inputs and outputs of a unit have an entry for each image. A layer between tensors with more entries (windows of an
image, frames) is learned with the block around it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from torch import fx

from dghlib.quantizers.operations import ADDITIONS, Kind, does, kind_of, layer_calls

KINDS_OF_UNIT = ("layer", "block")
_DEEPEST = 6  # layers in sequence in a block; bottlenecks with squeeze and excitation have 5


@dataclass(frozen=True)
class Unit:
    """A piece of a graph, by names of nodes and paths of modules, so that it fits every graph of the network.

    Attributes:
        name: the block's path, or the first layer's.
        entry, exit: the nodes of the input and output tensors.
        layers: paths of its layers, in the order of computation.
    """

    name: str
    entry: str
    exit: str
    layers: tuple[str, ...]


def units_of(graph: fx.GraphModule, kind: str) -> list[Unit]:
    """Return the units of a graph from `folded_graph`, in the order of computation.

    A layer that several units call belongs to the first. Layers outside blocks, such as those after the last tensor on
    which all outputs of a detector depend, are units of their own.
    """
    found = [_layers(graph), _blocks(graph)] if kind == "layer" else [_blocks(graph), _layers(graph)]
    position = {node.name: index for index, node in enumerate(graph.graph.nodes)}
    return sorted(_without_repeated_layers(chain(*found)), key=lambda unit: position[unit.exit])


def _has_images(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node holds a tensor with an entry for each image."""
    image = next(iter(graph.graph.nodes))
    return "shape" in node.meta and node.meta["shape"][:1] == image.meta["shape"][:1]


def _without_repeated_layers(units: Iterator[Unit]) -> Iterator[Unit]:
    seen: set[str] = set()
    for unit in units:
        fresh = tuple(path for path in dict.fromkeys(unit.layers) if path not in seen)
        seen.update(fresh)
        if fresh:
            yield Unit(unit.name, unit.entry, unit.exit, fresh)


def _layers(graph: fx.GraphModule) -> Iterator[Unit]:
    for node, _ in layer_calls(graph):
        reader = next(iter(node.users))
        with_activation = len(node.users) == 1 and kind_of(graph, reader) is Kind.ACTIVATION
        end = reader if with_activation else node
        if not (_has_images(graph, node.all_input_nodes[0]) and _has_images(graph, end)):
            continue
        yield Unit(str(node.target), node.all_input_nodes[0].name, end.name, (str(node.target),))


@dataclass
class _Piece:
    entry: fx.Node
    nodes: list[fx.Node]
    block: str | None

    @property
    def exit(self) -> fx.Node:
        return self.nodes[-1]


def _blocks(graph: fx.GraphModule) -> Iterator[Unit]:
    layers = {node: str(node.target) for node, _ in layer_calls(graph)}
    joined: list[_Piece] = []
    for piece in chain.from_iterable(_taken_apart(graph, piece) for piece in _pieces(graph)):
        before = joined[-1] if joined and joined[-1].exit is piece.entry else None
        same_block = before is not None and piece.block is not None and piece.block == before.block
        activation = (
            before is not None
            and [kind_of(graph, node) for node in piece.nodes] == [Kind.ACTIVATION]
            and any(node in layers for node in before.nodes)
        )
        if before is not None and (same_block or activation):
            before.nodes += piece.nodes
        else:
            joined.append(piece)
    for piece in joined:
        paths = tuple(layers[node] for node in piece.nodes if node in layers)
        if paths:
            yield Unit(piece.block or paths[0], piece.entry.name, piece.exit.name, paths)


def _pieces(graph: fx.GraphModule) -> Iterator[_Piece]:
    """Cut the graph at every tensor on which alone all later computation depends."""
    blocks = _block_paths(graph)
    nodes = [node for node in graph.graph.nodes if node.op not in ("get_attr", "output")]
    position = {node: index for index, node in enumerate(nodes)}
    last_read = {node: max((position.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes}
    alive: set[fx.Node] = set()
    entry, inside = nodes[0], []
    for index, node in enumerate(nodes):
        alive = {other for other in alive if last_read[other] > index} | {node}
        if index == 0:
            continue
        inside.append(node)
        if alive == {node} and _has_images(graph, node):
            yield _Piece(entry, inside, _common(blocks.get(inner) for inner in inside))
            entry, inside = node, []


def _taken_apart(graph: fx.GraphModule, piece: _Piece) -> Iterator[_Piece]:
    """Yield the parts of a piece that is deeper than a block, in the order of computation, or the piece itself.

    A part lies between a tensor and the last tensor through which all paths to it lead, and no other piece reads what
    is inside. Of nested parts the largest counts, unless it is too deep as well.
    """
    layers = {node for node, _ in layer_calls(graph)}
    if piece.block is not None or _depth(piece, layers) <= _DEEPEST:
        yield piece
        return
    blocks, position = _block_paths(graph), {node: index for index, node in enumerate(piece.nodes)}
    parts = []
    for entry, end in _narrowest(graph, piece):
        found = _ancestors(end, entry)
        inside = [node for node in piece.nodes if node in found]
        closed = all(user in found for node in inside[:-1] for user in node.users)
        if closed and len(inside) < len(piece.nodes) and _has_images(graph, end):
            parts.append(_Piece(entry, inside, _common(blocks.get(node) for node in inside)))
    taken: set[fx.Node] = set()
    largest = []
    for part in sorted(parts, key=lambda part: len(part.nodes), reverse=True):
        if taken.isdisjoint(part.nodes):
            taken.update(part.nodes)
            largest.append(part)
    for part in sorted(largest, key=lambda part: position[part.exit]):
        yield from _taken_apart(graph, part)


def _depth(piece: _Piece, layers: set[fx.Node]) -> int:
    """Return the number of layers on the longest path through a piece."""
    depths = {piece.entry: 0}
    for node in piece.nodes:
        depths[node] = max((depths.get(source, 0) for source in node.all_input_nodes), default=0) + (node in layers)
    return max(depths.values())


def _narrowest(graph: fx.GraphModule, piece: _Piece) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield (entry, node) for every node: the last tensor with images before it through which all paths to it lead."""
    above: dict[fx.Node, list[fx.Node]] = {piece.entry: []}  # all such tensors, from the entry
    for node in piece.nodes:
        paths = [[*above[source], source] for source in node.all_input_nodes if source in above]
        if not paths:
            continue  # it reads constants alone
        shared = [first for first, *others in zip(*paths, strict=False) if all(other is first for other in others)]
        above[node] = shared
        yield next(tensor for tensor in reversed(shared) if _has_images(graph, tensor)), node


def _common(paths: Iterator[str | None]) -> str | None:
    """Return the path that all have, or None."""
    found = set(paths)
    return found.pop() if len(found) == 1 else None


def _block_paths(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the path of the block of each node: that of the outermost module of a class that contains an addition.

    A class whose subclass adds counts too: a network may distinguish blocks with and without a shortcut by class.
    """
    stacks = {node: list(node.meta.get("nn_module_stack", {}).values()) for node in graph.graph.nodes}
    adding = {stack[-1][1] for node, stack in stacks.items() if stack and does(graph, node, ADDITIONS)}
    blocks = {
        base for kind in adding for base in kind.__mro__ if not base.__module__.startswith(("torch.nn", "builtins"))
    }
    paths = {node: [path for path, kind in stack if kind in blocks] for node, stack in stacks.items()}
    return {node: found[0] for node, found in paths.items() if found}


def piece_of(graph: fx.GraphModule, entry: fx.Node, end: fx.Node) -> fx.GraphModule:
    """Return a graph that computes `end` from `entry`, on the modules of `graph` itself, not on copies.

    Raises:
        ValueError: `end` depends on the image by a path that does not pass `entry`.
    """
    needed = _ancestors(end, entry)
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {entry: part.placeholder(entry.name)}
    for node in graph.graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return fx.GraphModule(graph, part)


def _ancestors(end: fx.Node, entry: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [end] if end is not entry else []
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            raise ValueError(f"{end.name} depends on the image by another way than {entry.name}")
        if node not in found:
            found.add(node)
            waiting += [source for source in node.all_input_nodes if source is not entry]
    return found
