"""The starting point of every method that learns: grids for weights and tensors, and weights rounded to the nearest."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from dghlib.models import FloatModel
from dghlib.quantizers import joins
from dghlib.quantizers.calibration import observe
from dghlib.quantizers.operations import layer_at
from dghlib.quantizers.placement import PLACEMENTS, assign_bits
from dghlib.quantizers.preparation import prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import activation_grid, weight_grid
from dghlib.quantizers.settings import GridSettings


@dataclass(frozen=True, kw_only=True)
class LearningSettings(GridSettings):
    """The common settings of all methods that learn, in addition to `settings.GridSettings`.

    Args:
        seed: of all random numbers.
    """

    weight_bits: int = 4
    activation_bits: int = 4
    placement: str = "brecq"
    weight_search: str = "shrink_80"
    activation_search: str = "shrink_80"
    seed: int = 0


def nearest(model: FloatModel, images: Tensor, settings: LearningSettings, about: dict[str, Any]) -> QuantizedModel:
    """Return the network with the grids that learning starts from, every weight rounded to the nearest.

    It is prepared as `about` says, and says so of itself (see `preparation`).
    """
    graph = prepared_graph(model, about)
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
    """Return a number that distinguishes networks with different weights."""
    return sum(float(value.double().abs().sum()) for value in net.state_dict().values())
