"""Plans of the papers' other tables and figures: a part of a method, or a setting, changes at a time.

DGH is Dikstein et al., "Data Generation for Hardware-Friendly Post-Training Quantization"; GENIE is Jeon, Lee, Kim,
"GENIE: Show Me the Data for Quantization"; IntraQ is Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class
Heterogeneity for Zero-Shot Network Quantization"; GenQ is Li et al., "GenQ: Quantization in Low Data Regimes with
Generative Synthetic Data".
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dghlib.experiments.experiment import REAL, Experiment
from dghlib.experiments.profiles import Budget, budget_of
from dghlib.generators import intraq
from dghlib.plans.methods import quantizers
from dghlib.plans.parts import (
    PAPER_SOURCES,
    UNSTRETCHED,
    calibrated,
    drawn_sources,
    networks_of,
    of_variants,
    repetitions,
    source_config,
)

# The parts of DGH's Table 4: statistics of the whole set, image preprocessing, output-stretching loss.
PARTS = ("scope", "preprocessing", "stretching")


def reconstructed(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    policy: str,
    bits: Sequence[str] = ("W4A4", "W2A4"),
    sources: Sequence[str] = PAPER_SOURCES,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return BRECQ with images of every source, quantizing everything ("full") or all but the ends ("academic")."""
    return quantizers(
        profile, budget, bits=bits, methods=["brecq"], policies=[policy], sources=sources, seeds=seeds, models=models
    )


# DGH's Tables 1 and 5, and its Figures 6 and 7, whose other width is 8 bits.
table1 = partial(reconstructed, policy="full")
table5 = partial(reconstructed, policy="academic")
figure6 = partial(table1, bits=("W8A3", "W8A4", "W8A6", "W8A8"), sources=PAPER_SOURCES[1:])
figure7 = partial(table1, bits=("W2A8", "W3A8", "W4A8", "W8A8"), sources=PAPER_SOURCES[1:])


# With the ends at 8 bits, as most papers have them.
spared = partial(quantizers, policies=["academic"])


