"""DeepInversion: images of given classes with the batch-norm statistics and a smoothness penalty.

The network should recognise each image as its class, at every shift and when mirrored; total variation and norm are
kept small. Adaptive DeepInversion (ADI) adds a competition: it favours images on which a second network, the student,
disagrees with the first.

Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion" (2020), and a description of
the settings in the authors' code at commit 2413af1; written from these descriptions only.

Differences from the paper:
 1. Classes are drawn at random; the authors' script has a list of 42 classes of ImageNet.
 2. The competition has the weight of the paper's text, 1 - JS. The student is not trained here; the caller may train it
    between runs. The divergence is that of the paper, of each network from their mean; in the code, and in the preset
    "adi", it is that of the mean from each network (`divergence`).

Differences from the authors' code:
 1. The code has several settings for ImageNet, and a command in its description has others. By default images have the
    full resolution for all 2000 steps, as in the script's second setting, with the script's own rate. The weights of
    the statistics and of the norm, and the flips, are those of the command, which has a rate of 0.25 (preset
    "imagenet") and starts at half the resolution.
 2. The images are those of the last step; the code can also keep those with the smallest loss.
 3. Warm-up and jitter are in proportion to the steps (1/20) and to the size of the image (30 pixels at 224).
 4. The preset "cifar10" takes the described settings from the script for CIFAR-10: batch, steps, learning rate, jitter
    and 2 weights. The others are those for ImageNet.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dghlib.choices import check_at_least, check_between, check_choice, check_types
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.tasks import ImageTask, run_tasks
from dghlib.images import clip_straight_through
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics, working_copy
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import added_later
from dghlib.synthesis.classes import labels_of, number_of_classes
from dghlib.synthesis.matching import batch_norm_norms, measure
from dghlib.synthesis.space import brought_over, working, working_twin

VERSION = 1
WARM_UP = 0.05  # share of the steps: 100 of 2000
JITTER = 30 / 224  # share of the size of the image
TEMPERATURE = 3.0  # of the probabilities of teacher and student in the divergence
DIVERGENCES = ("from middle", "of middle")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run; the defaults are the authors' for ImageNet.

    The norm of the variation is that of a whole batch, so its weight belongs to the batch size.
    """

    num_images: int = 1024  # images to make
    batch_size: int = 84  # images that match the statistics together
    steps: int = 2000  # of each batch
    learning_rate: float = 0.2  # of the images, at its peak
    seed: int = 0  # of all random numbers

    batch_norm_weight: float = 0.01  # of the batch-norm statistics (alpha)
    first_layer_factor: float = 10.0  # weight of the first batch norm relative to the others
    variation_weight: float = 1e-4  # of the total variation
    size_weight: float = 1e-5  # of the norm of the images
    jitter: int | None = None  # largest shift in pixels; None: 30 at 224 pixels, in proportion
    flip: bool = True  # whether images are mirrored at random
    competition_weight: float = 0.0  # ADI; 0.2 in the paper. It needs a student
    divergence: str = added_later("from middle")  # ADI: of the networks "from middle", or "of middle" from them

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_images", "batch_size", "steps"):
            check_at_least(1, name, getattr(self, name))
        if self.jitter is not None:
            check_at_least(0, "jitter", self.jitter)
        for name in (
            "learning_rate",
            "batch_norm_weight",
            "first_layer_factor",
            "variation_weight",
            "size_weight",
            "competition_weight",
        ):
            check_between(0, math.inf, name, getattr(self, name))
        check_choice("divergence", self.divergence, DIVERGENCES)


PRESETS = {
    "default": Config(),
    "cifar10": Config(batch_size=256, learning_rate=0.05, batch_norm_weight=10.0, variation_weight=2.5e-5, jitter=2),
    "imagenet": Config(learning_rate=0.25),
    "adi": Config(competition_weight=0.2, divergence="of middle"),
}


def generate(
    model: FloatModel,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
    student: FloatModel | None = None,
) -> Tensor:
    """Return DeepInversion's images (num_images, C, H, W); `dghlib.generators` describes the common arguments.

    `student` is the network with which ADI competes, if `competition_weight` is not 0; it is not changed either.

    Raises:
        NotAClassifier: the network is not a classifier.
        ValueError: a student is missing, is given but not needed, or does not fit.
    """
    twin, net, layers = working(model, device)
    num_classes = number_of_classes(twin, net, "DeepInversion")
    student = student and working_twin(student)
    rival = _student_net(twin, student, config, num_classes, device)
    images = torch.randn(
        (config.num_images, *twin.image_shape), generator=stream(config.seed, "deep_inversion", "images")
    )
    batches = images.split(config.batch_size)
    labels = labels_of("deep_inversion", config, num_classes).split(config.batch_size)
    competitors = [twin] if student is None else [twin, student]
    key = "-".join(images_fingerprint(each, "deep_inversion", VERSION, config) for each in competitors)

    def start(index: int, finished: list[Tensor]) -> ImageTask:
        draws = stream(config.seed, "deep_inversion", "augmentation", index)
        return ImageTask(
            batches[index].to(device),
            _Loss(net, layers, config, labels[index], rival, draws),
            lambda leaves: torch.optim.Adam(leaves, config.learning_rate, betas=(0.5, 0.9)),
            lambda optimizer: LambdaLR(optimizer, lambda step: warm_up_and_cosine(step, config.steps)),
            draws=draws,
            keep_valid=lambda images: clip_straight_through(images, twin.mean, twin.std),
        )

    made = run_tasks(
        start,
        count=len(batches),
        steps=config.steps,
        saved=Checkpoint(checkpoint, key),
        title=f"DeepInversion {twin.name}",
        progress=progress,
    )
    return brought_over(made, twin, model)


