"""Watch the attention inside a running transformer, whoever wrote it.

An attention mixes the tokens of a sequence: A V, with the weights A a softmax. In most networks the mixture is no
module's output, so it is not modules that are watched but functions: torch's own attention, and a product whose first
factor a softmax has returned.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}


class OpenAttention(nn.MultiheadAttention):
    """torch's layer, computed in steps that can be watched; its own forward is a single function from the outside."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the sequence `query` becomes when it attends to itself; no weights."""
        masked = any(isinstance(setting, Tensor) for setting in (*args, *settings.values()))
        if masked or not (query is key and key is value) or self.bias_k is not None or self.add_zero_attn:
            return super().forward(query, key, value, *args, **settings)
        tokens = query if self.batch_first else query.transpose(0, 1)
        threefold = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        heads = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in threefold.chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        attended = self.out_proj(mixed)
        return attended if self.batch_first else attended.transpose(0, 1), None


def open_attention(net: nn.Module) -> None:
    """Let the attention layers of `net` that are torch's own be watched, in place; what they compute is the same."""
    for module in net.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = OpenAttention


class RecordedAttention(TorchFunctionMode):
    """Record what attention returns while the context lasts: `mixtures`, each (N, heads, tokens, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixtures: list[Tensor] = []
        self._weights: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], _: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, and keep its result if it is of interest."""
        result = function(*args, **(kwargs or {}))
        if function in SOFTMAXES:
            self._weights.append(result)
        elif function is F.scaled_dot_product_attention or (function in PRODUCTS and self._made(args[0])):
            self.mixtures.append(result)
        return result

    def _made(self, factor: Tensor) -> bool:
        return any(factor is weights for weights in self._weights)


class RecordedScores(TorchFunctionMode):
    """Record the scores of attention while the context lasts: `scores`, each (N, heads, queries, keys).

    Of torch's own attention, products of queries and keys; else what a softmax is given, which is the same times a
    factor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], _: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, and keep what it is given if it is of interest."""
        if function in SOFTMAXES and args and isinstance(args[0], Tensor):
            self.scores.append(args[0])
        elif function is F.scaled_dot_product_attention:
            self.scores.append(args[0] @ args[1].mT)
        return function(*args, **(kwargs or {}))
