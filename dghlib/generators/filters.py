"""Filters of GenQ: out of many images, keep those most like what a network was trained on.

They take any normalised images, whatever made them, and need only the network:

    kept = images[select(model, images, keep=512)]

There are two stages. The first keeps images of low *energy*, which training lowers on its data. The second looks at
the inside of the network: without an image that has a high *batch-norm sensitivity*, the others come nearer to the
running statistics, so it is left out; a transformer has no batch norm, and of its images those with a high entropy of
*patch similarities* stay. Neither replaces the other: many a network gives noise a lower energy than real images.

Source: Li et al., "GenQ: Quantization in Low Data Regimes with Generative Synthetic Data" (2024), Section 4.1, and
for the energy Liu et al., "Energy-based Out-of-distribution Detection" (2020).

Differences from the paper:
 1. Eq. 5 prints the energy as -T sum exp(-f / T): without the logarithm, and with a minus in the exponent. It would
    rank images by their most negative logit. Here it is that of its source, -T log sum exp(f / T).
 2. How much each of the two stages discards is not stated; here it is a setting, by default half of it each.
 3. The batch of which one image is left out has an unstated size; here it is all images that are given.
 4. Which features of a transformer are compared is not stated; here those that enter its last layer norm, the output
    of the last block. Densities are taken all over [-1, 1], so that no image's entropy depends on the others'.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dghlib.choices import check_at_least, check_between, check_choice
from dghlib.generators.classes import number_of_classes
from dghlib.generators.matching import batch_norm_norms, measure
from dghlib.generators.patch_similarity import patch_similarity_entropy
from dghlib.models import FloatModel
from dghlib.running.batchnorm import NoBatchNorm, StoredStatistics, stored_statistics, working_copy
from dghlib.running.hooks import recorded_inputs

SecondStage = Literal["auto", "batch_norm", "patch_similarity", "none"]
SECOND_STAGES = ("auto", "batch_norm", "patch_similarity", "none")
BATCH_SIZE = 64  # images a network is shown at once; no score depends on it


class NoPatches(ValueError):
    """The network has no layer norm that is given a sequence of patches: their similarities cannot be measured."""


def select(
    model: FloatModel,
    images: Tensor,
    keep: int,
    *,
    energy_share: float = 0.5,
    second_stage: SecondStage = "auto",
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the numbers (keep,) of the images to keep, ascending.

    Of those discarded, the share `energy_share` is discarded by the energy, at a `temperature`, and the rest by the
    second stage: "auto" is "batch_norm" for a network that has batch norm, and "patch_similarity" for others; "none"
    leaves all to the energy. The images (N, C, H, W) are normalised.

    Raises:
        ValueError: `keep` is below 1 or exceeds the number of images; a setting is out of range.
        NotAClassifier: the network tells no classes apart, so that images have no energy.
        NoBatchNorm: "batch_norm" was asked for, and the network has none.
        NoPatches: the second stage would be "patch_similarity", and the network has no patches.
    """
    check_between(0, 1, "energy_share", energy_share)
    check_choice("second_stage", second_stage, SECOND_STAGES)
    _check_keep(keep, len(images))
    score = None if second_stage == "none" else second_score(model, second_stage)
    by_energy = len(images) - keep if score is None else round(energy_share * (len(images) - keep))
    remaining = torch.arange(len(images))
    if by_energy:
        energies = energy_scores(model, images, temperature=temperature, device=device)
        remaining = lowest(energies, len(images) - by_energy)
    if score is not None and keep < len(remaining):
        remaining = remaining[lowest(score(model, images[remaining], device=device), keep)]
    return remaining


def second_score(model: FloatModel, second_stage: SecondStage) -> Callable[..., Tensor]:
    """Return the score of the second stage for a network: the function of which the lowest values are kept."""
    if second_stage == "auto":
        try:
            stored_statistics(working_copy(model.net, "cpu", model.image_shape), model.image_shape)
            second_stage = "batch_norm"
        except NoBatchNorm:
            second_stage = "patch_similarity"
    return batch_norm_sensitivities if second_stage == "batch_norm" else patch_uniformities


def lowest(scores: Tensor, keep: int) -> Tensor:
    """Return the numbers (keep,) of the lowest scores (N,), ascending; of equal ones the first.

    Raises:
        ValueError: a score is not finite; `keep` is below 1 or exceeds N.
    """
    _check_keep(keep, len(scores))
    if not scores.isfinite().all():
        image = int((~scores.isfinite()).nonzero()[0])
        raise ValueError(f"image {image} has the score {scores[image].item()}: it cannot be ranked among the others")
    return scores.argsort(stable=True)[:keep].sort().values


