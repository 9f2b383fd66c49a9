"""The space that images are made in: one in which pixels have about mean 0 and variance 1, whatever the network takes.

Noise to begin with, learning rates, and the layer that compares an image itself with mean 0 and deviation 1 are meant
for such a space, that of networks whose images are normalised. A network that takes pixels from 0 to 1 or to 255 as
they are, and normalises them itself or in its first batch norm, has a *twin* here: the same network behind a layer
that brings normalised images to what it takes. Images are made for the twin, and finished ones brought over. A
network whose own space is such a space is its own twin, and nothing happens.

Source: none; the authors' networks all take images that are normalised.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from dghlib.images import per_channel
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics, stored_statistics, working_copy

# Of a twin: ImageNet's, for images in colour; for others, the mean of those.
COLOUR_MEAN, COLOUR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNIFORM_STD = 12**-0.5  # of numbers of which all from 0 to 1 are as likely
# What pixels, all equally likely, may have in a space in which images can be made. Common networks have a mean from
# -0.1 to 1.2 (MNIST's) and a deviation from 0.6 (pixels from -1 to 1) to 1.3 (ImageNet's); pixels from 0 to 1 as they
# are have 0.5 and 0.3.
LARGEST_MEAN, SMALLEST_STD, LARGEST_STD = 1.5, 0.5, 2.0

Device: TypeAlias = torch.device | str


def is_normalised(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Return whether pixels of every channel have about mean 0 and variance 1 in this space."""
    return all(
        abs(0.5 - m) <= LARGEST_MEAN * s and SMALLEST_STD * s <= UNIFORM_STD <= LARGEST_STD * s
        for m, s in zip(mean, std, strict=True)
    )


def working_twin(model: FloatModel) -> FloatModel:
    """Return the model that images are made for: `model` itself, or its twin with a space to make images in.

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
    """Return what images are made with: a network's twin, a copy of that on a device, what its batch norms store.

    Raises:
        NoBatchNorm: the network has no batch norm that images reach.
        ValueError: its weights or statistics are not finite.
    """
    twin = working_twin(model)
    net = working_copy(twin.net, device, twin.image_shape)
    return twin, net, stored_statistics(net, twin.image_shape)


def brought_over(images: Tensor, twin: FloatModel, model: FloatModel) -> Tensor:
    """Return images in the space of a network's twin in its own; they are changed in place, since they may be large."""
    if twin is model:
        return images
    scale, shift = _scale_and_shift(images, twin, model)
    return images.mul_(scale).add_(shift)


def _scale_and_shift(like: Tensor, source: FloatModel, target: FloatModel) -> tuple[Tensor, Tensor]:
    """Return by what an image is multiplied in another space, and what is added then, each (1, C, 1, 1)."""
    every = list(zip(source.mean, source.std, target.mean, target.std, strict=True))
    scale = per_channel([std / to_std for _, std, _, to_std in every], like)
    return scale, per_channel([(mean - to_mean) / to_std for mean, _, to_mean, to_std in every], like)


class _Brought(nn.Module):
    """The first layer of a twin: brings images from its space to the network's own."""

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
