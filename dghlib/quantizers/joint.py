"""Fine-tuning with a generator network that is trained together with the student, without images: GDFQ's family.

GDFQ, Qimera and AdaDFQ share the loop of `fine_tuning`, with batches from here; each of those modules is a set of
defaults for `Settings` and lists its differences from its authors' version. In every step

    1. the generator network makes images for random classes, or for mixtures of classes;
    2. it learns: the float network should see these classes, and the batch norms' statistics in the images. AdaDFQ also
       lets it look for images on which the student and the float network differ, but not too much;
    3. the student learns from the same images, and from the classes they were made for.

In the first steps the generator network learns alone. The ranges of tensors are then chosen on its images, and never
measured again, as in `fine_tuning`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dghlib.choices import check_at_least, check_between
from dghlib.models import FloatModel
from dghlib.quantizers import fine_tuning
from dghlib.quantizers.calibration import check_images
from dghlib.quantizers.distillation import check_classifier
from dghlib.quantizers.fine_tuning import SCHEDULES, fine_tune
from dghlib.quantizers.graph import device_of
from dghlib.quantizers.preparation import preparation_of, prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.seeds import stream
from dghlib.storage import checkpoints
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import fingerprint
from dghlib.synthesis.class_maker import ClassMaker, Embeddings, first_embeddings
from dghlib.synthesis.classes import find_head, number_of_classes
from dghlib.synthesis.networks import ClassNetwork, GdfqNetwork, QimeraNetwork, initialised
from dghlib.synthesis.space import brought_over, working

_LATENT_SIZE = 100  # of GDFQ's network; that of Qimera's is the width of the last layer
_SMALLEST = 1e-8  # range of entropies in a batch


@dataclass(frozen=True, kw_only=True)
class Settings(fine_tuning.Settings):
    """The common settings of these methods, and their differences; see also `fine_tuning.Settings`.

    Args:
        steps: batches that the generator network makes; the student learns from those after the first `warm_up`.
        warm_up: share of the steps in which the generator network learns alone.
        calibration_images: images of the generator network, made after these steps, that choose the ranges of tensors.
        maker_rate: Adam's learning rate of the generator network at the start; it falls as `rate` does.
        network: "gdfq", noise times the embedding of a class, or "qimera", the normalised sum.
        embeddings: their initial values, "random", or for "qimera" also "classifier", the last layer's weights.
        conditional: whether the network's batch norms have scales and shifts for each class; that of GDFQ then has no
            embeddings.
        superposed: probability with which a batch has mixtures of classes.
        mixed_classes: classes in a mixture.
        statistics: weight of the distance of batch-norm statistics in the loss of the generator network.
        classes: weight of the cross-entropy of the float network's logits with the classes in that loss.
        disagreement, agreement: weights of the cross-entropies of the difference and of the sum of the logits of the
            float network and the student (AdaDFQ).
        bounds: weight of the entropy of that difference, as far as it is out of bounds (AdaDFQ).
        lower, upper: its bounds; 0 is the smallest entropy of the batch, and 1 that of equal probabilities.
    """

    steps: int = 80_000
    batch_size: int = 16
    flip: bool = False
    warm_up: float = 1 / 4
    calibration_images: int = 1024
    maker_rate: float = 1e-2
    network: Literal["gdfq", "qimera"] = "gdfq"
    embeddings: Embeddings = "random"
    conditional: bool = False
    superposed: float = 0.0
    mixed_classes: int = 2
    statistics: float = 0.1
    classes: float = 1.0
    disagreement: float = 0.0
    agreement: float = 0.0
    bounds: float = 0.0
    lower: float = 0.1
    upper: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("calibration_images", "mixed_classes"):
            check_at_least(1, name, getattr(self, name))
        for name in ("superposed", "lower", "upper"):
            check_between(0, 1, name, getattr(self, name))
        check_between(0, 0.99, "warm_up", self.warm_up)
        for name in ("maker_rate", "statistics", "classes", "disagreement", "agreement", "bounds"):
            check_between(0, math.inf, name, getattr(self, name))
        if self.network == "gdfq" and self.embeddings == "classifier":
            raise ValueError("embeddings='classifier' are of the network of Qimera: set network='qimera'")

    @property
    def watches_student(self) -> bool:
        """Return whether the generator network learns from the student, too."""
        return self.disagreement + self.agreement + self.bounds > 0


def fine_tune_jointly(
    method: str, model: FloatModel, images: Tensor | None, settings: Settings, checkpoint: Path | None = None
) -> QuantizedModel:
    """Return a quantized copy of a network, fine-tuned on images that are made meanwhile; the model is not changed.

    Images (N, C, H, W), normalised, choose the ranges of tensors; None takes images of the generator network. With
    `checkpoint`, a file, a killed run continues to the same result.

    Raises:
        NoBatchNorm: the network has no batch norm that images reach.
        NotAClassifier: it is not a classifier.
        NoFeatures: it does not end in a linear layer, whose width the network of Qimera needs.
        FloatingPointError: the generator network or the student diverges. Saved states stay in their place.
        Others: as `fine_tuning.fine_tune`.
    """
    if images is not None:
        check_images(images, model)
    graph = prepared_graph(model, preparation_of(settings))
    check_classifier(graph)
    maker = _Maker(method, model, settings, device_of(graph))
    key = fingerprint({"method": method, "model": model.sha256(), "config": asdict(settings)})
    maker.warm_up(Checkpoint(checkpoint and checkpoints.stage(checkpoint, "generator"), key))
    if images is None:
        images = maker.calibration_images()
    return fine_tune(method, model, images, settings, checkpoint, source=maker)


class _Maker:
    """Makes the batches of the student; see `fine_tuning.Source`."""

    def __init__(self, method: str, model: FloatModel, settings: Settings, device: torch.device):
        self.model, self.settings, self.begins = model, settings, int(settings.warm_up * settings.steps)
        self.twin, net, layers = working(model, device)
        build = partial(_network, self.twin.image_shape, _embeddings(method, self.twin, net, settings), settings)
        self.maker = ClassMaker(
            net,
            layers,
            initialised(build, settings.seed, "joint", "network").to(device),
            superposed=settings.superposed,
            mixed_classes=settings.mixed_classes,
            rate=settings.maker_rate,
        )

    def warm_up(self, checkpoint: Checkpoint) -> None:
        """Train the generator network alone, for the steps before the student begins."""
        state = checkpoint.load() or {"done": 0, "maker": self.state_dict()}
        self.load_state_dict(state["maker"])
        with tqdm(total=self.begins, desc="generator", unit="step", leave=False, delay=3) as bar:
            bar.update(first := int(state["done"]))
            for step in range(first, self.begins):
                self._learn(step, None)
                checkpoint.save_when_due(lambda: {"done": step + 1, "maker": self.state_dict()})  # noqa: B023
                bar.update()
        checkpoint.save({"done": self.begins, "maker": self.state_dict()})

    @torch.no_grad()
    def calibration_images(self) -> Tensor:
        """Return the images (N, C, H, W) that choose the ranges of tensors."""
        settings, draws = self.settings, stream(self.settings.seed, "joint", "calibration")
        counts = [len(part) for part in torch.arange(settings.calibration_images).split(settings.batch_size)]
        made = torch.cat([self.maker.batch(count, draws)[0].cpu() for count in counts])
        return brought_over(made, self.twin, self.model)

    def minibatch(self, step: int, student: QuantizedModel) -> tuple[Tensor, Tensor]:
        """Return the images and class shares of a step, and train the generator network on them."""
        return self._learn(step, student)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator network and of its optimizer."""
        return {name: part.state_dict() for name, part in self.maker.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the content of `state_dict`."""
        for name, part in self.maker.parts.items():
            part.load_state_dict(state[name])

    def _learn(self, step: int, student: QuantizedModel | None) -> tuple[Tensor, Tensor]:
        """Train the generator network on a batch; return its images and their class shares."""
        settings = self.settings
        for group in self.maker.optimizer.param_groups:
            group["lr"] = settings.maker_rate * SCHEDULES[settings.schedule](step / settings.steps)
        made, targets = self.maker.batch(settings.batch_size, stream(settings.seed, "joint", "batch", step))
        images = brought_over(made, self.twin, self.model)
        wanted, distance = self.maker.judged(made)
        terms = {"class": settings.classes * F.cross_entropy(wanted, targets), "BNS": settings.statistics * distance}
        if settings.watches_student:
            terms |= adaptive_terms(wanted, wanted if student is None else student(images), targets, settings)
        loss = torch.stack(list(terms.values())).sum()
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of the generator network is {loss} at step {step}: lower maker_rate")
        self.maker.learn(loss)
        return images.detach(), targets


def adaptive_terms(wanted: Tensor, answer: Tensor, targets: Tensor, settings: Settings) -> Mapping[str, Tensor]:
    """Return the terms of AdaDFQ's generator network: from the logits (N, C) of float network and student.

    `targets` (N, C) are the class shares of the images.
    """
    apart, together = wanted - answer, wanted + answer
    entropy = torch.special.entr(apart.softmax(1)).sum(1)
    low, high = entropy.min(), math.log(answer.shape[1])
    share = (entropy - low) / (high - low).clamp(min=_SMALLEST)
    beyond = (settings.lower - share).relu() + (share - settings.upper).relu()
    return {
        "bounds": settings.bounds * beyond.mean(),
        "disagreement": settings.disagreement * F.cross_entropy(apart, targets),
        "agreement": settings.agreement * F.cross_entropy(together, targets),
    }


def _embeddings(method: str, twin: FloatModel, net: nn.Module, settings: Settings) -> Tensor:
    """Return the initial embeddings of the classes, (num_classes, latent size)."""
    draws = stream(settings.seed, "joint", "embeddings")
    if settings.network == "qimera":
        return first_embeddings(net, find_head(twin, net, method), settings.embeddings, draws)
    return torch.randn(number_of_classes(twin, net, method), _LATENT_SIZE, generator=draws)


def _network(image_shape: tuple[int, int, int], embeddings: Tensor, settings: Settings) -> ClassNetwork:
    kinds: dict[str, type[ClassNetwork]] = {"gdfq": GdfqNetwork, "qimera": QimeraNetwork}
    return kinds[settings.network](image_shape, embeddings, conditional=settings.conditional)
