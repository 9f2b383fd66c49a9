"""Plans: which runs a table or a figure is made of.

A plan is a function that returns a list of experiments, or of observations. Both are data; `run.run` computes those
that have no record yet. Plans overlap freely: a run that two plans share is computed once.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dghlib.choices import check_at_least, check_choice, look_up
from dghlib.datasets import ANNOTATED
from dghlib.experiments.profiles import BUDGETS, PROFILES, Budget
from dghlib.generators import FOR_TRANSFORMERS, GENERATORS
from dghlib.generators.pipelines import EMBEDDED as PIPELINES
from dghlib.quantizers import QUANTIZERS
from dghlib.quantizers.reconstruction import Settings
from dghlib.records import plain

REAL = "real"
FLOAT = "float"
SOURCES = ("noise", "zeroq", "dgh", REAL)
PAPER_SOURCES = ("zeroq", "intraq", "genie_d", "dgh", REAL)  # the rows of DGH's tables
DETECTION_SOURCES = ("noise", "zeroq", "genie_d", "dgh", REAL)  # those that need no classes


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Calibration with a random part of the training set."""

    num_images: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of one source.

    Attributes:
        source: "real" or the name of a generator; `config` is its Config.
        student: a network that DeepInversion's images compete with, None for none.
    """

    source: str
    config: Any
    student: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One network, calibrated with one set of images, quantized one way and tested; or tested as it is.

    Attributes:
        profile, model: names in `PROFILES` and of one of its networks.
        source: where the images come from, "real" or the name of a generator; `source_config` is its Config.
        quantizer: a quantizer's name, or "float" for none; `quantizer_config` is its Config.
        test_images: size of the test set, None for all.
        images_of: the network that the images are made from, None for the one that is quantized.
    """

    profile: str
    model: str
    source: str | None = None
    source_config: Any = None
    quantizer: str = FLOAT
    quantizer_config: Any = None
    test_images: int | None = None
    images_of: str | None = None

    @property
    def maker(self) -> str:
        """Name the network that the images are made from."""
        return self.images_of or self.model

    @property
    def images(self) -> ImageSet:
        """Return the images that the network is calibrated with."""
        return ImageSet(source=self.source or "", config=self.source_config)

    @property
    def title(self) -> str:
        """Name the experiment in a few words, for progress bars and errors."""
        if self.quantizer == FLOAT:
            return f"{self.model} float"
        config, images = self.quantizer_config, self.source_config
        changed = changed_settings(self.quantizer, plain(config)) | changed_settings(self.source or "", plain(images))
        settings = "".join(f", {name} = {value}" for name, value in changed.items())
        of_another = f" of {self.images_of}" if self.images_of else ""
        return (
            f"{self.model} {self.quantizer} W{config.weight_bits}A{config.activation_bits} {config.bits}, "
            f"{images.num_images} {self.source}{of_another}{settings}, seed {images.seed}"
        )

    @property
    def seed(self) -> int:
        """Say which repetition it belongs to."""
        return self.source_config.seed if self.source else 0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one network shows of some sets of images, which are made from it, too.

    Attributes:
        profile, model: names in `PROFILES` and of one of its networks.
        look: what is measured, a name in `looks.LOOKS`.
        sets: (title, images), in order.
        seed: which repetition it is; the images have seeds of their own.
        settings: (name, value) of the look's own, in order.
    """

    profile: str
    model: str
    look: str
    sets: tuple[tuple[str, ImageSet], ...]
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """Name the observation in a few words, for progress bars and errors."""
        return f"{self.model} {self.look} of {len(self.sets)} sets of images seed {self.seed}"


Run = Experiment | Observation  # what has a record

# What a budget, a width and a repetition set; other settings make a run one of an ablation.
_SET_BY_BUDGET = {"num_images", "batch_size", "steps", "seed"}
_SET_BY_WIDTH = {"weight_bits", "activation_bits", "bits", "seed", "batch_size"}
_SHORTENED = {"iterations", "step_iterations", "rounding_rate", "scale_rate", "step_rate"}


def changed_settings(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a generator or quantizer that differ from its published ones: of real images, none."""
    if method in GENERATORS:
        default, usual = plain(GENERATORS[method].PRESETS["default"]), _SET_BY_BUDGET
    elif method in QUANTIZERS:
        default, usual = plain(QUANTIZERS[method].Config()), _SET_BY_WIDTH | _SHORTENED
    else:
        return {}
    return {name: value for name, value in config.items() if name not in usual and default.get(name) != value}


def table2(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W8A8", "W4A8", "W4A4"),
    sources: Sequence[str] = ("noise", *PAPER_SOURCES),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return DGH's Table 2: every network of a profile, HPTQ with every tensor quantized, images of every source.

    The paper prints W8A8; lower widths tell the sources further apart. `seeds` and `models` default to the budget's
    and to all of the profile.
    """
    spend = look_up(BUDGETS, budget, "budget")
    experiments = []
    for model in networks_of(profile, models):
        experiments.append(Experiment(profile=profile, model=model, test_images=spend.test_images))
        for seed in repetitions(spend, seeds):
            for source in sources:
                config = source_config(source, spend, seed)
                experiments += [calibrated(profile, model, source, config, width, spend) for width in bits]
    return experiments


def sources(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return `table2` with every source of images that there is for the profile."""
    return table2(profile, budget, sources=every_source(profile), seeds=seeds, models=models)


def table3(
    profile: str = "shapes_detection",
    budget: str = "quick",
    *,
    quantized: Mapping[str, str] = MappingProxyType({"hptq": "W8A8", "adaround": "W4A8"}),
    sources: Sequence[str] = DETECTION_SOURCES,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return DGH's Table 3: every detector of a profile, quantized with 32 images of every source.

    The paper prints AdaRound at W4A8; HPTQ at W8A8 is ours. Seeds come first, so that a run that is stopped has whole
    repetitions; in each the quantizer that does not learn, and is quick, comes first.

    Raises:
        UnknownName: the profile has no detectors.
    """
    look_up(ANNOTATED, profile, "profile with detectors")
    spend = detection_budget(budget)
    names = networks_of(profile, models)
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    for seed, (method, width) in itertools.product(repetitions(spend, seeds), quantized.items()):
        for model, source in itertools.product(names, sources):
            config = source_config(source, spend, seed)
            experiments.append(calibrated(profile, model, source, config, width, spend, method))
    return experiments


def networks_of(profile: str, chosen: Sequence[str] | None) -> list[str]:
    """Return the chosen networks of a profile, all of them for None.

    Raises:
        UnknownName: there is no such profile.
        ValueError: one of them is none of its networks.
    """
    known = look_up(PROFILES, profile, "profile").models
    for name in chosen or ():
        check_choice("model", name, known)
    return list(chosen or known)


def repetitions(budget: Budget, seeds: int | None) -> range:
    """Return the seeds of so many repetitions, those of the budget for None."""
    if seeds is not None:
        check_at_least(0, "seeds", seeds)
    return range(budget.seeds if seeds is None else seeds)


def detection_budget(name: str) -> Budget:
    """Return a budget for detectors: at most 32 images to calibrate with, as in the paper; tests take a few hundred."""
    spend = look_up(BUDGETS, name, "budget")
    test_images = None if spend.test_images is None else min(spend.test_images, 256)
    return dataclasses.replace(spend, num_images=min(spend.num_images, 32), test_images=test_images)


def calibrated(
    profile: str,
    model: str,
    source: str,
    config: Any,
    width: str,
    budget: Budget,
    quantizer: str = "hptq",
    **settings: Any,
) -> Experiment:
    """Return a network quantized to a width such as "W4A8" with images of a source, by HPTQ or another method.

    A method that learns draws its batches with the seed of the images.
    """
    chosen = quantizer_config(quantizer, width, budget, **settings)
    if isinstance(chosen, Settings):
        chosen = dataclasses.replace(chosen, seed=config.seed)
    return Experiment(
        profile=profile,
        model=model,
        source=source,
        source_config=config,
        quantizer=quantizer,
        quantizer_config=chosen,
        test_images=budget.test_images,
    )


def every_source(profile: str) -> tuple[str, ...]:
    """Return all sources of images for the networks of a profile, which have batch norm.

    GenQ is one of them where a pipeline for the classes of the profile ships with the package.
    """
    unfit = FOR_TRANSFORMERS if drawn_sources(profile) else (*FOR_TRANSFORMERS, "genq")
    return (*(name for name in GENERATORS if name not in unfit), REAL)


def drawn_sources(profile: str) -> tuple[str, ...]:
    """Return ("genq",) for a profile whose diffusion pipeline ships with the package, else nothing."""
    return ("genq",) if profile in PIPELINES and PIPELINES[profile].is_dir() else ()


def source_config(source: str, budget: Budget, seed: int, **settings: Any) -> Any:
    """Return the Config of a source at a budget: its published settings with the budget's images and steps."""
    if source == REAL:
        return RealImages(num_images=budget.num_images, seed=seed)
    default = look_up(GENERATORS, source, "source of images").PRESETS["default"]
    names = {field.name for field in dataclasses.fields(default)}
    batch_size = budget.batch_size
    if source == "intraq":  # keeps images away from those of earlier batches: a set needs several
        batch_size = min(batch_size, max(1, budget.num_images // 4))
    spend = {"num_images": budget.num_images, "steps": budget.steps, "batch_size": batch_size}
    if source == "genq":  # its steps are those of the pipeline, whose number the pipeline asks for
        spend["denoising_steps"] = min(default.denoising_steps, budget.steps)
    wanted = {name: value for name, value in spend.items() if name in names}
    return dataclasses.replace(default, **wanted, seed=seed, **settings)


def quantizer_config(method: str, width: str, budget: Budget, **settings: Any) -> Any:
    """Return the Config of a quantizer for a width such as "W4A8": its published settings with the budget's steps.

    Fewer steps get larger rates: a rounding has the same way to go, so its rate grows as the steps become fewer; the
    rates of grids' steps, which have less far to go, grow by the square root of that.
    """
    weight_bits, activation_bits = parse_bits(width)
    config = look_up(QUANTIZERS, method, "quantizer").Config(weight_bits=weight_bits, activation_bits=activation_bits)
    if isinstance(config, Settings):
        shortening = config.iterations / budget.iterations
        config = dataclasses.replace(
            config,
            iterations=budget.iterations,
            step_iterations=math.ceil(config.step_iterations / shortening),
            rounding_rate=config.rounding_rate * shortening,
            scale_rate=config.scale_rate * math.sqrt(shortening),
            step_rate=config.step_rate * math.sqrt(shortening),
        )
    return dataclasses.replace(config, **settings)


def parse_bits(bits: str) -> tuple[int, int]:
    """Return (weight bits, activation bits) of "W4A8".

    Raises:
        ValueError: it is not of that form.
    """
    weights, _, activations = bits.upper().removeprefix("W").partition("A")
    if not (bits.upper().startswith("W") and weights.isdecimal() and activations.isdecimal()):
        raise ValueError(f"bits must look like W8A8 or W4A8, got {bits!r}")
    return int(weights), int(activations)


# One change each: what the paper leaves open, and what it prints otherwise than its code. Lambda was settled last
# (`output_weights`); until then it was ten times what it is now.
DGH_BEFORE: dict[str, Any] = {"output_weight": 1e-4}
DGH_VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"output_stretching": False},
    {"output_weight": 1e-5},
    {"output_weight": 1e-3},
    {"output_power": 2, "output_weight": 1e-6},
    {"output_power": 2, "output_weight": 1e-5},
    {"slack": None},
    {"slack": 0.01},
    {"clip": False},
    {"match_pixels": True},
    {"augmentation": "batch"},
    {"second_forward": True},
    {"spread": "variance"},
    {"reduction": "sum", "output_weight": 1e-2},
)


def dgh_settings(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W8A8", "W4A4"),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the experiment that settled DGH's defaults but lambda: each of `DGH_VARIANTS`, real images.

    The sum over channels and layers is larger than their mean by about a hundred, and so is lambda there.
    """
    spend = look_up(BUDGETS, budget, "budget")
    experiments = table2(profile, budget, bits=bits, sources=[REAL], seeds=seeds, models=models)
    for model in networks_of(profile, models):
        for seed in repetitions(spend, seeds):
            for settings in DGH_VARIANTS:
                config = source_config("dgh", spend, seed, **(DGH_BEFORE | settings))
                experiments += [calibrated(profile, model, "dgh", config, width, spend) for width in bits]
    return experiments


# Candidates for lambda, from the widest outputs to none that are asked for.
OUTPUT_WEIGHTS: tuple[dict[str, Any], ...] = (
    {"output_weight": 1e-4},
    {"output_weight": 3e-5},
    {"output_weight": 1e-5},
    {"output_stretching": False},
)


def output_weights(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the experiment that settled DGH's lambda: images of each candidate, and real ones, everything quantized.

    HPTQ at W4A4 chooses ranges alone, BRECQ at W2A4 learns from the images.
    """
    spend = look_up(BUDGETS, budget, "budget")
    variants = [*(("dgh", settings) for settings in OUTPUT_WEIGHTS), (REAL, {})]
    ranged = of_variants(profile, spend, variants, ["W4A4"], seeds, models, "hptq")
    learned = of_variants(profile, spend, variants, ["W2A4"], seeds, models, "brecq")
    return list(dict.fromkeys(ranged + learned))


def of_variants(
    profile: str,
    budget: Budget,
    variants: Iterable[tuple[str, dict[str, Any]]],
    bits: Sequence[str],
    seeds: int | None,
    models: Sequence[str] | None,
    quantizer: str = "brecq",
    policy: str = "full",
    **settings: Any,
) -> list[Experiment]:
    """Return one quantizer on images of (source, its settings), and the networks as they are."""
    names = networks_of(profile, models)
    experiments = [Experiment(profile=profile, model=model, test_images=budget.test_images) for model in names]
    every = itertools.product(repetitions(budget, seeds), names, variants, bits)
    for seed, model, (source, changed), width in every:
        config = source_config(source, budget, seed, **changed)
        experiments.append(
            calibrated(profile, model, source, config, width, budget, quantizer, bits=policy, **settings)
        )
    return experiments


def quantizers(
    profile: str = "cifar10",
    budget: str = "standard",
    *,
    bits: Sequence[str] = ("W4A4", "W2A4"),
    methods: Sequence[str] = tuple(QUANTIZERS),
    policies: Sequence[str] = ("full", "academic"),
    sources: Sequence[str] = ("dgh", REAL),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
    **settings: Any,
) -> list[Experiment]:
    """Return every quantizer on every network of a profile, with everything quantized and with the ends spared.

    Seeds come first, so that a run that is stopped has whole repetitions. `settings` are of the quantizers' Configs,
    for instance `placement="every_tensor"`.
    """
    spend = look_up(BUDGETS, budget, "budget")
    names = networks_of(profile, models)
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    for seed, model, source in itertools.product(repetitions(spend, seeds), names, sources):
        config = source_config(source, spend, seed)
        for width, policy, method in itertools.product(bits, policies, methods):
            own = {} if method == "hptq" else settings
            experiments.append(calibrated(profile, model, source, config, width, spend, method, bits=policy, **own))
    return experiments


def placements(
    profile: str = "cifar10",
    budget: str = "standard",
    *,
    bits: Sequence[str] = ("W4A4", "W2A4"),
    sources: Sequence[str] = SOURCES,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return both readings of a "fully quantized" BRECQ, which the DGH paper leaves open: which tensors are quantized.

    "brecq" spares what its authors' code spares: the image, sums before a shortcut is added, and averages.
    """
    experiments = [
        experiment
        for placement in ("brecq", "every_tensor")
        for experiment in quantizers(
            profile,
            budget,
            bits=bits,
            methods=["brecq"],
            policies=["full"],
            sources=sources,
            seeds=seeds,
            models=models,
            placement=placement,
        )
    ]
    return list(dict.fromkeys(experiments))
