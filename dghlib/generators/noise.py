"""Gaussian noise: the lower bound that every method must exceed.

Source: the fallback for calibration without data; independent standard normal values in normalised space.

Differences from the paper: none, because there is no paper.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dghlib.choices import check_at_least, check_types
from dghlib.models import FloatModel
from dghlib.seeds import stream
from dghlib.synthesis.space import Device, brought_over, working_twin

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """The number of images, and their seed."""

    num_images: int = 1024  # images to make
    seed: int = 0  # of all random numbers

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(1, "num_images", self.num_images)


PRESETS = {"default": Config()}


def generate(
    model: FloatModel, config: Config, *, device: Device = "cpu", progress: bool = True, checkpoint: Path | None = None
) -> Tensor:
    """Return noise (num_images, C, H, W), float32; only the shape and the space of the images of `model` matter."""
    noise = torch.randn((config.num_images, *model.image_shape), generator=stream(config.seed, "noise"))
    return brought_over(noise, working_twin(model), model)
