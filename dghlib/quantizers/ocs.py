"""OCS: no images; input channels with the largest weights are split, so that a layer's single grid has smaller steps.

Source: R. Zhao, Y. Hu, J. Dotzel, C. De Sa, Z. Zhang: "Improving Neural Network Quantization without Retraining using
Outlier Channel Splitting", ICML 2019, and its released code, cornell-zhang/dnn-quant-ocs.

Differences:
1. Batch norms are folded before weights are split and rounded; the released code keeps them.
2. Grids need not be symmetric: for weights from -1 to 3 all codes are used. `weight_search` replaces the clipping
   methods of the code.
3. The code takes ranges of tensors from a few batches of training images; here they follow from batch norms
   (`expectation`).
4. Every layer is quantized; the code leaves convolutions that read images in float.
5. Differences in the split are listed in `splitting`.
"""

from dataclasses import dataclass

from torch import Tensor

from dghlib.choices import check_between
from dghlib.models import FloatModel
from dghlib.quantizers import no_images
from dghlib.quantizers.layers import frozen
from dghlib.quantizers.operations import layer_calls
from dghlib.quantizers.preparation import preparation_of, prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.settings import GridSettings
from dghlib.quantizers.splitting import divided, input_axis

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(GridSettings):
    """Settings of OCS; see `settings.GridSettings` for the others.

    Args:
        one_grid: whether all output channels of a layer share a grid, as in the paper.
        expand: number of input channels that a layer gains, as a share of its channels, 0 to 1; 0 rounds to the
            nearest.
    """

    one_grid: bool = True
    expand: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(0, 1, "expand", self.expand)


def quantize(model: FloatModel, images: Tensor | None, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network; images (N, C, H, W), normalised, are for grids of tensors, None without.

    The model is not changed. Raises as `squant.quantize`.
    """
    preparation = preparation_of(config, split={"expand": config.expand})
    graph = prepared_graph(model, preparation)
    bits = no_images.bits_of(graph, config)
    seen = no_images.seen_or_told(graph, bits, model, images, config)
    weights = no_images.weight_grids(graph, bits, config.weight_search, config.one_grid)
    for call, layer in layer_calls(graph):
        if "split" in call.meta and str(call.target) in weights:
            whole, order = call.meta["split"]
            axis = input_axis(layer)
            layer.weight = frozen(divided(whole, axis, order, weights[str(call.target)].scale.select(axis, 0)))
    return no_images.finished("ocs", model, graph, weights, seen, config, preparation)
