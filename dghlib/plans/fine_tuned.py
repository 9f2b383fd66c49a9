"""Plans of the papers that fine-tune: GenQ's Table 3, GENIE's Table A2, and the tables of IntraQ's family."""

from collections.abc import Sequence

from dghlib.experiments.experiment import REAL, Experiment
from dghlib.experiments.profiles import budget_of
from dghlib.plans.methods import quantizers
from dghlib.plans.parts import drawn_sources, of_variants


def genq_table3(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A4", "W3A3"),
    methods: Sequence[str] = ("genie_m", "genq_qat", "lsq"),
    sources: Sequence[str] | None = None,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return GenQ's Table 3: fine-tuning with the ends spared, and the reconstruction that it begins with."""
    return quantizers(
        profile,
        budget,
        bits=bits,
        methods=methods,
        policies=["academic"],
        sources=sources or (*drawn_sources(profile), "dgh", REAL),
        seeds=seeds,
        models=models,
    )


def genie_table_a2(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A4",),
    methods: Sequence[str] = ("genie_m", "ait"),
    source: str = "genie_d",
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return GENIE's Table A2: reconstruction and fine-tuning by number of images, everything quantized."""
    spend = budget_of(profile, budget)
    experiments = []
    for share in (4, 2, 1):
        part = spend.for_images(spend.num_images // share)
        for method in methods:
            experiments += of_variants(profile, part, [(source, {})], bits, seeds, models, method)
    return list(dict.fromkeys(experiments))


def intraq_table3(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W3A3",),
    methods: Sequence[str] = ("intraq_qat", "ait", "synq"),
    sources: Sequence[str] = ("intraq", "dgh", REAL),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return IntraQ's Table 3, and those of AIT and SynQ: min-max grids, every layer alike."""
    return quantizers(
        profile, budget, bits=bits, methods=methods, policies=["full"], sources=sources, seeds=seeds, models=models
    )
