"""Gradient inundation: a step of the optimizer is lengthened until enough codes of a layer change.

A code changes only after a weight has passed half a step of its grid, so small steps of the optimizer change nothing.
"Enough" is a share of the layer's weights, at least 1.
Source: K. Choi, H. Y. Lee, D. Hong, J. Yu, N. Park, Y. Kim, J. Lee: "It's All In the Teacher: Zero-Shot Quantization
Brought Closer to the Teacher", CVPR 2022 (AIT).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dghlib.quantizers.layers import QuantizedLayer
from dghlib.quantizers.trainable import MinMaxWeight

_LONGEST = 128.0  # times the optimizer's step
_BISECTIONS = 5


@contextmanager
def inundate(layers: Collection[QuantizedLayer], share: float) -> Iterator[None]:
    """Extend the block's changes of the layers' weights until `share` of their codes change; 0 extends nothing."""
    pairs = [
        (layer.layer.weight, quantizer)
        for layer in layers
        if share > 0 and isinstance(quantizer := layer.weight_quantizer, MinMaxWeight)
    ]
    before = [weight.detach().clone() for weight, _ in pairs]
    yield
    with torch.no_grad():
        for (weight, quantizer), old in zip(pairs, before, strict=True):
            move = weight - old
            enough = max(1, round(share * weight.numel()))
            weight.copy_(old + multiplier(old, move, quantizer.codes, enough) * move)


def multiplier(weight: Tensor, move: Tensor, codes: Callable[[Tensor], Tensor], enough: int) -> float:
    """Return the factor, from 1 to 128, by which to lengthen a move of a weight so that `enough` of its codes change.

    It is 1 if they change anyway, or if the move is zero.
    """
    now = codes(weight)

    def reached(factor: float) -> bool:
        return int((codes(weight + factor * move) != now).sum()) >= enough

    if not move.any() or not move.isfinite().all():
        return 1.0
    factor = 1.0
    while factor < _LONGEST and not reached(factor):
        factor *= 2
    if factor == 1 or not reached(factor):
        return factor
    low, high = factor / 2, factor
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
