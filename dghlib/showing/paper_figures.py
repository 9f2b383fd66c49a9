"""Figures of the papers with curves: accuracy against a setting, with the spread over seeds."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dghlib.experiments.experiment import FLOAT, REAL
from dghlib.experiments.run import Record
from dghlib.plans.papers import FILTERS
from dghlib.showing import interactive
from dghlib.showing.figures import if_any, legend_below, panels, saved
from dghlib.showing.paper_tables import labelled, settings_of
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES, short_name

LEVELS = {REAL: "--", FLOAT: ":"}  # line styles in figures


@if_any
def scope_curves(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return DGH's Figures 1 and 5: accuracy against the number of images that match the statistics together.

    Stars are sets that are matched as a whole; the grey line is real images.
    """
    rows = labelled(records, _stretched)
    rows["scope"] = [_scope(record) for record in records]
    made, levels = rows[rows.source == "dgh"], _levels(rows)
    figure, axes = _axes(rows)
    for model, axis in axes.items():
        here = made[made.model == model]
        sns.lineplot(here, x="scope", y="top1", hue="row", marker="o", errorbar="sd", ax=axis)
        whole = here[here.scope == here.num_images].groupby(["row", "scope"], as_index=False, sort=False).top1.mean()
        axis.plot(whole.scope, whole.top1, "*", color="tab:red", markersize=13, label="all images together")
        _ticks(axis, here.scope, log=True)
        _finish(axis, levels, model, "images matched together")
    legend_below(figure)
    means = _means(made, ["scope", "row", "num_images"])
    means["star"] = means.scope == means.num_images
    chart = interactive.curves(means, levels, ("scope", "images matched together"), log=True)
    everything = _means(pd.concat([made, rows[rows.source == REAL]]), ["scope", "row"])
    return interactive.explorable(saved(figure, everything, save), chart)


def _stretched(record: Record) -> str:
    if record["inputs"]["images"]["source"] == REAL:
        return TITLES[REAL]
    return "with ODSL" if settings_of(record)["output_stretching"] else "batch-norm loss alone"


def _scope(record: Record) -> float | None:
    if "images" not in record["inputs"]:
        return None
    settings = settings_of(record)
    return settings.get("scope") or settings["num_images"]


@if_any
def width_curves(records: Sequence[Record], *, vary: str, save: str | None = None) -> Figure:
    """Return DGH's Figures 6 and 7: accuracy against the width of "activations" or of "weights"."""
    place = {"weights": 0, "activations": 1}[vary]
    rows = labelled(records, lambda record: TITLES[record["inputs"]["images"]["source"]])
    rows["width"] = [None if bits == FLOAT else int(bits.removeprefix("W").split("A")[place]) for bits in rows.bits]
    return _curves(rows[rows.bits != FLOAT], rows, "width", f"bits of {vary}", save)


@if_any
def amount_curves(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return GENIE's Figure A4, or GenQ's 5: accuracy against the number of calibration images."""
    rows = labelled(records, lambda record: TITLES[record["inputs"]["images"]["source"]])
    return _curves(rows[rows.bits != FLOAT], rows, "num_images", "calibration images", save, log=True)


@if_any
def filter_curves(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return GenQ's Figure 6: accuracy against the share of the generated images that its filters discard."""
    rows = labelled(records, filter_of)
    rows["discarded"] = [discarded_of(record) for record in records]
    return _curves(rows[rows.bits != FLOAT], rows, "discarded", "discarded of the images made, in %", save)


def filter_of(record: Record) -> str:
    """Return the name of the filter, one of `FILTERS`, that selected a record's images."""
    shares = {share: name for name, share in FILTERS.items()}
    return shares[settings_of(record)["energy_share"]] if discarded_of(record) else "no filter"


def discarded_of(record: Record) -> int | None:
    """Return the percentage of the generated images that were discarded."""
    if "images" not in record["inputs"]:
        return None
    return round(100 * (1 - 1 / settings_of(record)["oversampling"]))


POWERS = {"l1": 1.0, "l2": 2.0, "shrink_100": 2.4, "l3": 3.0, "l4": 4.0}


@if_any
def step_size_curves(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return GENIE's Figure A2: accuracy against the power p of the error for weights' initial step sizes."""
    rows = labelled(records, lambda record: QUANTIZER_TITLES[record["inputs"]["quantizer"]["method"]])
    searches = [record["inputs"]["quantizer"].get("config", {}).get("weight_search") for record in records]
    rows["power"] = [POWERS.get(search) for search in searches]
    return _curves(rows[rows.bits != FLOAT], rows, "power", "p of Eq. A3", save)


def _curves(
    quantized: pd.DataFrame, rows: pd.DataFrame, x: str, xlabel: str, save: str | None, *, log: bool = False
) -> Figure:
    figure, axes = _axes(rows)
    levels = _levels(rows[rows.bits == FLOAT])
    for model, axis in axes.items():
        here = quantized[quantized.model == model]
        sns.lineplot(here, x=x, y="top1", hue="row", style="row", markers=True, errorbar="sd", ax=axis)
        _ticks(axis, here[x], log=log)
        _finish(axis, levels, model, xlabel)
    legend_below(figure)
    means = _means(quantized, [x, "row"])
    return interactive.explorable(saved(figure, means, save), interactive.curves(means, levels, (x, xlabel), log=log))


def _axes(rows: pd.DataFrame) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a square for every quantized network."""
    return panels(list(dict.fromkeys(rows[rows.bits != FLOAT].model)))


def _ticks(axis: Axes, values: pd.Series, *, log: bool) -> None:
    """Put ticks at the values that were tried."""
    if log:
        axis.set_xscale("log", base=2)
    tried = sorted(set(values))
    axis.set_xticks(tried, [f"{value:g}" for value in tried])


def _levels(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the values that do not depend on x, of real images and the float network: mean top-1, by network."""
    level = rows[rows.source.isin(LEVELS)].groupby(["model", "source"], sort=False).top1.mean().reset_index()
    return level.assign(title=level.source.map(TITLES))


def _finish(axis: Axes, levels: pd.DataFrame, model: str, xlabel: str) -> None:
    """Draw the levels of a network, and label the axes."""
    for level in levels[levels.model == model].itertuples():
        axis.axhline(level.top1, color="grey", linestyle=LEVELS[level.source], label=level.title)
    axis.set(title=short_name(model), xlabel=xlabel, ylabel="top-1 in %")


def _means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the numbers of a figure: mean, spread and number of seeds."""
    groups = rows.groupby(["model", "bits", *by], sort=False).top1
    return groups.agg(mean="mean", spread="std", seeds="count").reset_index()