def warm_up_and_cosine(step: int, steps: int, warm_up: float = WARM_UP) -> float:
    """Return the share of the learning rate at a step: a linear rise from 0, then half a cosine down to 0."""
    rising = warm_up * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / (steps - rising))


class _Loss:
    """The loss of a batch: its weighted terms."""

    def __init__(
        self,
        net: nn.Module,
        layers: StoredStatistics,
        config: Config,
        labels: Tensor,
        rival: nn.Module | None,
        draws: torch.Generator,
    ):
        self.net, self.layers, self.config, self.rival, self.draws = net, layers, config, rival, draws
        self.labels = labels.to(layers.mean.device)
        self.layer_weights = torch.full((len(layers.sizes),), config.batch_norm_weight, device=layers.mean.device)
        self.layer_weights[0] *= config.first_layer_factor

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        config, shown = self.config, self._jittered(images)
        measured = measure(self.net, shown, self.layers)
        distances = batch_norm_norms(measured.moments[0], self.layers)
        terms = {
            "class": nn.functional.cross_entropy(measured.output, self.labels),
            "BNS": (self.layer_weights * distances).sum(),
            "TV": config.variation_weight * total_variation(shown),
            "size": config.size_weight * images.flatten(1).norm(dim=1).mean(),
        }
        if self.rival is not None:
            disagreement = jensen_shannon(measured.output, self.rival(shown), config.divergence)
            terms["ADI"] = config.competition_weight * (1 - disagreement)
        return terms

    def _jittered(self, images: Tensor) -> Tensor:
        """Return the images as the networks see them: all shifted cyclically alike, and mirrored or not."""
        limits = [
            round(JITTER * size) if self.config.jitter is None else self.config.jitter for size in images.shape[2:]
        ]
        shifts = [int(torch.randint(-limit, limit + 1, (), generator=self.draws)) for limit in limits]
        images = images.roll(shifts, dims=(2, 3))
        return images.flip(3) if self.config.flip and torch.rand((), generator=self.draws) < 0.5 else images


def total_variation(images: Tensor) -> Tensor:
    """Return the differences to 4 neighbours (right, below, diagonals): norms over the whole batch, summed."""
    right = images[..., :, 1:] - images[..., :, :-1]
    below = images[..., 1:, :] - images[..., :-1, :]
    diagonals = (images[..., 1:, 1:] - images[..., :-1, :-1], images[..., 1:, :-1] - images[..., :-1, 1:])
    return torch.stack([differences.norm() for differences in (right, below, *diagonals)]).sum()


def jensen_shannon(teacher: Tensor, student: Tensor, divergence: str = "from middle") -> Tensor:
    """Return the Jensen-Shannon divergence of the probabilities of two sets of logits (N, classes), averaged, in nats.

    Probabilities are at temperature 3 and clipped to 0.01 to 0.99. `divergence` "of middle" reverses both of its parts,
    as the authors' code does.
    """
    first, second = ((logits / TEMPERATURE).softmax(1).clamp(0.01, 0.99) for logits in (teacher, student))
    middle = (first + second) / 2
    pairs = [(each, middle) if divergence == "from middle" else (middle, each) for each in (first, second)]
    divergences = [(one * (one / other).log()).sum(1).mean() for one, other in pairs]
    return torch.stack(divergences).mean()


def _student_net(
    model: FloatModel, student: FloatModel | None, config: Config, num_classes: int, device: torch.device | str
) -> nn.Module | None:
    """Return the working copy of the student, or None without competition; see `generate` for errors."""
    if (config.competition_weight > 0) != (student is not None):
        given = "there is none" if student is None else f"there is {student.name}"
        raise ValueError(
            f"competition_weight is {config.competition_weight:g} and {given}: competition takes a weight above 0 "
            "and a student, generate(..., student=...)"
        )
    if student is None:
        return None
    net = working_copy(student.net, device, student.image_shape)
    for name in ("image_shape", "mean", "std"):
        if getattr(student, name) != getattr(model, name):
            raise ValueError(
                f"the student {student.name} has {name} {getattr(student, name)}, {model.name} has "
                f"{getattr(model, name)}: both need the same images"
            )
    if (classes := number_of_classes(student, net, "DeepInversion")) != num_classes:
        raise ValueError(f"the student {student.name} tells {classes} classes apart, {model.name} {num_classes}")
    return net
