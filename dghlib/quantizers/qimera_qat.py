"""Qimera: GDFQ with images between classes, of mixtures of classes.

Source: K. Choi, D. Hong, N. Park, Y. Kim, J. Lee: "Qimera: Data-free Quantization with Synthetic Boundary Supporting
Samples", NeurIPS 2021, and its released code. The generator network is that of the images of Qimera.

Differences from the released code:
1. As in the code (which inverts the switch for it), the layer that disentangles embeddings is left out.
2. Constants, ranges and the rest as in `gdfq`, differences 1 to 4. So by default the shares of classes in a mixture
   are targets of the generator network alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers.gdfq import OF_CODE
from dghlib.quantizers.joint import Settings, fine_tune_jointly
from dghlib.quantizers.quantized_model import QuantizedModel

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of Qimera; see `joint.Settings` and `fine_tuning.Settings` for their meaning."""

    network: Literal["gdfq", "qimera"] = "qimera"
    superposed: float = 0.4


PRESETS = {
    "default": Config(),
    "published": Config(**OF_CODE["published"]),
    "published_imagenet": Config(**OF_CODE["published_imagenet"], mixed_classes=500),
}


def quantize(
    model: FloatModel, images: Tensor | None, config: Config, *, checkpoint: Path | None = None
) -> QuantizedModel:
    """Return a quantized copy of a network; see `joint.fine_tune_jointly`."""
    return fine_tune_jointly("qimera_qat", model, images, config, checkpoint)
