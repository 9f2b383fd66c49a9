"""AIT: a student that learns from its teacher alone, each of whose layers changes some of its codes in every step.

Source: K. Choi, H. Y. Lee, D. Hong, J. Yu, N. Park, Y. Kim, J. Lee: "It's All In the Teacher: Zero-Shot Quantization
Brought Closer to the Teacher", CVPR 2022, and its released code. `inundation` has the steps that are lengthened.

Differences from the released code:
1. It learns from fixed images; there, from those of a generator that is trained beside it, GDFQ's, ARC's or Qimera's.
2. The distillation is averaged over images; there, over classes as well, which makes it weaker by their number.
   preset "published" has the code's constants for ten classes.
3. A layer's step grows to 128 times the optimizer's at most, and at least one code has to change; the code searches
   without end where a gradient is zero, and asks for less than a weight of small layers.
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
    """Settings of AIT; see `fine_tuning.Settings` for what they mean."""

    weight_decay: float = 0.0
    schedule: str = "quarters"
    inundation: float = 1e-3


PRESETS = {
    "default": Config(),
    "published": Config(distillation=0.1, rate=1e-4, batch_size=200, steps=80_000),  # for ResNet-20 and ten classes
}


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `fine_tuning.fine_tune`."""
    return fine_tune("ait", model, images, config, checkpoint)
