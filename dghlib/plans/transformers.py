"""Plans on vision transformers: GenQ's Table 4, quantizers side by side, and replacements of batch norm.

GenQ is Li et al., "GenQ: Quantization in Low Data Regimes with Generative Synthetic Data". All take a profile and a
budget; `seeds` and `models` default to those of the budget and of the profile.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dghlib.experiments.experiment import REAL, Experiment, Observation
from dghlib.experiments.profiles import budget_of
from dghlib.plans.parts import calibrated, drawn_sources, networks_of, repetitions, source_config
from dghlib.plans.quantized import of_copies

QUANTIZERS = ("hptq", "ptq4vit", "repq_vit", "erq")  # HPTQ quantizes every tensor, the others those of their authors
SOURCES = ("noise", "psaq_vit", "mimiq", "dgh_vit", REAL)
WIDTHS = ("W4A4", "W4A3", "W3A3")  # at which networks of this size differ
# A convolutional network for the same data, from whose batch norms DGH makes images.
OF_ANOTHER_FAMILY: Mapping[str, str] = {
    "cifar10_transformers": "cifar10_resnet20",
    "shapes_transformers": "shapes_residual",
}
# Parts of DGH that need no statistics, left out one by one.
WITHOUT: tuple[Mapping[str, Any], ...] = ({}, {"output_stretching": False}, {"preprocessing": False})


def genq_table4(
    profile: str = "cifar10_transformers",
    budget: str = "quick",
    *,
    bits: Sequence[str] = WIDTHS,
    methods: Sequence[str] = QUANTIZERS,
    sources: Sequence[str] | None = None,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return Table 4 of GenQ's paper: quantizers of transformers with images of every suitable source.

    GenQ's second filter is that of patches, also for a transformer whose stem has batch norms.
    """
    spend, names = budget_of(profile, budget), networks_of(profile, models)
    chosen = sources or (*SOURCES[:-1], *drawn_sources(profile), REAL)
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    for seed, model, source in itertools.product(repetitions(spend, seeds), names, chosen):
        filtered = {"second_stage": "patch_similarity"} if source == "genq" else {}
        config = source_config(source, spend, seed, model, **filtered)
        experiments += [
            calibrated(profile, model, source, config, width, spend, method)
            for width, method in itertools.product(bits, methods)
        ]
    return experiments


def every_tensor(
    profile: str = "cifar10_transformers",
    budget: str = "quick",
    *,
    bits: Sequence[str] = WIDTHS,
    methods: Sequence[str] = QUANTIZERS,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the quantizers of `genq_table4` with real images, every tensor quantized, including the image."""
    spend, names = budget_of(profile, budget), networks_of(profile, models)
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    every = itertools.product(repetitions(spend, seeds), names, bits, methods)
    for seed, model, width, method in every:
        placed = {} if method == "hptq" else {"placement": "every_tensor"}
        config = source_config(REAL, spend, seed, model)
        experiments.append(calibrated(profile, model, REAL, config, width, spend, method, **placed))
    return experiments


def without_batch_norm(
    profile: str = "cifar10_transformers",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A3", "W3A3"),
    method: str = "erq",
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return replacements of batch-norm statistics, and noise, PSAQ-ViT, MimiQ and real images.

    They are the statistics that follow from layer norms' weights, with DGH's other parts and without each, and DGH's
    own images of a convolutional network.
    """
    spend, names = budget_of(profile, budget), networks_of(profile, models)
    others = [source for source in SOURCES if source != "dgh_vit"]
    variants = [*((source, {}) for source in others), *(("dgh_vit", dict(changed)) for changed in WITHOUT)]
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    for seed, model, width in itertools.product(repetitions(spend, seeds), names, bits):
        for source, changed in variants:
            config = source_config(source, spend, seed, model, **changed)
            experiments.append(calibrated(profile, model, source, config, width, spend, method))
        if maker := OF_ANOTHER_FAMILY.get(profile):
            config = source_config("dgh", spend, seed, maker)
            made = calibrated(profile, model, "dgh", config, width, spend, method)
            experiments.append(dataclasses.replace(made, images_of=maker))
    return experiments


def layers(
    profile: str = "cifar10_transformers",
    budget: str = "quick",
    *,
    method: str = "repq_vit",
    bits: Sequence[str] = ("W4A4",),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return the noise of every layer and tensor of transformers, every tensor quantized, with PSAQ-ViT's images."""
    return of_copies("layers", profile, budget, method, bits, ["psaq_vit"], seeds, models, placement="every_tensor")
