"""The space in which images are made: pixels have about mean 0 and variance 1 there, for every network.

Initial noise, learning rates, and the layer that compares an image itself with mean 0 and standard deviation 1 are
meant for such a space, that of networks with normalised images. A network may also take pixels from 0 to 1 or from 0 to
255 and normalise them itself or in its first batch norm. Such a network has a *twin* here: the same network after a
layer that converts normalised images to its input. Images are made for the twin and then converted. A network whose own
space is such a space is its own twin, and nothing changes.

Source: none; the networks of all authors take normalised images.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from dghlib.images import per_channel
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics, stored_statistics, working_copy

# The mean and std of a twin: those of ImageNet for colour images, and for others their mean.
COLOUR_MEAN, COLOUR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNIFORM_STD = 12**-0.5  # of numbers distributed uniformly from 0 to 1
# Limits for uniformly distributed pixels in a space in which images can be made. Common networks have a mean from -0.1
# to 1.2 (MNIST's) and a standard deviation from 0.6 (pixels from -1 to 1) to 1.3 (ImageNet's); unnormalised pixels from
# 0 to 1 have 0.5 and 0.3.
LARGEST_MEAN, SMALLEST_STD, LARGEST_STD = 1.5, 0.5, 2.0

Device: TypeAlias = torch.device | str


def is_normalised(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Return whether pixels of every channel have about mean 0 and variance 1 in this space."""
    return all(
        abs(0.5 - m) <= LARGEST_MEAN * s and SMALLEST_STD * s <= UNIFORM_STD <= LARGEST_STD * s
        for m, s in zip(mean, std, strict=True)
    )


def working_twin(model: FloatModel) -> FloatModel:
    """Return the model for which images are made: `model` itself, or its twin with a suitable space.

    The twin holds the network itself, not a copy.
    """
    if is_normalised(model.mean, model.std):
        return model
    mean, std = (
        values if len(model.mean) == 3 else (sum(values) / 3,) * len(model.mean) for values in (COLOUR_MEAN, COLOUR_STD)
    )
    twin = dataclasses.replace(model, mean=mean, std=std)
    return dataclasses.replace(twin, net=nn.Sequential(_Brought(twin, model), model.net))


def working(model: FloatModel, device: torch.device | str) -> tuple[FloatModel, nn.Module, StoredStatistics]:
    """Return a network's twin, a copy of the twin's network on a device, and its stored batch-norm statistics.

    Raises:
        NoBatchNorm: the network has no batch norm that images reach.
        ValueError: its weights or statistics are not finite.
    """
    twin = working_twin(model)
    net = working_copy(twin.net, device, twin.image_shape)
    return twin, net, stored_statistics(net, twin.image_shape)


def brought_over(images: Tensor, twin: FloatModel, model: FloatModel) -> Tensor:
    """Return images from the space of a network's twin in the network's own space; they are changed in place.

    Images with a gradient are not changed.
    """
    if twin is model:
        return images
    scale, shift = _scale_and_shift(images, twin, model)
    return images * scale + shift if images.requires_grad else images.mul_(scale).add_(shift)


def _scale_and_shift(like: Tensor, source: FloatModel, target: FloatModel) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand that convert an image between spaces, each (1, C, 1, 1)."""
    every = list(zip(source.mean, source.std, target.mean, target.std, strict=True))
    scale = per_channel([std / to_std for _, std, _, to_std in every], like)
    return scale, per_channel([(mean - to_mean) / to_std for mean, _, to_mean, to_std in every], like)


class _Brought(nn.Module):
    """The first layer of a twin: converts images from its space to the network's own."""

    scale: Tensor
    shift: Tensor

    def __init__(self, twin: FloatModel, model: FloatModel):
        super().__init__()
        device = next((tensor.device for tensor in model.net.state_dict().values()), None)
        scale, shift = _scale_and_shift(torch.empty(0, device=device), twin, model)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift
