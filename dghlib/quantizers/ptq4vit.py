"""PTQ4ViT: two uniform ranges for softmax and GELU, and step sizes with the smallest effect on the network's output.

The outputs of softmax and GELU get a *twin* grid (`uneven`); all other factors of products, and the weights, get
symmetric grids. Step sizes are the best of many candidates, tried for one kind after the other: those of weights with
tensors quantized, then those of tensors with weights quantized. An error of a product's output counts by the square of
the network's dependence on that output, which is the diagonal of the Hessian to first order:

    score = sum of (dL/dO)^2 (O - O_quantized)^2.

Source: Z. Yuan, C. Xue, Y. Chen, Q. Wu, G. Sun, "PTQ4ViT: Post-Training Quantization for Vision Transformers with Twin
Uniform Quantization", ECCV 2022, Eq. 5 to 12, and a description of its released code.

The released code differs as follows: its gradients are those of the divergence of the float network's outputs from
themselves, which are 0 except for rounding, and only of the last batch of images; it adds both ranges of a softmax, so
that larger values are too large by the border between them; and the step size above 0 after GELU is not the other one
times a power of two.

Differences from the paper:
1. L is the negative logarithm of a class that is drawn from the network's output for each image. The mean of its
   squared gradient is the diagonal of the Hessian of the divergence that the paper means (the Fisher information).
2. Products of all heads have one grid per factor; the released code has one for each head.
3. Weights of convolutions get the grids with the least squared error, one per output channel, and their inputs the grid
   with the least error in the 2.4th power; so do tensors that are not factors, under `placement="every_tensor"`.
   Weights of linear layers have one grid, or 3 grids, for queries, keys and values, if one layer makes all, as in the
   released code.
4. At most `ROWS` rows or `MATRICES` matrices of a product's output are compared, drawn at random.
5. There is one round for each kind: the authors' ablation finds less than 0.05 points in 2 more.
6. The range of the negative half of a twin grid follows from the function: down to its minimum, also for SiLU.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, fx
from tqdm import tqdm

from dghlib.choices import check_at_least
from dghlib.models import FloatModel
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import Histogram, check_images, observe
from dghlib.quantizers.graph import folded_graph
from dghlib.quantizers.grid import FLOAT_BITS, UniformQuantizer
from dghlib.quantizers.hptq import weight_quantizer
from dghlib.quantizers.operations import SHORT_TAIL, SOFTMAXES, Kind, does, kind_of, layer_at
from dghlib.quantizers.placement import Bits
from dghlib.quantizers.product_errors import Product, recorded_products
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import activation_grid
from dghlib.quantizers.sites import site_of
from dghlib.quantizers.transformers import Settings, bits_of
from dghlib.quantizers.uneven import Quantizer, TwinQuantizer

VERSION = 1
ROWS = 1024  # of each linear layer that are compared, at most
MATRICES = 256  # of each product of 2 tensors that are compared, at most: one for each image and head
SMALLEST, LARGEST = 0.01, 1.2  # of the range that covers every value, for which step sizes are tried
MOST_SHIFTS = 20  # largest shift between the 2 step sizes of a twin grid; all are tried
_SMALLEST_STEP = 1e-8


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of PTQ4ViT; see `transformers.Settings` for the others.

    Args:
        candidates: step sizes that are tried for every grid; from 20 on the authors lose less than 0.3 points.
        twins: whether the outputs of softmax, GELU and similar functions get twin grids; otherwise uniform ones.
        seed: of the random classes.
    """

    candidates: int = 100
    twins: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(2, "candidates", self.candidates)


