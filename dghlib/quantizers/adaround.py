"""AdaRound: every layer learns which of its weights to round up.

AdaRound learns layer by layer, together with the activation function after the layer. Grids stay as they were found;
activations are quantized after all weights.

Source: M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort: "Up or Down? Adaptive Rounding for
Post-Training Quantization", ICML 2020; settings as in its authors' toolkit (AIMET).

Differences from the paper and from AIMET:
1. Grids of weights are per output channel and found by the search of `scale_search`; the paper has one grid per tensor,
   and AIMET has its own histogram search.
2. Each layer has 20 000 steps at every width, as the other methods here; AIMET takes 15 000 below 8 bits and 10 000
   otherwise. AIMET's penalty falls along a cosine, and so does ours.
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
    """Settings of AdaRound; see `reconstruction.Settings` for their meaning."""

    unit: str = "layer"
    inputs: str = "quantized"
    cosine: bool = True


PRESETS = presets(Config())


def quantize(model: FloatModel, images: Tensor, config: Config, *, checkpoint: Path | None = None) -> QuantizedModel:
    """Return a quantized copy of a network; see `reconstruction.reconstruct`."""
    return reconstruct("adaround", model, images, config, checkpoint)