def genq_table2(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A4", "W2A4"),
    methods: Sequence[str] = ("brecq", "genie_m"),
    sources: Sequence[str] | None = None,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return Table 2 of GenQ's paper for our networks and sources: BRECQ and GENIE-M with the ends spared."""
    chosen = sources or (*drawn_sources(profile), *PAPER_SOURCES)
    return spared(profile, budget, bits=bits, methods=methods, sources=chosen, seeds=seeds, models=models)


def table4(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A4", "W2A4"),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return DGH's Table 4: every combination of its 3 parts, with BRECQ and everything quantized."""
    spend = budget_of(profile, budget)
    chosen = itertools.chain.from_iterable(itertools.combinations(PARTS, count) for count in range(len(PARTS) + 1))
    variants = [("dgh", part_settings(parts, spend)) for parts in chosen]
    return of_variants(profile, spend, variants, bits, seeds, models)


def part_settings(parts: Sequence[str], budget: Budget) -> dict[str, Any]:
    """Return the settings of DGH with only some of `PARTS`.

    Without "scope", images are matched in batches of 1/8 of the set, as 1024 images in batches of 128: the paper does
    not give the batch size of its baseline.
    """
    return {
        "scope": None if "scope" in parts else budget.num_images // 8,
        "preprocessing": "preprocessing" in parts,
        **({} if "stretching" in parts else UNSTRETCHED),
    }


SCOPES = tuple(4**power for power in range(6))  # images that are matched together, if they are fewer than the set


def scopes(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str],
    stretching: Sequence[bool],
    sizes: Sequence[int] = SCOPES,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return AdaRound with DGH images that are matched by 1, 4, 16, ... together, and all; and with real images."""
    spend = budget_of(profile, budget)
    fewer = [size for size in sizes if size < spend.num_images]
    variants: list[tuple[str, dict[str, Any]]] = [
        ("dgh", {"scope": scope, **({} if on else UNSTRETCHED)}) for on in stretching for scope in (*fewer, None)
    ]
    return of_variants(profile, spend, [*variants, (REAL, {})], bits, seeds, models, "adaround")


# DGH's Figures 1 and 5.
figure1 = partial(scopes, bits=["W3A8"], stretching=[False])
figure5 = partial(scopes, bits=["W4A4"], stretching=[False, True])


PARTS_OF_A_SET = (1 / 8, 1 / 4, 1 / 2, 1)


def samples(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W2A4",),
    sources: Sequence[str] = ("zeroq", "genie_d", "dgh", REAL),
    methods: Sequence[str] = ("qdrop",),
    policy: str = "academic",
    parts: Sequence[float] = PARTS_OF_A_SET,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return GENIE's Table A1: QDrop with 1/8, 1/4, 1/2 and all of a budget's images."""
    spend = budget_of(profile, budget)
    variants: list[tuple[str, dict[str, Any]]] = [(source, {}) for source in sources]
    experiments = []
    for part, method in itertools.product(parts, methods):
        some = spend.for_images(int(spend.num_images * part))
        experiments += of_variants(profile, some, variants, bits, seeds, models, method, policy)
    return list(dict.fromkeys(experiments))


def step_sizes(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W2A4",),
    methods: Sequence[str] = ("brecq", "qdrop", "genie_m"),
    source: str = "genie_d",
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return GENIE's Figure A2: initial step sizes of weights with the least error in different powers (Eq. A3)."""
    spend = budget_of(profile, budget)
    experiments = []
    for method, search in itertools.product(methods, ("l1", "l2", "shrink_100", "l3", "l4")):
        experiments += of_variants(
            profile, spend, [(source, {})], bits, seeds, models, method, "academic", weight_search=search
        )
    return list(dict.fromkeys(experiments))


# The rows of GENIE's Table A1 and of GenQ's Table 2 whose generator is trained anew for each set, which takes minutes.
qimera_amounts = partial(samples, sources=["qimera"])
qimera_table2 = partial(genq_table2, sources=["qimera"])

# Figure 5 of GenQ's paper.
genq_amounts = partial(samples, sources=("genq", REAL), methods=["genie_m"])

# The filters of GenQ's Figure 6, as the energy's share of the discarded images, and the shares of all images that are
# discarded.
FILTERS = {"energy": 1.0, "batch-norm sensitivity": 0.0}
DISCARDED = (0.1, 0.3, 0.5, 0.7, 0.9)


def filter_settings() -> dict[tuple[str, float], dict[str, float]]:
    """Return GenQ's settings by (filter, discarded share): none at first, then one filter after the other."""
    filtered = {
        (name, discarded): {"oversampling": round(1 / (1 - discarded), 3), "energy_share": energy_share}
        for name, energy_share in FILTERS.items()
        for discarded in DISCARDED
    }
    return {("no filter", 0.0): {"oversampling": 1.0}, **filtered}


def genq_filters(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W2A4",),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return Figure 6 of GenQ's paper: GENIE-M with images of which one filter, or none, has discarded a share."""
    variants = [("genq", settings) for settings in filter_settings().values()]
    return of_variants(profile, budget_of(profile, budget), variants, bits, seeds, models, "genie_m", "academic")


# Table 2 of IntraQ's supplement.
intraq_amounts = partial(samples, bits=["W4A4"], sources=["intraq"], methods=["brecq"], policy="full")

# IntraQ, and the same without each of its parts.
ROTATION = 15.0  # degrees at most; the supplement does not give the angle
INTRAQ_PARTS: dict[str, dict[str, Any]] = {
    "all three": {},  # for CIFAR-10: the authors' settings for ImageNet turn SIL and MDC off
    "without LOR": {"crop_area": 1.0},
    "without SIL": {"soft_target": 1.0},
    "without MDC": {"nearest": 0.0, "farthest": 2.0},
    "LOR without flips (L)": {"flip": False},
    "LOR with turns, without flips (L+R)": {"flip": False, "rotation": ROTATION},
    "LOR with turns (L+R+F)": {"rotation": ROTATION},
}


def intraq_parts(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A4",),
    rows: Sequence[str] = tuple(INTRAQ_PARTS),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return IntraQ, without each of its parts and with other crops, for BRECQ and everything quantized.

    `rows` are keys of `INTRAQ_PARTS`.
    """
    spend = budget_of(profile, budget)
    on = {name: getattr(intraq.Config(), name) for name in ("soft_target", "nearest", "farthest")}
    variants = [("intraq", on | INTRAQ_PARTS[row]) for row in rows]
    return of_variants(profile, spend, variants, bits, seeds, models)


TRANSFORMERS: Mapping[str, str] = {"shapes": "shapes_transformer", "cifar10": "cifar10_transformer"}  # of its data


def transfer(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W2A4",),
    sources: Sequence[str] | None = None,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return Table 5 of GenQ's paper: GENIE-M with images of each network, and of a transformer, for each network."""
    spend, names = budget_of(profile, budget), networks_of(profile, models)
    of_transformer = ("psaq_vit",) if profile in TRANSFORMERS else ()
    sources = sources or (*drawn_sources(profile), *of_transformer, "zeroq", "genie_d", "dgh")
    experiments = [Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names]
    pairs = [
        (source, maker) for source in sources for maker in ([TRANSFORMERS[profile]] if source == "psaq_vit" else names)
    ]
    every = itertools.product(repetitions(spend, seeds), pairs, names, bits)
    for seed, (source, maker), model, width in every:
        config = source_config(source, spend, seed, maker)
        quantized = calibrated(profile, model, source, config, width, spend, "genie_m", bits="academic")
        experiments.append(dataclasses.replace(quantized, images_of=None if maker == model else maker))
    return experiments
