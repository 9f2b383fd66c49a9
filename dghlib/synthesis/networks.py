"""Generator networks: from latent vectors, and for GDFQ and Qimera from (mixtures of) classes, to normalised images.

Both start with a linear layer that makes 128 channels at a quarter of the image's size, and end in a batch norm without
scale and shift. This batch norm gives each batch of images mean 0 and variance 1, as in the normalised space of the
trained network. The generator networks are always trained and used on batches, so their batch norms keep no running
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
    """Return the network that `build` makes, with weights drawn from `seed` only; see `dghlib.seeds.stream`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, *purpose))
        return build().to(memory_format=torch.channels_last)


class GenieNetwork(nn.Module):
    """The generator network of GENIE-D: latent vectors (N, latent_size) -> images (N, C, H, W).

    Args:
        image_shape: (C, H, W), of any size.
        latent_size: size of a latent vector.
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


class ClassNetwork(nn.Module):
    """A generator network for classes: mixtures of K classes and noise -> images (N, C, H, W).

    The K latent vectors of an image are mixed with shares that sum to 1; `latents` makes one from a class and noise.

    Args:
        image_shape: (C, H, W), of any size.
        embeddings: of all classes, (num_classes, latent_size); they are trained, too.
        conditional: whether the batch norms have scales and shifts for each class, mixed like latent vectors.
    """

    EPSILON = 0.8  # of the batch norms after convolutions, in the code of GDFQ and of Qimera

    def __init__(self, image_shape: tuple[int, int, int], embeddings: Tensor, *, conditional: bool = False):
        super().__init__()
        self.num_classes, self.latent_size = embeddings.shape
        self.conditional = conditional
        self.seed_shape, half, whole = _shapes(image_shape)
        rows = self.num_classes if conditional else 1
        self.embeddings = nn.Parameter(embeddings.clone())
        self.linear = nn.Linear(self.latent_size, prod(self.seed_shape))
        self.norm = _ClassNorm(CHANNELS, rows, 1e-5)
        self.blocks = nn.ModuleList(
            _ClassBlock(channels, size, rows, self.EPSILON) for channels, size in ((CHANNELS, half), (64, whole))
        )
        self.image = nn.Sequential(*_image_layers(64, image_shape[0]))

    def forward(self, classes: Tensor, shares: Tensor, noise: Tensor) -> Tensor:
        """Return images of classes (N, K), in shares (N, K), with noise (N, K, latent_size)."""
        mixtures = mixtures_of(classes, shares, self.num_classes)
        latents = (shares[..., None] * self.latents(classes, noise)).sum(1)
        maps = self.norm(_feature_maps(self.linear(latents), self.seed_shape), mixtures)
        for block in self.blocks:
            maps = block(maps, mixtures)
        return self.image(maps)

    def latents(self, classes: Tensor, noise: Tensor) -> Tensor:
        """Return a latent vector (N, K, latent_size) for every class."""
        raise NotImplementedError


class QimeraNetwork(ClassNetwork):
    """The generator network of Qimera: noise is added to the embedding of each class, and the sum is normalised."""

    def latents(self, classes: Tensor, noise: Tensor) -> Tensor:
        """Return a latent vector for every class, see `ClassNetwork`."""
        return nn.functional.layer_norm(self.embeddings[classes] + noise, (self.latent_size,))


class GdfqNetwork(ClassNetwork):
    """The generator network of GDFQ: noise times the embedding of the class, or, if conditional, noise alone."""

    def latents(self, classes: Tensor, noise: Tensor) -> Tensor:
        """Return a latent vector for every class, see `ClassNetwork`."""
        return noise if self.conditional else self.embeddings[classes] * noise


def mixtures_of(classes: Tensor, shares: Tensor, num_classes: int) -> Tensor:
    """Return the share of every class in each image, (N, num_classes), from classes (N, K), which may repeat."""
    return shares.new_zeros(len(shares), num_classes).scatter_add_(1, classes, shares)


class _ClassNorm(nn.Module):
    """A batch norm with the scale and shift of an image's mixture of classes, or, with a single row, of all images."""

    def __init__(self, channels: int, rows: int, epsilon: float):
        super().__init__()
        self.norm = _batch_norm(channels, epsilon, affine=False)
        self.scales = nn.Parameter(torch.ones(rows, channels))
        self.shifts = nn.Parameter(torch.zeros(rows, channels))

    def forward(self, maps: Tensor, mixtures: Tensor) -> Tensor:
        chosen = mixtures if len(self.scales) > 1 else mixtures.new_ones(len(mixtures), 1)
        scales, shifts = ((chosen @ rows)[:, :, None, None] for rows in (self.scales, self.shifts))
        return self.norm(maps) * scales + shifts


class _ClassBlock(nn.Module):
    """Enlarges feature maps and combines them to other channels: `_enlarged`, with classes."""

    def __init__(self, channels: int, size: tuple[int, int], rows: int, epsilon: float):
        super().__init__()
        self.enlarge = nn.Sequential(nn.Upsample(size), nn.Conv2d(CHANNELS, channels, 3, padding=1))
        self.norm = _ClassNorm(channels, rows, epsilon)

    def forward(self, maps: Tensor, mixtures: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.norm(self.enlarge(maps), mixtures), 0.2)


def _shapes(image_shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int], tuple[int, int]]:
    """Return the shape of the first feature maps, at a quarter of the image's size, and half and full size."""
    _, height, width = image_shape
    return (CHANNELS, -(-height // 4), -(-width // 4)), (-(-height // 2), -(-width // 2)), (height, width)


def _feature_maps(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return values.view(-1, *shape).contiguous(memory_format=torch.channels_last)


def _batch_norm(channels: int, epsilon: float = 1e-5, *, affine: bool = True) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, epsilon, affine=affine, track_running_stats=False)


def _enlarged(channels_in: int, channels: int, size: tuple[int, int]) -> Iterable[nn.Module]:
    """Return the layers that enlarge feature maps to `size` and combine them to `channels`."""
    return (
        nn.Upsample(size),
        nn.Conv2d(channels_in, channels, 3, padding=1),
        _batch_norm(channels),
        nn.LeakyReLU(0.2),
    )


def _image_layers(channels_in: int, channels: int) -> Iterable[nn.Module]:
    return nn.Conv2d(channels_in, channels, 3, padding=1), nn.Tanh(), _batch_norm(channels, affine=False)
