"""DFQ: no images; channels are scaled across layers, and biases are corrected by the mean error of the rounded weights.

Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019; jakc4103/DFQ, a reproduction, whose expectations pass through sums.

Differences:
1. Grids of weights are per output channel here; `one_grid` gives a layer a single grid, as in the paper, where
   equalization matters.
2. Mean inputs are predicted from batch norms through sums and averages (`expectation`), with the magnitude of gamma,
   because its sign has no meaning for a standard deviation; AIMET, the authors' toolkit, needs images for this.
3. Ranges of tensors have the smallest error in the 4th power within 6 predicted standard deviations; the paper takes 6
   standard deviations.
4. Differences in equalization and in the absorption of biases are listed in `equalization`.
"""

from dataclasses import dataclass

from torch import Tensor

from dghlib.models import FloatModel
from dghlib.quantizers import no_images
from dghlib.quantizers.hptq import correct_bias
from dghlib.quantizers.operations import layer_at
from dghlib.quantizers.preparation import preparation_of, prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.settings import GridSettings

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(GridSettings):
    """Settings of DFQ; see `settings.GridSettings` for the others.

    Args:
        one_grid: whether all output channels of a layer share a grid.
        equalize: whether channels are scaled across layers.
        absorb: whether biases that keep a channel from zero move to the next layer; only with `equalize`.
        bias_correction: whether biases are corrected by the mean error of the rounded weights.
    """

    one_grid: bool = False
    equalize: bool = True
    absorb: bool = True
    bias_correction: bool = True


def quantize(model: FloatModel, images: Tensor | None, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network; images (N, C, H, W), normalised, are for grids and means, None without.

    The model is not changed. Raises as `squant.quantize`.
    """
    preparation = preparation_of(config)
    graph = prepared_graph(model, preparation)
    bits = no_images.bits_of(graph, config)
    seen = no_images.seen_or_told(graph, bits, model, images, config)
    weights = no_images.weight_grids(graph, bits, config.weight_search, config.one_grid)
    if config.bias_correction:
        for path, grid in weights.items():
            correct_bias(layer_at(graph, path), grid, seen.input_means[path])
    return no_images.finished("dfq", model, graph, weights, seen, config, preparation)
