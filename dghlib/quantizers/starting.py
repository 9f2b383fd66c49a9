"""What every method that learns begins with: grids for weights and tensors, and weights rounded to the nearest."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from dghlib.choices import check_at_least, check_choice, check_types
from dghlib.models import FloatModel
from dghlib.quantizers import joins
from dghlib.quantizers.calibration import observe
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.grid import check_bits
from dghlib.quantizers.operations import layer_at
from dghlib.quantizers.placement import BIT_POLICIES, PLACEMENTS, assign_bits
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import ACTIVATION_SEARCHES, WEIGHT_SEARCHES, activation_grid, weight_grid
from dghlib.storage.records import added_later


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """What all methods that learn have in common.

    Args:
        weight_bits, activation_bits: 2 to 8, 16, or 32 for float.
        bits: "full", all layers and tensors alike; or "academic", the ends at 8 bits and the logits in float.
        placement: which tensors are quantized: "every_tensor", "brecq", "genie" or "relu_only".
        weight_search, activation_search: how grids are found (see `scale_search`).
        batch_size: images of a minibatch, all of them if there are fewer.
        seed: of all that is drawn by chance.
        integer_biases: whether biases are rounded, once all is learned, to the grids of the sums that they enter, as
            hardware has them (see `biases`); the methods' authors leave them in float.
    """

    weight_bits: int = 4
    activation_bits: int = 4
    bits: str = "full"
    placement: str = "brecq"
    weight_search: str = "shrink_80"
    activation_search: str = "shrink_80"
    batch_size: int = 32
    seed: int = 0
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


def nearest(model: FloatModel, images: Tensor, settings: LearningSettings, about: dict[str, Any]) -> QuantizedModel:
    """Return the network with the grids that learning starts from, every weight rounded to the nearest."""
    graph = folded_graph(model)
    tensors = PLACEMENTS[settings.placement](graph)
    bits = assign_bits(graph, tensors, settings.weight_bits, settings.activation_bits, settings.bits)
    seen = observe(graph, joins.with_parts(graph, bits.activations), images, settings.batch_size).histograms
    bits = joins.apart(graph, bits, seen)
    shown = partial(tqdm, desc="grids", leave=False, delay=3)
    activations = {
        name: activation_grid(seen[name], width, settings.activation_search)
        for name, width in shown(bits.activations.items(), unit="tensor")
    }
    weights = {
        path: weight_grid(layer_at(graph, path), width, settings.weight_search)
        for path, width in shown(bits.weights.items(), unit="layer")
    }
    return QuantizedModel(graph, weights, activations, about)


def checksum(net: nn.Module) -> float:
    """Return a number that tells networks of other weights apart."""
    return sum(float(value.double().abs().sum()) for value in net.state_dict().values())
