"""Figures of sets of images, and of a network's measurements on them, from the records of observations."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from dghlib.experiments.looks import REAL_SET, pictures_in
from dghlib.experiments.run import Record
from dghlib.showing.figures import if_any, legend_below, panels, saved
from dghlib.showing.tables import TITLES, cell, nothing, observed, short_name

LEAST_DENSITY = 1e-6  # that is drawn; smaller densities belong to single outputs, whose curves fall without end


@if_any
def feature_maps(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return DGH's Figure 2 and IntraQ's Figure 1: the features of sets of images, by network and map.

    The points are those of the first repetition; with `save`, a name, all are in NAME.csv.
    """
    data = observed(records, "points")
    grid = sns.relplot(
        data[data.seed == data.seed.min()],
        x="x",
        y="y",
        hue="images",
        style="images",
        row="model",
        col="map",
        s=22,
        alpha=0.8,
        height=2.7,
        aspect=1.15,
        facet_kws={"sharex": False, "sharey": False},
    )
    grid.set(xticks=[], yticks=[], xlabel="", ylabel="").set_titles("{row_name}, {col_name}")
    for axis in grid.axes.flat:
        axis.set_aspect("equal", adjustable="datalim")  # equal distances in both directions
    return saved(grid.figure, data, save)


def spreads(records: Sequence[Record]) -> pd.DataFrame:
    """Return how sets of features differ, mean ± standard deviation over repetitions; see `looks.spreads`."""
    if not records:
        return nothing()
    data = observed(records, "spreads")
    data["of its own set, %"] = 100 * data["nearest neighbour of its own set"]
    columns = {
        "within a class": ("within a class", 3),
        "classes seen": ("classes seen", 0),
        "of its own set, %": ("nearest neighbour of its own set, %", 0),
    }
    return _by_set(data, columns).rename_axis(["network", "features of"])


def _by_set(data: pd.DataFrame, columns: Mapping[str, tuple[str, int]]) -> pd.DataFrame:
    """Return the mean ± standard deviation of columns (name: title, digits), by network and set of images."""
    groups = data.groupby(["model", "images"], sort=False)
    table = pd.DataFrame(index=groups.size().index)
    for name, (title, digits) in columns.items():
        numbers = groups[name].agg(["mean", "std"])
        cells = [cell(mean, spread, digits) for mean, spread in numbers.itertuples(index=False)]
        table[title] = ["" if pd.isna(mean) else shown for mean, shown in zip(numbers["mean"], cells, strict=True)]
    return table


