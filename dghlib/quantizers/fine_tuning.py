"""Fine-tuning: a quantized network learns, as a whole, the outputs of the float network; without labels or data.

LSQ, GenQ's initialisation, IntraQ's second stage, AIT and SynQ share a loop; each of those modules is a set of defaults
for `Settings` and lists its differences from its authors' version. So do GDFQ, Qimera and AdaDFQ, which make the images
meanwhile (see `joint`). In every step

    1. a minibatch is drawn, or made, then mirrored, and cropped by some methods;
    2. the student, whose weights and tensors are rounded, and the teacher, the float network, process it;
    3. SGD updates the student's weights and biases, and for some methods the step sizes of its grids, along the
       negative gradient of the loss of `distillation`, with straight-through gradients for the rounding.

Student and teacher are graphs with folded batch norms, so their statistics do not change, and the scales and shifts of
batch norms are learned as parts of weights and biases. Statistics of synthetic images would spoil the student. Ranges
of tensors are chosen before, from all images, and are never measured again.
"""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from dghlib.choices import check_at_least, check_between, check_choice
from dghlib.images import low_pass, random_windows, resize_windows
from dghlib.models import FloatModel
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import check_images
from dghlib.quantizers.distillation import Lesson, Terms, check_classifier, distillation
from dghlib.quantizers.divergence import Diverged, Watch
from dghlib.quantizers.graph import device_of
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.inundation import inundate
from dghlib.quantizers.layers import QuantizedLayer, frozen
from dghlib.quantizers.learners import keep_positive
from dghlib.quantizers.learning_rates import RATES, best_rate, largest_stable_rate
from dghlib.quantizers.operations import LAYERS
from dghlib.quantizers.preparation import preparation_of, prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel
from dghlib.quantizers.starting import LearningSettings, checksum, nearest
from dghlib.quantizers.trainable import FixedRange, MinMaxWeight, TrainedStep, settle
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import fingerprint

log = logging.getLogger(__name__)

Answer = Callable[[Tensor], Tensor]  # of a network for images


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _quarters(done: float) -> float:
    return 0.1 ** math.floor(4 * done)


# The share of the rate that remains when a share of the steps, 0 to 1, is done.
SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "quarters": _quarters}
_MOMENTUM = 0.9
_TRIAL_STEPS = 20  # of the short runs that find a rate


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """The common settings of the methods of fine-tuning, and their differences; see also `starting.LearningSettings`.

    Args:
        learn_steps: whether the step sizes of all grids are learned, as in LSQ; otherwise those of weights follow the
            weights' extremes, those of tensors are fixed, and gradients pass grids unchanged.
        steps: minibatches.
        rate: SGD's learning rate at the start. Its product with `distillation` matters. None finds it by short
            runs, see `learning_rates`: the best one, or, for a given start, a tenth of the largest that is stable.
        weight_decay: of weights and biases; step sizes of grids have none.
        schedule: how the rate falls, "cosine" to zero, or "quarters", to 1/10 after each quarter of the steps.
        distillation, temperature: weight and temperature of T^2 KL(teacher || student).
        cross_entropy: weight of the cross-entropy with the class that an image was made for, or, for given images, with
            the class that the teacher assigns to it.
        easy: images count in it if the teacher's largest probability exceeds 1 - easy. 1 takes all.
        features: weight of HAST's alignment of the outputs of blocks.
        perturbation: how far every image is moved against the student's knowledge, in normalised values, for a second
            pass of each minibatch (HAST); 0 makes no second pass.
        maps: weight of SynQ's alignment of class activation maps.
        low_pass: radius of SynQ's Gaussian filter on the images, in periods per image; 0 for none.
        inundation: smallest share of a layer's weights whose codes change in a step (AIT); falls as the rate does.
        smallest_crop: smallest share of an image in a random crop; 1 for no crops. Students of small
            networks that learn from enlarged parts end farther from their teachers on whole images.
        flip: whether images are mirrored with probability 1/2.
    """

    placement: str = "relu_only"
    weight_search: str = "min_max"
    activation_search: str = "min_max"
    learn_steps: bool = False
    steps: int = 20_000
    rate: float | None = None
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    distillation: float = 1.0
    temperature: float = 20.0
    cross_entropy: float = 0.0
    easy: float = 1.0
    features: float = 0.0
    perturbation: float = 0.0
    maps: float = 0.0
    low_pass: float = 0.0
    inundation: float = 0.0
    smallest_crop: float = 1.0
    flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, "steps", self.steps)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_between(0.01, 1, "smallest_crop", self.smallest_crop)
        check_between(1e-3, math.inf, "temperature", self.temperature)
        for name in ("easy", "inundation"):
            check_between(0, 1, name, getattr(self, name))
        for name in (
            *("rate", "weight_decay", "distillation", "cross_entropy"),
            *("features", "perturbation", "maps", "low_pass"),
        ):
            if (value := getattr(self, name)) is not None:
                check_between(0, math.inf, name, value)
        if not self.learn_steps and self.weight_search != "min_max":
            raise ValueError(
                f"weight_search={self.weight_search!r} is for learned step sizes: set learn_steps=True, "
                "or weight_search='min_max'"
            )
        if self.inundation and self.learn_steps:
            raise ValueError("inundation counts codes on grids that follow the weights: set learn_steps=False")

    def terms(self) -> Terms:
        """Return the weights of the loss."""
        return Terms(**{field.name: getattr(self, field.name) for field in fields(Terms)})


