"""A method without images, followed by a correction of each output channel from images, which takes seconds.

The base makes the network without images; `compensation` corrects it with images. This isolates the effect of the
images: every grid of tensors and every code is the same for all sources.

Source: M. Fu, H. Yu, J. Shao, J. Zhou, K. Zhu, J. Wu: "Quantization without Tears", CVPR 2025, for least squares after
any quantizer; the bases have their own sources.

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

VERSION = 1  # also raised with those of the bases

BASES: Mapping[str, ModuleType] = {"squant": squant, "dfq": dfq}


@dataclass(frozen=True, kw_only=True)
class Config(BitSettings):
    """Settings of a compensated method, in addition to `settings.BitSettings`.

    Args:
        base: the method without images, "squant" or "dfq", with its other settings at their defaults.
        ridge: strength of the regularization that holds a channel's scale at 1, relative to its energy, 0 to 1.
    """

    base: str = "squant"
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("base", self.base, BASES)
        check_between(0, 1, "ridge", self.ridge)


def quantize(model: FloatModel, images: Tensor, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network, corrected with at least 2 normalised images (N, C, H, W).

    The model is not changed. Raises as `squant.quantize` and `compensation.compensate`.
    """
    base = BASES[config.base]
    of_base = base.Config(**{each.name: getattr(config, each.name) for each in fields(BitSettings)})
    quantized = compensate(model, base.quantize(model, None, of_base), images, config.ridge)
    quantized.about |= {"method": "compensated", "config": asdict(config)}
    return quantized
