"""HPTQ: every tensor on a uniform grid whose threshold is a power of two, without training.

Batch norms are folded; every tensor and every weight gets the grid with the smallest squared error (`ranges`);
activations with a small negative tail are shifted onto an unsigned grid; biases are corrected by the mean error of the
rounded weights, and are rounded to the grids of the sums to which they are added.

Source: H. V. Habi, R. Peretz, E. Cohen, L. Dikstein, O. Dror, I. Diamant, R. H. Jennings, A. Netzer: "HPTQ:
Hardware-Friendly Post Training Quantization", 2021; settings as in its authors' Model Compression Toolkit
(MCT).

Differences from the paper:
1. There is no channel equalization (off by default in MCT too).
2. The shift of a negative tail is stored as the zero point of the grid. MCT adds it to the tensor, pads the next
   convolution with it and subtracts its response from the next bias: the same numbers, by 3 changes to the graph.
3. MCT now gives weights free thresholds per channel; the paper has powers of two, and so has the DGH paper's footnote
   on its settings, so powers of two are the default here.
4. The threshold of a bounded activation (sigmoid, softmax) is searched like any other; MCT never clips it.
5. Differences in the threshold search are listed in `ranges`.
6. Before it quantizes, MCT merges successive layers without an activation between them, and a layer with a shortcut
   around it alone ("linear" and "residual collapsing"); here every layer keeps its own weights.
7. Biases are integers, too (`biases`); in the paper and in MCT they stay float, which is `integer_biases=False`.
8. The input of a curved activation function is on a grid, too (`tables`); in the paper and in MCT the function reads
   the wide sum, which is `table_inputs=False`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, fx

from dghlib.choices import check_at_least, check_choice
from dghlib.models import FloatModel
from dghlib.quantizers import joins, tables
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import Histogram, check_images, observe, power_of_two_above
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import along_channels, channel_axis, frozen, mean_response
from dghlib.quantizers.operations import AVERAGE_POOLING, NEGATIVE_TAIL, Kind, Layer, does, kind_of, layer_at
from dghlib.quantizers.placement import assign_bits, every_tensor, output_sites
from dghlib.quantizers.preparation import preparation_of, prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.ranges import WEIGHT_THRESHOLDS, activation_threshold, weight_thresholds
from dghlib.quantizers.settings import BitSettings
from dghlib.storage.records import added_later

VERSION = 1
_LARGEST_SHIFT = 0.05  # of the threshold; MCT's shift_negative_ratio


@dataclass(frozen=True, kw_only=True)
class Config(BitSettings):
    """Settings of HPTQ, in addition to `settings.BitSettings`.

    Args:
        weight_thresholds: "power_of_two" as in the paper, or "free"; one per output channel in both cases.
        shift_negative: whether activations with a small negative tail get an unsigned grid.
        clip_outputs: whether the grids of the network's outputs are searched like any other, as in the paper, or cover
            all values that were seen. No later layer can repair a tie of clipped logits, of which the first wins; but
            at 4 bits a grid that covers every outlier is coarse for the other values.
        bias_correction: whether biases are corrected by the mean error of the rounded weights.
        batch_size: images that pass the network at once; the result depends on it only by rounding.
        table_inputs: whether the inputs of activation functions that do more than clip are quantized, too, to at least
            8 bits, as hardware with lookup tables needs (see `tables`).
        equalize: whether channels are scaled across layers first (see `equalization`).
    """

    weight_thresholds: str = "power_of_two"
    shift_negative: bool = True
    bias_correction: bool = True
    clip_outputs: bool = added_later(True)
    batch_size: int = 32
    table_inputs: bool = added_later(True, before=False)
    equalize: bool = added_later(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("weight_thresholds", self.weight_thresholds, WEIGHT_THRESHOLDS)
        check_at_least(1, "batch_size", self.batch_size)


def quantize(model: FloatModel, images: Tensor, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network, calibrated with normalised images (N, C, H, W).

    The model is not changed: weights, buffers, gradients, mode and hooks stay the same.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network.
        TypeError, ValueError: images that do not fit the model, weights or tensors with NaN or Inf.
    """
    images = check_images(images, model)
    about = {"model": model.name, "method": "hptq", "config": asdict(config), **preparation_of(config)}
    graph = prepared_graph(model, about)
    tensors = every_tensor(graph)
    bits = assign_bits(graph, tensors, config.weight_bits, config.activation_bits, config.bits)
    functions = tables.inputs_of_tables(graph, bits.activations) if config.table_inputs else {}
    wanted = [*joins.with_parts(graph, bits.activations), *functions]
    seen = observe(graph, wanted, images, config.batch_size)
    bits = joins.apart(graph, bits, seen.histograms)
    whole = () if config.clip_outputs else output_sites(graph)
    activations = {
        name: activation_quantizer(seen.histograms[name], width, clip=name not in whole)
        for name, width in bits.activations.items()
    }
    if config.shift_negative:
        activations |= shifted_quantizers(graph, activations, seen.histograms)
    width = max(tables.BITS, config.activation_bits)
    activations |= {name: tables.grid_for(each, seen.histograms[name], width) for name, each in functions.items()}
    weights = {
        path: weight_quantizer(layer_at(graph, path), width, config.weight_thresholds)
        for path, width in bits.weights.items()
    }
    if config.bias_correction:
        for path, quantizer in weights.items():
            correct_bias(layer_at(graph, path), quantizer, seen.input_means[path])
    in_order = {node.name: activations[node.name] for node in graph.graph.nodes if node.name in activations}
    quantized = QuantizedModel(graph, weights, in_order, about)
    if config.integer_biases:
        round_biases(quantized)
    return quantized