class Source(Protocol):
    """Where minibatches come from.

    Attributes:
        begins: the step with which the student begins to learn.
    """

    begins: int

    def minibatch(self, step: int, student: QuantizedModel) -> tuple[Tensor, Tensor | None]:
        """Return the normalised images (N, C, H, W) of a step, and the class shares (N, classes) they were made for."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has changed since the start, for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the content of `state_dict`."""
        ...


def fine_tune(
    method: str,
    model: FloatModel,
    images: Tensor,
    settings: Settings,
    checkpoint: Path | None = None,
    start: QuantizedModel | None = None,
    source: Source | None = None,
) -> QuantizedModel:
    """Return a quantized copy of a network, fine-tuned on normalised images (N, C, H, W).

    Neither the model nor `start` is changed. `start` is a quantized copy from which the student takes its codes, step
    sizes and biases. With `source` the student learns from its images; ranges and reports are those of `images` all the
    same. With `checkpoint`, a file, a killed run continues to the same result.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network.
        TypeError, ValueError: images do not fit the model, or it assigns the same class to all; weights or tensors have
            NaN or Inf; the network does not return logits, or its outputs do not depend on the learned values.
        FloatingPointError: the student diverges; the message names the step and the rate. Saved states stay in their
            place.
    """
    images = check_images(images, model)
    if settings.low_pass:
        images = low_pass(images, settings.low_pass)
    about = {"model": model.name, "method": method, "config": asdict(settings)}
    about |= preparation_of(settings) if start is None else _preparation_of_start(start)
    teacher = prepared_graph(model, about)
    check_classifier(teacher)
    if source is None:
        _check_classes(teacher, images, settings.batch_size)
        source = _FixedImages(images, settings)
    student = nearest(model, images, settings, about) if start is None else _copy(start, model, about)
    key = fingerprint({"about": about, "images": float(images.double().sum()), "start": checksum(student)})
    fitted = start is not None
    return _FineTuning(teacher, student, images, settings, Checkpoint(checkpoint, key), source, fitted=fitted).run()


