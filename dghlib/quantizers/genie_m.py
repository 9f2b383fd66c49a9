"""GENIE-M: blocks learn how to round and, jointly, the step sizes of their weights, under fixed integer codes.

A learned step size would usually change the integer part of weight / step size, and with it the meaning of rounding up.
Here the integer part is fixed by the initial step size, so that the gradient of the step size is the code itself.

Source: Y. Jeon, C. Lee, H.-y. Kim: "Genie: Show Me the Data for Quantization", CVPR 2023, and its released code,
whose settings these are.

Differences from the released code:
1. Batch norms are folded before grids are found. Grids per output channel are the same.
2. Minibatches have 32 images for any number of images; in the released code they have 1/32 of the images.
3. Units are blocks and single layers with their activation functions; in the released code the first is the bare
   convolution.
4. Grids are found by `scale_search`, those of activations from all images instead of 32.
5. A weight's step size changes by at most 1/100 of itself in an iteration. The published rate is absolute, and is 1/10
   of a step size at 8 bits.
6. With "full" bits logits are quantized too, as in DGH.
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
    """Settings of GENIE-M; see `reconstruction.Settings` for their meaning."""

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
