"""The generator of Qimera: one network is trained to make images of each class, and of mixtures of classes.

Mixtures of class embeddings are to yield images near the boundaries between classes. The network learns from the
trained network alone, by cross-entropy and batch-norm statistics; calibration images are drawn from it afterwards.

Source: Choi et al., "Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples" (2021), and the
authors' code at commit 2f48cba.

Differences from the paper:
 1. There, the generator is trained together with the quantized network, which it feeds during its training. Here it
    is trained alone, and images are drawn once, as the comparison in the appendix of GENIE does. How those were
    drawn is not stated; here as in training, mixtures included.
 2. As in the code (where the switch for it is the wrong way round), the layer that disentangles embeddings is left out.
 3. Noise is added to a mixture of embeddings, not to each of them, and the classes of a mixture are drawn with
    replacement: the code was not clear to us in both.
 4. The first batch norm has scales and shifts of classes for all networks, in the code for ImageNet alone.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dghlib.choices import check_at_least, check_between, check_choice
from dghlib.generators.classes import Head, find_head, random_labels
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.matching import batch_norm_distance, channel_weights, measure
from dghlib.generators.networks import QimeraNetwork, initialised
from dghlib.generators.space import brought_over, working_twin
from dghlib.generators.tasks import run_tasks, values_of
from dghlib.models import FloatModel
from dghlib.running.batchnorm import StoredStatistics, stored_statistics, working_copy
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint

VERSION = 1
BATCH_NORM_WEIGHT = 0.1  # of the batch-norm distance beside the cross-entropy


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one run; the defaults are the authors' for CIFAR-10.

    Their 80 000 updates of 16 images are 1250 for each 16 of 1024 images.
    """

    num_images: int = 1024
    batch_size: int = 16
    steps: int = 1250  # updates of the generator network for each batch of images that is drawn from it
    learning_rate: float = 1e-3
    seed: int = 0

    superposed: float = 0.4  # share of mixtures among the images (p)
    mixed_classes: int = 2  # classes in a mixture (K)
    embeddings: Literal["random", "classifier"] = "random"  # begin with the weights of the last linear layer

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "steps", "mixed_classes"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, math.inf, "learning_rate", self.learning_rate)
        check_between(0, 1, "superposed", self.superposed)
        check_choice("embeddings", self.embeddings, ("random", "classifier"))


PRESETS = {
    "default": Config(),
    "resnet18": Config(mixed_classes=500),
    "resnet50": Config(superposed=0.7, mixed_classes=500, embeddings="classifier"),
    "mobilenetv2": Config(mixed_classes=100),
}


def generate(
    model: FloatModel,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
) -> Tensor:
    """Return images (num_images, C, H, W), float32 in the normalised space of `model`, on the CPU.

    The model is not changed. With `checkpoint`, a run that was killed continues from that file to the same images.

    Raises:
        NoBatchNorm: the network has no batch norm that images reach.
        NotAClassifier: it tells no classes apart.
        NoFeatures: it does not end in a linear layer, whose width the embeddings have.
        ValueError: its weights or statistics are not finite.
        FloatingPointError: the loss became NaN; the step is named.
    """
    own, model = model, working_twin(model)
    net = working_copy(model.net, device, model.image_shape)
    layers = stored_statistics(net, model.image_shape)
    head = find_head(model, net, "Qimera")
    made = run_tasks(
        lambda index, finished: _Task(net, layers, head, model.image_shape, config),
        count=1,
        steps=config.steps * math.ceil(config.num_images / config.batch_size),
        saved=Checkpoint(checkpoint, images_fingerprint(model, "qimera", VERSION, config)),
        title=f"Qimera {model.name}",
        progress=progress,
    )
    return brought_over(made, model, own)


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
            lambda: QimeraNetwork(image_shape, embeddings), config.seed, "qimera", "network"
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate, betas=(0.5, 0.999))
        self.draws = stream(config.seed, "qimera", "training")
        self.parts = {"generator": self.generator, "optimizer": self.optimizer, "draws": self.draws}

    def step(self) -> dict[str, float]:
        """Train the network once, see `dghlib.generators.tasks.Task`."""
        mixtures = self._mixtures(self.config.batch_size, self.draws)
        measured = measure(self.net, self._made(mixtures, self.draws), self.layers)
        distance = batch_norm_distance(measured.moments, self.layers, self.weights, "variance").mean()
        terms = {
            "class": nn.functional.cross_entropy(measured.output, mixtures),
            "BNS": BATCH_NORM_WEIGHT * distance,
        }
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        return values_of(terms)

    @torch.no_grad()
    def images(self) -> Tensor:
        """Return images drawn from the network as it is now, classes and mixtures as in training."""
        draws = stream(self.config.seed, "qimera", "images")
        mixtures = self._mixtures(self.config.num_images, draws)
        return torch.cat([self._made(part, draws).cpu() for part in mixtures.split(self.config.batch_size)])

    def _mixtures(self, count: int, draws: torch.Generator) -> Tensor:
        config = self.config
        return mixtures_of_classes(count, self.num_classes, config.superposed, config.mixed_classes, draws).to(
            self.device
        )

    def _made(self, mixtures: Tensor, draws: torch.Generator) -> Tensor:
        noise = torch.randn(len(mixtures), self.generator.latent_size, generator=draws)
        return self.generator(mixtures, noise.to(self.device))


def mixtures_of_classes(
    count: int, num_classes: int, superposed: float, mixed_classes: int, draws: torch.Generator
) -> Tensor:
    """Return the shares of the classes in each image, (count, num_classes): one class, or a random mixture."""
    alone = nn.functional.one_hot(random_labels(count, num_classes, draws), num_classes).float()
    shares = torch.randn(count, mixed_classes, generator=draws).softmax(1)
    classes = torch.randint(num_classes, (count, mixed_classes), generator=draws)
    mixed = torch.zeros(count, num_classes).scatter_add_(1, classes, shares)
    return torch.where(torch.rand(count, 1, generator=draws) < superposed, mixed, alone)


def _first_embeddings(net: nn.Module, head: Head, config: Config) -> Tensor:
    """Return what the embeddings of the classes begin with, (num_classes, width)."""
    if config.embeddings == "classifier":
        return net.get_parameter(f"{head.layer}.weight").detach().cpu()
    draws = stream(config.seed, "qimera", "embeddings")
    return torch.randn(head.num_classes, head.width, generator=draws)