def quantize(model: FloatModel, images: Tensor, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network, calibrated with normalised images (N, C, H, W).

    The model is not changed.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network.
        TypeError, ValueError: images that do not fit the model, weights or tensors with NaN or Inf; a network whose
            output is not a row of logits for each image.
    """
    images = check_images(images, model)
    graph = folded_graph(model)
    bits = bits_of(graph, config, FLOAT_BITS)
    seen = observe(graph, bits.activations, images, config.batch_size).histograms
    products = recorded_products(graph, images, config.batch_size, rows=ROWS, matrices=MATRICES, seed=config.seed)
    weights, tensors = _first_grids(graph, bits, seen, config)
    with torch.no_grad():
        _Search(graph, products, weights, tensors, config).run(seen)
    about = {"model": model.name, "method": "ptq4vit", "config": asdict(config)}
    quantized = QuantizedModel(graph, weights, tensors, about)
    if config.integer_biases:
        round_biases(quantized)
    return quantized


def _first_grids(
    graph: fx.GraphModule, bits: Bits, seen: Mapping[str, Histogram], config: Config
) -> tuple[dict[str, UniformQuantizer], dict[str, Quantizer]]:
    """Return grids of the least squared error, for weights by path and for tensors by name."""
    weights = {path: weight_quantizer(layer_at(graph, path), width, "free") for path, width in bits.weights.items()}
    tensors: dict[str, Quantizer] = {}
    for name, width in bits.activations.items():
        twins = list(twins_for(graph, name, seen[name], width)) if config.twins else []
        tensors[name] = _nearest(twins, seen[name]) if twins else activation_grid(seen[name], width, "symmetric_100")
    return weights, tensors


def _nearest(grids: list[TwinQuantizer], seen: Histogram) -> TwinQuantizer:
    values, counts = seen.centres().float(), seen.counts.double()
    return min(grids, key=lambda grid: float((grid(values) - values).double().square() @ counts))


def twins_for(graph: fx.GraphModule, name: str, seen: Histogram, bits: int) -> Iterator[TwinQuantizer]:
    """Yield the twin grids to try for a tensor; none unless it is the output of softmax, GELU or a similar function."""
    node = next(node for node in graph.graph.nodes if node.name == name)
    half = 2 ** (bits - 1)
    if does(graph, node, SOFTMAXES):
        coarse = torch.tensor(1.0 / half)
        for shifts in range(MOST_SHIFTS):
            yield TwinQuantizer(coarse / 2**shifts, coarse, bits=bits, signed=False)
    elif does(graph, node, SHORT_TAIL) and seen.minimum < 0 < seen.maximum:
        fine = torch.tensor(-_minimum(graph, node) / half)
        for shifts in range(MOST_SHIFTS):
            yield TwinQuantizer(fine, fine * 2**shifts, bits=bits, signed=True)
            if (half - 1) * fine * 2**shifts > seen.maximum:
                return


def _minimum(graph: fx.GraphModule, node: fx.Node) -> float:
    """Return the minimum of an activation function."""
    values = torch.linspace(-10, 0, 10_001)
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))(values).min().item()
    function: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    return function(values, *node.args[1:], **node.kwargs).min().item()


class _Search:
    """Replaces grids, in place, by those with the smallest effect on the network's output."""

    def __init__(
        self,
        graph: fx.GraphModule,
        products: Mapping[str, Product],
        weights: dict[str, UniformQuantizer],
        tensors: dict[str, Quantizer],
        config: Config,
    ):
        self.graph, self.products, self.config = graph, products, config
        self.weights, self.tensors = weights, tensors
        self.nodes = {node.name: node for node in graph.graph.nodes if node.name in products}
        self.shares = torch.linspace(SMALLEST, LARGEST, config.candidates)

    def run(self, seen: Mapping[str, Histogram]) -> None:
        """Search grids of weights first, then those of tensors."""
        for name, node in tqdm(self.nodes.items(), desc="weights", unit="layer", leave=False, delay=3):
            if str(node.target) in self.weights:
                self.weights[str(node.target)] = self._best_weight(self.products[name], str(node.target), node)
        readers = self._readers()
        for name, places in tqdm(readers.items(), desc="tensors", unit="tensor", leave=False, delay=3):
            self.tensors[name] = self._best_tensor(name, places, seen[name])

    def _quantized_by(self, node: fx.Node) -> str | None:
        """Return the name of the tensor on whose grid a node's values lie; None for a node in float."""
        while site_of(node) not in self.tensors and kind_of(self.graph, node) is Kind.MOVEMENT:
            node = node.all_input_nodes[0]
        return site_of(node) if site_of(node) in self.tensors else None

    def _readers(self) -> dict[str, list[tuple[str, int]]]:
        """Return, for each tensor, the products that read it, with the position of the factor."""
        readers: dict[str, list[tuple[str, int]]] = {}
        for name, node in self.nodes.items():
            for place, factor in enumerate(node.all_input_nodes):
                if (tensor := self._quantized_by(factor)) is not None:
                    readers.setdefault(tensor, []).append((name, place))
        return {name: readers[name] for name in self.tensors if name in readers}

    def _factor(self, name: str, place: int) -> Tensor:
        """Return a factor of a product with its current quantization; position 1 of a layer is its weight."""
        product, node = self.products[name], self.nodes[name]
        if product.layer is not None and place == 1:
            grid = self.weights.get(str(node.target))
            return product.layer.weight if grid is None else grid(product.layer.weight)
        tensor = self._quantized_by(node.all_input_nodes[place])
        values = product.factors[place]
        return values if tensor is None else self.tensors[tensor](values)

    def _best_weight(self, product: Product, path: str, node: fx.Node) -> UniformQuantizer:
        assert product.layer is not None
        weight, bits = product.layer.weight, self.weights[path].bits
        outputs, inputs = weight.shape
        groups = 3 if outputs == 3 * inputs else 1  # queries, keys and values
        largest = weight.abs().reshape(groups, -1).amax(1) / (2 ** (bits - 1) - 0.5)
        first = self._factor(node.name, 0)
        grids = [_symmetric((largest * share).repeat_interleave(outputs // groups), bits) for share in self.shares]
        errors = torch.stack(
            [
                product.errors(first, grid(weight)).sum(0, dtype=torch.float64).reshape(groups, -1).sum(1)
                for grid in grids
            ]
        )
        best = errors.argmin(0)
        return _symmetric((largest * self.shares[best]).repeat_interleave(outputs // groups), bits)

    def _best_tensor(self, name: str, places: list[tuple[str, int]], seen: Histogram) -> Quantizer:
        others = [self._factor(product, 1 - place) for product, place in places]

        def error(grid: Quantizer) -> float:
            total = 0.0
            for (product, place), other in zip(places, others, strict=True):
                values = grid(self.products[product].factors[place])
                pair = (values, other) if place == 0 else (other, values)
                total += self.products[product].errors(*pair).sum(dtype=torch.float64).item()
            return total

        return min(self._candidates(name, seen), key=error)

    def _candidates(self, name: str, seen: Histogram) -> Iterable[Quantizer]:
        grid = self.tensors[name]
        if isinstance(grid, TwinQuantizer):
            return twins_for(self.graph, name, seen, grid.bits)
        signed = seen.minimum < 0
        reach = 2 ** (grid.bits - signed) - 0.5
        largest = max(-seen.minimum, seen.maximum, _SMALLEST_STEP * reach) / reach
        return (
            UniformQuantizer(share * largest, torch.zeros(()), bits=grid.bits, signed=signed) for share in self.shares
        )


def _symmetric(steps: Tensor, bits: int) -> UniformQuantizer:
    """Return signed grids for the rows of a weight, without zero points."""
    scale = steps.clamp(min=_SMALLEST_STEP)[:, None]
    return UniformQuantizer(scale, torch.zeros_like(scale), bits=bits, signed=True)
