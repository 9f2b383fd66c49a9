"""GENIE-M: blocks learn how to round and, jointly, the steps of their weights, under codes that stay what they are.

A learned step would usually change the integer part of weight / step, and with it what rounding up means. Here the
integer part is fixed from the first step, so that the gradient of the step is the code itself.

Source: Y. Jeon, C. Lee, H.-y. Kim: "Genie: Show Me the Data for Quantization", CVPR 2023, and its released code,
whose settings these are.

Differences from the released code:
1. Batch norms are folded before grids are found. Grids per output channel come out the same.
2. Minibatches have 32 images whatever the number of images; there, a 32nd part of them.
3. Units are blocks and single layers with their activation functions; there, the first is the bare convolution.
4. Grids are found as `scale_search` says, those of activations from all images instead of 32.
5. A weight's step moves by a hundredth of itself at most in one iteration. The published rate is absolute, and a tenth
   of a step at 8 bits.
6. With "full" bits logits are quantized too, as DGH has it.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.reconstruction import Settings, presets, reconstruct

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of GENIE-M; see `reconstruction.Settings` for what they mean."""

    placement: str = "genie"
    weight_search: str = "shrink_100"
    activation_search: str = "symmetric_100"
    penalty: float = 1.0
    scale_rate: float = 1e-4
    step_rate: float = 4e-5
    inputs: str = "mixed"
    keep_float: float = 0.5


PRESETS = presets(Config())


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `reconstruction.reconstruct`."""
    return reconstruct("genie_m", model, images, config, checkpoint)
