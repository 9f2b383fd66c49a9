"""PSAQ-ViT: images for vision transformers, which have no batch norm, from the similarities of their patches.

In noise, all patches have similar outputs in each attention of a transformer; in an image, the outputs for patches of
the object differ from those of the background. So the images maximise the entropy of the patch similarities, summed
over all attentions, while the network recognises each image as its class:

    loss = - sum over attentions of H(cos(o_p, o_q), p and q any two patches)
           + cross entropy of the class + a weight |TV - V|,

where o_p is the output of the attention for patch p, averaged over its heads, and H is an entropy estimated with
Gaussian kernels. The total variation TV is pulled towards the value V of real images.

Source: Li et al., "Patch Similarity Aware Data-Free Quantization for Vision Transformers" (2022), and a description of
the authors' code at commit d2c726f; written from these descriptions only.

Differences from the authors' code:
 1. Their target of the variation, drawn from 2500 ... 3000, belongs to 32 images of 224x224; another batch or size gets
    a proportional share. The jitter (30 pixels at 224, half of this in the first half of the steps) is proportional,
    too.
 2. They drop the first of all tokens, also in Swin, which has no class token; here the tokens in excess of a square of
    patches are dropped, unless `class_tokens` gives their number.
 3. With several batches, each starts anew with its own optimizer.
 4. Images are clipped to the pixels that the network's own normalisation allows; theirs is that of ImageNet.
 5. Attention is found by running the network, so any transformer can be used.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dghlib.generators.attended import NoAttention, check_settings, optimized
from dghlib.generators.attention import RecordedAttention
from dghlib.generators.deep_inversion import JITTER, total_variation, warm_up_and_cosine
from dghlib.generators.patch_similarity import cosine_similarities, similarity_entropy
from dghlib.models import FloatModel
from dghlib.synthesis.space import Device

VERSION = 1
WARM_UP = 0.2  # share of each half of the steps: 100 of 500
VARIATION_TARGET = (2500.0, 3000.0)  # for a batch of this many values:
VARIATION_VALUES = 32 * 3 * 224 * 224


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one run; the defaults are the authors' for DeiT."""

    num_images: int = 32  # images to make
    batch_size: int = 32  # images that are optimized together
    steps: int = 1000  # of each batch, in 2 halves: the learning rate starts again, and shifts are twice as large
    learning_rate: float = 0.2  # of the images, at its peak
    seed: int = 0  # of all random numbers

    class_weight: float = 1.0  # of the cross-entropy
    variation_weight: float = 0.05  # of the distance of the total variation from its target
    class_tokens: int | None = None  # before the patches; None: the tokens in excess of a square

    def __post_init__(self) -> None:
        check_settings(self, "class_weight", "variation_weight")


PRESETS = {"default": Config(), "swin": Config(learning_rate=0.25)}


def generate(
    model: FloatModel, config: Config, *, device: Device = "cpu", progress: bool = True, checkpoint: Path | None = None
) -> Tensor:
    """Return PSAQ-ViT's images (num_images, C, H, W); `dghlib.generators` describes the common arguments.

    Raises:
        NoAttention: the network has no attention between patches.
        NotAClassifier: it is not a classifier.
    """
    return optimized(
        "psaq_vit",
        "PSAQ-ViT",
        VERSION,
        model,
        config,
        check=_check_attention,
        loss=_Loss,
        optimizer=lambda leaves: torch.optim.Adam(leaves, config.learning_rate, betas=(0.5, 0.9)),
        rate=lambda step: rate(step, config.steps),
        device=device,
        progress=progress,
        checkpoint=checkpoint,
    )


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: in each half of the steps it rises, then falls to 0."""
    half = math.ceil(steps / 2)
    return warm_up_and_cosine(step % half, half, WARM_UP)


def patches_seen(mixtures: Iterable[Tensor], class_tokens: int | None) -> list[Tensor]:
    """Return the patches (N, P, D) from the results of attentions, (N, heads, tokens, D), averaged over their heads.

    See `Config` for `class_tokens`. Attentions with fewer than 2 patches, which have no pairs, are left out.
    """
    patches = []
    for mixture in mixtures:
        if mixture.ndim == 4:
            tokens = mixture.mean(1)
            count = tokens.shape[1]
            others = count - math.isqrt(count) ** 2 if class_tokens is None else class_tokens
            if count - others > 1:
                patches.append(tokens[:, others:])
    return patches


def image_entropies(patches: Tensor, num_images: int) -> Tensor:
    """Return the entropy of the similarities of all pairs of patches (N, P, D) of each image, (num_images,).

    For attention in windows, N is a multiple of the number of images, with the windows of an image in sequence;
    pairs are then formed within windows.
    """
    return similarity_entropy(cosine_similarities(patches).reshape(num_images, -1))


def _check_attention(model: FloatModel, net: nn.Module, image: Tensor, config: Config) -> None:
    with torch.no_grad(), RecordedAttention() as attention:
        net(image)
    if not patches_seen(attention.mixtures, config.class_tokens):
        raise NoAttention(
            f"PSAQ-ViT compares what attention makes of the patches of an image, and {model.name} "
            f"({type(model.net).__name__}) has no attention between patches; for networks with batch norm there are "
            "DGH, GENIE and others"
        )


class _Loss:
    """The loss of a batch: its weighted terms."""

    def __init__(self, net: nn.Module, config: Config, labels: Tensor, draws: torch.Generator):
        self.net, self.config, self.labels, self.draws = net, config, labels, draws
        low, high = VARIATION_TARGET
        self.variation = low + (high - low) * torch.rand((), generator=draws).item()
        self.calls = torch.tensor(0)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        shown = self._jittered(images)
        with RecordedAttention() as attention:
            output = self.net(shown)
        seen = patches_seen(attention.mixtures, self.config.class_tokens)
        entropies = torch.stack([image_entropies(patches, len(images)).mean() for patches in seen])
        target = self.variation * math.sqrt(images.numel() / VARIATION_VALUES)
        self.calls += 1
        return {
            "entropy": -entropies.sum(),
            "class": self.config.class_weight * nn.functional.cross_entropy(output, self.labels),
            "TV": self.config.variation_weight * (total_variation(shown) - target).abs(),
        }

    def _jittered(self, images: Tensor) -> Tensor:
        """Return the images shifted cyclically, by the same amount down and right, and mirrored or not: all alike."""
        share = 0.5 if self.calls < self.config.steps / 2 else 1.0
        limit = round(share * JITTER * min(images.shape[2:]))
        shift = int(torch.randint(-limit, limit + 1, (), generator=self.draws))
        images = images.roll((shift, shift), dims=(2, 3))
        return images.flip(3) if torch.rand((), generator=self.draws) < 0.5 else images
