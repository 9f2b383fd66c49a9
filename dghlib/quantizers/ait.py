"""AIT: a student that learns only from its teacher, and changes some codes of each of its layers in every step.

Source: K. Choi, H. Y. Lee, D. Hong, J. Yu, N. Park, Y. Kim, J. Lee: "It's All In the Teacher: Zero-Shot Quantization
Brought Closer to the Teacher", CVPR 2022, and its released code. `inundation` lengthens the steps.

Differences from the released code:
1. It learns from fixed images; the released code uses images of a generator that is trained together with the student,
   that of GDFQ, ARC or Qimera, which are not mirrored.
2. The distillation is averaged over images; the released code also averages over classes, so its distillation is
   smaller by the number of classes. The preset "published" has the code's constants for 10 classes.
3. A layer's step grows to at most 128 times the optimizer's step, and at least 1 code has to change; the code searches
   without end where a gradient is zero, and requires less than 1 weight in small layers.
4. Ranges as in `intraq_qat`, differences 2 to 4 and 6.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers.fine_tuning import Settings, fine_tune
from dghlib.quantizers.quantized_model import QuantizedModel

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of AIT; see `fine_tuning.Settings` for their meaning."""

    weight_decay: float = 0.0
    schedule: str = "quarters"
    inundation: float = 1e-3


PRESETS = {
    "default": Config(),
    "published": Config(distillation=0.1, rate=1e-4, batch_size=200, steps=80_000),  # for ResNet-20 and 10 classes
}


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `fine_tuning.fine_tune`."""
    return fine_tune("ait", model, images, config, checkpoint)