class _FixedImages:
    """Minibatches of a set of images (N, C, H, W), which do not depend on earlier draws; see `Source`."""

    begins = 0

    def __init__(self, images: Tensor, settings: Settings):
        self.images, self.settings = images, settings

    def minibatch(self, step: int, student: QuantizedModel) -> tuple[Tensor, None]:
        rows = rows_of(step, len(self.images), self.settings.batch_size, self.settings.seed)
        return self.images[rows.to(self.images.device)], None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _FineTuning:
    """A student that learns from its teacher; `run` does all steps. `fitted`: its start was fitted to the images."""

    def __init__(
        self,
        teacher: fx.GraphModule,
        student: QuantizedModel,
        images: Tensor,
        settings: Settings,
        checkpoint: Checkpoint,
        source: Source,
        *,
        fitted: bool,
    ):
        self.teacher, self.student, self.images, self.source = teacher, student, images, source
        self.settings, self.checkpoint, self.device = settings, checkpoint, device_of(teacher)
        self.rate, self.fitted = settings.rate, fitted
        self.layers = _prepare(student, settings.learn_steps)
        self.lesson = Lesson(student, teacher, settings.terms())
        self.scales, learned = _learned(student)
        decayed = {"params": learned, "weight_decay": settings.weight_decay}
        groups: list[dict[str, Any]] = [decayed, {"params": self.scales, "weight_decay": 0.0}]
        used = [group for group in groups if group["params"]]
        self.optimizer = (
            torch.optim.SGD(used, momentum=_MOMENTUM, nesterov=True) if used else None  # all in float
        )

    def run(self) -> QuantizedModel:
        before = mean_distillation(self.student, self.teacher, self.images, self.settings)
        self.watch = Watch(before, _ignorance(self.teacher, self.images, self.settings))
        if self.optimizer:
            self._learn_all()
        for layer in self.layers:
            settle(layer, layer.weight_quantizer)  # type: ignore[arg-type]
        tensors = self.student.activation_quantizers()
        self.student.set_activation_quantizers({name: tensor.harden() for name, tensor in tensors.items()})
        self.student.requires_grad_(False)
        if self.settings.integer_biases:
            round_biases(self.student)
        after = mean_distillation(self.student, self.teacher, self.images, self.settings)
        self.watch.check(after, self.settings.steps, self.rate)
        self.student.about["distillation"] = {"before": before, "after": after}
        self.student.about["rate"] = self.rate
        return self.student.eval()

    def _learn_all(self) -> None:
        """Do all steps. If the student diverges at a rate that was found, begin again with the next lower one."""
        start = copy.deepcopy(self._state(self.source.begins))
        first = self._resume()
        if self.rate is None and first < self.settings.steps:
            self.rate = self.found_rate()
        while True:
            try:
                return self._learn_from(first)
            except Diverged as error:
                lower = [rate for rate in RATES if self.rate and rate < self.rate]
                if self.settings.rate is not None or not lower:
                    raise
                log.info("%s: begin again with the rate %.2g", error, lower[0])
            first = self._restore_all({**start, "rate": lower[0]})

    def _learn_from(self, first: int) -> None:
        """Do the steps from this one on."""
        steps = self.settings.steps
        with tqdm(total=steps, initial=first, desc="fine-tuning", unit="step", leave=False, delay=3) as bar:
            for step in range(first, steps):
                self._learn(step, step / steps)
                self.checkpoint.save_when_due(partial(self._state, step + 1))
                bar.update()

    def found_rate(self) -> float:
        """Return the rate at which a short run, its schedule included, brings the student nearest to its teacher.

        If the start was fitted to the images, they cannot tell: every step takes the student away from its fit. Then
        the rate is a tenth of the largest one at which a short run does not diverge.

        Raises:
            FloatingPointError: the student diverges at all rates.
        """
        start, source, watch = copy.deepcopy(self._state(0)), self.source, self.watch
        self.source = _FixedImages(self.images, self.settings)

        def loss_after(rate: float) -> float:
            self.rate, self.watch = rate, Watch(watch.start, watch.ignorance)
            try:
                return self._short_run()
            finally:
                self._restore(start)

        found = 0.1 * largest_stable_rate(loss_after) if self.fitted else best_rate(loss_after)
        self.source, self.watch = source, watch
        return found

    def _short_run(self) -> float:
        """Return the distillation after a short run at the current rate, over the images of its minibatches."""
        count = min(len(self.images), _TRIAL_STEPS * self.settings.batch_size)
        for step in range(_TRIAL_STEPS):
            self._learn(step, step / _TRIAL_STEPS)
        return mean_distillation(self.student, self.teacher, self.images[:count], self.settings)

    def _learn(self, step: int, done: float) -> None:
        """Let the student learn from a minibatch, when a share of all steps is done: the loop of all methods."""
        settings, optimizer = self.settings, self.optimizer
        assert optimizer is not None
        assert self.rate is not None
        left = SCHEDULES[settings.schedule](done)
        for group in optimizer.param_groups:
            group["lr"] = self.rate * left
        images, targets = self._minibatch(step)
        optimizer.zero_grad()
        loss, distilled = self.lesson(images.requires_grad_(settings.perturbation > 0), targets)
        loss.backward()
        if images.grad is not None:
            moved = images.detach() + settings.perturbation * images.grad.sign()
            self.lesson(moved, targets, perturbed=True)[0].backward()
        self.watch.add(distilled.item(), step, self.rate)
        if step == self.source.begins:
            self._check_gradients(distilled.item())
        with inundate(self.layers, settings.inundation * left):
            optimizer.step()
        keep_positive(self.scales)

    def _minibatch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the images of a step, cropped and mirrored, and the class shares they were made for, if any."""
        settings = self.settings
        images, targets = self.source.minibatch(step, self.student)
        images = images.to(self.device)
        if settings.smallest_crop == 1 and not settings.flip:
            return images, targets
        draws = stream(settings.seed, "fine-tuning", "crops", step)
        windows = random_windows(len(images), images.shape[2:], settings.smallest_crop, draws)
        flips = torch.rand(len(images), generator=draws) < 0.5 * settings.flip
        return resize_windows(images, windows, flips).contiguous(memory_format=torch.channels_last), targets

    def _check_gradients(self, distilled: float) -> None:
        """Raise ValueError if no learned value has a gradient although the student differs from its teacher."""
        values = [value for group in self.optimizer.param_groups for value in group["params"]]  # type: ignore[union-attr]
        if distilled > 0 and not any(value.grad is not None and value.grad.any() for value in values):
            raise ValueError(
                "the loss does not depend on the learned values, its gradient is zero everywhere: all weights of the "
                "loss may be 0, or the network may end in an operation without a gradient"
            )

    def _state(self, done: int) -> dict[str, Any]:
        assert self.optimizer is not None
        return {
            "done": done,
            "rate": self.rate,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "source": self.source.state_dict(),
            "watch": vars(self.watch),
        }

    def _resume(self) -> int:
        """Restore the content of a checkpoint; return the number of completed steps."""
        state = self.checkpoint.load()
        return self.source.begins if state is None else self._restore_all(state)

    def _restore_all(self, state: dict[str, Any]) -> int:
        """Restore a state of `_state`; return its number of completed steps."""
        self.rate = state.get("rate", self.rate)  # older checkpoints have none
        self._restore(state)
        self.source.load_state_dict(copy.deepcopy(state["source"]))
        vars(self.watch).update(state["watch"])
        return int(state["done"])

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore the student and its optimizer."""
        assert self.optimizer is not None
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])


