"""The number of images is read where it is used.

A network that reads `x.shape` where it begins and uses it where it ends has a way from the one to the other, past all
that lies between: it would be a single unit of reconstruction. So an operation that takes the number of images along
with a tensor reads it from that tensor. Other sizes stay as they are, since detectors take images of many.
"""

from typing import Any

import torch
from torch import Tensor, fx


def read_batch_size_nearby(graph: fx.GraphModule, images: Tensor) -> None:
    """Rewrite a graph that takes images like these (N, C, H, W), in place, as the module's docstring says.

    What is the number of images is told by passing twice as many.
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
    """What every node of a graph yields for some images; of tensors, their shapes alone."""

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
