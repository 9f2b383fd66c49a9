"""Calibration images of one network from every source, and what they cost."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from dghlib.batchnorm import stored_statistics, working_copy
from dghlib.choices import look_up
from dghlib.experiments.plans import REAL, Experiment, every_source, source_config
from dghlib.experiments.profiles import BUDGETS, Budget
from dghlib.experiments.run import Workshop, load_model, results_dir
from dghlib.experiments.tables import TITLES
from dghlib.generators.matching import batch_norm_distance, channel_weights, measure
from dghlib.images import to_pixels
from dghlib.models import FloatModel


def budget_for(name: str, num_images: int | None = None) -> Budget:
    """Return a budget by name; with `num_images`, as much of it as so many images need."""
    spend = look_up(BUDGETS, name, "budget")
    if num_images is None:
        return spend
    return dataclasses.replace(spend, num_images=num_images, batch_size=min(num_images, spend.batch_size))


def calibration_images(
    workshop: Workshop, profile: str, model: str, source: str, spend: Budget, **settings: object
) -> tuple[Tensor, float]:
    """Return the images of a source at a budget, seed 0, and the seconds they took; `settings` are of its Config."""
    config = dataclasses.replace(source_config(source, spend, seed=0), **settings)
    return workshop.images(Experiment(profile=profile, model=model, source=source, source_config=config))


def cost(
    profile: str,
    model: str,
    budget: str = "quick",
    *,
    num_images: int | None = None,
    sources: Sequence[str] | None = None,
    save: str | None = None,
) -> pd.DataFrame:
    """Return what the images of each source take on this machine, and how near they come to the network's statistics.

    A pass is once forward and once backward through the network. The distance is that of Eq. 4 of the DGH paper,
    over the whole set, as a mean over channels and layers. With `save`, a name, the numbers go to NAME.csv, and for
    the pages of the methods, a line each, to cost_SOURCE.csv beside it.
    """
    workshop, spend = Workshop(results_dir(), progress=True), budget_for(budget, num_images)
    rows, sources = [], sources or every_source(profile)
    for source in sources:
        images, seconds = calibration_images(workshop, profile, model, source, spend)
        made = source != REAL
        rows.append(
            {
                "calibrated with": TITLES[source],
                "passes per image": getattr(source_config(source, spend, seed=0), "steps", 0) if made else "",
                "seconds per image": f"{seconds / len(images):.3f}" if made else "",
                "distance from the statistics": f"{distance_from_statistics(load_model(model), images):.3g}",
            }
        )
    table = pd.DataFrame(rows).set_index("calibrated with")
    if save:
        table.to_csv(f"{save}.csv")
        for row, source in enumerate(sources):
            line = table.iloc[[row]].reset_index(drop=True)
            line.to_csv(Path(save).with_name(f"cost_{source}.csv"), index=False)
    return table


def save_strips(
    profile: str,
    model: str,
    budget: str = "quick",
    *,
    num_images: int | None = None,
    sources: Sequence[str] | None = None,
) -> None:
    """Write the images of each source side by side to images_SOURCE.png, for the pages of the methods."""
    workshop, spend = Workshop(results_dir(), progress=True), budget_for(budget, num_images)
    float_model = load_model(model)
    for source in sources or every_source(profile):
        images, _ = calibration_images(workshop, profile, model, source, spend)
        pixels = to_pixels(images, float_model.mean, float_model.std)
        grid = make_grid(pixels, nrow=8, padding=2, pad_value=255)
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(f"images_{source}.png")


def distance_from_statistics(model: FloatModel, images: Tensor) -> float:
    """Return how far a set of images is from a network's statistics: DGH's Eq. 4, mean over channels and layers."""
    net = working_copy(model.net, "cpu", model.image_shape)
    layers = stored_statistics(net, model.image_shape)
    weights = channel_weights(layers.sizes, "mean", layers.mean.device)
    with torch.no_grad():
        measured = measure(net, images, layers)
    return batch_norm_distance(measured.moments, layers, weights, "std").item()
