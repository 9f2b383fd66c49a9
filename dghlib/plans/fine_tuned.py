"""Plans of the papers that fine-tune: GenQ's Table 3, GENIE's Table A2, and the tables of IntraQ's family."""

import itertools
from collections.abc import Sequence
from functools import partial

from dghlib.experiments.experiment import REAL, Experiment
from dghlib.experiments.profiles import budget_of
from dghlib.plans.methods import quantizers
from dghlib.plans.papers import PARTS_OF_A_SET, samples, spared
from dghlib.plans.parts import drawn_sources, networks_of, repetitions, without_images


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
    """Return GenQ's Table 3: fine-tuning with the ends spared, and the reconstruction from which it starts.

    Noise is not among the sources: the residual network for shapes takes all of it for a single class, from which
    nothing can be learned.
    """
    chosen = sources or ("intraq", "genie_d", *drawn_sources(profile), "dgh", REAL)
    return spared(profile, budget, bits=bits, methods=methods, sources=chosen, seeds=seeds, models=models)


# GenQ's Figure 4: fine-tuning and reconstruction where images are few, and where they are many; as in `genq_table3`.
genq_figure4 = partial(
    samples,
    bits=["W3A3"],
    sources=["dgh", REAL],
    methods=["genie_m", "genq_qat", "lsq"],
    policy="academic",
    parts=(1 / 4, 1, 4),
)


# GENIE's Table A2: reconstruction and fine-tuning by number of images, everything quantized.
genie_table_a2 = partial(
    samples, bits=["W4A4"], sources=["genie_d"], methods=["genie_m", "ait"], policy="full", parts=PARTS_OF_A_SET[1:]
)


def intraq_table3(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W4A4", "W3A3"),
    methods: Sequence[str] = ("intraq_qat", "ait", "synq"),
    sources: Sequence[str] = ("intraq", "genie_d", "dgh", REAL),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return IntraQ's Table 3, and those of AIT and SynQ: min-max grids, the same width for every layer.

    SQuant, which has neither images nor steps, is a row of IntraQ's table; here it quantizes the same tensors.
    """
    spend = budget_of(profile, budget)
    without = [
        without_images(profile, model, width, spend, "squant", placement="relu_only")
        for model, width in itertools.product(networks_of(profile, models), bits)
    ]
    return [
        *quantizers(
            profile, budget, bits=bits, methods=methods, policies=["full"], sources=sources, seeds=seeds, models=models
        ),
        *without,
    ]


def trained_together(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W3A3",),
    methods: Sequence[str] = ("gdfq", "qimera_qat", "adadfq"),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Experiment]:
    """Return the rows of those tables whose images are made during the fine-tuning, which takes minutes each."""
    spend = budget_of(profile, budget)
    names = networks_of(profile, models)
    return [
        *(Experiment(profile=profile, model=model, test_images=spend.test_images) for model in names),
        *(
            without_images(profile, model, width, spend, method, seed=seed)
            for seed, model, width, method in itertools.product(repetitions(spend, seeds), names, bits, methods)
        ),
    ]
