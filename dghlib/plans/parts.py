"""The parts of plans: networks, repetitions, and the Configs of sources and quantizers at a budget."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dghlib.choices import check_at_least, check_choice, look_up
from dghlib.experiments.experiment import REAL, Experiment, RealImages
from dghlib.experiments.profiles import PROFILES, Budget
from dghlib.generators import FOR_TRANSFORMERS, GENERATORS
from dghlib.generators.pipelines import EMBEDDED as PIPELINES
from dghlib.quantizers import QUANTIZERS, fine_tuning, genq_qat, hptq, reconstruction
from dghlib.quantizers.starting import LearningSettings

# For DGH: the loss of the experiments on its other settings, with a fixed lambda; and no reward at all.
FIXED_WEIGHT: Mapping[str, Any] = MappingProxyType({"relative": False, "output_share": None, "slack": 1.0})
UNSTRETCHED: Mapping[str, Any] = MappingProxyType({"output_stretching": False})

SOURCES = ("noise", "zeroq", "dgh", REAL)
PAPER_SOURCES = ("zeroq", "intraq", "genie_d", "dgh", REAL)  # the rows of DGH's tables
DETECTION_SOURCES = ("noise", "zeroq", "genie_d", "dgh", REAL)  # the sources that need no classes
# The authors' settings for networks with depthwise convolutions, see the modules of the quantizers.
DEPTHWISE: Mapping[str, Mapping[str, Any]] = {"brecq": {"penalty": 0.1}, "qdrop": {"penalty": 0.1}}


def networks_of(profile: str, chosen: Sequence[str] | None) -> list[str]:
    """Return the chosen networks of a profile, or all for None.

    Raises:
        UnknownName: there is no such profile.
        ValueError: the profile has no network of this name.
    """
    known = look_up(PROFILES, profile, "profile").models
    for name in chosen or ():
        check_choice("model", name, known)
    return list(chosen or known)


def repetitions(budget: Budget, seeds: int | None) -> range:
    """Return the seeds of a number of repetitions, or those of the budget for None."""
    if seeds is not None:
        check_at_least(0, "seeds", seeds)
    return range(budget.seeds if seeds is None else seeds)


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

    A method that learns draws its batches with the seed of the images. With a budget that is a share of the authors'
    steps, it has their settings for networks with depthwise convolutions.
    """
    if budget.share is not None and PROFILES[profile].models.get(model) == "MBV2":
        settings = {**DEPTHWISE.get(quantizer, {}), **settings}
    chosen = quantizer_config(quantizer, width, budget, **settings)
    if isinstance(chosen, LearningSettings):
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


def without_images(profile: str, model: str, width: str, budget: Budget, quantizer: str, **settings: Any) -> Experiment:
    """Return a network quantized to a width such as "W4A8" by a method that needs no images."""
    return Experiment(
        profile=profile,
        model=model,
        quantizer=quantizer,
        quantizer_config=quantizer_config(quantizer, width, budget, **settings),
        test_images=budget.test_images,
    )


def every_source(profile: str) -> tuple[str, ...]:
    """Return all sources of images for the networks of a profile, which have batch norm.

    GenQ is included if a pipeline for the classes of the profile ships with the package.
    """
    unfit = FOR_TRANSFORMERS if drawn_sources(profile) else (*FOR_TRANSFORMERS, "genq")
    return (*(name for name in GENERATORS if name not in unfit), REAL)


def drawn_sources(profile: str) -> tuple[str, ...]:
    """Return ("genq",) if a diffusion pipeline for the data of a profile ships with the package, otherwise ()."""
    data = look_up(PROFILES, profile, "profile").data_set
    return ("genq",) if data in PIPELINES and PIPELINES[data].is_dir() else ()


def source_config(source: str, budget: Budget, seed: int, model: str, **settings: Any) -> Any:
    """Return the Config of a source at a budget, for a network: published settings, the budget's images and steps."""
    if source == REAL:
        return RealImages(num_images=budget.num_images, seed=seed)
    published = _published(source, "" if budget.share is None else model)
    spend: dict[str, Any] = {"num_images": budget.num_images}
    if budget.share is None:
        spend |= {"steps": budget.steps, "batch_size": budget.batch_size, "scaled_schedule": False}
        # GenQ's steps are those of its pipeline.
        spend["denoising_steps"] = min(getattr(published, "denoising_steps", 1), budget.steps)
    elif hasattr(published, "steps"):
        spend["steps"] = max(1, round(budget.share * published.steps))
    if source == "intraq":  # it keeps images away from those of earlier batches, so a set needs several
        spend["batch_size"] = min(spend.get("batch_size", published.batch_size), max(1, budget.num_images // 4))
    names = {field.name for field in dataclasses.fields(published)}
    wanted = {name: value for name, value in spend.items() if name in names}
    return dataclasses.replace(published, **wanted | {"seed": seed} | settings)


def _published(source: str, model: str) -> Any:
    """Return the published settings of a source for a network, otherwise for its data set, otherwise the defaults.

    Raises:
        UnknownName: there is no such source.
    """
    known: dict[str, Any] = {**GENERATORS, REAL: None}  # all sources, for the error
    presets = look_up(known, source, "source of images").PRESETS
    data_set = next((profile.data_set for profile in PROFILES.values() if model in profile.models), "")
    data = data_set.removesuffix("_lite")  # a part of the same images
    return next(presets[name] for name in (model, data, "default") if name in presets)


def quantizer_config(method: str, width: str, budget: Budget, **settings: Any) -> Any:
    """Return the Config of a quantizer for a width such as "W4A8": its published settings with the budget's steps.

    A reconstruction with fewer steps has larger learning rates (see `reconstruction.shortened`). Fine-tuning has the
    same share of its steps as reconstruction of its iterations, at the same rates. Biases, and the inputs of activation
    functions, stay in float unless `settings` say otherwise, as in the methods' authors' code and in the papers whose
    tables are reproduced.
    """
    weight_bits, activation_bits = parse_bits(width)
    config = look_up(QUANTIZERS, method, "quantizer").Config(
        weight_bits=weight_bits, activation_bits=activation_bits, integer_biases=False
    )
    if isinstance(config, reconstruction.Settings):
        config = reconstruction.shortened(config, budget.iterations)
    elif isinstance(config, fine_tuning.Settings):
        part = budget.iterations / reconstruction.Settings.iterations
        config = dataclasses.replace(config, steps=math.ceil(config.steps * part))
    if isinstance(config, hptq.Config):
        config = dataclasses.replace(config, table_inputs=False)
    if isinstance(config, genq_qat.Config):
        config = dataclasses.replace(config, iterations=budget.iterations)
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
    """Return a quantizer with images of (source, its settings), and the float networks."""
    names = networks_of(profile, models)
    experiments = [Experiment(profile=profile, model=model, test_images=budget.test_images) for model in names]
    every = itertools.product(repetitions(budget, seeds), names, variants, bits)
    for seed, model, (source, changed), width in every:
        config = source_config(source, budget, seed, model, **changed)
        experiments.append(
            calibrated(profile, model, source, config, width, budget, quantizer, bits=policy, **settings)
        )
    return experiments
