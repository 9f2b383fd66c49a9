"""AdaDFQ: GDFQ whose generator network looks for images on which student and float network differ, but not too much.

Source: B. Qian, Y. Wang, R. Hong, M. Wang: "Adaptive Data-Free Quantization", CVPR 2023, and its released code. AdaSG
("Rethinking Data-Free Quantization as a Zero-Sum Game", AAAI 2023) is the same with other constants: disagreement=0.1,
lower=0.3.

Differences from the released code:
1. The student learns by T^2 KL(float network || student) at temperature 20. In the code it learns by the entropy of the
   difference of the logits; at this temperature both have nearly the same gradient (see `distillation`).
2. Warm-up, schedules, the rate of the generator network, ranges and the rest as in `gdfq`, differences 1, 3 and 4. The
   preset "published" has the constants of the code, for ResNet-20.
3. While the generator network learns alone, the student counts as equal to the float network, because it does not exist
   yet. In the code it exists from the start, with ranges that are not settled.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers.joint import Settings, fine_tune_jointly
from dghlib.quantizers.quantized_model import QuantizedModel

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of AdaDFQ; see `joint.Settings` and `fine_tuning.Settings` for their meaning."""

    statistics: float = 1.0
    classes: float = 0.0
    disagreement: float = 0.2
    agreement: float = 0.1
    bounds: float = 1.0


PRESETS = {
    "default": Config(),
    "published": Config(rate=1e-4, schedule="quarters", warm_up=0.01, maker_rate=1e-3),
}


def quantize(
    model: FloatModel, images: Tensor | None, config: Config, *, checkpoint: Path | None = None
) -> QuantizedModel:
    """Return a quantized copy of a network; see `joint.fine_tune_jointly`."""
    return fine_tune_jointly("adadfq", model, images, config, checkpoint)
