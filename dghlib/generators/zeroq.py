"""ZeroQ: every single image matches the batch-norm statistics.

Source: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework" (2020), and the authors' classification code at
commit 9715739 (the settings of February 2020: learning rate 0.5, 500 iterations, no early stop).

Differences from the authors' code:
 1. Statistics are measured at the inputs of the batch norms, found by name. The authors use the outputs of the first
    convolutions, one for each batch norm. These are the same tensors if every batch norm follows its convolution, and
    the wrong ones otherwise (DenseNet, pre-activation networks).
 2. Variances are biased (divided by the number of pixels, not by one less): with a single pixel the unbiased one is
     NaN.
 3. There are the options of `dghlib.synthesis.options`, which are off by default.
 4. The paper describes Gaussian noise; as in the code, images start as uniform noise of standard deviation 0.0136.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dghlib.choices import check_at_least, check_between
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.schedules import in_proportion
from dghlib.generators.tasks import ImageTask, run_tasks
from dghlib.models import FloatModel
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import added_later
from dghlib.synthesis.matching import channel_weights, measure, with_pixels
from dghlib.synthesis.options import MatchingOptions
from dghlib.synthesis.space import Device, brought_over, working

VERSION = 1
STEPS, PATIENCE = 500, 100  # the authors': steps of a run, and steps of a plateau after which the rate falls


@dataclass(frozen=True, kw_only=True)
class Config(MatchingOptions):
    """Settings of one run; the defaults are the authors'."""

    num_images: int = 1024  # images to make
    batch_size: int = 64  # images that are computed together; they share only the learning rate
    steps: int = STEPS  # of each image
    learning_rate: float = 0.5  # of the images, at the start

    scaled_schedule: bool = added_later(True, before=False)  # scale PATIENCE from STEPS to the steps of the run

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_images", "batch_size", "steps"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, math.inf, "learning_rate", self.learning_rate)


PRESETS = {"default": Config()}


def generate(
    model: FloatModel, config: Config, *, device: Device = "cpu", progress: bool = True, checkpoint: Path | None = None
) -> Tensor:
    """Return ZeroQ's images (num_images, C, H, W); `dghlib.generators` describes the common arguments."""
    twin, net, layers = working(model, device)
    layers = with_pixels(layers, twin.image_shape[0])
    weights = channel_weights(layers.sizes, "sum", layers.mean.device)
    patience = in_proportion(PATIENCE, config.steps, STEPS) if config.scaled_schedule else PATIENCE
    batches = _initial_images(twin, config).to(device).split(config.batch_size)

    distance = config.distance_from(net, twin.image_shape, layers, weights, "std")

    def loss(images: Tensor) -> dict[str, Tensor]:
        measured = measure(net, images, layers, groups=len(images))
        return {"BNS": distance(measured.moments).mean()}

    made = run_tasks(
        lambda index, _: ImageTask(
            batches[index],
            loss,
            lambda images: torch.optim.Adam(images, config.learning_rate),
            lambda optimizer: ReduceLROnPlateau(optimizer, patience=patience, min_lr=1e-4),
        ),
        count=len(batches),
        steps=config.steps,
        saved=Checkpoint(checkpoint, images_fingerprint(twin, "zeroq", VERSION, config)),
        title=f"ZeroQ {twin.name}",
        progress=progress,
    )
    return brought_over(config.filtered(made), twin, model)


def _initial_images(model: FloatModel, config: Config) -> Tensor:
    """Return the authors' initial images: whole numbers 0 .. 254 minus 127.5, divided by 5418.75."""
    shape = (config.num_images, *model.image_shape)
    whole = torch.randint(0, 255, shape, generator=stream(config.seed, "zeroq"))
    return (whole.float() - 127.5) / 5418.75