def activation_quantizer(histogram: Histogram, bits: int, clip: bool = True) -> UniformQuantizer:
    """Return the best power-of-two grid for a tensor, or the finest that covers all: signed if any value is below 0."""
    signed = histogram.minimum < 0
    largest = max(-histogram.minimum, histogram.maximum)
    threshold = torch.tensor(
        activation_threshold(histogram, bits, signed) if clip else power_of_two_above(largest), dtype=torch.float32
    )
    return UniformQuantizer.from_threshold(threshold, bits=bits, signed=signed)


def weight_quantizer(layer: Layer, bits: int, search: str) -> UniformQuantizer:
    """Return the best signed grids, one per output channel, for a layer's weight."""
    thresholds = weight_thresholds(layer.weight.transpose(0, channel_axis(layer)), bits, search)
    return UniformQuantizer.from_threshold(along_channels(thresholds, layer), bits=bits, signed=True)


def correct_bias(layer: Layer, quantizer: UniformQuantizer, input_mean: Tensor) -> None:
    """Subtract from the bias the mean error of the rounded weight for inputs with this mean (C_in,)."""
    error = mean_response(layer, quantizer(layer.weight) - layer.weight, input_mean)
    layer.bias = frozen((layer.bias.double() if layer.bias is not None else 0) - error)


def shifted_quantizers(
    graph: fx.GraphModule, quantizers: Mapping[str, UniformQuantizer], histograms: Mapping[str, Histogram]
) -> dict[str, UniformQuantizer]:
    """Return unsigned grids with a zero point for activations whose negative tail is short.

    A signed grid would spend half of its codes on the tail of, for example, a hard swish. If |minimum| is at most 5 %
    of the threshold, and only a single convolution or linear layer reads the tensor, the unsigned grid of the same
    threshold is moved down by as many steps as the tail needs.
    """
    shifted: dict[str, UniformQuantizer] = {}
    for node in graph.graph.nodes:
        if node.name not in quantizers or not does(graph, node, NEGATIVE_TAIL):
            continue
        quantizer, tail = quantizers[node.name], -histograms[node.name].minimum
        threshold = -quantizer.quant_min * quantizer.scale
        path = _path_to_one_layer(graph, node)
        if quantizer.signed and path and tail <= _LARGEST_SHIFT * threshold:
            scale = threshold / 2**quantizer.bits
            shifted |= {
                name: UniformQuantizer(scale, (tail / scale).ceil(), bits=quantizer.bits, signed=False)
                for name in path
                if name in quantizers
            }
    return shifted


def _path_to_one_layer(graph: fx.GraphModule, node: fx.Node) -> list[str]:
    """Return the tensors from `node` to its only reading layer, through moves and averages; [] if others read it."""
    path = [node.name]
    while len(node.users) == 1:
        node = next(iter(node.users))
        if kind_of(graph, node) is Kind.LAYER:
            return path
        if kind_of(graph, node) is not Kind.MOVEMENT and not does(graph, node, AVERAGE_POOLING):
            return []
        path.append(node.name)
    return []
