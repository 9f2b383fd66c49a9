"""Patch similarity: the diversity of an image's patches inside a transformer, as an entropy.

Inside a vision transformer an image is a sequence of patches. The cosine similarities of all pairs of patches have a
distribution. It is narrow for noise, whose patches are all similar, and wide for an image with objects and a
background. PSAQ-ViT maximises its differential entropy, and GenQ's filter ranks images by it.

Source: Li et al., "Patch Similarity Aware Data-Free Quantization for Vision Transformers" (2022), and the authors'
code at commit d2c726f: the kernel, its bandwidth, the number of points and the small number added to densities.
"""

from math import pi, sqrt

import torch
from torch import Tensor

BANDWIDTH = 0.01
NUM_POINTS = 10  # too few for an integral at this bandwidth, but the authors' loss weights belong to these constants
DENSITY_EPSILON = 1e-4  # keeps the logarithm finite where the density is 0


def cosine_similarities(patches: Tensor) -> Tensor:
    """Return the cosine similarities (N, P, P) of all pairs of patches (N, P, D), including each with itself.

    GenQ, Eq. 8. A patch of zeros has similarity 0 to all patches.
    """
    directions = torch.nn.functional.normalize(patches, dim=2)
    return directions @ directions.mT


def kernel_density(values: Tensor, points: Tensor, bandwidth: float = BANDWIDTH) -> Tensor:
    """Return the density (N, T) of every row of values (N, M) at points (T,), with Gaussian kernels."""
    densities = [torch.exp(-0.5 * ((values - point) / bandwidth).square()).mean(1) for point in points.tolist()]
    return torch.stack(densities, dim=1) / (bandwidth * sqrt(2 * pi))


def similarity_entropy(similarities: Tensor, points: Tensor | None = None, bandwidth: float = BANDWIDTH) -> Tensor:
    """Return the entropy of every row of similarities (N, M), (N,); differentiable.

    Args:
        similarities: of the patches of N images.
        points: points of the density, (T,) ascending; None spreads `NUM_POINTS` over these similarities, as PSAQ-ViT
            does, so that an image's entropy depends on the other images.
        bandwidth: of the kernels.
    """
    if points is None:
        low, high = similarities.detach().aminmax()
        points = torch.linspace(float(low), float(high), NUM_POINTS, device=similarities.device)
    density = kernel_density(similarities, points, bandwidth) + DENSITY_EPSILON
    return torch.trapezoid(-density * density.log(), points, dim=1)  # GenQ, Eq. 9


def patch_similarity_entropy(patches: Tensor, points: Tensor | None = None, bandwidth: float = BANDWIDTH) -> Tensor:
    """Return the entropy of the patch similarities of every image, (N,), from patches (N, P, D); differentiable.

    Args:
        patches: without class tokens.
        points: see `similarity_entropy`.
        bandwidth: see `similarity_entropy`.

    Raises:
        ValueError: `patches` is not (N, P, D).
    """
    if patches.ndim != 3:
        raise ValueError(f"patches must be (N, P, D): images, patches, features; got shape {tuple(patches.shape)}")
    return similarity_entropy(cosine_similarities(patches).flatten(1), points, bandwidth)
