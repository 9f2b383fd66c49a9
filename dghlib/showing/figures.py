"""Figures of the book. Each returns a matplotlib figure and writes its SVG and the CSV behind it."""

from collections.abc import Callable, Sized
from functools import wraps

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dghlib.showing.tables import nothing


def if_any(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Let a figure of records, or of rows, say so where there are none."""

    @wraps(draw)
    def drawn(found: Sized, *, save: str | None = None, **settings: str) -> Figure:
        if len(found):
            return draw(found, save=save, **settings)
        figure, axis = plt.subplots(figsize=(5.2, 0.8))
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no records of these settings and versions", ha="center", va="center")
        return saved(figure, nothing(), save)

    return drawn


@if_any
def noise_profile(noise: pd.DataFrame, *, title: str, save: str | None = None) -> Figure:
    """Return a picture of which tensor hurts: signal to noise of each, from the image to the logits.

    `noise` is from `tables.noise`. With `save`, a name, the figure is written to NAME.svg and the numbers behind it to
    NAME.csv.
    """
    figure, axis = _profile(title, "signal to noise (dB)")
    tensors = noise[noise.kind == "tensor"].sort_values("place")
    axis.plot(tensors.name, tensors.own, "o", markersize=3, label="own rounding")
    axis.plot(tensors.name, tensors.accumulated, label="with all before it")
    axis.legend(fontsize="small")
    return saved(figure, noise, save)


@if_any
def unit_profile(units: pd.DataFrame, *, title: str, save: str | None = None) -> Figure:
    """Return a picture of which unit hurts: the error of each before and after it learned, in the order of learning.

    `units` is from `tables.units`. With `save`, a name, the figure is written to NAME.svg and the numbers behind it to
    NAME.csv.
    """
    errors = units.sort_values("place")
    figure, axis = _profile(title, "error / energy of the float output")
    for (learned, part), colour in zip(errors.groupby("learned", sort=False), sns.color_palette(), strict=False):
        axis.plot(part.unit, part.before, "o", markersize=4, color=colour, mfc="none", label=f"{learned}: before")
        axis.plot(part.unit, part.after, "o", markersize=4, color=colour, label=f"{learned}: after")
    axis.set_yscale("log")
    axis.legend(fontsize="small")
    return saved(figure, errors, save)


def _profile(title: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return an empty figure of values along the depth of a network."""
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axis.set(ylabel=ylabel, title=title)
    axis.tick_params(axis="x", labelrotation=90, labelsize="x-small")
    return figure, axis


def saved(figure: Figure, data: pd.DataFrame, save: str | None) -> Figure:
    """Return a finished figure; with `save`, a name, write it to NAME.svg and the numbers behind it to NAME.csv."""
    if save:
        figure.savefig(f"{save}.svg")
        data.to_csv(f"{save}.csv", index=False)
    plt.close(figure)  # else the notebook shows it twice
    return figure
