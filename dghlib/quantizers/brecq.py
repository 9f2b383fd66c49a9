"""BRECQ: whole blocks learn how to round; then the step sizes of their activations are learned in a second sweep.

Source: Y. Li, R. Gong, X. Tan, Y. Yang, P. Hu, Q. Zhang, F. Yu, W. Wang, S. Gu: "BRECQ: Pushing the Limit of
Post-Training Quantization by Block Reconstruction", ICLR 2021, and its released code, whose settings these are.

Differences:
1. The paper weighs errors by the Fisher information; the default of the released code is the plain squared error, and
   so is ours. `fisher=True` weighs by the squared gradient of KL(float output || output), scaled to a mean of 1; the
   released code uses (|gradient| + 1)^2, which is close to 1.
2. The first layer is learned at every width; the released code leaves it rounded to the nearest at 8 bits.
3. At "academic" bits, the input of the last layer has 8 bits in every network. In the released code this is true only
    of
   MobileNetV2: on ResNets the flag is set on a quantizer that is switched off.
4. The grids of activations are found again after the first sweep, from all images instead of 64, and all at once: each
   from tensors that no other grid has rounded.
5. For networks with depthwise convolutions the authors give `penalty=0.1`.
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
    """Settings of BRECQ; see `reconstruction.Settings` for their meaning."""

    step_rate: float = 4e-4
    step_iterations: int = 5_000


PRESETS = presets(Config())


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `reconstruction.reconstruct`."""
    return reconstruct("brecq", model, images, config, checkpoint)
