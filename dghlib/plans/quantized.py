"""Plans of observations of quantized copies: the noise of layers, the detections of detectors, the facts of files.

All take a profile and a budget. They have 1 repetition unless given otherwise, and all networks of the profile.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from dghlib.choices import look_up
from dghlib.datasets import ANNOTATED
from dghlib.experiments.experiment import Observation
from dghlib.experiments.profiles import budget_of
from dghlib.plans.parts import (
    DETECTION_SOURCES,
    calibrated,
    networks_of,
    repetitions,
    source_config,
)

SCENES = 6  # test images in the figure of detections


def layers(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    method: str = "brecq",
    bits: Sequence[str] = ("W4A4",),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return the noise of every layer of networks that a quantizer made with DGH images, and the errors of units."""
    return of_copies("layers", profile, budget, method, bits, ["dgh"], seeds, models)


def boxes(
    profile: str = "shapes_detection",
    budget: str = "quick",
    *,
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return the boxes of detectors in test scenes, quantized by HPTQ to W4A8 with images of several sources.

    Raises:
        UnknownName: the profile has no detectors.
    """
    look_up(ANNOTATED, profile, "profile with detectors")
    settings = (("profile", profile), ("scenes", SCENES))
    return of_copies("boxes", profile, budget, "hptq", ["W4A8"], DETECTION_SOURCES, seeds, models, settings)


def files(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    bits: Sequence[str] = ("W8A8", "W4A4"),
    seeds: int | None = None,
    models: Sequence[str] | None = None,
) -> list[Observation]:
    """Return the ONNX files of networks that HPTQ quantized with DGH images, an observation for each width.

    Biases are integers, as in every network that is meant to run, not float as in the papers' tables.
    """
    settings = (("profile", profile), ("test_images", budget_of(profile, budget).test_images))
    return of_copies("files", profile, budget, "hptq", bits, ["dgh"], seeds, models, settings, integer_biases=True)


def of_copies(
    look: str,
    profile: str,
    budget: str,
    method: str,
    bits: Sequence[str],
    sources: Sequence[str],
    seeds: int | None,
    models: Sequence[str] | None,
    settings: tuple[tuple[str, object], ...] = (),
    **changed: Any,
) -> list[Observation]:
    """Return an observation of copies, one for each source, for each repetition, network and width.

    `settings` belong to the look, `changed` to the quantizer.
    """
    spend = budget_of(profile, budget)
    observations = []
    every = itertools.product(repetitions(spend, 1 if seeds is None else seeds), networks_of(profile, models), bits)
    for seed, model, width in every:
        runs = [
            calibrated(
                profile, model, source, source_config(source, spend, seed, model), width, spend, method, **changed
            )
            for source in sources
        ]
        observations.append(
            Observation(
                profile=profile,
                model=model,
                look=look,
                sets=tuple((str(run.source), run.images) for run in runs),
                seed=seed,
                settings=settings,
                quantizer=method,
                quantizer_config=runs[0].quantizer_config,
            )
        )
    return observations
