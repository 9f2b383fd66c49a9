"""The common settings of all quantizers: bits, and for some methods placement and searches."""

from dataclasses import dataclass

from dghlib.choices import check_at_least, check_choice, check_types
from dghlib.quantizers.grid import check_bits
from dghlib.quantizers.placement import BIT_POLICIES, PLACEMENTS
from dghlib.quantizers.scale_search import ACTIVATION_SEARCHES, WEIGHT_SEARCHES
from dghlib.storage.records import added_later


@dataclass(frozen=True, kw_only=True)
class BitSettings:
    """The settings of every method.

    Args:
        weight_bits, activation_bits: 2 to 8, 16, or 32 for float.
        bits: "full", the same for all layers and tensors; or "academic", the ends at 8 bits and the logits in float.
        integer_biases: whether biases are finally rounded to the grids of the sums to which they are added, as in
            hardware (see `biases`); the methods' authors leave them in float.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    bits: str = "full"
    integer_biases: bool = added_later(True, before=False)

    def __post_init__(self) -> None:
        check_types(self)
        check_bits(self.weight_bits, "weight_bits")
        check_bits(self.activation_bits, "activation_bits")
        check_choice("bits", self.bits, BIT_POLICIES)


@dataclass(frozen=True, kw_only=True)
class GridSettings(BitSettings):
    """Settings of methods with a choice of tensors and of searches for their grids.

    Args:
        placement: the quantized tensors: "every_tensor", "brecq", "genie" or "relu_only".
        weight_search, activation_search: the searches for grids (see `scale_search`).
        batch_size: images that pass at once, or images of a minibatch; all images if there are fewer.
        equalize: whether channels are scaled across layers first (see `equalization`).
    """

    placement: str = "every_tensor"
    weight_search: str = "min_max"
    activation_search: str = "l4"
    batch_size: int = 32
    equalize: bool = added_later(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("weight_search", self.weight_search, WEIGHT_SEARCHES)
        check_choice("activation_search", self.activation_search, ACTIVATION_SEARCHES)
        check_at_least(1, "batch_size", self.batch_size)