def rows_of(step: int, count: int, batch_size: int, seed: int) -> Tensor:
    """Return the indices of the images in the minibatch of a step: each image comes once before any comes again."""
    size = min(batch_size, count)
    epoch, first = divmod(step * size, count)
    orders = [torch.randperm(count, generator=stream(seed, "fine-tuning", "order", epoch + k)) for k in (0, 1)]
    return torch.cat(orders)[first : first + size]


@torch.no_grad()
def mean_distillation(student: Answer, teacher: nn.Module, images: Tensor, settings: Settings) -> float:
    """Return the distance of outputs of student and teacher: the distillation over all images, unweighted."""
    total, device = 0.0, device_of(teacher)
    for batch in images.split(settings.batch_size):
        batch = batch.to(device)
        total += len(batch) * distillation(student(batch), teacher(batch), settings.temperature).item()
    return total / len(images)


def _ignorance(teacher: nn.Module, images: Tensor, settings: Settings) -> float:
    """Return the distillation of a student with the same logit for all classes."""
    return mean_distillation(lambda batch: torch.zeros_like(teacher(batch)), teacher, images, settings)


@torch.no_grad()
def _check_classes(teacher: nn.Module, images: Tensor, batch_size: int) -> None:
    device = device_of(teacher)
    classes = {int(label) for batch in images.split(batch_size) for label in teacher(batch.to(device)).argmax(1)}
    if len(classes) == 1:
        raise ValueError(
            f"the network takes all {len(images)} images for class {classes.pop()}: a student that learns from them "
            "forgets the other classes. Take more images, or those of another source"
        )


def _preparation_of_start(start: QuantizedModel) -> dict[str, Any]:
    """Return the preparation of a quantized copy from its facts."""
    return {key: value for key, value in getattr(start, "about", {}).items() if key == "preparation"}


def _copy(start: QuantizedModel, model: FloatModel, about: dict[str, Any]) -> QuantizedModel:
    """Return a copy of a quantized network with the facts `about` it.

    Raises:
        TypeError: it is not quantized.
        ValueError: it is a copy of another network.
    """
    if not isinstance(start, QuantizedModel):
        raise TypeError(f"fine-tuning starts from the QuantizedModel of a quantizer, got {type(start).__name__}")
    if start.about.get("model") != model.name:
        raise ValueError(f"the start is {start.about.get('model')!r} quantized, it should be {model.name!r}")
    student = copy.deepcopy(start)
    student.about = about
    for layer in _quantized_layers(student):
        layer.layer.weight = frozen(layer.quantized_weight())  # the start; a code changes after half a step
    return student


def _quantized_layers(student: QuantizedModel) -> list[QuantizedLayer]:
    return [module for module in student.modules() if isinstance(module, QuantizedLayer)]


def _prepare(student: QuantizedModel, learn_steps: bool) -> list[QuantizedLayer]:
    """Replace quantizers by those that train; return the layers that have one."""
    layers = _quantized_layers(student)
    for layer in layers:
        grid = layer.weight_quantizer
        assert isinstance(grid, UniformQuantizer)
        layer.weight_quantizer = TrainedStep(grid) if learn_steps else MinMaxWeight(layer.layer, grid.bits)
    tensors = student.activation_quantizers()
    student.set_activation_quantizers(
        {name: TrainedStep(grid) if learn_steps else FixedRange(grid) for name, grid in tensors.items()}
    )
    return layers


def _learned(student: QuantizedModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Enable gradients of the learned values; return (step sizes of grids, weights and biases)."""
    modules = list(student.modules())
    scales = [module.scale for module in modules if isinstance(module, TrainedStep)]
    layers = [module for module in modules if isinstance(module, LAYERS)]
    values: list[Any] = [value for layer in layers for value in (layer.weight, layer.bias) if value is not None]
    learned = list({id(value): value for value in values}.values())  # layers may share a weight
    for value in (*scales, *learned):
        value.requires_grad_()
    return scales, learned
