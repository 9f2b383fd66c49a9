"""IntraQ's second stage: weights learn under min-max grids that follow them, from fixed images and their classes.

Source: Y. Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for Zero-Shot Network
Quantization", CVPR 2022, and its released code; the quantizer is that of GDFQ (ECCV 2020).

Differences from the released code:
1. The released code distils with a weight of 20 at a rate of 1e-4. Their product matters; by default short runs choose
   it, and it falls along a cosine. The preset "published" has the constants of the code.
2. Batch norms are folded. Both versions keep the statistics of the float network.
3. Ranges of tensors are the extremes of the training images, not those of an early generator's images; in the released
   code, an incorrect average of the last 20 batches decides them.
4. Ranges of weights include zero, so that zero has a code, as integer hardware needs.
5. The class of an image is the class that the float network assigns to it, not the one that its generator asked for.
6. The last step is the result; the published numbers are those of the best epoch on the test set.
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
    """Settings of IntraQ's second stage; see `fine_tuning.Settings` for their meaning."""

    smallest_crop: float = 0.5
    cross_entropy: float = 0.05  # relative to the distillation, as in the released code


PRESETS = {
    "default": Config(),
    "published": Config(
        distillation=20.0, cross_entropy=1.0, rate=1e-4, schedule="quarters", batch_size=256, steps=29_400
    ),  # for ResNet-20; its rate falls at 13, 26 and 40 % of the steps
}


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `fine_tuning.fine_tune`."""
    return fine_tune("intraq_qat", model, images, config, checkpoint)
