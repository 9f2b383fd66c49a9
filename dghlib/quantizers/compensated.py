"""A method that needs no images, and then a line for each output channel that images tell: what they add in seconds.

The base makes the network without images; `compensation` corrects it with them. So what images are worth shows by
itself: every grid of tensors and every code is the same for all of them.

Source: M. Fu, H. Yu, J. Shao, J. Zhou, K. Zhu, J. Wu: "Quantization without Tears", CVPR 2025, for least squares after
any quantizer; the bases have sources of their own.

Differences from the paper:
1. Those that `compensation` lists.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import ModuleType

from torch import Tensor

from dghlib.choices import check_between, check_choice
from dghlib.models import FloatModel
from dghlib.quantizers import dfq, squant
from dghlib.quantizers.compensation import RIDGE, compensate
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.settings import BitSettings

VERSION = 1  # raised with those of the bases, too

BASES: Mapping[str, ModuleType] = {"squant": squant, "dfq": dfq}


@dataclass(frozen=True, kw_only=True)
class Config(BitSettings):
    """Settings of a compensated method, beside `settings.BitSettings`.

    Args:
        base: the method that comes first, "squant" or "dfq", with its other settings at their defaults.
        ridge: how much of a channel's own energy holds its scale at one, 0 to 1.
    """

    base: str = "squant"
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("base", self.base, BASES)
        check_between(0, 1, "ridge", self.ridge)


def quantize(model: FloatModel, images: Tensor, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network, corrected on normalised images (N, C, H, W), two at least.

    The model is left as it is. Raises as `squant.quantize` and `compensation.compensate`.
    """
    base = BASES[config.base]
    of_base = base.Config(**{each.name: getattr(config, each.name) for each in fields(BitSettings)})
    quantized = compensate(model, base.quantize(model, None, of_base), images, config.ridge)
    quantized.about |= {"method": "compensated", "config": asdict(config)}
    return quantized
