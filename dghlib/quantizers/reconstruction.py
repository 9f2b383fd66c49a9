"""Reconstruction: a network learns, unit by unit, how to round such that each unit keeps its float outputs.

AdaRound, BRECQ, QDrop and GENIE-M share a loop; each of those modules is a set of defaults for `Settings` and lists its
differences from its authors' version. For every unit of the network, in order:

    1. keep the inputs and outputs of the unit for all calibration images, in float and in the network quantized so far;
    2. minimise |quantized unit (x) - float unit (x)|^2, summed over channels, plus lambda times the penalty that
       drives every weight to be rounded up or down, over minibatches of these tensors;
    3. decide every rounding, and continue with the next unit.

Step sizes of activations are fixed, learned with the weights, or learned after them in a second sweep.
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from dghlib.choices import check_at_least, check_choice
from dghlib.models import FloatModel
from dghlib.quantizers.biases import round_biases
from dghlib.quantizers.calibration import check_images, observe
from dghlib.quantizers.graph import device_of
from dghlib.quantizers.layers import QuantizedLayer
from dghlib.quantizers.learners import LearnedRounding, LearnedStep, keep_positive
from dghlib.quantizers.preparation import preparation_of, prepared_graph
from dghlib.quantizers.quantized_model import QuantizedModel, quantized_node, quantizer_path
from dghlib.quantizers.scale_search import activation_grid
from dghlib.quantizers.starting import LearningSettings, checksum, nearest
from dghlib.quantizers.unit_data import STORES, Frontier, UnitData, output_importance, relative_error, unit_error
from dghlib.quantizers.units import KINDS_OF_UNIT, Unit, piece_of, units_of
from dghlib.seeds import derived_seed, stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import added_later, fingerprint

INPUTS = ("float", "quantized", "mixed")
QUICK = 200  # iterations per unit, those of the book's pages on public networks
_WARM_UP = 0.2  # share of the steps without the penalty
_BETA = (20.0, 2.0)  # of the penalty, at its start and at the end
_FASTEST = 0.01  # largest relative change of a weight's step size in an iteration; at 8 bits a step size is about 0.001


Chosen = TypeVar("Chosen", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """The common settings of the reconstruction methods, and their differences; see also `starting.LearningSettings`.

    Args:
        unit: the part of the network that is learned at once, "layer" or "block".
        iterations: steps per unit, with minibatches of `batch_size` images.
        rounding_rate: Adam's learning rate for the roundings.
        rounding_epsilon: what Adam adds to the root of the mean squared gradient of a rounding. Gradients are 1e-6 to
            1e-3, so with the usual 1e-8 all weights take steps of the same size, and differences in the last bits of
            sums grow into other codes; with 1e-4 steps fall with gradients, and fewer codes differ.
        penalty: lambda, the weight of the rounding penalty.
        cosine: whether the penalty's beta falls along a cosine, rather than linearly.
        scale_rate: learning rate of the weights' step sizes, 0 for fixed; falls to 0 along a cosine.
        step_rate: learning rate of the activations' step sizes, 0 for fixed; falls to 0 along a cosine.
        step_iterations: steps per unit of a second sweep that learns the activations' step sizes after all weights,
            from the unit's float input; 0 learns them together with the weights.
        scaled_gradient: whether the gradients of activations' step sizes are scaled as in LSQ.
        inputs: the inputs of units while they learn: "float", "quantized" (those of the network quantized so far), or
            "mixed", each value float with probability `keep_float`.
        keep_float: see `inputs`; also for activations inside the unit (QDrop).
        fisher: whether errors are weighted by the squared gradient of the network's loss, estimated once per unit.
        store: where inputs and targets of a unit are kept: the network's "device", "cpu", or memory-mapped on "disk".
    """

    unit: str = "block"
    iterations: int = 20_000
    rounding_rate: float = 1e-3
    rounding_epsilon: float = added_later(1e-8)
    penalty: float = 0.01
    cosine: bool = False
    scale_rate: float = 0.0
    step_rate: float = 0.0
    step_iterations: int = 0
    scaled_gradient: bool = False
    inputs: str = "quantized"
    keep_float: float = 0.0
    fisher: bool = False
    store: str = "device"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("unit", self.unit, KINDS_OF_UNIT)
        check_choice("inputs", self.inputs, INPUTS)
        check_choice("store", self.store, STORES)
        check_at_least(1, "iterations", self.iterations)
        check_at_least(0, "step_iterations", self.step_iterations)
        if not 0 <= self.keep_float <= 1:
            raise ValueError(f"keep_float is a probability, 0 to 1, got {self.keep_float}")
        for name in ("rounding_rate", "rounding_epsilon", "penalty", "scale_rate", "step_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be zero or positive, got {getattr(self, name)}")
        if self.fisher and self.unit != "block":
            raise ValueError("fisher needs unit='block': what follows a block has one input, the block's output")


def shortened(settings: Chosen, iterations: int) -> Chosen:
    """Return a method's settings with this number of iterations for each unit.

    With fewer steps the rates are larger: a rounding variable has to travel the same distance, so its rate grows in
    inverse proportion to the steps; the rates of step sizes, which travel less far, grow by the square root of that.
    """
    shortening = settings.iterations / iterations
    return replace(
        settings,
        iterations=iterations,
        step_iterations=math.ceil(settings.step_iterations / shortening),
        rounding_rate=settings.rounding_rate * shortening,
        scale_rate=settings.scale_rate * math.sqrt(shortening),
        step_rate=settings.step_rate * math.sqrt(shortening),
    )


def presets(settings: Chosen) -> dict[str, Chosen]:
    """Return a method's settings by name: "default" as published (an hour or more), and "quick" (minutes)."""
    return {"default": settings, "quick": shortened(settings, QUICK)}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A pass over all units, and the values that it learns.

    Args:
        weights, steps: whether roundings (with weights' step sizes if `scale_rate` is not 0) and activations' step
            sizes are learned.
        iterations: per unit.
        inputs: the inputs of units.
        power: of the error.
    """

    weights: bool
    steps: bool
    iterations: int
    inputs: str
    power: float = 2.0

    @property
    def learned(self) -> str:
        """Return the learned values in words."""
        return " and ".join(name for name in ("weights", "steps") if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class UnitError:
    """The error of a unit's output relative to the energy of the float output, before and after learning."""

    unit: str
    learned: str
    before: float
    after: float


def sweeps_of(settings: Settings) -> list[Sweep]:
    """Return the sweeps of a method: one, or a second for the activations' step sizes (BRECQ)."""
    together = settings.step_rate > 0 and settings.step_iterations == 0
    sweeps = [Sweep(weights=True, steps=together, iterations=settings.iterations, inputs=settings.inputs)]
    if settings.step_rate > 0 and not together:
        afterwards = settings.step_iterations
        sweeps.append(Sweep(weights=False, steps=True, iterations=afterwards, inputs="float", power=2.4))
    return sweeps


def reconstruct(
    method: str, model: FloatModel, images: Tensor, settings: Settings, checkpoint: Path | None = None
) -> QuantizedModel:
    """Return a quantized copy of a network, reconstructed on normalised images (N, C, H, W).

    The model is not changed. With `checkpoint`, a file, a killed run continues after the last completed unit, to the
    same result; the file is kept until the caller, who has the result on the disk, deletes it.

    Raises:
        UntraceableNetwork: torch.fx cannot follow the network.
        TypeError, ValueError: images that do not fit the model, weights or tensors with NaN or Inf.
    """
    images = check_images(images, model)
    about = {"model": model.name, "method": method, "config": asdict(settings), **preparation_of(settings)}
    student = nearest(model, images, settings, about)
    key = fingerprint({"about": about, "images": float(images.double().sum()), "nearest": checksum(student)})
    return _Reconstruction(model, student, images, settings, Checkpoint(checkpoint, key, seconds=0)).run()


def learn(
    piece: nn.Module,
    roundings: Collection[LearnedRounding],
    steps: Collection[LearnedStep],
    data: UnitData,
    sweep: Sweep,
    settings: Settings,
    bar: tqdm,
) -> None:
    """Update roundings and step sizes so that `piece` has the outputs of the float unit: the loop of all methods."""
    scales = [rounding.scale for rounding in roundings if rounding.scale.requires_grad]
    optimizer, schedule = _optimizer(roundings, scales, steps, sweep.iterations, settings)
    for step, (inputs, targets, weights) in zip(range(sweep.iterations), data.minibatches(), strict=False):
        error = unit_error(piece(inputs), targets, sweep.power, weights)
        loss = error
        if roundings and step >= _WARM_UP * sweep.iterations:
            strictness = beta(step, sweep.iterations, settings.cosine)
            loss = error + settings.penalty * sum(rounding.penalty(strictness) for rounding in roundings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        keep_positive(scales + [step.scale for step in steps])
        bar.update()


def _optimizer(
    roundings: Collection[LearnedRounding],
    scales: list[nn.Parameter],
    steps: Collection[LearnedStep],
    iterations: int,
    settings: Settings,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return Adam and its schedule: a constant rate for roundings, and for step sizes a cosine that falls to 0."""

    def falling(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / iterations))

    groups = [
        ([rounding.logits for rounding in roundings], settings.rounding_rate, lambda step: 1.0),
        *(([scale], min(settings.scale_rate, _FASTEST * scale.median().item()), falling) for scale in scales),
        ([step.scale for step in steps], settings.step_rate, falling),
    ]
    used = [group for group in groups if group[0]]
    optimizer = torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate, _ in used])
    if roundings:
        optimizer.param_groups[0]["eps"] = settings.rounding_epsilon
    return optimizer, LambdaLR(optimizer, [rule for _, _, rule in used])


def beta(step: int, iterations: int, cosine: bool) -> float:
    """Return the exponent of the rounding penalty: from 20 to 2 after the warm-up."""
    first, last = _BETA
    done = (step / iterations - _WARM_UP) / (1 - _WARM_UP)
    left = 0.5 * (1 + math.cos(math.pi * done)) if cosine else 1 - done
    return last + (first - last) * left


class _Reconstruction:
    """A student that learns from its teacher, the float network, unit by unit; `run` does all units."""

    def __init__(
        self, model: FloatModel, student: QuantizedModel, images: Tensor, settings: Settings, checkpoint: Checkpoint
    ):
        self.teacher, self.student = prepared_graph(model, student.about), student
        self.images, self.settings, self.checkpoint = images, settings, checkpoint
        self.units = units_of(self.teacher, settings.unit)
        self.device = device_of(self.teacher)

    def run(self) -> QuantizedModel:
        tasks = [(sweep, unit) for sweep in sweeps_of(self.settings) for unit in self.units]
        state = self.checkpoint.load() or {"done": 0, "errors": []}
        if state["done"]:
            self.student.load_state_dict(state["student"])
        errors = state["errors"]
        total = sum(sweep.iterations for sweep, _ in tasks)
        with tqdm(total=total, desc="reconstruction", unit="step", leave=False, delay=3) as bar:
            for number, (sweep, unit) in enumerate(tasks):
                if unit is self.units[0]:
                    self._set_out(sweep)
                if number < state["done"]:
                    bar.update(sweep.iterations)
                    continue
                errors += [asdict(error) for error in self._teach(unit, sweep, bar)]
                if unit is self.units[-1] and not sweep.steps:
                    self._measure_activations()
                self.checkpoint.save({"done": number + 1, "errors": errors, "student": self.student.state_dict()})
        if self.settings.integer_biases:
            round_biases(self.student)
        self.student.about["units"] = errors
        return self.student.eval()

    def _set_out(self, sweep: Sweep) -> None:
        """Start at the images; while only weights learn, activations stay in float."""
        store, batch_size = self.settings.store, self.settings.batch_size
        self.graph = self.student.graph if sweep.steps else self.student.without_activation_quantizers()
        self.float_front = Frontier(self.teacher, self.images, store, batch_size)
        self.front = Frontier(self.graph, self.images, store, batch_size)

    def _measure_activations(self) -> None:
        """Find the activations' grids again, after weights have their final values."""
        quantizers = self.student.activation_quantizers()
        seen = observe(self.graph, quantizers, self.images, self.settings.batch_size).histograms
        search = self.settings.activation_search
        grids = {name: activation_grid(seen[name], old.bits, search) for name, old in quantizers.items()}
        self.student.set_activation_quantizers(grids)

    def _teach(self, unit: Unit, sweep: Sweep, bar: tqdm) -> list[UnitError]:
        """Let the student learn a unit; return its error before and after, if the unit can learn at all."""
        bar.set_postfix_str(unit.name, refresh=False)  # otherwise it is shown at once, and not cleared at an error
        purpose = ("reconstruction", unit.name, sweep.learned)
        coins = torch.Generator(self.device).manual_seed(derived_seed(self.settings.seed, *purpose, "coins"))
        roundings = self._roundings(unit) if sweep.weights else {}
        steps = self._steps(unit, coins) if sweep.steps else {}
        if not roundings and not steps:
            bar.update(sweep.iterations)
            return []
        data = self._data(unit, sweep, stream(self.settings.seed, *purpose), coins)
        before = relative_error(self._piece(unit), data)
        for layer, rounding in roundings.items():
            layer.weight_quantizer = rounding
        self.student.set_activation_quantizers(steps)
        learn(self._piece(unit), roundings.values(), steps.values(), data, sweep, self.settings, bar)
        for layer, rounding in roundings.items():
            rounding.harden(layer)
        self.student.set_activation_quantizers({name: step.harden() for name, step in steps.items()})
        after = relative_error(self._piece(unit), data)
        return [UnitError(unit=unit.name, learned=sweep.learned, before=before, after=after)]

    def _piece(self, unit: Unit) -> fx.GraphModule:
        return piece_of(self.graph, quantized_node(self.graph, unit.entry), quantized_node(self.graph, unit.exit))

    def _roundings(self, unit: Unit) -> dict[QuantizedLayer, LearnedRounding]:
        grids = self.student.weight_quantizers()
        return {
            layer: LearnedRounding(grids[path], layer.layer.weight, self.settings.scale_rate > 0)
            for path in unit.layers
            if isinstance(layer := self.graph.get_submodule(path), QuantizedLayer)
        }

    def _steps(self, unit: Unit, coins: torch.Generator) -> dict[str, LearnedStep]:
        inside = {node.target for node in self._piece(unit).graph.nodes}
        return {
            name: LearnedStep(quantizer, self.settings.scaled_gradient, self.settings.keep_float, coins)
            for name, quantizer in self.student.activation_quantizers().items()
            if quantizer_path(name) in inside
        }

    def _data(self, unit: Unit, sweep: Sweep, generator: torch.Generator, coins: torch.Generator) -> UnitData:
        nodes = {node.name: node for node in self.teacher.graph.nodes}
        float_inputs = None if sweep.inputs == "quantized" else self.float_front.at(nodes[unit.entry])
        inputs = None if sweep.inputs == "float" else self.front.at(quantized_node(self.graph, unit.entry))
        data = UnitData(
            float_inputs=float_inputs,
            inputs=inputs,
            targets=self.float_front.at(nodes[unit.exit]),
            keep_float=self.settings.keep_float,
            generator=generator,
            coins=coins,
            device=self.device,
            batch_size=self.settings.batch_size,
        )
        if self.settings.fisher and sweep.weights:
            (end,) = (node for node in self.teacher.graph.nodes if node.op == "output")
            rest = piece_of(self.teacher, nodes[unit.exit], end.all_input_nodes[0])
            data.importance = output_importance(self._piece(unit), rest, data)
        return data
