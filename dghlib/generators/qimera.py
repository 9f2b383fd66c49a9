"""The generator of Qimera: a single network is trained to make images of each class, and of mixtures of classes.

Mixtures of class embeddings should give images near the boundaries between classes. The generator network learns only
from the trained network, by cross-entropy and batch-norm statistics; calibration images are drawn from it afterwards.

Source: Choi et al., "Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples" (2021), and the
authors' code at commit 2f48cba.

Differences from the paper:
 1. In the paper the generator is trained together with the quantized network, whose training images it makes. Here it
    is trained alone, and images are drawn once, as in the comparison in the appendix of GENIE, which does not state how
    its images were drawn. Here each batch has only single classes or only mixtures, as in the training, where a coin
    decides. The number of mixtures is the expected number, so that a single draw does not decide for a small set.
 2. As in the code (which inverts the switch for it), the layer that disentangles embeddings is left out.
 3. The authors count updates; here their number is proportional to the number of images, so that a smaller set costs
    less. 1 024 images take the authors' 80 000 updates, except for 2 updates on CIFAR-10.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from dghlib.choices import check_at_least, check_between, check_types
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.tasks import run_tasks, values_of
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.synthesis.class_maker import ClassMaker, Embeddings, first_embeddings
from dghlib.synthesis.classes import Head, find_head
from dghlib.synthesis.networks import QimeraNetwork, initialised
from dghlib.synthesis.space import Device, brought_over, working

VERSION = 2
BATCH_NORM_WEIGHT = 0.1  # of the batch-norm distance relative to the cross-entropy


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one run; the defaults are the authors' for CIFAR-10: 80 000 updates with 200 images each."""

    num_images: int = 1024  # images to make
    batch_size: int = 200  # images of an update
    steps: int = 13_333  # updates of the generator network for each batch of images that is drawn from it
    learning_rate: float = 1e-3  # falls to 1/10 after each of the first 3 quarters
    seed: int = 0  # of all random numbers

    superposed: float = 0.4  # share of mixtures among the images (p)
    mixed_classes: int = 2  # classes in a mixture (K)
    embeddings: Embeddings = "random"  # initial values; "classifier": the last layer's weights
    conditional: bool = False  # whether batch norms have scales and shifts for each class

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_images", "batch_size", "steps", "mixed_classes"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, math.inf, "learning_rate", self.learning_rate)
        check_between(0, 1, "superposed", self.superposed)


# On ImageNet the 80 000 updates have 16 images each; the settings are those of the network.
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
    """Return Qimera's images (num_images, C, H, W); `dghlib.generators` describes the common arguments.

    Raises:
        NotAClassifier: the network is not a classifier.
        NoFeatures: it does not end in a linear layer, whose width the embeddings need.
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
    """Return the number of updates of the generator network."""
    return config.steps * math.ceil(config.num_images / config.batch_size)


class _Task:
    """The generator network during its training."""

    parts: dict[str, Any]

    def __init__(
        self,
        net: nn.Module,
        layers: StoredStatistics,
        head: Head,
        image_shape: tuple[int, int, int],
        config: Config,
    ):
        self.config = config
        embeddings = first_embeddings(net, head, config.embeddings, stream(config.seed, "qimera", "embeddings"))
        generator = initialised(
            lambda: QimeraNetwork(image_shape, embeddings, conditional=config.conditional),
            config.seed,
            "qimera",
            "network",
        )
        self.maker = ClassMaker(
            net,
            layers,
            generator.to(layers.mean.device),
            superposed=config.superposed,
            mixed_classes=config.mixed_classes,
            rate=config.learning_rate,
        )
        falls = [math.ceil(_updates(config) * quarters / 4) for quarters in (1, 2, 3)]
        self.schedule = MultiStepLR(self.maker.optimizer, falls, gamma=0.1)
        self.draws = stream(config.seed, "qimera", "training")
        self.parts = {**self.maker.parts, "schedule": self.schedule, "draws": self.draws}

    def step(self) -> dict[str, float]:
        """Train the network by 1 step, see `dghlib.generators.tasks.Task`."""
        images, targets = self.maker.batch(self.config.batch_size, self.draws)
        output, distance = self.maker.judged(images)
        terms = {"class": nn.functional.cross_entropy(output, targets), "BNS": BATCH_NORM_WEIGHT * distance}
        self.maker.learn(torch.stack(list(terms.values())).sum())
        self.schedule.step()
        return values_of(terms)

    @torch.no_grad()
    def images(self) -> Tensor:
        """Return images drawn from the current network: single classes and mixtures, in random order."""
        config, draws = self.config, stream(self.config.seed, "qimera", "images")
        mixtures = round(config.superposed * config.num_images)
        made = [
            self.maker.made(len(part), superposed, draws)[0].cpu()
            for superposed, count in ((True, mixtures), (False, config.num_images - mixtures))
            for part in torch.arange(count).split(config.batch_size)
            if len(part)
        ]
        return torch.cat(made)[torch.randperm(config.num_images, generator=draws)]
