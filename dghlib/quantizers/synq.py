"""SynQ: images without their noise, preserved class activation maps, and labels only for easy images.

It uses both parts of HAST, on which it is built: blocks keep the shares of their channels in the energy, and the images
pass a second time, moved against the knowledge of the student.

Source: M. Kim, J. Kim, U. Kang: "SynQ: Accurate Zero-shot Quantization by Synthesis-aware Fine-tuning",
ICLR 2025, and its released code; H. Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023 (HAST).

Differences from the released code:
1. All images pass the filter once, before they are cropped, not in every minibatch. Its radius is chosen for small
   images: the published 80 periods have no effect on images of 32 pixels; the paper draws 8. Use 80 on ImageNet.
2. Terms keep their ratio to the distillation, which is 1 here and 20 in the code; the product with the rate matters.
   The preset "published" has the constants of the code, for ImageNet.
3. Features are the outputs of a block; in the code they are those of its branch before the sum.
4. Activation maps are compared at the resolution of the last convolution, not enlarged, and are computed without a
   second model of hooks; in the code, each step leaves more hooks behind and measures ranges of an image of zeros.
5. The perturbed pass has all terms except the maps.
6. Quantizers, ranges, labels and reported results as in `intraq_qat`, differences 2 to 6.
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
    """Settings of SynQ; see `fine_tuning.Settings` for their meaning."""

    smallest_crop: float = 0.5
    cross_entropy: float = 0.025
    easy: float = 0.5
    features: float = 200.0
    perturbation: float = 0.01
    maps: float = 2.5
    low_pass: float = 16.0


PRESETS = {
    "default": Config(),
    "published": Config(
        distillation=20.0,
        cross_entropy=0.5,
        features=4000.0,
        maps=50.0,
        low_pass=80.0,
        rate=1e-6,
        batch_size=16,
        steps=20_000,
        schedule="quarters",
    ),  # for ResNet-18
}


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `fine_tuning.fine_tune`."""
    return fine_tune("synq", model, images, config, checkpoint)
