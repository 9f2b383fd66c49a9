"""Plans: the runs of which a table or a figure consists.

A plan is a function that returns a list of experiments, or of observations; `run.run` computes those without a record.
Plans may overlap: a run that 2 plans share is computed once.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any

from dghlib.choices import look_up
from dghlib.datasets import ANNOTATED
from dghlib.experiments.experiment import REAL, Experiment
from dghlib.experiments.profiles import budget_of
from dghlib.generators import dgh
from dghlib.plans.parts import (
    DETECTION_SOURCES,
    FIXED_WEIGHT,
    PAPER_SOURCES,
    SOURCES,
    calibrated,
    every_source,
    networks_of,
    of_variants,
    repetitions,
    source_config,
    without_images,
)


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

    The paper prints W8A8; at lower widths the sources differ more. `seeds` and `models` default to the number of the
    budget and to all networks of the profile.
    """
    spend = budget_of(profile, budget)
    experiments = []
    for model in networks_of(profile, models):
        experiments.append(Experiment(profile=profile, model=model, test_images=spend.test_images))
        for seed in repetitions(spend, seeds):
            for source in sources:
                config = source_config(source, spend, seed, model)
                experiments += [calibrated(profile, model, source, config, width, spend) for width in bits]
    return experiments


def sources(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return `table2` with every source of images that the profile allows."""
    return table2(profile, budget, sources=every_source(profile), seeds=seeds, models=models)


# The quantizers of Table 3 for detectors: the paper prints AdaRound at W4A8, the rest is ours.
DETECTOR_WIDTHS: Mapping[str, Sequence[str]] = MappingProxyType({"hptq": ("W8A8",), "adaround": ("W4A8",)})
# The same on photographs, where sources differ more.
PHOTOGRAPHS_WIDTHS: Mapping[str, Sequence[str]] = MappingProxyType(
    {"hptq": ("W8A8", "W4A8"), "adaround": ("W4A8", "W4A4"), "brecq": ("W4A8", "W4A4")}
)


def table3(
    profile: str = "shapes_detection",
    budget: str = "quick",
    *,
    quantized: Mapping[str, Sequence[str]] | None = None,
    sources: Sequence[str] = DETECTION_SOURCES,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return DGH's Table 3: every detector of a profile, quantized with 32 images of every source.

    `quantized` has the widths of every quantizer, or None for `detector_widths`. Seeds come first, so that a run that
    is stopped has complete repetitions; in each repetition the fast quantizer, which does not learn, comes first.

    Raises:
        UnknownName: the profile has no detectors.
    """
    look_up(ANNOTATED, profile, "profile with detectors")
    spend = budget_of(profile, budget)
    names = networks_of(profile, models)
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    chosen = detector_widths(profile) if quantized is None else quantized
    pairs = [(method, width) for method, widths in chosen.items() for width in widths]
    for seed, (method, width) in itertools.product(repetitions(spend, seeds), pairs):
        for model, source in itertools.product(names, sources):
            config = source_config(source, spend, seed, model)
            experiments.append(calibrated(profile, model, source, config, width, spend, method))
    return experiments


# A detector with batch norms in its head, and the same without, with the fast quantizer.
folded_head = partial(table3, quantized={"hptq": ("W8A8", "W4A8")})


def detector_widths(profile: str) -> Mapping[str, Sequence[str]]:
    """Return the widths of each quantizer in Table 3 for the detectors of a profile."""
    return PHOTOGRAPHS_WIDTHS if profile == "coco_lite" else DETECTOR_WIDTHS


# All differences of the printed method from its code: variances, sums, the square, a second pass, no clipping.
AS_PRINTED: Mapping[str, Any] = MappingProxyType(
    {name: value for name, value in asdict(dgh.PRESETS["paper"]).items() if value != getattr(dgh.Config(), name)}
)

# One change each from a fixed lambda: settings that the paper leaves open, or prints differently from its code. The sum
# over channels and layers is about 100 times as large as their mean, and so is lambda there.
DGH_VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"second_forward": True},
    {"spread": "variance"},
    {"augmentation": "batch"},
    {"output_power": 2, "output_weight": 1e-6},
    {"slack": None},
    {"slack": 0.01},
    {"clip": False},
    {"match_pixels": True},
    {"reduction": "sum", "output_weight": 1e-3},
    AS_PRINTED,
)


