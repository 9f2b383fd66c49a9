"""QDrop: blocks learn how to round while a random half of their activations stay in float.

Roundings and step sizes of activations are learned together. The input of the block and the tensors that are quantized
inside it stay in float, value by value, with probability 1/2, which makes the solution flat with respect to
activations.

Source: X. Wei, R. Gong, Y. Li, X. Liu, F. Yu: "QDrop: Randomly Dropping Quantization for Extremely Low-Bit
Post-Training Quantization", ICLR 2022, and its released code, whose settings these are.

Differences:
1. At "academic" bits the output of the first layer has 8 bits, as in BRECQ, so that methods can be compared; the
   released code spares only the weights of the ends and the input of the last layer.
2. Minibatches run through all images before an image is repeated; the released code draws with replacement.
3. Grids are found by `scale_search`.
4. For MobileNetV2 the authors give `penalty=0.1`, for MNasNet 0.2.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.reconstruction import Settings, presets, reconstruct

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of QDrop; see `reconstruction.Settings` for their meaning."""

    weight_search: str = "two_sided"
    activation_search: str = "two_sided"
    step_rate: float = 4e-5
    scaled_gradient: bool = True
    inputs: str = "mixed"
    keep_float: float = 0.5


PRESETS = presets(Config())


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `reconstruction.reconstruct`."""
    return reconstruct("qdrop", model, images, config, checkpoint)