def _check_keep(keep: int, count: int) -> None:
    check_at_least(1, "keep", keep)
    if keep > count:
        raise ValueError(f"cannot keep {keep} of {count} images: generate more, or keep fewer")


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the energy (N,) of logits (N, classes): low where the network knows the image."""
    return -temperature * (logits / temperature).logsumexp(1)


@torch.no_grad()
def energy_scores(
    model: FloatModel, images: Tensor, *, temperature: float = 1.0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the energies of normalised images (N, C, H, W), (N,) on the CPU.

    Raises:
        NotAClassifier: the network tells no classes apart.
        ValueError: the images do not have the shape of the network's, or the temperature is not above 0.
    """
    check_between(1e-6, float("inf"), "temperature", temperature)
    net = _prepared(model, images, device)
    number_of_classes(model, net, "the energy")
    return torch.cat([energy(net(part.to(device)).float(), temperature).cpu() for part in images.split(BATCH_SIZE)])


@torch.no_grad()
def batch_norm_sensitivities(model: FloatModel, images: Tensor, *, device: torch.device | str = "cpu") -> Tensor:
    """Return by how much each image (N, C, H, W) moves all of them away from the running statistics, (N,).

    One forward pass: the moments of every image at every batch norm tell what is left without any one of them. They
    take 8 bytes a channel of all batch norms and image, in memory.

    Raises:
        NoBatchNorm: the network has no batch norm that images reach.
        ValueError: there is a single image, without which nothing is left; or the images do not fit the network.
    """
    net = _prepared(model, images, device)
    layers = stored_statistics(net, model.image_shape)
    parts = (part.to(device) for part in images.split(BATCH_SIZE))
    moments = [measure(net, part, layers, groups=len(part)).moments.cpu() for part in parts]
    return leave_one_out(torch.cat(moments), layers)


def leave_one_out(moments: Tensor, layers: StoredStatistics) -> Tensor:
    """Return the distance of all images less that of all but one, for each one, (N,): GenQ, Eq. 7.

    Args:
        moments: of every image, (N, 2, K) on the CPU.
        layers: whose running mean and variance the distance is to: Eq. 6, a sum of norms.

    Raises:
        ValueError: N is 1.
    """
    count = len(moments)
    if count < 2:
        raise ValueError(f"the batch-norm sensitivity compares an image with others beside it; there is {count} image")
    # float64, because the distances with and without one image of a thousand agree in their first three digits.
    exact = dataclasses.replace(layers, mean=layers.mean.cpu().double(), variance=layers.variance.cpu().double())
    total = moments.sum(0, dtype=torch.float64)
    without = [batch_norm_norms((total - rows) / (count - 1), exact).sum(-1) for rows in moments.split(BATCH_SIZE)]
    return (batch_norm_norms(total / count, exact).sum() - torch.cat(without)).float()


@torch.no_grad()
def patch_uniformities(model: FloatModel, images: Tensor, *, device: torch.device | str = "cpu") -> Tensor:
    """Return how alike the patches of every image (N, C, H, W) look to a transformer, (N,): minus their entropy.

    Raises:
        NoPatches: no layer norm is given a sequence of patches.
        ValueError: the images do not have the shape of the network's.
    """
    net = _prepared(model, images, device)
    points = torch.linspace(-1, 1, 201, device=device)  # as far apart as the kernel is wide
    patches = (_last_patches(model, net, part.to(device)) for part in images.split(BATCH_SIZE))
    return torch.cat([-patch_similarity_entropy(part, points).cpu() for part in patches])


def _last_patches(model: FloatModel, net: nn.Module, images: Tensor) -> Tensor:
    """Return the patches (N, P, D) that enter the last layer norm which is given any.

    Of a sequence (N, T, D) the first token is the class token; a grid (N, H, W, D), as in Swin, has none.
    """
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.LayerNorm)]
    with recorded_inputs(net, norms) as inputs:
        net(images)
    for features, *_ in reversed(inputs.values()):
        if features.ndim == 3:
            return features[:, 1:].float()
        if features.ndim == 4:
            return features.flatten(1, 2).float()
    raise NoPatches(
        f"{model.name} has neither batch norm nor a layer norm that is given patches (N, P, D): "
        'rank its images by energy alone, second_stage="none"'
    )


def _prepared(model: FloatModel, images: Tensor, device: torch.device | str) -> nn.Module:
    """Return a copy of the network that can be shown the images."""
    if tuple(images.shape[1:]) != tuple(model.image_shape):
        raise ValueError(f"{model.name} takes images (N, {str(model.image_shape)[1:-1]}), got {tuple(images.shape)}")
    return working_copy(model.net, device, model.image_shape)