@if_any
def layer_errors(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return DGH's Figure 3: by layer, the distance of real images from the running statistics, augmented and not."""
    data = observed(records, "errors")
    grid = sns.relplot(
        data,
        x="layer",
        y="error",
        hue="images",
        row="model",
        col="statistic",
        kind="line",
        errorbar=("pi", 100),
        height=2.6,
        aspect=1.25,
        facet_kws={"sharex": False, "sharey": False},
    )
    grid.set(yscale="log", xlabel="batch norm, from the image on", ylabel="mean squared error")
    grid.set_titles("{row_name}, {col_name}").tight_layout()
    return saved(grid.figure, data, save)


def nearer(records: Sequence[Record]) -> pd.DataFrame:
    """Return at how many of its layers a network's statistics are nearer to augmented than to unchanged images.

    Errors are means over repetitions.
    """
    if not records:
        return nothing()
    errors = observed(records, "errors").groupby(["model", "statistic", "layer", "images"], sort=False).error.mean()
    errors = errors.unstack()
    wins = (errors["augmented"] < errors["as they are"]).groupby(level=[0, 1], sort=False)
    ratio = (errors["augmented"] / errors["as they are"]).groupby(level=[0, 1], sort=False).median()
    table = pd.DataFrame({"layers": wins.size(), "augmented is nearer at": wins.sum()})
    table["augmented / as they are, median"] = ratio.map("{:.2f}".format)
    return table.rename_axis(["network", "statistic"])


@if_any
def output_distributions(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return DGH's Figure 4: densities of the networks' outputs, in the first repetition.

    With `save`, a name, the figure is written to NAME.svg and the quantiles of all repetitions to NAME.csv.
    """
    data = observed(records, "densities")
    data = data[data.seed == data.seed.min()]
    figure, axes = panels(list(dict.fromkeys(data.model)))
    for place, (model, axis) in enumerate(axes.items()):
        for images, curve in data[data.model == model].groupby("images", sort=False):
            (line,) = axis.plot(curve.output, curve.density, label=images)
            if images == REAL_SET:
                axis.fill_between(curve.output, curve.density, color=line.get_color(), alpha=0.2)
        axis.set(title=model, xlabel="output (logit)", ylabel="" if place else "density", yscale="log")
        axis.set_ylim(bottom=LEAST_DENSITY)
    legend_below(figure)
    return saved(figure, observed(records, "quantiles"), save)


def output_ends(records: Sequence[Record]) -> pd.DataFrame:
    """Return the ends of the distributions of outputs, mean ± standard deviation over repetitions."""
    if not records:
        return nothing()
    titles = {"q0.0": "the smallest", "q0.001": "0.1 % are below", "q0.999": "0.1 % are above", "q1.0": "the largest"}
    columns = {name: (title, 1) for name, title in titles.items()}
    return _by_set(observed(records, "quantiles"), columns).rename_axis(["network", "outputs for"])


@if_any
def traces(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return GENIE's Figure A5: the distance from the statistics against steps, for 3 ways to make images."""
    data = observed(records, "distances")
    data[["images", "steps"]] = data.images.str.rsplit(n=1, expand=True)
    data["steps"] = data.steps.astype(int)
    figure, axes = panels(list(dict.fromkeys(data.model)))
    for model, axis in axes.items():
        here, looks = data[data.model == model], {"hue": "images", "style": "images", "markers": True}
        sns.lineplot(here, x="steps", y="distance", errorbar="sd", ax=axis, **looks)
        axis.set(title=model, yscale="log", ylabel="distance from the statistics (DGH, Eq. 4)")
        axis.set_xscale("log", base=2)
    legend_below(figure)
    return saved(figure, data, save)


def last_distances(records: Sequence[Record]) -> pd.DataFrame:
    """Return the distances at the last step of `traces`, means over repetitions: networks by method."""
    if not records:
        return pd.DataFrame(columns=["GENIE", "GBA", "ZeroQ"], dtype=float)
    data = observed(records, "distances")
    data[["images", "steps"]] = data.images.str.rsplit(n=1, expand=True)
    steps = data.steps.astype(int)
    return data[steps == steps.max()].pivot_table("distance", "model", "images")


@if_any
def pictures(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return the images in the records of observations, a row for each set: DGH's Figures 8 and 9.

    With `save`, a name, the figure is written to NAME.svg and the numbers of the sets to NAME.csv.
    """
    rows = [
        (short_name(record["inputs"]["model"]["name"]) if first else "", TITLES.get(title, title), images)
        for record in records
        for first, title, images in _sets(record)
    ]
    columns = max(len(images) for _, _, images in rows)
    size = (columns * 0.85, len(rows) * 0.85)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for line, (model, title, images) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize="small")
        line[0].set_title(model, loc="left", fontsize="small")
    return saved(figure, observed(records, "sets"), save)


def _sets(record: Record) -> list[tuple[bool, str, list[Image.Image]]]:
    found = pictures_in(record["outputs"]["tables"])
    return [(place == 0, title, images) for place, (title, images) in enumerate(found.items())]


def described(records: Sequence[Record]) -> pd.DataFrame:
    """Return the numbers of the sets whose images `pictures` shows, means over repetitions; Eq. 4 is the distance."""
    if not records:
        return nothing()
    numbers = observed(records, "sets").groupby(["model", "images"], sort=False)
    columns = {"mean": "{:.2f}", "standard deviation": "{:.2f}", "distance": "{:.2g}"}
    table = pd.DataFrame({name: numbers[name].mean().map(form.format) for name, form in columns.items()})
    table = table.rename(columns={"distance": "distance from the statistics"}, index=TITLES)
    return table.rename_axis(["network", "images"])


def save_strips(records: Sequence[Record]) -> None:
    """Write the images of each set side by side to images_SET.png, for the pages of the methods."""
    for title, images in (each for record in records for each in pictures_in(record["outputs"]["tables"]).items()):
        width, height, gap = *images[0].size, 2
        strip = Image.new("RGB", (len(images) * (width + gap) + gap, height + 2 * gap), "white")
        for place, image in enumerate(images):
            strip.paste(image, (gap + place * (width + gap), gap))
        strip.save(f"images_{title}.png")
