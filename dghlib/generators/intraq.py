"""IntraQ: images of a class that differ from each other as real images do.

A batch of images matches the batch-norm statistics, and each image has a class. Three parts keep the images of a class
apart. Local object reinforcement (LOR): the class has to be visible in crops of an image, too. Marginal distance
constraint (MDC): in feature space, the distance of an image from the centre of its class stays between 2 bounds;
centres are those of the previous batches. Soft inception loss (SIL): the target for the probability of the class is a
number drawn for each image, not always 1.

Source: Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for Zero-Shot Network
Quantization" (2022), its supplement, and the authors' code at commit 5228f76.

Differences from the paper:
 1. Settings are those of the authors' scripts. Their ImageNet script bounds the cosine distance by 0 and 2, which it
    never leaves, and sets every target to 1, for ResNet-18 and MobileNets alike, so that of the three parts only LOR
    has an effect (preset "imagenet"). The values of the paper's own ImageNet runs are not in the code; "all" uses all
    three parts with the values for CIFAR-100.
 2. As in the code, crops are flipped with probability 1/2, and either all images of a batch are cropped or none.
 3. The supplement also rotates crops but does not give the angle; here it is the setting `rotation`, by default 0.

Differences from the authors' code:
 1. The features are the input of the last linear layer, found by running the network, and have any width. The code has
    a table of widths, which lacks that of ResNet-50.
 2. All images are made in a single run. The code starts 4 processes, which exchange their features through the disk.
 3. Features of other classes, which the code computes and does not use, are not computed.
 4. There are the options of `dghlib.synthesis.options`, which are off by default.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dghlib.choices import check_at_least, check_between
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.schedules import in_proportion
from dghlib.generators.tasks import ImageTask, run_tasks
from dghlib.images import random_windows, resize_windows, rotate
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics
from dghlib.running.hooks import recorded_inputs
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import added_later
from dghlib.synthesis.classes import Head, find_head, labels_of
from dghlib.synthesis.matching import channel_weights, measure
from dghlib.synthesis.options import MatchingOptions
from dghlib.synthesis.space import Device, brought_over, working

VERSION = 1
STEPS, PATIENCE = 1000, 50  # the authors': steps of a run, and steps of a plateau after which the rate falls


@dataclass(frozen=True, kw_only=True)
class Config(MatchingOptions):
    """Settings of one run; the defaults are the authors' for CIFAR-10."""

    num_images: int = 5120  # images to make
    batch_size: int = 256  # images that match the statistics together; class centres are those of earlier batches
    steps: int = STEPS  # of each batch
    learning_rate: float = 0.5  # of the images, at the start

    crop_area: float = 0.5  # LOR: smallest share of an image in a crop (eta); 1 leaves only flips
    soft_target: float = 0.95  # SIL: smallest target for the probability of the class (epsilon); 1: always 1
    nearest: float = 0.05  # MDC: smallest cosine distance from the class centre (lambda_l), 0 to 2
    farthest: float = 0.8  # MDC: largest cosine distance (lambda_u), 0 to 2
    flip: bool = added_later(True)  # LOR: crops are mirrored with probability 1/2
    rotation: float = added_later(0.0)  # LOR: largest angle by which crops are rotated in either direction, in degrees
    scaled_schedule: bool = added_later(True, before=False)  # scale PATIENCE from STEPS to the steps of the run

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_images", "batch_size", "steps"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, math.inf, "learning_rate", self.learning_rate)
        check_between(0.01, 1, "crop_area", self.crop_area)
        check_between(0, 1, "soft_target", self.soft_target)
        check_between(0, 2, "farthest", self.farthest)
        check_between(0, self.farthest, "nearest", self.nearest)
        check_between(0, 180, "rotation", self.rotation)


_CIFAR100 = Config(soft_target=0.6, nearest=0.02, farthest=1.0)
PRESETS = {
    "default": Config(),
    "cifar10": Config(),
    "cifar100": _CIFAR100,
    "imagenet": Config(soft_target=1.0, nearest=0.0, farthest=2.0),
    "all": _CIFAR100,
}