def dgh_settings(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the experiment behind DGH's other defaults: images of each of `DGH_VARIANTS`, and real images.

    Quantized as in `output_weights`, and with a fixed lambda.
    """
    return _of_settings(profile, budget, [{**FIXED_WEIGHT, **changed} for changed in DGH_VARIANTS], seeds, models)


# Candidates for lambda, from the widest outputs to no reward.
OUTPUT_WEIGHTS: tuple[dict[str, Any], ...] = (
    {"output_weight": 1e-4},
    {"output_weight": 3e-5},
    {"output_weight": 1e-5},
    {"output_stretching": False},
)
# Shares of the reward's gradient relative to the matching gradient, at the last step.
OUTPUT_SHARES = (0.1, 0.2, 0.4, 0.8)


def output_weights(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the experiment on a fixed lambda of DGH: images of each of `OUTPUT_WEIGHTS`, and real images."""
    return _of_settings(profile, budget, [{**FIXED_WEIGHT, **changed} for changed in OUTPUT_WEIGHTS], seeds, models)


def output_shares(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the experiment for the choice of DGH's loss: images of `OUTPUT_SHARES`, of other losses, and real images.

    The other losses match statistics as they are, instead of in units of their layers, and one has a fixed lambda.
    Every tensor is quantized with HPTQ, at 3 widths, because a default has to be suitable for each.
    """
    spend = budget_of(profile, budget)
    losses: list[dict[str, Any]] = [{"output_share": share} for share in OUTPUT_SHARES]
    losses += [{"relative": False}, dict(FIXED_WEIGHT)]
    variants = [*(("dgh", changed) for changed in losses), (REAL, {})]
    return of_variants(profile, spend, variants, ["W8A8", "W4A8", "W4A4"], seeds, models, "hptq")


# One change each: KW's distance of statistics, DSG's slack, and SynQ's filter with its radius at 32 pixels.
STATISTICS_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"statistics_distance": "gaussian"},
    {"statistics_slack": 0.9},
    {"low_pass": 16.0},
)


def statistics_options(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    sources: Sequence[str] = ("genie_d", "dgh"),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the experiment on the options of methods that match statistics, and real images.

    Each of `STATISTICS_OPTIONS` is changed for each of `sources`, of zeroq, intraq, genie_d and dgh. Quantized as in
    `output_weights`.
    """
    return _of_settings(profile, budget, STATISTICS_OPTIONS, seeds, models, sources)


def _of_settings(
    profile: str,
    budget: str,
    settings: Sequence[dict[str, Any]],
    seeds: int | None,
    models: Sequence[str] | None,
    sources: Sequence[str] = ("dgh",),
) -> list[Experiment]:
    """Return experiments on images of each source with each of `settings`, and real images, everything quantized.

    HPTQ at W4A4 only chooses ranges; BRECQ at W2A4 learns from the images.
    """
    spend = budget_of(profile, budget)
    variants = [*itertools.product(sources, settings), (REAL, {})]
    ranged = of_variants(profile, spend, variants, ["W4A4"], seeds, models, "hptq")
    learned = of_variants(profile, spend, variants, ["W2A4"], seeds, models, "brecq")
    return list(dict.fromkeys(ranged + learned))


BLOCK_BY_BLOCK = ("hptq", "adaround", "brecq", "qdrop", "genie_m")  # and HPTQ, which learns nothing


def quantizers(
    profile: str = "cifar10",
    budget: str = "standard",
    *,
    bits: Sequence[str] = ("W4A4", "W2A4"),
    methods: Sequence[str] = BLOCK_BY_BLOCK,
    policies: Sequence[str] = ("full", "academic"),
    sources: Sequence[str] = ("dgh", REAL),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
    **settings: Any,
) -> list[Experiment]:
    """Return several quantizers on every network of a profile, with everything quantized and with the ends spared.

    Seeds come first, so that a run that is stopped has complete repetitions. `settings` belong to the quantizers'
    Configs, for instance `placement="every_tensor"`.
    """
    spend = budget_of(profile, budget)
    names = networks_of(profile, models)
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    for seed, model, source in itertools.product(repetitions(spend, seeds), names, sources):
        config = source_config(source, spend, seed, model)
        for width, policy, method in itertools.product(bits, policies, methods):
            own = {} if method == "hptq" else settings
            experiments.append(calibrated(profile, model, source, config, width, spend, method, bits=policy, **own))
    return experiments


def like_for_like(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A8", "W4A4", "W2A4"),
    sources: Sequence[str] = ("dgh", REAL),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return every quantizer with every tensor quantized, as an integer runtime needs, whatever its authors spare."""
    return quantizers(
        profile,
        budget,
        bits=bits,
        policies=["full"],
        sources=sources,
        seeds=seeds,
        models=models,
        placement="every_tensor",
    )


# Methods without images, by the differences from a method's defaults: rounding to the nearest first, as the baseline.
WITHOUT: tuple[tuple[str, dict[str, Any]], ...] = (("squant", {"flips": "none"}), ("squant", {}), ("dfq", {}))
# With a grid for a whole layer, where scales across layers and split channels matter. OCS is only for weights.
WITH_ONE_GRID: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dfq", {"one_grid": True, "equalize": False}),
    ("dfq", {"one_grid": True}),
)
SPLIT: tuple[tuple[str, dict[str, Any]], ...] = (
    *WITH_ONE_GRID,
    ("dfq", {"equalize": False}),
    ("ocs", {"expand": 0.0}),
    ("ocs", {}),
    ("ocs", {"one_grid": False}),
)
ONE_GRID_AT: Mapping[str, tuple[tuple[str, dict[str, Any]], ...]] = {"W8A8": WITH_ONE_GRID, "W4A32": SPLIT}


def no_images(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W8A8", "W6A6", "W4A4", "W4A32"),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return every network quantized without images, and at 8 and 4 bits HPTQ and BRECQ with images.

    Everything is quantized. Without images nothing is random, so there is a single repetition. One grid for a whole
    layer is used at 8 bits, and with only weights quantized at 4 bits.
    """
    spend = budget_of(profile, budget)
    experiments = []
    for model in networks_of(profile, models):
        experiments.append(Experiment(profile=profile, model=model, test_images=spend.test_images))
        for width in bits:
            for method, settings in (*WITHOUT, *ONE_GRID_AT.get(width, ())):
                experiments.append(without_images(profile, model, width, spend, method, **settings))
        every = itertools.product(repetitions(spend, seeds), ("dgh", REAL), ("hptq", "brecq"), ("W8A8", "W4A4"))
        for seed, source, method, width in every:
            config = source_config(source, spend, seed, model)
            experiments.append(calibrated(profile, model, source, config, width, spend, method))
    return experiments


def compensation(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A4",),
    sources: Sequence[str] = ("noise", "dgh", REAL),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return SQuant without images, and compensated with images of several sources, which takes seconds."""
    spend = budget_of(profile, budget)
    experiments = []
    for model, width in itertools.product(networks_of(profile, models), bits):
        experiments.append(Experiment(profile=profile, model=model, test_images=spend.test_images))
        experiments.append(without_images(profile, model, width, spend, "squant"))
        for source, seed in itertools.product(sources, repetitions(spend, seeds)):
            config = source_config(source, spend, seed, model)
            experiments.append(calibrated(profile, model, source, config, width, spend, "compensated"))
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
    """Return both interpretations of a "fully quantized" BRECQ, which the DGH paper leaves open.

    "brecq" spares the tensors that its authors' code spares: the image, addends of shortcuts, and averages.
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
