"""Calibration images of one network from every source, and what they cost."""

import dataclasses
from collections.abc import Collection, Sequence

import pandas as pd
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from dghlib.experiments.image_plans import budget_for
from dghlib.experiments.plans import REAL, ImageSet, every_source, source_config
from dghlib.experiments.profiles import Budget
from dghlib.experiments.run import Record, Workshop, load_model, results_dir
from dghlib.experiments.tables import TITLES, nothing
from dghlib.images import to_pixels

COST = {"passes per image": "{:.0f}", "seconds per image": "{:.3f}", "distance from the statistics": "{:.3g}"}


def calibration_images(
    workshop: Workshop, profile: str, model: str, source: str, spend: Budget, **settings: object
) -> tuple[Tensor, float]:
    """Return the images of a source at a budget, seed 0, and the seconds they took; `settings` are of its Config."""
    config = dataclasses.replace(source_config(source, spend, seed=0), **settings)
    return workshop.image_set(profile, model, ImageSet(source=source, config=config))


def cost(
    records: Sequence[Record], *, sources: Collection[str] = tuple(TITLES), save: str | None = None
) -> pd.DataFrame:
    """Return what the images of each source cost and how near they come to the statistics, from `image_costs`.

    A pass is once forward and once backward through the network. The distance is that of Eq. 4 of the DGH paper,
    over the whole set, as a mean over channels and layers. Numbers are means over repetitions. With `save`, a name,
    they go to NAME.csv.
    """
    if not records:
        return nothing()
    rows = []
    for record in records:
        found, sets = record["outputs"]["tables"]["distances"], record["inputs"]["sets"]
        for source, distance in zip(found["images"], found["distance"], strict=True):
            config, seconds = sets[source]["config"], record["outputs"]["generation_seconds"][source]
            rows.append((source, config.get("steps", 0), seconds / config["num_images"], distance))
    numbers = pd.DataFrame(rows, columns=["source", *COST]).groupby("source").mean()
    chosen = [source for source in TITLES if source in numbers.index and source in sources]
    table = pd.DataFrame({name: numbers.loc[chosen, name].map(form.format) for name, form in COST.items()})
    if REAL in chosen:
        table.loc[REAL, list(COST)[:2]] = ""
    table = table.rename(index=TITLES).rename_axis("calibrated with")
    if save:
        table.to_csv(f"{save}.csv")
    return table


def save_lines(records: Sequence[Record]) -> None:
    """Write the line of `cost` of each source to cost_SOURCE.csv, for the pages of the methods."""
    for source in records[0]["inputs"]["sets"] if records else ():
        cost(records, sources=[source]).to_csv(f"cost_{source}.csv", index=False)


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
