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

from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.quantizers import no_images
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.hptq import correct_bias
from dghlib.quantizers.layers import along_channels, channel_axis, frozen
from dghlib.quantizers.operations import Layer, layer_at
from dghlib.quantizers.preparation import prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import weight_grid
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
    preparation = {"equalize": {"absorb": config.absorb}} if config.equalize else {}
    graph = prepared_graph(model, {"preparation": preparation})
    bits = no_images.bits_of(graph, config)
    seen = no_images.seen_or_told(graph, bits, model, images, config)
    make = grid_of_all if config.one_grid else weight_grid
    weights = {path: make(layer_at(graph, path), width, config.weight_search) for path, width in bits.weights.items()}
    if config.bias_correction:
        for path, grid in weights.items():
            correct_bias(layer_at(graph, path), grid, seen.input_means[path])
    return no_images.finished("dfq", model, graph, weights, seen, config, preparation)


def grid_of_all(layer: Layer, bits: int, search: str) -> UniformQuantizer:
    """Return a single grid for a layer's whole weight, in the form of equal grids per output channel."""
    whole = nn.Linear(layer.weight.numel(), 1, bias=False)
    whole.weight = frozen(layer.weight.detach().reshape(1, -1))
    grid, channels = weight_grid(whole, bits, search), layer.weight.shape[channel_axis(layer)]
    scale, zero_point = (
        along_channels(each.flatten().expand(channels), layer) for each in (grid.scale, grid.zero_point)
    )
    return UniformQuantizer(scale, zero_point, bits=grid.bits, signed=grid.signed)
