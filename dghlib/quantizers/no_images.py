"""The common part of the methods that need no images.

Grids of tensors come from batch norms (`expectation`), or from images if there are any, so that the gain from images
can be measured.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, fx

from dghlib.models import FloatModel
from dghlib.quantizers import joins
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import Observations, check_images, observe
from dghlib.quantizers.expectation import expect
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.placement import PLACEMENTS, Bits, assign_bits
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import activation_grid
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


def finished(
    method: str,
    model: FloatModel,
    graph: fx.GraphModule,
    weights: dict[str, UniformQuantizer],
    seen: Observations,
    settings: GridSettings,
    preparation: Mapping[str, Any] | None = None,
) -> QuantizedModel:
    """Return the quantized network after its weights have their final values; tensors get the best grids."""
    activations = {
        name: activation_grid(seen.histograms[name], width, settings.activation_search)
        for name, width in joins.apart(graph, bits_of(graph, settings), seen.histograms).activations.items()
    }
    about = {"model": model.name, "method": method, "config": asdict(settings)}
    about |= {"preparation": dict(preparation)} if preparation else {}
    quantized = QuantizedModel(graph, weights, activations, about)
    if settings.integer_biases:
        round_biases(quantized)
    return quantized
