"""The learned values of reconstruction: the directions in which weights round, and the step sizes of grids.

While a unit is learned, these modules replace its quantizers; afterwards each becomes a plain `UniformQuantizer`.

Sources: M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020 (rounding);
S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020 (step sizes, scaled gradients); X. Wei et al., "QDrop",
ICLR 2022 (values that stay in float at random); Y. Jeon et al., "Genie", CVPR 2023 (step sizes learned under fixed
codes).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dghlib.quantizers.grid import UniformQuantizer, fake_quantize
from dghlib.quantizers.layers import QuantizedLayer

_ZETA, _GAMMA = 1.1, -0.1  # the sigmoid is stretched to this range, then clipped to [0, 1]
_SMALLEST_SCALE = 1e-8


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """Return h(V), in [0, 1]: the share of a step by which a weight is rounded up (AdaRound Eq. 23)."""
    return (torch.sigmoid(logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def rounding_penalty(logits: Tensor, beta: float) -> Tensor:
    """Return the sum of 1 - |2 h(V) - 1| ** beta: zero when every weight is decided (AdaRound Eq. 24)."""
    return (1 - (2 * rectified_sigmoid(logits) - 1).abs().pow(beta)).sum()


class LearnedRounding(nn.Module):
    """A weight quantizer whose codes are those of the floor, plus a learned part of a step.

    Args:
        quantizer: gives the grid, per output channel.
        weight: the float weight; at the start the quantized weight equals it, within the range of the grid.
        learn_scale: whether step sizes are learned too, under codes that do not depend on them (GENIE-M).

    Attributes:
        logits: V of AdaRound, with the weight's shape.
        scale: with the grid's shape; a parameter that is not trained unless `learn_scale`.
    """

    floor: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: UniformQuantizer, weight: Tensor, learn_scale: bool = False):
        super().__init__()
        self.bits, self.signed = quantizer.bits, quantizer.signed
        self.limits = (quantizer.quant_min, quantizer.quant_max)
        steps = weight.detach() / quantizer.scale
        rest = steps - steps.floor()
        self.register_buffer("floor", steps.floor() + quantizer.zero_point)
        self.register_buffer("zero_point", quantizer.zero_point.to(weight.dtype))
        self.logits = nn.Parameter(-torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1))
        self.scale = nn.Parameter(quantizer.scale.clone(), requires_grad=learn_scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight; `weight` must be the weight of the constructor and is not read again."""
        return self._weight(rectified_sigmoid(self.logits))

    def _weight(self, up: Tensor) -> Tensor:
        return ((self.floor + up).clamp(*self.limits) - self.zero_point) * self.scale

    def penalty(self, beta: float) -> Tensor:
        """Return the rounding penalty of this weight."""
        return rounding_penalty(self.logits, beta)

    def harden(self, layer: QuantizedLayer) -> None:
        """Give `layer` the weight with every rounding decided, and its grid."""
        with torch.no_grad():
            weight = self._weight((self.logits >= 0).to(self.floor))
        layer.layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.weight_quantizer = UniformQuantizer(self.scale, self.zero_point, bits=self.bits, signed=self.signed)


class LearnedStep(nn.Module):
    """An activation quantizer whose step size is learned; its zero point is fixed.

    Args:
        quantizer: the grid at the start.
        scaled_gradient: divide the step size's gradient by sqrt(values * largest code), as LSQ does.
        keep_float: probability with which a value stays in float, drawn anew for each value (QDrop).
        generator: draws these values.
    """

    zero_point: Tensor

    def __init__(
        self,
        quantizer: UniformQuantizer,
        scaled_gradient: bool = False,
        keep_float: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.bits, self.signed = quantizer.bits, quantizer.signed
        self.limits = (quantizer.quant_min, quantizer.quant_max)
        self.register_buffer("zero_point", quantizer.zero_point)
        self.scale = nn.Parameter(quantizer.scale.clone())
        self.scaled_gradient, self.keep_float, self.generator = scaled_gradient, keep_float, generator

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        if self.scaled_gradient:
            factor = (x.numel() * max(1, self.limits[1])) ** -0.5
            scale = scale * factor + (scale * (1 - factor)).detach()
        kept = coins(x, self.keep_float, self.generator) if self.keep_float else None
        return fake_quantize(x, scale, self.zero_point, *self.limits, kept)

    def harden(self) -> UniformQuantizer:
        """Return the learned grid."""
        return UniformQuantizer(self.scale, self.zero_point, bits=self.bits, signed=self.signed)


@torch.no_grad()
def keep_positive(scales: Iterable[nn.Parameter]) -> None:
    """Move step sizes that an optimizer made negative or zero back above zero."""
    for scale in scales:
        scale.clamp_(min=_SMALLEST_SCALE)


def coins(like: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Return a tensor of the shape of `like` with ones, of that probability (in 256ths), and zeros.

    One random number makes 8 coins: 5 to 10 times as fast as `bernoulli_`. `generator` is on the device of `like`.
    """
    count = like.numel()
    drawn = torch.empty(-(-count // 8), dtype=torch.int64, device=like.device)
    drawn.random_(-(2**63), None, generator=generator)
    heads = drawn.view(torch.uint8)[:count].to(like.dtype).lt_(round(256 * probability))
    if like.ndim == 4:  # in the order of channels_last, as the tensors of the graph
        n, c, h, w = like.shape
        return heads.view(n, h, w, c).permute(0, 3, 1, 2)
    return heads.view(like.shape)
