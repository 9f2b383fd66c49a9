"""Filters of GenQ: out of many images, keep those most similar to a network's training data.

They take any normalised images, from any source, and need only the network:

    kept = images[select(model, images, keep=512)]

There are 2 stages. The first keeps images of low *energy*, which training lowers on its data. The second uses the inner
layers of the network: an image has a high *batch-norm sensitivity* if the other images are nearer to the running
statistics without it, and is then left out. A transformer has no batch norm; for it, images with a high entropy of
*patch similarities* are kept. Both stages are needed: many networks give noise a lower energy than real images.

Source: Li et al., "GenQ: Quantization in Low Data Regimes with Generative Synthetic Data" (2024), Section 4.1, and
for the energy Liu et al., "Energy-based Out-of-distribution Detection" (2020).

Differences from the paper:
 1. Eq. 5 prints the energy as -T sum exp(-f / T): without the logarithm, and with a minus in the exponent. This would
    rank images by their most negative logit. Here it is that of its source, -T log sum exp(f / T).
 2. The paper does not state how many images each stage discards; here this is a setting, by default half of them each.
 3. The paper does not state the size of the batch from which an image is left out; here it is the whole set of images.
 4. The paper does not state which features of a transformer are compared; here they are the inputs of its last layer
    norm, the output of the last block. Densities are taken over the whole of [-1, 1], so that the entropy of an image
    does not depend on the other images.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dghlib.choices import check_at_least, check_between, check_choice
from dghlib.generators.patch_similarity import patch_similarity_entropy
from dghlib.models import FloatModel
from dghlib.running.batchnorm import NoBatchNorm, StoredStatistics, stored_statistics, working_copy
from dghlib.running.hooks import recorded_inputs
from dghlib.synthesis.classes import number_of_classes
from dghlib.synthesis.matching import batch_norm_norms, measure

SecondStage = Literal["auto", "batch_norm", "patch_similarity", "none"]
SECOND_STAGES = ("auto", "batch_norm", "patch_similarity", "none")
BATCH_SIZE = 64  # images per pass; no score depends on it


class NoPatches(ValueError):
    """The network has no layer norm that receives a sequence of patches, so their similarities cannot be measured."""


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
    """Return the indices (keep,) of the images to keep, ascending.

    Of the discarded images, the energy at a `temperature` discards the share `energy_share`, and the second stage the
    rest: "auto" is "batch_norm" for a network with batch norm, and "patch_similarity" for others; with "none" the
    energy discards all. The images (N, C, H, W) are normalised.

    Raises:
        ValueError: `keep` is below 1 or exceeds the number of images; a setting is out of range.
        NotAClassifier: the network is not a classifier, so images have no energy.
        NoBatchNorm: "batch_norm" was asked for, but the network has no batch norm.
        NoPatches: the second stage would be "patch_similarity", but the network has no patches.
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
    """Return the score of the second stage for a network: a function whose lowest values are kept."""
    if second_stage == "auto":
        try:
            stored_statistics(working_copy(model.net, "cpu", model.image_shape), model.image_shape)
            second_stage = "batch_norm"
        except NoBatchNorm:
            second_stage = "patch_similarity"
    return batch_norm_sensitivities if second_stage == "batch_norm" else patch_uniformities


def lowest(scores: Tensor, keep: int) -> Tensor:
    """Return the indices (keep,) of the lowest scores (N,), ascending; of equal scores the first.

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
    """Return the energy (N,) of logits (N, classes); it is low for images that are similar to the training data."""
    return -temperature * (logits / temperature).logsumexp(1)


@torch.no_grad()
def energy_scores(
    model: FloatModel, images: Tensor, *, temperature: float = 1.0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the energies of normalised images (N, C, H, W), (N,) on the CPU.

    Raises:
        NotAClassifier: the network is not a classifier.
        ValueError: the images do not have the shape of the network's input, or the temperature is not above 0.
    """
    check_between(1e-6, float("inf"), "temperature", temperature)
    net = _prepared(model, images, device)
    number_of_classes(model, net, "the energy")
    return torch.cat([energy(net(part.to(device)).float(), temperature).cpu() for part in images.split(BATCH_SIZE)])


@torch.no_grad()
def batch_norm_sensitivities(model: FloatModel, images: Tensor, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the amount by which each image (N, C, H, W) moves the set away from the running statistics, (N,).

    A single forward pass is enough: the moments of every image at every batch norm give the statistics without any one
    image. They take 8 bytes of memory for each image and each channel of all batch norms.

    Raises:
        NoBatchNorm: the network has no batch norm that images reach.
        ValueError: there is only 1 image, without which nothing remains; or the images do not fit the network.
    """
    net = _prepared(model, images, device)
    layers = stored_statistics(net, model.image_shape)
    parts = (part.to(device) for part in images.split(BATCH_SIZE))
    moments = [measure(net, part, layers, groups=len(part)).moments.cpu() for part in parts]
    return leave_one_out(torch.cat(moments), layers)


def leave_one_out(moments: Tensor, layers: StoredStatistics) -> Tensor:
    """Return the distance of all images minus the distance without each image, (N,): GenQ, Eq. 7.

    Args:
        moments: of every image, (N, 2, K) on the CPU.
        layers: the running means and variances to which distances are measured: Eq. 6, a sum of norms.

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
    """Return how similar the patches of every image (N, C, H, W) are to a transformer, (N,): minus their entropy.

    Raises:
        NoPatches: no layer norm receives a sequence of patches.
        ValueError: the images do not have the shape of the network's input.
    """
    net = _prepared(model, images, device)
    points = torch.linspace(-1, 1, 201, device=device)  # their distance is the width of the kernel
    patches = (_last_patches(model, net, part.to(device)) for part in images.split(BATCH_SIZE))
    return torch.cat([-patch_similarity_entropy(part, points).cpu() for part in patches])


def _last_patches(model: FloatModel, net: nn.Module, images: Tensor) -> Tensor:
    """Return the patches (N, P, D) at the last layer norm that receives patches.

    In a sequence (N, T, D) the first token is the class token; a grid (N, H, W, D), as in Swin, has no class token.
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
    """Return a copy of the network for these images."""
    if tuple(images.shape[1:]) != tuple(model.image_shape):
        raise ValueError(f"{model.name} takes images (N, {str(model.image_shape)[1:-1]}), got {tuple(images.shape)}")
    return working_copy(model.net, device, model.image_shape)
