"""What the methods that need no images have in common.

Grids of tensors come from what batch norms say (`expectation`), or from images where there are any, so that what images
add can be measured.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx

from dghlib.choices import check_at_least, check_choice, check_types
from dghlib.models import FloatModel
from dghlib.quantizers import joins
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import Observations, check_images, observe
from dghlib.quantizers.expectation import expect
from dghlib.quantizers.grid import UniformQuantizer, check_bits
from dghlib.quantizers.placement import BIT_POLICIES, PLACEMENTS, Bits, assign_bits
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import ACTIVATION_SEARCHES, WEIGHT_SEARCHES, activation_grid
from dghlib.storage.records import added_later


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of all methods that need no images.

    Args:
        weight_bits, activation_bits: 2 to 8, 16, or 32 for float.
        bits: "full", all layers and tensors alike; or "academic", the ends at 8 bits and the logits in float.
        placement: which tensors are quantized: "every_tensor", "brecq", "genie" or "relu_only".
        weight_search, activation_search: how grids are found (see `scale_search`).
        batch_size: images that pass at once, where there are any.
        integer_biases: whether biases are rounded to the grids of the sums that they enter (see `biases`).
    """

    weight_bits: int = 8
    activation_bits: int = 8
    bits: str = "full"
    placement: str = "every_tensor"
    weight_search: str = "min_max"
    activation_search: str = "l4"
    batch_size: int = 32
    integer_biases: bool = added_later(True, before=False)

    def __post_init__(self) -> None:
        check_types(self)
        check_bits(self.weight_bits, "weight_bits")
        check_bits(self.activation_bits, "activation_bits")
        check_choice("bits", self.bits, BIT_POLICIES)
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("weight_search", self.weight_search, WEIGHT_SEARCHES)
        check_choice("activation_search", self.activation_search, ACTIVATION_SEARCHES)
        check_at_least(1, "batch_size", self.batch_size)


def bits_of(graph: fx.GraphModule, settings: Settings) -> Bits:
    """Return the bits of every weight and tensor that settings ask for."""
    tensors = PLACEMENTS[settings.placement](graph)
    return assign_bits(graph, tensors, settings.weight_bits, settings.activation_bits, settings.bits)


def seen_or_told(
    graph: fx.GraphModule, bits: Bits, model: FloatModel, images: Tensor | None, settings: Settings
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
    settings: Settings,
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
