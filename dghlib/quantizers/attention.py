"""Attention, written as the products, sums and softmax of which it consists, so that each can be quantized.

torch computes attention in a single function, which holds 4 products and their weights. The functions here compute the
same from its parts, and the tracer replaces torch's functions by them. Dropout, which has no effect in eval mode, is
left out.

Source: A. Vaswani et al., "Attention Is All You Need", 2017, Eq. 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query key^T scale + mask) value, (..., L, E), as torch's function of this name."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = torch.matmul(query * (scale or 1 / math.sqrt(query.shape[-1])), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores + _added(attn_mask)
    return torch.matmul(scores.softmax(-1), value)


def _added(mask: Tensor) -> Tensor:
    """Return a mask in the form that is added to scores: False becomes a value like minus infinity."""
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -1e4) if mask.dtype is torch.bool else mask


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the result of nn.MultiheadAttention for (L, N, E), and the mean of its weights if `need_weights`.

    Raises:
        NotImplementedError: settings that no classifier uses: extra keys, padded keys, weights of each head.
    """
    rare = (bias_k, bias_v, key_padding_mask, static_k, static_v)
    if any(part is not None for part in rare) or add_zero_attn or (need_weights and not average_attn_weights):
        raise NotImplementedError("attention with extra or padded keys, or with weights of each head, cannot be traced")
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight:
        weights = in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    projected: Sequence[Tensor]
    if query is key is value and not use_separate_proj_weight:
        projected = F.linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
    else:
        projected = [F.linear(*each) for each in zip((query, key, value), weights, biases, strict=True)]
    length, count, width = query.shape
    heads = [part.reshape(-1, count * num_heads, width // num_heads).transpose(0, 1) for part in projected]
    if attn_mask is not None:
        attn_mask = _added(attn_mask)
    scores = torch.matmul(heads[0] / math.sqrt(width // num_heads), heads[1].transpose(-2, -1))
    attention = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
    mixed = torch.matmul(attention, heads[2]).transpose(0, 1).reshape(length, count, width)
    output = F.linear(mixed, out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    return output, attention.reshape(count, num_heads, length, -1).mean(1)


WRITTEN_OUT: Mapping[Any, Callable] = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.multi_head_attention_forward: multi_head_attention_forward,
}
