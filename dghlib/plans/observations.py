"""Plans of observations of images, without quantization: figures and tables of several papers.

DGH is Dikstein et al., "Data Generation for Hardware-Friendly Post-Training Quantization"; GENIE is Jeon, Lee, Kim,
"GENIE: Show Me the Data for Quantization"; IntraQ is Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class
Heterogeneity for Zero-Shot Network Quantization"; GenQ is Li et al., "GenQ: Quantization in Low Data Regimes with
Generative Synthetic Data".

All take a profile and a budget; `seeds` and `models` default to those of the budget and of the profile.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dghlib.choices import check_at_least, look_up
from dghlib.datasets import ANNOTATED
from dghlib.experiments.experiment import REAL, ImageSet, Observation
from dghlib.experiments.looks import REAL_SET, Border
from dghlib.experiments.profiles import EMBEDDED, PROFILES, Budget, budget_of
from dghlib.generators import deep_inversion
from dghlib.plans.papers import filter_settings
from dghlib.plans.parts import (
    DETECTION_SOURCES,
    SOURCES,
    UNSTRETCHED,
    every_source,
    networks_of,
    repetitions,
    source_config,
)

# By how many pixels images were shifted in the training of a profile's networks, and the colour of the border: for
# `shapes` the image's edge, repeated; for the others black, as in torchvision's RandomCrop.
MOVED: dict[str, tuple[int, Border]] = {"shapes": (3, "edge")}
MOVED_ELSEWHERE: tuple[int, Border] = (4, "black")
SMALL_SET = 16  # images, if many sets are compared
MORE_ITERATIONS, PAPER_ITERATIONS = 800, 40_000  # of the second row of `figure9`
PICTURES = 8  # of a set, for figures of images

# Sets of images by title: their source, and the differences from the published settings.
Kinds = Mapping[str, tuple[str, Mapping[str, Any]]]


def budget_for(profile: str, name: str, num_images: int | None = None) -> Budget:
    """Return a budget by name for a profile; with `num_images`, the part of it for that number of images."""
    spend = budget_of(profile, name)
    return spend if num_images is None else spend.for_images(num_images)


def figure3(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    num_images: int = 512,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return DGH's Figure 3: layer by layer, real images against the statistics, with and without augmentation.

    The paper takes 1024 images.
    """
    spend, (margin, border) = budget_for(profile, budget, num_images), MOVED.get(profile, MOVED_ELSEWHERE)
    observations = _observations("errors", profile, spend, {REAL_SET: (REAL, {})}, seeds, models)
    return [
        dataclasses.replace(each, settings=(("margin", margin), ("border", border), ("seed", each.seed)))
        for each in observations
    ]


