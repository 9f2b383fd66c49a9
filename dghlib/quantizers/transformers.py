"""The common part of quantizers for vision transformers: their settings, their tensors, and products of tensors.

A *product* is that of a layer, of a tensor and a weight, or that of 2 tensors, as in attention. Its *factors* are
tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from dghlib.choices import check_at_least, check_choice
from dghlib.quantizers.grid import FLOAT_BITS
from dghlib.quantizers.operations import PRODUCTS, Kind, does, kind_of, layer_calls
from dghlib.quantizers.placement import PLACEMENTS, Bits, assign_bits
from dghlib.quantizers.settings import BitSettings


@dataclass(frozen=True, kw_only=True)
class Settings(BitSettings):
    """Settings of all quantizers of transformers; see `settings.BitSettings` for the others.

    Args:
        placement: the quantized tensors: "factors", as in the authors' code (the inputs of layers and both factors of
            every product); "every_tensor", also the outputs of norms, sums and activation functions; "brecq"; "genie".
        batch_size: images that pass at once.
    """

    weight_bits: int = 4
    activation_bits: int = 4
    placement: str = "factors"
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("placement", self.placement, PLACEMENTS)
        check_at_least(1, "batch_size", self.batch_size)


def bits_of(graph: fx.GraphModule, settings: Settings, image_bits: int) -> Bits:
    """Return the bits of every weight and tensor; with "factors", the image gets at least `image_bits`."""
    tensors = PLACEMENTS[settings.placement](graph)
    bits = assign_bits(graph, tensors, settings.weight_bits, settings.activation_bits, settings.bits)
    if settings.placement != "factors":
        return bits
    image = next(node.name for node in graph.graph.nodes if kind_of(graph, node) is Kind.IMAGE)
    activations = {name: max(width, image_bits) if name == image else width for name, width in bits.activations.items()}
    return Bits(bits.weights, {name: width for name, width in activations.items() if width != FLOAT_BITS})


def products_of(graph: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the calls of layers and the products of 2 tensors, in the order of computation."""
    calls = {node for node, _ in layer_calls(graph)}
    for node in graph.graph.nodes:
        if node in calls or (
            does(graph, node, PRODUCTS) and all("shape" in read.meta for read in node.all_input_nodes)
        ):
            yield node
