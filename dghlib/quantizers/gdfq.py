"""GDFQ: a generator network makes images of classes while a student learns from them, under min-max grids.

Source: S. Xu, H. Li, B. Zhuang, J. Liu, J. Cao, C. Liang, M. Tan: "Generative Low-bitwidth Data Free Quantization",
ECCV 2020, and its released code.

Differences from the released code:
1. The defaults are for short runs, in which images are not yet of their classes: the student learns from the float
   network alone, with a weight of 1 instead of 1 / classes, and not by a cross-entropy with these classes. The
   generator network learns 10 times as fast, and alone for 1/4 of the steps; in the code for 1/100 on CIFAR-10 and 1/8
   on ImageNet. Batches are those of the code on ImageNet. Short runs choose the student's rate. Both rates fall along a
   cosine; in the code to 1/10 after each quarter.
2. The presets "published" and "published_imagenet" have the constants of the code, for ResNet-20 and 10 classes, and
   for ResNet-18.
3. Ranges of tensors are the extremes of images that are made after the first steps. In the code, an incorrect average
   of the last 20 batches decides them.
4. Batch norms are folded, ranges of weights include zero, and the last step is the result: differences 2, 4 and 6 of
   `intraq_qat`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers.joint import Settings, fine_tune_jointly
from dghlib.quantizers.quantized_model import QuantizedModel

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of GDFQ; see `joint.Settings` and `fine_tuning.Settings` for their meaning."""


# The constants of the code, also of Qimera's: for ResNet-20 and 10 classes, and for ResNet-18.
_ALWAYS: dict[str, Any] = {"cross_entropy": 1.0, "schedule": "quarters", "maker_rate": 1e-3}
OF_CODE: dict[str, dict[str, Any]] = {
    "published": {**_ALWAYS, "rate": 1e-4, "distillation": 0.1, "batch_size": 200, "warm_up": 0.01},
    "published_imagenet": {**_ALWAYS, "distillation": 1e-3, "rate": 1e-6, "warm_up": 1 / 8, "conditional": True},
}
PRESETS = {"default": Config(), **{name: Config(**constants) for name, constants in OF_CODE.items()}}


def quantize(
    model: FloatModel, images: Tensor | None, config: Config, *, checkpoint: Path | None = None
) -> QuantizedModel:
    """Return a quantized copy of a network; see `joint.fine_tune_jointly`."""
    return fine_tune_jointly("gdfq", model, images, config, checkpoint)
