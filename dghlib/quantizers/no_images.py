"""What the methods that need no images have in common.

Grids of tensors come from what batch norms say (`expectation`), or from images where there are any, so that what images
add can be measured.
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
    """Return the bits of every weight and tensor that settings ask for."""
    tensors = PLACEMENTS[settings.placement](graph)
    return assign_bits(graph, tensors, settings.weight_bits, settings.activation_bits, settings.bits)


def seen_or_told(
    graph: fx.GraphModule, bits: Bits, model: FloatModel, images: Tensor | None, settings: GridSettings
) -> Observations:
    """Return what tensors hold: as images (N, C, H, W) show it, or without any as batch norms say.

    Raises:
        TypeError, ValueError: images that do not fit the model; a tensor that batch norms do not tell of.
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
    """Return the quantized network, once its weights are what they will be; tensors get the best grids."""
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
