"""RepQ-ViT: every channel of a layer norm's output has its own range, and softmax a logarithmic grid.

Images give the range of each channel of a layer norm's output. The norm then brings all channels to a common grid,
which the next layers reverse (`reparameterization`), so a grid for each channel costs nothing. The output of a softmax
is quantized on a logarithmic grid (`uneven`), all other tensors and the weights on affine grids (`percentiles`).

Source: Z. Li, J. Xiao, L. Yang, Q. Gu, "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers", ICCV 2023, and a description of its released code.

Differences:
1. `placement="factors"` quantizes the tensors of the authors: the inputs of layers and both factors of every product,
   the image with at least 8 bits; norms, sums, scores and logits stay in float. "every_tensor" quantizes these, too.
2. Every layer norm whose only readers are linear layers is reparameterized, including the one before the classifier;
   the authors' code does so in blocks and in Swin's patch merging. `about["not reparameterized"]` says why others are
   not.
3. Ranges of whole tensors are found on histograms of all images.
4. Differences in grids and reparameterization are listed in `uneven`, `percentiles` and `reparameterization`.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dghlib.choices import check_choice
from dghlib.models import FloatModel
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import Histogram, check_images, observe
from dghlib.quantizers.graph import device_of, folded_graph
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.operations import SOFTMAXES, does, layer_at
from dghlib.quantizers.percentiles import best_ranges, log_grid, tensor_grid, weight_grid
from dghlib.quantizers.placement import Bits
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.reparameterization import common_grid, layers_behind_norms, reparameterize
from dghlib.quantizers.transformers import Settings, bits_of
from dghlib.quantizers.uneven import Quantizer

log = logging.getLogger(__name__)

VERSION = 1
IMAGE_BITS = 8  # at least, if tensors that are not factors stay in float
MOST_TOKENS = 8192  # of all images, for the ranges of channels; 32 images of ViT-B have 6304


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of RepQ-ViT; see `transformers.Settings` for the others.

    Args:
        per_channel: whether layer norms are reparameterized.
        softmax: the grids of softmaxes, "log" or "uniform".
    """

    per_channel: bool = True
    softmax: str = "log"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("softmax", self.softmax, ("log", "uniform"))


def quantize(model: FloatModel, images: Tensor, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network, calibrated with normalised images (N, C, H, W).

    The model is not changed.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network.
        TypeError, ValueError: images that do not fit the model, weights or tensors with NaN or Inf.
    """
    graph, bits, activations, about = with_tensor_grids(model, check_images(images, model), config)
    weights = {path: weight_grid(layer_at(graph, path), width) for path, width in bits.weights.items()}
    about = {"model": model.name, "method": "repq_vit", "config": asdict(config), **about}
    quantized = QuantizedModel(graph, weights, activations, about)
    if config.integer_biases:
        round_biases(quantized)
    return quantized


def with_tensor_grids(
    model: FloatModel, images: Tensor, config: Config
) -> tuple[fx.GraphModule, Bits, dict[str, Quantizer], dict[str, Any]]:
    """Return the reparameterized graph, the bits, the grids of tensors, and the entry of a file for the change."""
    graph = folded_graph(model)
    bits = bits_of(graph, config, IMAGE_BITS)
    about: dict[str, Any] = {}
    activations: dict[str, Quantizer] = {}
    if config.per_channel:
        layers, about["not reparameterized"] = layers_behind_norms(graph, images[:1].to(device_of(graph)))
        norms = {norm: paths for norm, paths in layers.items() if norm in bits.activations}
        changes, activations = channel_grids(graph, norms, bits.activations, images, config.batch_size)
        reparameterize(graph, changes)
        about["preparation"] = {"reparameterize": {"norms": changes}}
        for norm, why in about["not reparameterized"].items():
            log.warning("the layer norm %s keeps one range for all channels: %s", norm, why)
    others = {name: width for name, width in bits.activations.items() if name not in activations}
    seen = observe(graph, others, images, config.batch_size).histograms
    activations |= {name: grid_for(graph, name, seen[name], width, config.softmax) for name, width in others.items()}
    return graph, bits, activations, about


def channel_grids(
    graph: fx.GraphModule,
    norms: Mapping[str, list[str]],
    bits: Mapping[str, int],
    images: Tensor,
    batch_size: int,
) -> tuple[dict[str, list[Any]], dict[str, Quantizer]]:
    """Return the arguments of `reparameterize` for layer norms, and the grids that their outputs then have.

    Args:
        graph: from `folded_graph`.
        norms: by the name of the norm's node, the linear layers that read it.
        bits: of every tensor, by name.
        images: (N, C, H, W), normalised.
        batch_size: images that pass at once.
    """
    watch = _Inputs(graph, {paths[0]: norm for norm, paths in norms.items()}, images)
    with torch.no_grad():
        for batch in images.split(batch_size):
            watch.run(batch.to(device_of(graph)))
    modules = {node.name: str(node.target) for node in graph.graph.nodes}
    changes: dict[str, list[Any]] = {}
    grids: dict[str, Quantizer] = {}
    for norm, tokens in watch.tokens.items():
        low, high = best_ranges(torch.cat(tokens).T.contiguous(), bits[norm], with_zero=False)
        factors, shifts, scale, zero_point = common_grid(low, high, bits[norm])
        changes[modules[norm]] = [norms[norm], factors.tolist(), shifts.tolist()]
        grids[norm] = UniformQuantizer(scale.float(), zero_point, bits=bits[norm], signed=False)
    return changes, grids


class _Inputs(fx.Interpreter):
    """Runs a graph and keeps inputs of layers, (tokens, C), by their norm; if there are many tokens, some of them."""

    def __init__(self, graph: fx.GraphModule, norms: Mapping[str, str], images: Tensor):
        super().__init__(graph)
        self.norms, self.count = norms, len(images)
        self.tokens: dict[str, list[Tensor]] = {norm: [] for norm in norms.values()}
        self.draws = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        if n.target in self.norms:
            tokens = self.env[n.all_input_nodes[0]]
            share = min(1.0, MOST_TOKENS * len(tokens) / self.count / (tokens.numel() // tokens.shape[-1]))
            tokens = tokens.flatten(0, -2)
            if share < 1:
                tokens = tokens[torch.randperm(len(tokens), generator=self.draws)[: max(1, int(share * len(tokens)))]]
            self.tokens[self.norms[str(n.target)]].append(tokens)
        return super().run_node(n)


def grid_for(graph: fx.GraphModule, name: str, seen: Histogram, bits: int, softmax: str) -> Quantizer:
    """Return the grid of a tensor from the histogram of its values."""
    node = next(node for node in graph.graph.nodes if node.name == name)
    if softmax == "log" and does(graph, node, SOFTMAXES) and seen.maximum > 0:
        return log_grid(seen, bits)
    return tensor_grid(seen, bits)
