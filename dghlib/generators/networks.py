"""Generator networks: from latent vectors, and for Qimera mixtures of classes, to normalised images.

Both begin with a linear layer that makes 128 channels at a quarter of the image's size and end in a batch norm
without scale and shift, which gives each batch of images mean 0 and variance 1: the normalised space of the network
that is to be shown them. They are always trained and used on batches, so their batch norms keep no running
statistics.
"""

from collections.abc import Callable, Iterable
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from dghlib.seeds import derived_seed

CHANNELS = 128

Network = TypeVar("Network", bound=nn.Module)


def initialised(build: Callable[[], Network], seed: int, *purpose: object) -> Network:
    """Return the network that `build` makes, its weights drawn from `seed` alone; see `dghlib.seeds.stream`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, *purpose))
        return build().to(memory_format=torch.channels_last)


class GenieNetwork(nn.Module):
    """The generator network of GENIE-D: latent vectors (N, latent_size) -> images (N, C, H, W).

    Args:
        image_shape: (C, H, W), of any size.
        latent_size: of one latent vector.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_size: int):
        super().__init__()
        self.seed_shape, half, whole = _shapes(image_shape)
        self.linear = nn.Linear(latent_size, prod(self.seed_shape))
        self.body = nn.Sequential(
            _batch_norm(CHANNELS),
            *_enlarged(CHANNELS, 64, half),
            nn.Upsample(whole),
            *_image_layers(64, image_shape[0]),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.body(_feature_maps(self.linear(latents), self.seed_shape))


class QimeraNetwork(nn.Module):
    """The generator network of Qimera: mixtures of classes (N, num_classes) and noise -> images (N, C, H, W).

    A row of a mixture sums to 1; one class alone is a row with one 1. The embeddings of the classes are mixed, noise
    is added, and each vector is normalised. The scales and shifts of the first batch norm belong to classes and are
    mixed likewise.

    Args:
        image_shape: (C, H, W), of any size.
        embeddings: of every class, (num_classes, latent_size); they are trained, too.
    """

    EPSILON = 0.8  # of the batch norms behind convolutions, in the code of GDFQ and of Qimera

    def __init__(self, image_shape: tuple[int, int, int], embeddings: Tensor):
        super().__init__()
        num_classes, latent_size = embeddings.shape
        self.seed_shape, half, whole = _shapes(image_shape)
        self.embeddings = nn.Parameter(embeddings.clone())
        self.linear = nn.Linear(latent_size, prod(self.seed_shape))
        self.norm = _batch_norm(CHANNELS, affine=False)
        self.scales = nn.Parameter(torch.ones(num_classes, CHANNELS))
        self.shifts = nn.Parameter(torch.zeros(num_classes, CHANNELS))
        self.body = nn.Sequential(
            *_enlarged(CHANNELS, CHANNELS, half, self.EPSILON),
            *_enlarged(CHANNELS, 64, whole, self.EPSILON),
            *_image_layers(64, image_shape[0]),
        )

    @property
    def latent_size(self) -> int:
        """Return the length of an embedding, which is that of the noise."""
        return self.embeddings.shape[1]

    def forward(self, mixtures: Tensor, noise: Tensor) -> Tensor:
        latents = nn.functional.layer_norm(mixtures @ self.embeddings + noise, (self.latent_size,))
        maps = self.norm(_feature_maps(self.linear(latents), self.seed_shape))
        scales, shifts = (values[:, :, None, None] for values in (mixtures @ self.scales, mixtures @ self.shifts))
        return self.body(maps * scales + shifts)


def _shapes(image_shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int], tuple[int, int]]:
    """Return the shape of the first feature maps, at a quarter of the image's size, and half and full size."""
    _, height, width = image_shape
    return (CHANNELS, -(-height // 4), -(-width // 4)), (-(-height // 2), -(-width // 2)), (height, width)


def _feature_maps(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return values.view(-1, *shape).contiguous(memory_format=torch.channels_last)


def _batch_norm(channels: int, epsilon: float = 1e-5, *, affine: bool = True) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, epsilon, affine=affine, track_running_stats=False)


def _enlarged(channels_in: int, channels: int, size: tuple[int, int], epsilon: float = 1e-5) -> Iterable[nn.Module]:
    """Return the layers that enlarge feature maps to `size` and combine them into other `channels`."""
    return (
        nn.Upsample(size),
        nn.Conv2d(channels_in, channels, 3, padding=1),
        _batch_norm(channels, epsilon),
        nn.LeakyReLU(0.2),
    )


def _image_layers(channels_in: int, channels: int) -> Iterable[nn.Module]:
    return nn.Conv2d(channels_in, channels, 3, padding=1), nn.Tanh(), _batch_norm(channels, affine=False)
