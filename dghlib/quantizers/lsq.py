"""LSQ: the step sizes of all grids are learned with the weights, by gradients of their own.

Source: S. K. Esser, J. L. McKinstry, D. Bablani, R. Appuswamy, D. S. Modha: "Learned Step Size Quantization", ICLR
2020.

Differences from the paper:
1. The student learns from the float network's logits, not from labels: no real data. Batch norms are folded, and keep
   their statistics; the paper trains on real images, and so do its batch norms.
2. Weights have a grid per output channel, with a zero point; the paper has one grid per layer, without a zero point.
3. Step sizes start at the least error in the 2.4th power, as in GENIE; those of the paper start at 2 mean|v| /
   sqrt(largest code), from which a network with 3 bits everywhere hardly recovers.
4. Step sizes have no weight decay, and stay above zero.
5. The paper keeps the first and the last layer at 8 bits: bits="academic". It trains 90 epochs of ImageNet at a rate of
   0.01 with batches of about 640; without fresh statistics that is too high here, and the rate comes from short runs.
6. Images are mirrored, but not cropped.
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
    """Settings of LSQ; see `fine_tuning.Settings` for their meaning."""

    placement: str = "genie"
    weight_search: str = "shrink_100"
    activation_search: str = "shrink_100"
    learn_steps: bool = True


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `fine_tuning.fine_tune`."""
    return fine_tune("lsq", model, images, config, checkpoint)
