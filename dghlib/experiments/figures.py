"""Figures of the book. Each returns a matplotlib figure and writes its SVG and the CSV behind it."""

import dataclasses
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dghlib.choices import look_up
from dghlib.experiments.plans import REAL, SOURCES, Experiment, source_config
from dghlib.experiments.profiles import BUDGETS, PROFILES
from dghlib.experiments.run import Workshop, load_model, results_dir
from dghlib.experiments.tables import TITLES
from dghlib.images import to_pixels


def _calibration(workshop: Workshop, profile: str, model: str, source: str, budget: str, **settings: object) -> Tensor:
    config = source_config(source, look_up(BUDGETS, budget, "budget"), seed=0)
    config = dataclasses.replace(config, **settings)
    experiment = Experiment(profile=profile, model=model, source=source, source_config=config)
    return workshop.images(experiment)[0]


def output_distributions(profile: str = "shapes", budget: str = "quick", *, save: str | None = None) -> Figure:
    """Return DGH's Figure 4: densities of the networks' outputs, for real images and for DGH with and without ODSL.

    With `save`, a name, the figure is written to NAME.svg and the quantiles behind it to NAME.csv.
    """
    workshop = Workshop(results_dir(), progress=True)
    kinds = {
        "real images": (REAL, {}),
        "DGH, batch-norm loss only": ("dgh", {"output_stretching": False}),
        "DGH": ("dgh", {}),
    }
    models = list(look_up(PROFILES, profile, "profile").models)
    figure, axes = plt.subplots(1, len(models), figsize=(4 * len(models), 3.2), squeeze=False, layout="constrained")
    quantiles = []
    for axis, name in zip(axes[0], models, strict=True):
        outputs = {}
        for kind, (source, settings) in kinds.items():
            images = _calibration(workshop, profile, name, source, budget, **settings)
            with torch.inference_mode():
                outputs[kind] = load_model(name).net(images).flatten()
        for kind, values in outputs.items():
            sns.kdeplot(values.numpy(), ax=axis, label=kind, fill=kind == "real images", cut=0)
            quantiles.append({"model": name, "images": kind} | _quantiles(values))
        axis.set(title=name, xlabel="output (logit)", ylabel="density" if axis is axes[0, 0] else "", yscale="log")
    axes[0, 0].legend(fontsize="small")
    return _saved(figure, pd.DataFrame(quantiles), save)


def _quantiles(values: Tensor) -> dict[str, float]:
    levels = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)
    return {f"q{level}": values.quantile(level).item() for level in levels}


def image_gallery(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    columns: int = 10,
    sources: Sequence[str] = SOURCES,
    save: str | None = None,
) -> Figure:
    """Return DGH's Figure 8: the first images of every source, for each network of a profile.

    With `save`, a name, the figure is written to NAME.svg and statistics of the images to NAME.csv.
    """
    workshop = Workshop(results_dir(), progress=True)
    models = list(look_up(PROFILES, profile, "profile").models)
    rows = [(model, source) for model in models for source in sources]
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns * 0.85, len(rows) * 0.85), squeeze=False, layout="constrained"
    )
    facts = []
    for line, (name, source) in zip(axes, rows, strict=True):
        images = _calibration(workshop, profile, name, source, budget)
        model = load_model(name)
        facts.append({"model": name, "source": source, "mean": images.mean().item(), "std": images.std().item()})
        for axis, image in zip(line, to_pixels(images[:columns], model.mean, model.std), strict=False):
            axis.imshow(image.permute(1, 2, 0))
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel(f"{TITLES[source]}", rotation=0, ha="right", va="center", fontsize="small")
        if source == sources[0]:
            line[0].set_title(name, loc="left", fontsize="small")
    return _saved(figure, pd.DataFrame(facts), save)


def _saved(figure: Figure, data: pd.DataFrame, save: str | None) -> Figure:
    if save:
        figure.savefig(f"{save}.svg")
        data.to_csv(f"{save}.csv", index=False)
    plt.close(figure)  # else the notebook shows it twice
    return figure
