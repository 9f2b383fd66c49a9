"""MimiQ: images for vision transformers, on which the heads of each attention attend to the same places.

For a real image, the heads of an attention in a trained transformer find the same object: their maps of scores are
similar. For noise, the heads do not agree. So the images are optimized such that the maps of all pairs of heads are
similar, by structural similarity, while the network recognises each image as its class:

    loss = mean over attentions, queries and pairs of heads of 1 - SSIM(map, map)^2
           + cross entropy of the class + a weight x the total variation,

where a map has the scores of all patches for a query, scaled to 0 ... 1. Because of the square, a map and its negative
count as equal.

Source: Choi et al., "MimiQ: Low-Bit Data-Free Quantization of Vision Transformers with Encouraging Inter-Head Attention
Similarity" (2024), and a description of code built on the authors' (MaskAQ, commit 3245400); written from these
descriptions only.

Differences from that code:
 1. The attentions are averaged; the description does not say whether that code averages or sums them.
 2. The constant that is added to each image and channel falls linearly, from a standard deviation of 1 to 0; theirs
    falls too, but its schedule is not described. The jitter, 16 pixels at 224 and half of that at first, is in
    proportion.
 3. Class tokens are the tokens in excess of a square of patches, unless `class_tokens` gives their number; that code
    has 14 times 14 patches, and 7 times 7 in a window.
 4. It makes images for calibration; that code makes 10 000 images, with which a network is fine-tuned.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dghlib.generators.attended import NoAttention, check_settings, optimized
from dghlib.generators.attention import RecordedScores
from dghlib.generators.deep_inversion import total_variation
from dghlib.models import FloatModel
from dghlib.synthesis.space import Device

VERSION = 1
JITTER = 16 / 224  # share of the image's side, in the second half of the steps; half of this in the first
FINAL_RATE = 0.001
_C1, _C2 = 0.01**2, 0.03**2  # of structural similarity, for maps from 0 to 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run; the defaults are the authors', except for the number of images."""

    num_images: int = 32  # images to make
    batch_size: int = 32  # images that are optimized together
    steps: int = 2000  # of each batch
    learning_rate: float = 0.1  # of the images, at the start
    seed: int = 0  # of all random numbers

    similarity_weight: float = 1.0  # of the similarity of heads
    class_weight: float = 1.0  # of the cross-entropy
    variation_weight: float = 2.5e-5  # of the total variation
    class_tokens: int | None = None  # before the patches; None: the tokens in excess of a square

    def __post_init__(self) -> None:
        check_settings(self, "similarity_weight", "class_weight", "variation_weight")


PRESETS = {"default": Config()}


def generate(
    model: FloatModel, config: Config, *, device: Device = "cpu", progress: bool = True, checkpoint: Path | None = None
) -> Tensor:
    """Return MimiQ's images (num_images, C, H, W); `dghlib.generators` describes the common arguments.

    Raises:
        NoAttention: the network has no attention between patches with at least 2 heads.
        NotAClassifier: it is not a classifier.
    """
    return optimized(
        "mimiq",
        "MimiQ",
        VERSION,
        model,
        config,
        check=_check_attention,
        loss=_Loss,
        optimizer=lambda leaves: torch.optim.AdamW(leaves, config.learning_rate, weight_decay=1e-6),
        rate=lambda step: rate(step, config),
        device=device,
        progress=progress,
        checkpoint=checkpoint,
    )


def rate(step: int, config: Config) -> float:
    """Return the share of the learning rate at a step: it falls along a cosine to `FINAL_RATE`."""
    lowest = FINAL_RATE / config.learning_rate if config.learning_rate else 0.0
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * step / config.steps)) / 2


def head_similarity(scores: Tensor) -> Tensor:
    """Return how similar the maps of pairs of heads are, (N, pairs, queries): their SSIM, -1 to 1, in a single window.

    Args:
        scores: (N, heads, queries, patches), with at least 2 heads.
    """
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    maps = (scores - low) / (high - low).clamp(min=1e-12)
    mean = maps.mean(-1)
    centred = maps - mean[..., None]
    variance = centred.square().mean(-1)
    left, right = zip(*itertools.combinations(range(scores.shape[1]), 2), strict=True)
    one, other = list(left), list(right)
    common = (centred[:, one] * centred[:, other]).mean(-1)
    means = (2 * mean[:, one] * mean[:, other] + _C1) / (mean[:, one].square() + mean[:, other].square() + _C1)
    return means * (2 * common + _C2) / (variance[:, one] + variance[:, other] + _C2)


def patch_scores(scores: Iterable[Tensor], class_tokens: int | None) -> list[Tensor]:
    """Return the scores (N, heads, P, P) between patches from those of all tokens; see `Config.class_tokens`.

    Attentions with one head, or with fewer than two patches, are left out.
    """
    kept = []
    for each in scores:
        if each.ndim == 4 and each.shape[1] > 1 and each.shape[2] == each.shape[3]:
            count = each.shape[3]
            others = count - math.isqrt(count) ** 2 if class_tokens is None else class_tokens
            if count - others > 1:
                kept.append(each[:, :, others:, others:])
    return kept


def _check_attention(model: FloatModel, net: nn.Module, image: Tensor, config: Config) -> None:
    with torch.no_grad(), RecordedScores() as attention:
        net(image)
    if not patch_scores(attention.scores, config.class_tokens):
        raise NoAttention(
            f"MimiQ compares the scores of an attention's heads, and {model.name} ({type(model.net).__name__}) has "
            "no attention of two heads or more between patches; for networks with batch norm there are DGH, GENIE and "
            "others"
        )


class _Loss:
    """The loss of a batch: its weighted terms."""

    def __init__(self, net: nn.Module, config: Config, labels: Tensor, draws: torch.Generator):
        self.net, self.config, self.labels, self.draws = net, config, labels, draws
        self.calls = torch.tensor(0)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        config, shown = self.config, self._augmented(images)
        with RecordedScores() as attention:
            output = self.net(shown)
        apart = [
            (1 - head_similarity(each).square()).mean() for each in patch_scores(attention.scores, config.class_tokens)
        ]
        self.calls += 1
        return {
            "heads": config.similarity_weight * torch.stack(apart).mean(),
            "class": config.class_weight * nn.functional.cross_entropy(output, self.labels),
            "TV": config.variation_weight * total_variation(shown),
        }

    def _augmented(self, images: Tensor) -> Tensor:
        """Return the images shifted cyclically by the same amount, with random brightness and contrast per channel."""
        done = self.calls.item() / self.config.steps
        limit = round((0.5 if done < 0.5 else 1.0) * JITTER * min(images.shape[2:]))
        down, right = torch.randint(-limit, limit + 1, (2,), generator=self.draws).tolist()
        shape = (*images.shape[:2], 1, 1)
        gaussian = torch.randn(shape, generator=self.draws).to(images.device)
        shift, bold = (2 * torch.rand((2, *shape), generator=self.draws) - 1).to(images.device)
        images = images.roll((down, right), dims=(2, 3)) + (1 - done) * gaussian
        return (images - shift) / bold.exp()
