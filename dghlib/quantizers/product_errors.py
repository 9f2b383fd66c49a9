"""The inputs and outputs of a network's products, and how much the network's output depends on each product value.

An error of a product's output counts by the square of the gradient there: the diagonal of the Hessian, to first order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from dghlib.quantizers.graph import device_of
from dghlib.quantizers.operations import called_module
from dghlib.quantizers.transformers import products_of


@dataclass(eq=False)
class Product:
    """Rows of a linear layer, or matrices of a product of 2 tensors, for the images.

    Attributes:
        layer: the linear layer; None for a product of 2 tensors.
        factors: the factors: (rows, C_in), or (matrices, M, K) and (matrices, K, L).
        made: the product: (rows, C_out) or (matrices, M, L).
        gradient: of the loss, for `made`.
    """

    layer: nn.Linear | None
    factors: list[Tensor] = field(default_factory=list)
    made: Tensor = field(default_factory=lambda: torch.zeros(0))
    gradient: Tensor = field(default_factory=lambda: torch.zeros(0))

    def errors(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the errors that these factors (or a factor and a weight) cause, for each value of the product."""
        made = first @ second if self.layer is None else F.linear(first, second, self.layer.bias)
        return (made - self.made).mul_(self.gradient).square_()

    def add(self, factors: list[Tensor], made: Tensor, gradient: Tensor, share: float, draws: torch.Generator) -> None:
        """Keep a random share of the rows or matrices."""
        keep = 1 if self.layer is not None else 2
        parts = [values.detach().flatten(0, -1 - keep) for values in (*factors, made, gradient)]
        chosen = torch.randperm(len(parts[0]), generator=draws)[: max(1, int(share * len(parts[0])))]
        *parts, made, gradient = (part[chosen.to(part.device)] for part in parts)
        if self.factors:
            parts = [torch.cat(pair) for pair in zip(self.factors, parts, strict=True)]
            made, gradient = torch.cat([self.made, made]), torch.cat([self.gradient, gradient])
        self.factors, self.made, self.gradient = parts, made, gradient


def recorded_products(
    graph: fx.GraphModule, images: Tensor, batch_size: int, *, rows: int, matrices: int, seed: int
) -> dict[str, Product]:
    """Return the products of linear layers and of two tensors by the names of their nodes.

    The loss of the gradient is the negative logarithm of a class that is drawn from the output for each image.

    Args:
        graph: from `folded_graph`.
        images: (N, C, H, W), normalised.
        batch_size: images that pass at once.
        rows: largest number of rows that are kept of each linear layer.
        matrices: largest number of matrices that are kept of each product of 2 tensors.
        seed: of the random choices.

    Raises:
        ValueError: the output is not a row of logits for each image.
    """
    draws = torch.Generator().manual_seed(seed)
    found: dict[str, Product] = {}
    for batch in tqdm(images.split(batch_size), desc="products", unit="batch", leave=False, delay=3):
        for node, factors, made, gradient in _gradients(graph, batch.to(device_of(graph)), draws):
            layer = called_module(graph, node)
            product = found.setdefault(node.name, Product(layer if isinstance(layer, nn.Linear) else None))
            most, count = (rows, made[..., 0].numel()) if product.layer else (matrices, made[..., 0, 0].numel())
            product.add(factors, made, gradient, min(1.0, most * len(batch) / len(images) / count), draws)
    return found


def _gradients(
    graph: fx.GraphModule, images: Tensor, draws: torch.Generator
) -> Iterator[tuple[fx.Node, list[Tensor], Tensor, Tensor]]:
    """Yield every product's node, its inputs, its output, and the gradient of the loss for the output."""
    watch = _Watch(graph)
    with torch.enable_grad():
        logits = watch.run(images.detach().requires_grad_())
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                "errors are weighted by their effect on logits (N, classes), but this network returns "
                f"{found}: use repq_vit, which does not need logits"
            )
        classes = torch.multinomial(logits.detach().cpu().softmax(1), 1, generator=draws).flatten()
        loss = F.cross_entropy(logits, classes.to(logits.device), reduction="sum")
        gradients = torch.autograd.grad(loss, [made for *_, made in watch.products], allow_unused=True)
    for (node, factors, made), gradient in zip(watch.products, gradients, strict=True):
        yield node, factors, made, torch.zeros_like(made) if gradient is None else gradient


class _Watch(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.graph_module = graph
        self.wanted = {node for node in products_of(graph) if isinstance(called_module(graph, node), nn.Linear | None)}
        self.products: list[tuple[fx.Node, list[Tensor], Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.wanted and result.requires_grad:
            self.products.append((n, [self.env[read].detach() for read in n.all_input_nodes], result))
        return result
