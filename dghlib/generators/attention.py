"""Watch the attention inside a running transformer of any implementation.

An attention mixes the tokens of a sequence: A V, where the weights A are a softmax. In most networks the mixture is not
the output of a module. Therefore functions are watched instead of modules: torch's own attention, and a product whose
first factor was returned by a softmax.
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
        """Return the sequence `query` after it attends to itself; no weights."""
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
    """Make torch's attention layers in `net` watchable, in place; they compute the same values."""
    for module in net.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = OpenAttention


class RecordedAttention(TorchFunctionMode):
    """Record the results of attention while the context lasts: `mixtures`, each (N, heads, tokens, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixtures: list[Tensor] = []
        self._weights: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], _: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, and keep its result if it is a mixture."""
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

    For torch's own attention these are products of queries and keys; otherwise the inputs of a softmax, which differ
    from them by a factor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], _: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, and keep its input if it consists of scores."""
        if function in SOFTMAXES and args and isinstance(args[0], Tensor):
            self.scores.append(args[0])
        elif function is F.scaled_dot_product_attention:
            self.scores.append(args[0] @ args[1].mT)
        return function(*args, **(kwargs or {}))
