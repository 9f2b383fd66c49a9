"""SynQ: images without their noise, class activation maps that stay, and labels for easy images alone.

With the parts of HAST on which it is built: channels of blocks that keep their share of the energy, and a second pass
of images that are moved against what the student knows.

Source: M. Kim, J. Kim, U. Kang: "SynQ: Accurate Zero-shot Quantization by Synthesis-aware Fine-tuning",
ICLR 2025, and its released code; H. Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023 (HAST).

Differences from the released code:
1. The filter passes all images once, before they are cropped, not every minibatch. Its radius is made for small images:
   the published 80 periods do nothing to images of 32 pixels; the paper draws 8. On ImageNet take 80.
2. Terms keep their ratio to the distillation, which is 1 here and 20 there; what counts is the rate times that.
   preset "published" has theirs, for ImageNet.
3. Features are those that leave a block; there, those of its branch before the sum.
4. Activation maps are compared at the resolution of the last convolution, not enlarged, and made without a second model
   of hooks; there, each step leaves more hooks behind and measures ranges of an image of zeros.
5. The perturbed pass has all terms but the maps.
6. Quantizers, ranges, labels and what is reported as in `intraq_qat`, differences 2 to 6.
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
    """Settings of SynQ; see `fine_tuning.Settings` for what they mean."""

    rate: float = 3e-4  # of two passes
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
