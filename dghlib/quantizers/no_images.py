"""The common part of the methods that need no images.

Grids of tensors come from batch norms (`expectation`), or from images if there are any, so that the gain from images
can be measured.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, fx, nn

from dghlib.models import FloatModel
from dghlib.quantizers import joins
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import Observations, check_images, observe
from dghlib.quantizers.expectation import expect
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import along_channels, channel_axis, frozen
from dghlib.quantizers.operations import Layer, layer_at
from dghlib.quantizers.placement import PLACEMENTS, Bits, assign_bits
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import activation_grid, weight_grid
from dghlib.quantizers.settings import GridSettings


def bits_of(graph: fx.GraphModule, settings: GridSettings) -> Bits:
    """Return the bits of every weight and tensor for the settings."""
    tensors = PLACEMENTS[settings.placement](graph)
    return assign_bits(graph, tensors, settings.weight_bits, settings.activation_bits, settings.bits)


def seen_or_told(
    graph: fx.GraphModule, bits: Bits, model: FloatModel, images: Tensor | None, settings: GridSettings
) -> Observations:
    """Return the observations of tensors: from images (N, C, H, W), or, without images, from batch norms.

    Raises:
        TypeError, ValueError: images that do not fit the model; a tensor that cannot be predicted from batch norms.
    """
    wanted = joins.with_parts(graph, bits.activations)
    if images is None:
        return expect(graph, wanted, model)
    return observe(graph, wanted, check_images(images, model), settings.batch_size)


def weight_grids(graph: fx.GraphModule, bits: Bits, search: str, one_grid: bool) -> dict[str, UniformQuantizer]:
    """Return the best grids of weights by path: one for each output channel, or, with `one_grid`, for each layer."""
    make = grid_of_all if one_grid else weight_grid
    return {path: make(layer_at(graph, path), width, search) for path, width in bits.weights.items()}


def grid_of_all(layer: Layer, bits: int, search: str) -> UniformQuantizer:
    """Return one grid for a layer's whole weight, in the form of equal ones per output channel."""
    whole = nn.utils.skip_init(nn.Linear, layer.weight.numel(), 1, bias=False)  # which draws no weights
    whole.weight = frozen(layer.weight.detach().reshape(1, -1))
    grid, channels = weight_grid(whole, bits, search), layer.weight.shape[channel_axis(layer)]
    scale, zero_point = (
        along_channels(each.flatten().repeat(channels), layer) for each in (grid.scale, grid.zero_point)
    )
    return UniformQuantizer(scale, zero_point, bits=grid.bits, signed=grid.signed)


def finished(
    method: str,
    model: FloatModel,
    graph: fx.GraphModule,
    weights: dict[str, UniformQuantizer],
    seen: Observations,
    settings: GridSettings,
    preparation: Mapping[str, Any],
) -> QuantizedModel:
    """Return the quantized network after its weights have their final values; tensors get the best grids.

    `preparation` comes from `preparation_of`.
    """
    activations = {
        name: activation_grid(seen.histograms[name], width, settings.activation_search)
        for name, width in joins.apart(graph, bits_of(graph, settings), seen.histograms).activations.items()
    }
    about = {"model": model.name, "method": method, "config": asdict(settings), **preparation}
    quantized = QuantizedModel(graph, weights, activations, about)
    if settings.integer_biases:
        round_biases(quantized)
    return quantized
