"""ERQ: weights of linear layers compensate, in closed form, the errors from rounding tensors and weights.

Grids of tensors are those of RepQ-ViT. Then layer after layer, with inputs from the layers that are already quantized:

1. the weight is moved so that, with tensors on their grids, the output is nearest to that of the float network (ridge
   regression);
2. half of the weight's columns are rounded, and the remaining columns are moved to compensate for the errors, again by
   ridge regression; then half of the remaining columns, and so on.

So every layer uses the images twice, and nothing is learned iteratively. On the grids the network costs the same
operations as with RepQ-ViT.

Source: Y. Zhong, Y. Huang, J. Hu, Y. Zhang, R. Ji, "ERQ: Error Reduction for Post-Training Quantization of Vision
Transformers", ICML 2024, and a description of its released code.

Differences:
1. The images decide how strongly ridge regression holds weights: half of them fit, and the other half choose one of
   `RIDGES`, or no move. The released code has a constant for all layers, which differs from the one in its README.
2. The columns with the largest effect through their inputs are rounded first. Weights are rounded to the nearest; ERQ
   also tries flips of single weights.
3. No column has a scale of its own for outliers; in the released code some columns do.
4. Weights of convolutions are rounded to the nearest, as in the released code for the first convolution.
5. Differences in grids are listed in `repq_vit`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from dghlib.models import FloatModel
from dghlib.quantizers import repq_vit
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import check_images
from dghlib.quantizers.compensation import Walk
from dghlib.quantizers.graph import device_of
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.layers import QuantizedLayer, frozen
from dghlib.quantizers.operations import called_module, layer_at, layer_calls
from dghlib.quantizers.percentiles import weight_grid
from dghlib.quantizers.preparation import prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel

VERSION = 1
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean energy of a layer's inputs


@dataclass(frozen=True, kw_only=True)
class Config(repq_vit.Config):
    """Settings of ERQ: those of `repq_vit.Config`."""


@torch.no_grad()
def quantize(model: FloatModel, images: Tensor, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network, calibrated with at least 2 normalised images (N, C, H, W).

    All images pass at once in the second part. The model is not changed.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network.
        TypeError, ValueError: images that do not fit the model, or a single image; weights or tensors with NaN or Inf.
    """
    images = check_images(images, model)
    if len(images) < 2:
        raise ValueError("ERQ needs at least 2 images, to fit and to choose, got 1")
    graph, bits, activations, about = repq_vit.with_tensor_grids(model, images, config)
    about = {"model": model.name, "method": "erq", "config": asdict(config), **about}
    calls = [node.target for node, _ in layer_calls(graph)]
    corrected = {
        path for path in bits.weights if isinstance(layer_at(graph, path), nn.Linear) and calls.count(path) == 1
    }
    nearest = {
        path: weight_grid(layer_at(graph, path), width) for path, width in bits.weights.items() if path not in corrected
    }
    quantized = QuantizedModel(graph, nearest, activations, about)
    images = images.to(device_of(graph))
    widths = {path: bits.weights[path] for path in corrected}
    _Corrector(quantized.graph, Walk(prepared_graph(model, about), images), widths).run(images)
    if config.integer_biases:
        round_biases(quantized)
    return quantized.eval()


class _Corrector(fx.Interpreter):
    """Runs a network with quantized tensors, and quantizes the weights of its layers on the way."""

    def __init__(self, graph: fx.GraphModule, wanted: Walk, bits: dict[str, int]):
        super().__init__(graph)
        self.network, self.wanted, self.bits = graph, wanted, bits
        self.bar = tqdm(total=len(bits), desc="ridges", unit="layer", leave=False, delay=3)

    def run_node(self, n: fx.Node) -> Any:
        layer = called_module(self.network, n)
        if isinstance(layer, nn.Linear) and n.target in self.bits:
            inputs, target = self.env[n.all_input_nodes[0]], self.wanted.until(n.name)
            grid, weight, bias = quantized_weight(layer, inputs, target, self.bits[str(n.target)])
            layer.weight, layer.bias = frozen(weight), frozen(bias)
            self.network.set_submodule(str(n.target), QuantizedLayer(layer, grid))
            self.bar.update()
        return super().run_node(n)


def quantized_weight(
    layer: nn.Linear, inputs: Tensor, target: Tensor, bits: int
) -> tuple[UniformQuantizer, Tensor, Tensor]:
    """Return grids for a layer's weight, the weight (C_out, C_in) on these grids, and the bias (C_out,).

    Args:
        layer: in float.
        inputs: its inputs in the quantized network, (N, ..., C_in).
        target: the float layer's outputs for the tensors of the float network, (N, ..., C_out).
        bits: of the weight.
    """
    x, y = (values.double().reshape(len(inputs), -1, values.shape[-1]) for values in (inputs, target))
    bias = torch.zeros(y.shape[-1]).to(y) if layer.bias is None else layer.bias.double()
    weight = layer.weight.double()
    weight, bias, ridge = _moved(weight, bias, x, y)
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    grid = weight_grid(_with_weight(layer, weight), bits)
    gram = x.T @ x
    gram.diagonal().add_(max(ridge, RIDGES[0]) * gram.diagonal().mean())
    weight = _rounded(weight, gram, grid)
    return grid, weight, bias + (y - x @ weight.T - bias).mean(0)


def _with_weight(layer: nn.Linear, weight: Tensor) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, device="meta")  # on other devices it would draw weights
    made.weight = frozen(weight)
    return made


def _moved(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return weight and bias after the ridge that other images confirm, and its strength; unchanged for none."""
    errors = y - x @ weight.T - bias
    fit, judge = slice(0, None, 2), slice(1, None, 2)
    best, smallest = 0.0, errors[judge].square().sum()
    for ridge in RIDGES:
        move = _ridge(x[fit], errors[fit], ridge)
        left = (errors[judge] - _with_one(x[judge]) @ move).square().sum()
        if left < smallest:
            best, smallest = ridge, left
    if not best:
        return weight, bias, best
    move = _ridge(x, errors, best)
    return weight + move[:-1].T, bias + move[-1], best


def _ridge(x: Tensor, errors: Tensor, ridge: float) -> Tensor:
    """Return the summand for the weight and, in the last row, the bias, (C_in + 1, C_out)."""
    rows = _with_one(x).flatten(0, 1)
    gram = rows.T @ rows
    gram.diagonal()[:-1].add_(ridge * gram.diagonal()[:-1].mean().clamp(min=1e-12))
    return torch.linalg.solve(gram, rows.T @ errors.flatten(0, 1))


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def _rounded(weight: Tensor, gram: Tensor, grid: UniformQuantizer) -> Tensor:
    """Return a weight (C_out, C_in) on its grid, whose columns were rounded by halves, the most important first."""
    weight = weight.clone()
    left = gram.diagonal().argsort(descending=True)
    while len(left):
        now, left = left.split([(len(left) + 1) // 2, len(left) // 2])
        rounded = grid(weight.float()).double()[:, now]
        error = rounded - weight[:, now]
        weight[:, now] = rounded
        if len(left):
            weight[:, left] -= torch.linalg.solve(gram[left][:, left], gram[left][:, now] @ error.T).T
    return weight