def generate(
    model: FloatModel, config: Config, *, device: Device = "cpu", progress: bool = True, checkpoint: Path | None = None
) -> Tensor:
    """Return IntraQ's images (num_images, C, H, W); `dghlib.generators` describes the common arguments.

    Raises:
        NotAClassifier: the network is not a classifier.
        NoFeatures: it does not end in a linear layer.
    """
    twin, net, layers = working(model, device)
    head = find_head(twin, net, "IntraQ")
    images = torch.randn((config.num_images, *twin.image_shape), generator=stream(config.seed, "intraq", "images"))
    patience = in_proportion(PATIENCE, config.steps, STEPS) if config.scaled_schedule else PATIENCE
    batches = images.split(config.batch_size)
    labels = labels_of("intraq", config, head.num_classes).split(config.batch_size)

    def start(index: int, finished: list[Tensor]) -> ImageTask:
        centres = ClassCentres(head, layers.mean.device)
        for earlier, classes in zip(finished, labels, strict=False):
            centres.add(net, earlier, classes)
        draws = stream(config.seed, "intraq", "augmentation", index)
        return ImageTask(
            batches[index].to(device),
            _Loss(net, twin.image_shape, layers, config, labels[index], centres, draws),
            lambda leaves: torch.optim.Adam(leaves, config.learning_rate),
            lambda optimizer: ReduceLROnPlateau(optimizer, patience=patience, min_lr=1e-4),
            draws=draws,
        )

    made = run_tasks(
        start,
        count=len(batches),
        steps=config.steps,
        saved=Checkpoint(checkpoint, images_fingerprint(twin, "intraq", VERSION, config)),
        title=f"IntraQ {twin.name}",
        progress=progress,
    )
    return brought_over(config.filtered(made), twin, model)


class ClassCentres:
    """The mean feature of every class over the images of finished batches."""

    def __init__(self, head: Head, device: torch.device):
        self.head = head
        self.totals = torch.zeros(head.num_classes, head.width, device=device)
        self.counts = torch.zeros(head.num_classes, 1, device=device)

    @torch.no_grad()
    def add(self, net: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Add finished images (n, C, H, W) of classes `labels` (n,)."""
        labels = labels.to(self.totals.device)
        with recorded_inputs(net, [self.head.layer]) as inputs:
            net(images.to(self.totals.device))
        self.totals.index_add_(0, labels, inputs[self.head.layer][-1])
        self.counts.index_add_(0, labels, torch.ones(len(labels), 1, device=labels.device))

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the centre of each label's class, (n, width), and whether the class has a centre yet, (n,)."""
        counts = self.counts[labels]
        return self.totals[labels] / counts.clamp_min(1), counts[:, 0] > 0


class _Loss:
    """The loss of a batch; all of its terms have the same weight."""

    def __init__(
        self,
        net: nn.Module,
        image_shape: tuple[int, int, int],
        layers: StoredStatistics,
        config: Config,
        labels: Tensor,
        centres: ClassCentres,
        draws: torch.Generator,
    ):
        self.net, self.layers, self.config, self.draws = net, layers, config, draws
        device = layers.mean.device
        weights = channel_weights(layers.sizes, "mean", device)
        self.distance = config.distance_from(net, image_shape, layers, weights, "variance")
        self.layer = centres.head.layer
        self.labels = labels.to(device)
        self.targets = soft_targets(len(labels), config.soft_target, draws).to(device)
        self.centres, self.known = centres.of(self.labels)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        images = self._locally_reinforced(images)
        with recorded_inputs(self.net, [self.layer]) as inputs:
            measured = measure(self.net, images, self.layers)
        config, features = self.config, inputs[self.layer][-1]
        return {
            "BNS": self.distance(measured.moments).mean(),
            "SIL": soft_inception_loss(measured.output, self.labels, self.targets),
            "MDC": marginal_distance(features, self.centres, self.known, config.nearest, config.farthest),
        }

    def _locally_reinforced(self, images: Tensor) -> Tensor:
        """Return a crop of each image at full size, or, with probability 1/2, the images."""
        if torch.rand((), generator=self.draws) >= 0.5:
            return images
        windows = random_windows(len(images), images.shape[2:], self.config.crop_area, self.draws)
        flips = torch.rand(len(images), generator=self.draws) < (0.5 if self.config.flip else 0.0)
        crops = resize_windows(images, windows, flips)
        if not self.config.rotation:
            return crops
        return rotate(crops, self.config.rotation * (2 * torch.rand(len(images), generator=self.draws) - 1))


def soft_targets(count: int, lowest: float, draws: torch.Generator) -> Tensor:
    """Return the targets for the probability of each image's class, (count,): 1, or half the time `lowest` to 1."""
    soft = lowest + (1 - lowest) * torch.rand(count, generator=draws)
    return torch.where(torch.rand(count, generator=draws) < 0.5, soft, 1.0)


def soft_inception_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of the labels' probabilities (N,) under logits (N, classes)."""
    probabilities = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return (probabilities - targets).square().mean()


def marginal_distance(features: Tensor, centres: Tensor, known: Tensor, nearest: float, farthest: float) -> Tensor:
    """Return by how much features (N, F) violate the bounds on the distance from their class centres.

    Distances are 1 - cosine; the mean is over the images whose class has a centre, by `known` (N,).
    """
    distance = 1 - torch.cosine_similarity(features, centres, eps=1e-6)
    excess = (nearest - distance).clamp_min(0) + (distance - farthest).clamp_min(0)
    return (excess * known).sum() / (known.sum() + 1e-6)
