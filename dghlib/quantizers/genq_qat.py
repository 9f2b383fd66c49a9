"""GenQ's fine-tuning: the codes of a reconstructed network change by offsets that start at zero.

A quantized weight is (clamp(q + round(u / s)) - z) s, where q is its code in the initial network, and the learned
offset u is zero at first. This is LSQ on weights that begin on the codes: w = (q - z) s + u. So the quantizer of `lsq`
is used, and at u = 0 the student equals its initial network bit for bit.

Source: Y. Li, Y. Kim, D. Lee, S. Kundu, P. Panda: "GenQ: Quantization in Low Data Regimes with Generative Synthetic
Data", ECCV 2024, Eq. 12 and 13. Its code is not public.

Differences from the paper, which leaves most of this open:
1. The loss is the distillation of the float network's logits; the paper does not name its loss.
2. Codes of the initial network are clamped to the grid before offsets are added; in Eq. 12 offsets are added first.
3. Step sizes of weights and tensors are learned further, as in `lsq`, and so are biases.
4. There is no weight decay, which would pull weights to zero instead of their initial values.
5. The paper trains 50 epochs of 1.2 million images at a rate of 0.001, which falls along a cosine. It does not say
   whether it crops images; here they are mirrored only.
6. The rate is a tenth of the largest one at which a short run does not diverge (`fine_tuning`).
7. The initial network may also be from BRECQ; `quantize` takes an existing one or makes it.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor

from dghlib.choices import check_at_least, check_choice
from dghlib.models import FloatModel
from dghlib.quantizers import brecq, genie_m, reconstruction
from dghlib.quantizers.fine_tuning import Settings, fine_tune
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.storage import checkpoints

VERSION = 2
STARTS: dict[str, ModuleType] = {"genie_m": genie_m, "brecq": brecq}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of GenQ's fine-tuning; see `fine_tuning.Settings` for their meaning.

    Args:
        start: the method of the initial network, "genie_m" or "brecq", with the same widths, placement, searches,
            batches and seed.
        iterations: of that method, per unit.
    """

    placement: str = "genie"
    weight_decay: float = 0.0
    weight_search: str = "shrink_100"
    activation_search: str = "symmetric_100"
    learn_steps: bool = True
    start: str = "genie_m"
    iterations: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("start", self.start, STARTS)
        check_at_least(1, "iterations", self.iterations)

    def of_start(self) -> reconstruction.Settings:
        """Return the Config of the initial network."""
        config = STARTS[self.start].Config(
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            bits=self.bits,
            placement=self.placement,
            weight_search=self.weight_search,
            activation_search=self.activation_search,
            seed=self.seed,
            integer_biases=False,
        )
        return reconstruction.shortened(config, self.iterations)


def quantize(
    model: FloatModel,
    images: Tensor,
    config: Config,
    *,
    checkpoint: Path | None = None,
    start: QuantizedModel | None = None,
) -> QuantizedModel:
    """Return a quantized copy of a network; see `fine_tuning.fine_tune`.

    Without `start` the initial network is made first, with its own checkpoint, which other settings find again.
    """
    if start is None:
        of_start = checkpoint and checkpoints.stage(checkpoint, "start")
        start = STARTS[config.start].quantize(model, images, config.of_start(), checkpoint=of_start)
    return fine_tune("genq_qat", model, images, config, checkpoint, start)
