"""QDrop: blocks learn how to round while half of their activations, by chance, stay in float.

Roundings and steps of activations learn together. What enters the block and what is quantized inside it is left in
float value by value with probability one half, which makes the solution flat with respect to activations.

Source: X. Wei, R. Gong, Y. Li, X. Liu, F. Yu: "QDrop: Randomly Dropping Quantization for Extremely Low-Bit
Post-Training Quantization", ICLR 2022, and its released code, whose settings these are.

Differences:
1. At "academic" bits the output of the first layer has 8 bits, as BRECQ has it, so that methods can be compared;
   the released code spares only the weights of the ends and what enters the last layer.
2. Minibatches run through all images before one comes again; the released code draws with replacement.
3. Grids are found as `scale_search` says.
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
    """Settings of QDrop; see `reconstruction.Settings` for what they mean."""

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