def alike(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    look: str,
    kinds: Kinds,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return a look at the same kinds of sets for every network and repetition."""
    return _observations(look, profile, budget_for(profile, budget), kinds, seeds, models)


# DGH's Figure 2: features of real images, of DGH's images and of ZeroQ's images.
figure2 = partial(alike, look="features", kinds={REAL_SET: (REAL, {}), "DGH": ("dgh", {}), "ZeroQ": ("zeroq", {})})
# DGH's Figure 4: outputs for real images, and for DGH's images with and without the output-stretching loss.
figure4 = partial(
    alike,
    look="outputs",
    kinds={REAL_SET: (REAL, {}), "DGH, batch-norm loss only": ("dgh", dict(UNSTRETCHED)), "DGH": ("dgh", {})},
)
# The number of classes that a network sees in the images that remain after the filters of GenQ's Figure 6.
genq_classes = partial(
    alike,
    look="classes",
    kinds={f"{name}, {discarded:.0%}": ("genq", settings) for (name, discarded), settings in filter_settings().items()},
)


def head_outputs(
    profile: str = "coco_lite",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return DGH's Figure 4 for detectors: the range of each tensor of the head, for images of each source.

    There is 1 repetition unless given otherwise.

    Raises:
        UnknownName: the profile has no detectors.
    """
    look_up(ANNOTATED, profile, "profile with detectors")
    kinds: Kinds = {source: (source, {}) for source in DETECTION_SOURCES}
    return _observations("tensors", profile, budget_of(profile, budget), kinds, 1 if seeds is None else seeds, models)


def figure8(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    sources: Sequence[str] = DETECTION_SOURCES,
    num_images: int | None = None,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return DGH's Figure 8: the first images of several sources, in 1 repetition unless given otherwise.

    Real images are included if we may publish them, because records are published. `num_images`, the size of the sets,
    defaults to that of the budget.
    """
    spend = budget_for(profile, budget, num_images)
    kinds: Kinds = {source: (source, {}) for source in sources if source != REAL or profile in EMBEDDED}
    return _pictures(profile, spend, kinds, seeds, models)


def figure9(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    iterations: int | None = None,
    num_images: int = SMALL_SET,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return DGH's Figures 8 and 9 side by side: its images after the budget's iterations, and after more of them.

    There is 1 repetition unless given otherwise. The paper has 1 000 and 40 000; `iterations` of None means the latter
    at the budget with 1 000 iterations, and 800 at the others.

    Raises:
        ValueError: `iterations` is not above that of the budget.
    """
    spend = budget_for(profile, budget, num_images)
    more = iterations or (PAPER_ITERATIONS if budget == "paper" else MORE_ITERATIONS)
    check_at_least(spend.steps + 1, f"iterations, beside those of the budget {budget!r},", more)
    kinds: Kinds = {str(steps): ("dgh", {"steps": steps}) for steps in (spend.steps, more)}
    return _pictures(profile, spend, kinds, seeds, models)


def gallery(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    num_images: int = SMALL_SET,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return `figure8` with a small set of every source that the profile allows, those of `image_costs`."""
    sources = every_source(profile)
    return figure8(profile, budget, sources=sources, num_images=num_images, seeds=seeds, models=models)


def _pictures(
    profile: str, spend: Budget, kinds: Kinds, seeds: int | None, models: Sequence[str] | None
) -> list[Observation]:
    seeds = 1 if seeds is None else seeds
    return _observations("pictures", profile, spend, kinds, seeds, models, settings=(("count", PICTURES),))


def intraq_figure1(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return Figure 1 of IntraQ's supplement: features of its images and DeepInversion's, alone and with competition.

    The student is the next network of the profile; if there is none, there is no competition.
    """
    kinds: Kinds = {REAL_SET: (REAL, {}), "IntraQ": ("intraq", {}), "DeepInversion": ("deep_inversion", {})}
    observations = _observations("features", profile, budget_for(profile, budget), kinds, seeds, models)
    names = list(look_up(PROFILES, profile, "profile").models)
    adi = deep_inversion.PRESETS["adi"]  # the supplement used the authors' own code
    competing = []
    for each in observations:
        student = names[(names.index(each.model) + 1) % len(names)]
        alone = dict(each.sets)["DeepInversion"]
        against = ImageSet(
            source=alone.source,
            config=dataclasses.replace(
                alone.config, competition_weight=adi.competition_weight, divergence=adi.divergence
            ),
            student=student,
        )
        more = (("DeepInversion against a student", against),) if student != each.model else ()
        competing.append(dataclasses.replace(each, sets=each.sets + more))
    return competing


def genie_figure_a5(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    num_images: int = SMALL_SET,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return GENIE's Figure A5: the distance from the statistics against steps, for 3 ways to make images.

    They are ZeroQ, a generator network with fixed noise (GBA), and GENIE, which also learns latent vectors. Each number
    of steps is a separate run, which for these methods equals the beginning of a longer run.
    """
    spend = budget_for(profile, budget, num_images)
    ways: Kinds = {
        "ZeroQ": ("zeroq", {}),
        "GBA": ("genie_d", {"latent_learning_rate": 0.0}),
        "GENIE": ("genie_d", {}),
    }
    counts = sorted({max(1, spend.steps // share) for share in (16, 8, 4, 2, 1)})
    kinds: Kinds = {
        f"{title} {steps}": (source, {**settings, "steps": steps, "scaled_schedule": False})
        for (title, (source, settings)), steps in itertools.product(ways.items(), counts)
    }
    return _observations("distances", profile, spend, kinds, seeds, models)


def image_costs(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    num_images: int = SMALL_SET,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return a small set of every source, for its distance from the statistics and the seconds of its generation.

    GenQ's Table 1 compares four of the sources.
    """
    kinds: Kinds = {source: (source, {}) for source in every_source(profile)}
    return _observations("distances", profile, budget_for(profile, budget, num_images), kinds, seeds, models)


def onnxruntime(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return networks that onnxruntime's own quantizer quantizes with images of several sources.

    There is 1 repetition unless given otherwise.
    """
    spend = budget_for(profile, budget)
    kinds: Kinds = {source: (source, {}) for source in SOURCES}
    tested = (("profile", profile), ("test_images", spend.test_images))
    return _observations("onnxruntime", profile, spend, kinds, 1 if seeds is None else seeds, models, settings=tested)


def _observations(
    look: str,
    profile: str,
    spend: Budget,
    kinds: Kinds,
    seeds: int | None,
    models: Sequence[str] | None,
    settings: tuple[tuple[str, Any], ...] = (),
) -> list[Observation]:
    """Return an observation of sets of each kind for each repetition and each network."""
    names = networks_of(profile, models)
    observations = []
    for seed, model in itertools.product(repetitions(spend, seeds), names):
        sets = {
            title: ImageSet(source=source, config=source_config(source, spend, seed, model, **settings))
            for title, (source, settings) in kinds.items()
        }
        observations.append(
            Observation(profile=profile, model=model, look=look, seed=seed, sets=tuple(sets.items()), settings=settings)
        )
    return observations
