"""The generator of Qimera: one network is trained to make images of each class, and of mixtures of classes.

Mixtures of class embeddings are to yield images near the boundaries between classes. The network learns from the
trained network alone, by cross-entropy and batch-norm statistics; calibration images are drawn from it afterwards.

Source: Choi et al., "Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples" (2021), and the
authors' code at commit 2f48cba.

Differences from the paper:
 1. There, the generator is trained together with the quantized network, which it feeds during its training. Here it
    is trained alone, and images are drawn once, as the comparison in the appendix of GENIE does. How those were
    drawn is not stated. Here each batch is of single classes or of mixtures alone, as in training, where a coin
    decides; as many images are mixtures as the coin would have, so that no single throw decides for a small set.
 2. As in the code (where the switch for it is the wrong way round), the layer that disentangles embeddings is left out.
 3. The authors count updates; here they are in proportion to the images that are drawn, so that a smaller set costs
    less. 1 024 images take their 80 000, but for 2 on CIFAR-10.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from dghlib.choices import check_at_least, check_between, check_types
from dghlib.generators.classes import Head, find_head, random_labels
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.matching import batch_norm_distance, channel_weights, measure
from dghlib.generators.networks import QimeraNetwork, initialised, mixtures_of
from dghlib.generators.space import Device, brought_over, working
from dghlib.generators.tasks import run_tasks, values_of
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint

VERSION = 2
BATCH_NORM_WEIGHT = 0.1  # of the batch-norm distance beside the cross-entropy


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one run; the defaults are the authors' for CIFAR-10: 80 000 updates with 200 images each."""

    num_images: int = 1024
    batch_size: int = 200
    steps: int = 13_333  # updates of the generator network for each batch of images that is drawn from it
    learning_rate: float = 1e-3  # it falls to a tenth after each of the first three quarters
    seed: int = 0

    superposed: float = 0.4  # share of mixtures among the images (p)
    mixed_classes: int = 2  # classes in a mixture (K)
    embeddings: Literal["random", "classifier"] = "random"  # begin with the weights of the last linear layer
    conditional: bool = False  # whether batch norms have scales and shifts of each class

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_images", "batch_size", "steps", "mixed_classes"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, math.inf, "learning_rate", self.learning_rate)
        check_between(0, 1, "superposed", self.superposed)


# On ImageNet 80 000 updates have 16 images each; the settings are those of the network.
_IMAGENET = Config(batch_size=16, steps=1250, conditional=True)
PRESETS = {
    "default": Config(),
    "cifar10": Config(),
    "imagenet_resnet18": replace(_IMAGENET, mixed_classes=500),
    "imagenet_resnet50": replace(_IMAGENET, superposed=0.7, mixed_classes=500, embeddings="classifier"),
    "imagenet_mobilenetv2": replace(_IMAGENET, mixed_classes=100),
}


def generate(
    model: FloatModel, config: Config, *, device: Device = "cpu", progress: bool = True, checkpoint: Path | None = None
) -> Tensor:
    """Return Qimera's images (num_images, C, H, W); `dghlib.generators` says what all methods have in common.

    Raises:
        NotAClassifier: it tells no classes apart.
        NoFeatures: it does not end in a linear layer, whose width the embeddings have.
    """
    twin, net, layers = working(model, device)
    head = find_head(twin, net, "Qimera")
    made = run_tasks(
        lambda index, finished: _Task(net, layers, head, twin.image_shape, config),
        count=1,
        steps=_updates(config),
        saved=Checkpoint(checkpoint, images_fingerprint(twin, "qimera", VERSION, config)),
        title=f"Qimera {twin.name}",
        progress=progress,
    )
    return brought_over(made, twin, model)


def _updates(config: Config) -> int:
    """Return how many times the generator network is trained."""
    return config.steps * math.ceil(config.num_images / config.batch_size)


class _Task:
    """The generator network in training."""

    parts: dict[str, Any]

    def __init__(
        self,
        net: nn.Module,
        layers: StoredStatistics,
        head: Head,
        image_shape: tuple[int, int, int],
        config: Config,
    ):
        self.net, self.layers, self.config = net, layers, config
        self.num_classes = head.num_classes
        self.device = layers.mean.device
        self.weights = channel_weights(layers.sizes, "mean", self.device)
        embeddings = _first_embeddings(net, head, config)
        self.generator = initialised(
            lambda: QimeraNetwork(image_shape, embeddings, conditional=config.conditional),
            config.seed,
            "qimera",
            "network",
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate, betas=(0.5, 0.999))
        falls = [math.ceil(_updates(config) * quarters / 4) for quarters in (1, 2, 3)]
        self.schedule = MultiStepLR(self.optimizer, falls, gamma=0.1)
        self.draws = stream(config.seed, "qimera", "training")
        self.parts = {
            "generator": self.generator,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "draws": self.draws,
        }

    def step(self) -> dict[str, float]:
        """Train the network once, see `dghlib.generators.tasks.Task`."""
        superposed = torch.rand((), generator=self.draws).item() < self.config.superposed
        images, targets = self._made(self.config.batch_size, superposed, self.draws)
        measured = measure(self.net, images, self.layers)
        distance = batch_norm_distance(measured.moments, self.layers, self.weights, "variance").mean()
        terms = {
            "class": nn.functional.cross_entropy(measured.output, targets),
            "BNS": BATCH_NORM_WEIGHT * distance,
        }
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        self.schedule.step()
        return values_of(terms)

    @torch.no_grad()
    def images(self) -> Tensor:
        """Return images drawn from the network as it is now: single classes and mixtures, in random order."""
        config, draws = self.config, stream(self.config.seed, "qimera", "images")
        mixtures = round(config.superposed * config.num_images)
        made = [
            self._made(len(part), superposed, draws)[0].cpu()
            for superposed, count in ((True, mixtures), (False, config.num_images - mixtures))
            for part in torch.arange(count).split(config.batch_size)
            if len(part)
        ]
        return torch.cat(made)[torch.randperm(config.num_images, generator=draws)]

    def _made(self, count: int, superposed: bool, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return so many images of the network, mixtures or single classes, and what they are, (count, num_classes)."""
        num_classes = self.num_classes
        classes, shares = random_mixtures(count, num_classes, self.config.mixed_classes if superposed else 1, draws)
        noise = torch.randn(*classes.shape, self.generator.latent_size, generator=draws)
        classes, shares, noise = (values.to(self.device) for values in (classes, shares, noise))
        return self.generator(classes, shares, noise), mixtures_of(classes, shares, num_classes)


def random_mixtures(count: int, num_classes: int, mixed: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return classes, each as likely as any other and some of them equal, and their shares in an image, (count, mixed).

    Shares are positive and sum to 1; that of one class alone is 1.
    """
    classes = random_labels(count * mixed, num_classes, draws).view(count, mixed)
    return classes, torch.randn(count, mixed, generator=draws).softmax(1)


def _first_embeddings(net: nn.Module, head: Head, config: Config) -> Tensor:
    """Return what the embeddings of the classes begin with, (num_classes, width)."""
    if config.embeddings == "classifier":
        return net.get_parameter(f"{head.layer}.weight").detach().cpu()
    draws = stream(config.seed, "qimera", "embeddings")
    return torch.randn(head.num_classes, head.width, generator=draws)
