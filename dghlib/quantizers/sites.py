"""Sites of tensors: positions in a network's code that hold a tensor for every call of a shared layer.

The head of a detector runs on every level of a pyramid. The outputs of its layers, and tensors that are computed only
from them, have the same site for all levels: hardware has a single grid for it. Any other tensor is a site of its own.
The name of a site is that of its first node.
"""

from collections import Counter
from collections.abc import Hashable

from torch import fx

from dghlib.quantizers.operations import layer_calls


def site_of(node: fx.Node) -> str:
    """Return the site of a node that `mark_sites` has marked; otherwise the node's own name."""
    return node.meta.get("site", node.name)


def mark_sites(graph: fx.GraphModule) -> None:
    """Write the site of every node into its `meta`, which later copies of the graph keep."""
    calls = Counter(node.target for node, _ in layer_calls(graph))
    layers = {node for node, _ in layer_calls(graph) if calls[node.target] > 1}
    keys: dict[fx.Node, Hashable] = {}
    first: dict[Hashable, str] = {}
    for node in graph.graph.nodes:
        if node in layers:
            keys[node] = node.target
        elif (key := _key_of_reader(node, keys)) is not None:
            keys[node] = key
        node.meta["site"] = first.setdefault(keys.get(node, node), node.name)


def _key_of_reader(node: fx.Node, keys: dict[fx.Node, Hashable]) -> Hashable | None:
    """Return the key that a node shares with those of other calls, if it reads only a tensor at a shared site."""
    tensors = [source for source in node.all_input_nodes if "shape" in source.meta]
    if len(tensors) != 1 or tensors[0] not in keys:
        return None
    settings = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
    return node.op, node.target, repr(settings), keys[tensors[0]]
