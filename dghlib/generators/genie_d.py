"""GENIE-D: latent vectors and a generator network are trained together, separately for every batch of images.

The generator network couples the images of a batch, because it makes all of them; the latent vectors distinguish them.
Swing convolution: the input of a strided convolution of the trained network is shifted at random by up to 1 pixel, so
that the stride of the convolution favours no pixel of an image.

Source: Jeon, Lee, Kim, "GENIE: Show Me the Data for Quantization" (2023), its appendix, and the authors' code at
commit 7b089d9.

Differences from the paper: none known; as in the code, an image is also matched with mean 0 and standard deviation 1.

Differences from the authors' code:
 1. Variances are biased (divided by the number of values, not by one less), and 1e-6 is added to the measured variances
    as well as to the stored ones, so that the gradient of a constant channel is finite.
 2. A smaller last batch is also made; the code leaves it out.
 3. The code exchanges the names of the two learning rates; the values here and there are those of the appendix.
 4. Images may have any size: the generator network starts at a quarter of the size, rounded up.
 5. Feature maps with a single row or column are not shifted.
 6. There are the options of `dghlib.synthesis.options`, which are off by default.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from dghlib.choices import check_at_least, check_between
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.schedules import in_proportion
from dghlib.generators.tasks import run_tasks, values_of
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics, moments, variance_of
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import added_later
from dghlib.synthesis.matching import channel_weights, measure, spread_of
from dghlib.synthesis.networks import GenieNetwork, initialised
from dghlib.synthesis.options import MatchingOptions
from dghlib.synthesis.space import Device, brought_over, working

VERSION = 1
# The authors': steps of a run, and the steps after which the network's rate falls, or, on a plateau, the latents' rate.
STEPS, PATIENCE = 4000, 100


@dataclass(frozen=True, kw_only=True)
class Config(MatchingOptions):
    """Settings of one run; the defaults are the authors'."""

    num_images: int = 1024  # images to make
    batch_size: int = 128  # images that share a generator network and match the statistics together
    steps: int = STEPS  # of each batch
    learning_rate: float = 0.01  # of the generator network
    latent_learning_rate: float = 0.1  # of the latent vectors, at the start
    latent_size: int = 256  # values of a latent vector
    swing: bool = True  # shift the inputs of strided convolutions

    scaled_schedule: bool = added_later(True, before=False)  # scale PATIENCE from STEPS to the steps of the run

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_images", "batch_size", "steps", "latent_size"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, math.inf, "learning_rate", self.learning_rate)
        check_between(0, math.inf, "latent_learning_rate", self.latent_learning_rate)


PRESETS = {"default": Config()}


def generate(
    model: FloatModel, config: Config, *, device: Device = "cpu", progress: bool = True, checkpoint: Path | None = None
) -> Tensor:
    """Return GENIE's images (num_images, C, H, W); `dghlib.generators` describes the common arguments."""
    twin, net, layers = working(model, device)
    shifts = torch.Generator()
    if config.swing:
        swing_strided_convolutions(net, shifts)
    sizes = [len(part) for part in torch.arange(config.num_images).split(config.batch_size)]
    made = run_tasks(
        lambda index, _: _Task(net, layers, twin.image_shape, config, index, sizes[index], shifts),
        count=len(sizes),
        steps=config.steps,
        saved=Checkpoint(checkpoint, images_fingerprint(twin, "genie_d", VERSION, config)),
        title=f"GENIE-D {twin.name}",
        progress=progress,
    )
    return brought_over(config.filtered(made), twin, model)


class _Task:
    """A batch: its latent vectors and its generator network."""

    parts: dict[str, Any]

    def __init__(
        self,
        net: nn.Module,
        layers: StoredStatistics,
        image_shape: tuple[int, int, int],
        config: Config,
        index: int,
        size: int,
        shifts: torch.Generator,
    ):
        self.net, self.layers = net, layers
        device = layers.mean.device
        # Means over the channels of a layer, summed over the layers.
        self.weights = channel_weights(layers.sizes, "mean", device) * len(layers.sizes)
        latents = torch.randn(size, config.latent_size, generator=stream(config.seed, "genie_d", "latents", index))
        self.latents = latents.to(device).requires_grad_()
        self.generator = initialised(
            lambda: GenieNetwork(image_shape, config.latent_size), config.seed, "genie_d", "network", index
        ).to(device)
        self.made = torch.zeros(size, *image_shape, device=device)
        shifts.set_state(stream(config.seed, "genie_d", "shifts", index).get_state())
        self.distance = config.distance_from(net, image_shape, layers, self.weights, "std")

        self.optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate)
        patience = in_proportion(PATIENCE, config.steps, STEPS) if config.scaled_schedule else PATIENCE
        self.schedule = StepLR(self.optimizer, step_size=patience, gamma=0.95)
        self.latent_optimizer = torch.optim.Adam([self.latents], config.latent_learning_rate)
        self.latent_schedule = ReduceLROnPlateau(self.latent_optimizer, patience=patience, min_lr=1e-4)
        self.parts = {
            "latents": self.latents,
            "generator": self.generator,
            "images": self.made,
            "shifts": shifts,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "latent_optimizer": self.latent_optimizer,
            "latent_schedule": self.latent_schedule,
        }

    def step(self) -> dict[str, float]:
        """Train latent vectors and network by 1 step, see `dghlib.generators.tasks.Task`."""
        self.optimizer.zero_grad()
        self.latent_optimizer.zero_grad()
        images = self.generator(self.latents)
        measured = measure(self.net, images, self.layers)
        terms = {
            "BNS": self.distance(measured.moments).mean(),
            "pixels": pixel_distance(images),
        }
        torch.stack(list(terms.values())).sum().backward()
        self.made.copy_(images.detach())
        values = values_of(terms)
        self.optimizer.step()
        self.latent_optimizer.step()
        self.schedule.step()
        self.latent_schedule.step(sum(values.values()))
        return values

    def images(self) -> Tensor:
        """Return the network's images of the last step, before their update, as the authors do."""
        return self.made


def pixel_distance(images: Tensor) -> Tensor:
    """Return the distance of images from mean 0 and standard deviation 1: squared, summed over channels, averaged."""
    measured = moments(images, groups=len(images))
    spread_error = spread_of(variance_of(measured), "std") - 1
    return (measured[:, 0].square() + spread_error.square()).sum(1).mean()


def swing_strided_convolutions(net: nn.Module, draws: torch.Generator) -> None:
    """Let each strided convolution of `net` read its input shifted at random by -1, 0 or 1 pixel in each direction.

    Each layer has the same shift for the whole batch in a forward pass; the border is filled by reflection.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1:
            module.register_forward_pre_hook(lambda _, args: (swung(args[0], draws), *args[1:]))


def swung(maps: Tensor, draws: torch.Generator) -> Tensor:
    """Return feature maps (N, C, H, W) shifted at random by -1, 0 or 1 pixel in each direction."""
    top, left = torch.randint(3, (2,), generator=draws).tolist()
    height, width = maps.shape[2:]
    if min(height, width) < 2:
        return maps
    padded = nn.functional.pad(maps, (1, 1, 1, 1), mode="reflect")
    return padded[:, :, top : top + height, left : left + width]
