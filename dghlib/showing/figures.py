"""Figures of the book. Each function returns a matplotlib figure and writes its SVG and the numbers as CSV."""

import html
import re
from collections.abc import Callable, Sequence, Sized
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dghlib.showing.tables import nothing, write_csv
from dghlib.storage.records import write_atomically

WIDTH = 7.5  # inches: the width of a page on a screen of 1280 pixels; a wider figure would be shrunk
MOST_NUMBERS = 60  # rows that a page shows below a figure
_DESCRIBED = "figure: "  # prefix of the name of the group in an SVG that has the description


def if_any(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Let a figure without records, or without rows, show a note."""

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
    """Return a figure of the noise of tensors: signal to noise of each, from the image to the logits.

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
    """Return a figure of the errors of units: the error of each before and after it learned, in learning order.

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
    """Return an empty figure for values along the depth of a network."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    axis.set(ylabel=ylabel, title=title)
    axis.tick_params(axis="x", labelrotation=90, labelsize="x-small")
    return figure, axis


def panels(names: Sequence[str], height: float = 3.2) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure as wide as a page with one part for each name, side by side."""
    width = min(WIDTH, 1 + 4.2 * len(names))
    figure, axes = plt.subplots(1, len(names), figsize=(width, height), squeeze=False, layout="constrained")
    return figure, dict(zip(names, axes[0], strict=True))


def legend_below(figure: Figure) -> None:
    """Give a figure a single legend for all its parts, below them, instead of their own legends."""
    entries: dict[str, Artist] = {}
    for axis in figure.axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        if legend := axis.get_legend():
            legend.remove()
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=min(4, len(entries)), fontsize="small"
    )


def described(figure: Figure) -> str:
    """Return a description of a figure in words: its parts, their axes with their ranges, and their content."""
    drawn = [axis for axis in figure.axes if axis.axison]
    parts = [axis.get_title() or axis.get_title("left") for axis in drawn]
    named = list(dict.fromkeys(part for part in parts if part))
    words = [f"{len(drawn)} parts" if len(drawn) > 1 else "one part", *([", ".join(named)] if named else [])]
    for name in ("x", "y"):
        labels = dict.fromkeys(getattr(axis, f"get_{name}label")() for axis in drawn)
        limits = [limit for axis in drawn for limit in getattr(axis, f"get_{name}lim")()]
        if label := next((label for label in labels if label), ""):
            words.append(f"{name}: {label}, from {min(limits):.3g} to {max(limits):.3g}")
    entries = [
        text.get_text()
        for legend in (*figure.legends, *(axis.get_legend() for axis in drawn))
        if legend
        for text in legend.get_texts()
    ]
    words += ["drawn: " + ", ".join(dict.fromkeys(entries))] if entries else []
    return "; ".join(words)


def description_of(svg: str) -> tuple[str, str]:
    """Return the description in an SVG of `saved`, and the SVG without it."""
    found = re.search(rf'<g id="{_DESCRIBED}([^"]*)"', svg)
    if found is None:
        return "a figure", svg
    return html.unescape(found[1]), svg.replace(found[0], '<g id="figure_1"')


def numbers_below(path: Path) -> str:
    """Return, as HTML, the numbers of a figure, folded; nothing if there are none or too many to read."""
    if not path.is_file():
        return ""
    numbers = pd.read_csv(path)
    if not 0 < len(numbers) <= MOST_NUMBERS:
        return ""
    table = numbers.to_html(index=False, na_rep="", float_format="{:.4g}".format)
    return f'<details class="numbers"><summary>The numbers of this figure</summary>{table}</details>'


def saved(figure: Figure, data: pd.DataFrame, save: str | None) -> Figure:
    """Return a finished figure; with `save`, a name, write it to NAME.svg and its numbers to NAME.csv.

    The SVG contains a description in words (`description_of`).
    """
    figure.set_gid(_DESCRIBED + described(figure))
    if save:
        with plt.rc_context({"svg.hashsalt": "dghlib"}):  # otherwise 2 files of the same figure differ
            write_atomically(f"{save}.svg", lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
        write_csv(f"{save}.csv", data)
    plt.close(figure)  # otherwise the notebook shows it twice
    return figure
