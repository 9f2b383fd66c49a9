"""What the settings of all quantizers have in common: bits, and for some placement and searches."""

from dataclasses import dataclass

from dghlib.choices import check_at_least, check_choice, check_types
from dghlib.quantizers.grid import check_bits
from dghlib.quantizers.placement import BIT_POLICIES, PLACEMENTS
from dghlib.quantizers.scale_search import ACTIVATION_SEARCHES, WEIGHT_SEARCHES
from dghlib.storage.records import added_later


@dataclass(frozen=True, kw_only=True)
class BitSettings:
    """What every method is told.

    Args:
        weight_bits, activation_bits: 2 to 8, 16, or 32 for float.
        bits: "full", all layers and tensors alike; or "academic", the ends at 8 bits and the logits in float.
        integer_biases: whether biases are rounded, once all else is done, to the grids of the sums that they enter, as
            hardware has them (see `biases`); the methods' authors leave them in float.
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
    """Settings of methods that take their tensors, and the searches for their grids, by name.

    Args:
        placement: which tensors are quantized: "every_tensor", "brecq", "genie" or "relu_only".
        weight_search, activation_search: how grids are found (see `scale_search`).
        batch_size: images that pass at once, or of a minibatch; all of them if there are fewer.
    """

    placement: str = "every_tensor"
    weight_search: str = "min_max"
    activation_search: str = "l4"
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("weight_search", self.weight_search, WEIGHT_SEARCHES)
        check_choice("activation_search", self.activation_search, ACTIVATION_SEARCHES)
        check_at_least(1, "batch_size", self.batch_size)
