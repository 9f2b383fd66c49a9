"""SQuant: no images; weights are rounded so that their errors cancel in every kernel and every output channel.

Source: C. Guo, Y. Qiu, J. Leng, X. Gao, C. Zhang, Y. Liu, F. Yang, Y. Zhu, M. Guo: "SQuant: On-the-Fly Data-Free
Quantization via Diagonal Hessian Approximation", ICLR 2022, and its released code.

Differences:
1. Batch norms are folded before weights are rounded; the released code keeps them.
2. Grids of tensors follow from batch norms, with the smallest error in the 4th power (`expectation`). The paper also
   uses batch norms; the released code passes a batch of uniform noise and takes a number of standard deviations of the
   result.
3. Every tensor is quantized, including the image and sums; the code quantizes the inputs of convolutions and linear
   layers, the first in float, the last at 8 bits. `placement="genie"` and `bits="academic"` are similar to this.
4. Differences in the rounding are listed in `flips`.
"""

from dataclasses import dataclass

from torch import Tensor

from dghlib.choices import check_choice
from dghlib.models import FloatModel
from dghlib.quantizers import no_images
from dghlib.quantizers.flips import FLIPS, flipped_weight
from dghlib.quantizers.layers import frozen
from dghlib.quantizers.operations import layer_at
from dghlib.quantizers.preparation import preparation_of, prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.scale_search import weight_grid
from dghlib.quantizers.settings import GridSettings

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config(GridSettings):
    """Settings of SQuant; see `settings.GridSettings` for the others.

    Args:
        flips: the sums of errors that become small: those of "kernels", of "channels", of "both", or "none", which
            rounds to the nearest.
    """

    flips: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("flips", self.flips, FLIPS)


def quantize(model: FloatModel, images: Tensor | None, config: Config) -> QuantizedModel:
    """Return a quantized copy of a network; images (N, C, H, W), normalised, are for grids of tensors, None without.

    The model is not changed.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network.
        TypeError, ValueError: weights or tensors with NaN or Inf, images that do not fit the model; without images, a
            tensor that cannot be predicted from batch norms.
    """
    preparation = preparation_of(config)
    graph = prepared_graph(model, preparation)
    bits = no_images.bits_of(graph, config)
    seen = no_images.seen_or_told(graph, bits, model, images, config)
    weights = {}
    for path, width in bits.weights.items():
        layer = layer_at(graph, path)
        weights[path] = weight_grid(layer, width, config.weight_search)
        layer.weight = frozen(flipped_weight(layer, weights[path], config.flips))
    return no_images.finished("squant", model, graph, weights, seen, config, preparation)
