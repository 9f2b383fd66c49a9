"""The layers that cost most accuracy: the signal-to-noise ratio of weights and tensors, and the errors of units.

Ratios are in decibels, 10 log10(energy of the float values / energy of their error); 6 dB correspond to about 1 bit,
and at 10 dB the error has about a third of the amplitude of the values.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from tqdm import tqdm

from dghlib.models import FloatModel
from dghlib.quantizers.biases import grid_of
from dghlib.quantizers.calibration import check_images
from dghlib.quantizers.graph import device_of, left_in_float
from dghlib.quantizers.operations import layer_at
from dghlib.quantizers.preparation import prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.reconstruction import UnitError
from dghlib.quantizers.uneven import Quantizer


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise of a quantized weight or tensor.

    Attributes:
        kind: "weight" or "tensor".
        name: the layer's path, or the tensor's name.
        bits: of its grid.
        own: signal to noise in dB with only its own rounding.
        accumulated: signal to noise in dB of the tensor in the quantized network, where all earlier weights and
            tensors are quantized too; for a weight, the same as `own`.
    """

    kind: str
    name: str
    bits: int
    own: float
    accumulated: float


def noise_report(model: FloatModel, quantized: QuantizedModel, images: Tensor, batch_size: int = 8) -> list[Noise]:
    """Return the noise of every quantized weight and tensor, the worst first.

    Args:
        model: the float network from which `quantized` was made.
        quantized: from any quantizer.
        images: normalised (N, C, H, W); a few dozen are enough.
        batch_size: images that pass at once; all tensors of a batch are kept.

    Raises:
        TypeError, ValueError: images that do not fit the model.
    """
    images = check_images(images, model)
    float_graph = prepared_graph(model, quantized.about)
    weights = [
        Noise(kind="weight", name=path, bits=grid.bits, own=ratio, accumulated=ratio)
        for path, grid in quantized.weight_quantizers().items()
        for ratio in [_weight_ratio(float_graph, quantized, path)]
    ]
    tensors = _tensor_noise(float_graph, quantized, images, batch_size)
    return sorted(weights + tensors, key=lambda noise: noise.accumulated)


def in_float(quantized: QuantizedModel) -> list[str]:
    """Return, in words, the values that a quantized network still computes in float."""
    found = [f"{name}: weights that no layer holds" for name in left_in_float(quantized.graph)]
    weights = quantized.weight_quantizers() if quantized.activation_quantizers() else {}
    for node in quantized.graph.graph.nodes:
        if node.op == "call_module" and node.target in weights:
            read = node.all_input_nodes[0]
            if grid_of(quantized.graph, read) is None:
                found.append(f"{node.target}: reads {read.name}, which has no grid")
    return found


def unit_errors(quantized: QuantizedModel) -> list[UnitError]:
    """Return the errors of every learned unit before and after learning, the worst first; [] if none was learned.

    They were measured on the calibration images during the quantization. A unit of BRECQ is listed twice, for its
    weights and for the step sizes of its activations.
    """
    errors = [UnitError(**error) for error in quantized.about.get("units", [])]
    return sorted(errors, key=lambda error: error.after, reverse=True)


def _weight_ratio(float_graph: fx.GraphModule, quantized: QuantizedModel, path: str) -> float:
    layer = quantized.graph.get_submodule(path)
    weight = layer_at(float_graph, path).weight
    return _decibels(*_energies(weight, layer.quantized_weight()))  # type: ignore[operator]


def _tensor_noise(
    float_graph: fx.GraphModule, quantized: QuantizedModel, images: Tensor, batch_size: int
) -> list[Noise]:
    grids = quantized.activation_quantizers()
    own, accumulated = _Totals(), _Totals()
    with torch.no_grad():
        for batch in tqdm(images.split(batch_size), desc="noise", unit="batch", leave=False, delay=3):
            batch = batch.to(device_of(float_graph))
            wanted = _Keeper(float_graph, grids)
            wanted.run(batch)
            found = _Keeper(quantized.graph, grids)
            found.run(batch)
            for name, grid in grids.items():
                own.add(name, wanted.kept[name], grid(wanted.kept[name]))
                accumulated.add(name, wanted.kept[name], grid(found.kept[name]))
    return [
        Noise(kind="tensor", name=name, bits=grid.bits, own=own.ratio(name), accumulated=accumulated.ratio(name))
        for name, grid in grids.items()
    ]


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps some of its tensors."""

    def __init__(self, graph: fx.GraphModule, names: Mapping[str, Quantizer]):
        super().__init__(graph)
        self.names = names
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Tensor:
        result = super().run_node(n)
        if n.name in self.names:
            self.kept[n.name] = result
        return result


class _Totals:
    """Energies of signals and of their errors, by name, over batches."""

    def __init__(self) -> None:
        self.totals: dict[str, tuple[float, float]] = {}

    def add(self, name: str, signal: Tensor, noisy: Tensor) -> None:
        before = self.totals.get(name, (0.0, 0.0))
        energy, error = _energies(signal, noisy)
        self.totals[name] = before[0] + energy, before[1] + error

    def ratio(self, name: str) -> float:
        return _decibels(*self.totals[name])


def _energies(signal: Tensor, noisy: Tensor) -> tuple[float, float]:
    return signal.square().sum().item(), (noisy - signal).square().sum().item()


def _decibels(energy: float, error: float) -> float:
    """Return the ratio in dB: infinite without an error, and for a signal of zeros that has one, minus infinite."""
    if error == 0:
        return math.inf
    return 10 * math.log10(energy / error) if energy else -math.inf
