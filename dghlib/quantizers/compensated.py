"""A method that needs no images, and then a line for each output channel that images tell: what they add in seconds.

The base makes the network without images; `compensation` corrects it with them. So what images are worth shows by
itself: every grid of tensors and every code is the same for all of them.

Source: M. Fu, H. Yu, J. Shao, J. Zhou, K. Zhu, J. Wu: "Quantization without Tears", CVPR 2025, for least squares after
any quantizer; the bases have sources of their own.

Differences from the paper are listed in `compensation`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType

from torch import Tensor

from dghlib.choices import check_between, check_choice, check_types
from dghlib.models import FloatModel
from dghlib.quantizers import dfq, squant
from dghlib.quantizers.compensation import RIDGE, compensate
from dghlib.quantizers.grid import check_bits
from dghlib.quantizers.placement import BIT_POLICIES
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.storage.records import added_later

VERSION = 1  # raised with those of the bases, too

BASES: Mapping[str, ModuleType] = {"squant": squant, "dfq": dfq}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a compensated method.

    Args:
        weight_bits, activation_bits: 2 to 8, 16, or 32 for float.
        bits: "full", all layers and tensors alike; or "academic", the ends at 8 bits and the logits in float.
        base: the method that comes first, "squant" or "dfq", with its other settings at their defaults.
        ridge: how much of a channel's own energy holds its scale at one, 0 to 1.
        integer_biases: whether biases are rounded to the grids of the sums that they enter (see `biases`).
    """

    weight_bits: int = 8
    activation_bits: int = 8
    bits: str = "full"
    base: str = "squant"
    ridge: float = RIDGE
    integer_biases: bool = added_later(True, before=False)

    def __post_init__(self) -> None:
        check_types(self)
        check_bits(self.weight_bits, "weight_bits")
        check_bits(self.activation_bits, "activation_bits")
        check_choice("bits", self.bits, BIT_POLICIES)
        check_choice("base", self.base, BASES)
        check_between(0, 1, "ridge", self.ridge)


def quantize(model: FloatModel, images: Tensor, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network, corrected on normalised images (N, C, H, W), two at least.

    The model is left as it is. Raises as `squant.quantize` and `compensation.compensate`.
    """
    base = BASES[config.base]
    names = ("weight_bits", "activation_bits", "bits", "integer_biases")
    of_base = base.Config(**{name: getattr(config, name) for name in names})
    quantized = compensate(model, base.quantize(model, None, of_base), images, config.ridge)
    quantized.about |= {"method": "compensated", "config": asdict(config)}
    return quantized
