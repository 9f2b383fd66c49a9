"""Figures of the book. Each returns a matplotlib figure and writes its SVG and the CSV behind it."""

from collections.abc import Callable, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dghlib.choices import look_up
from dghlib.experiments.image_plans import budget_for
from dghlib.experiments.plans import SOURCES
from dghlib.experiments.profiles import PROFILES
from dghlib.experiments.run import Record, Workshop, load_model, results_dir
from dghlib.experiments.sources import calibration_images
from dghlib.experiments.tables import TITLES, nothing
from dghlib.images import to_pixels
from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel


def image_gallery(
    profile: str = "shapes",
    budget: str = "quick",
    *,
    columns: int = 10,
    sources: Sequence[str] = SOURCES,
    models: Sequence[str] | None = None,
    num_images: int | None = None,
    save: str | None = None,
) -> Figure:
    """Return DGH's Figure 8: the first images of every source, for each network.

    `models` and `num_images`, the size of the sets, default to all of the profile and to the budget's. With `save`,
    a name, the figure is written to NAME.svg and statistics of the images to NAME.csv.
    """
    workshop, spend = Workshop(results_dir(), progress=True), budget_for(budget, num_images)
    models = list(models or look_up(PROFILES, profile, "profile").models)
    rows = [(model, source) for model in models for source in sources]
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns * 0.85, len(rows) * 0.85), squeeze=False, layout="constrained"
    )
    facts = []
    for line, (name, source) in zip(axes, rows, strict=True):
        images, _ = calibration_images(workshop, profile, name, source, spend)
        model = load_model(name)
        facts.append({"model": name, "source": source, "mean": images.mean().item(), "std": images.std().item()})
        show_images(line, images, model, TITLES[source])
        if source == sources[0]:
            line[0].set_title(name, loc="left", fontsize="small")
    return saved(figure, pd.DataFrame(facts), save)


def show_images(axes: Sequence[Axes], images: Tensor, model: FloatModel, label: str) -> None:
    """Draw the first images of a set (N, C, H, W) into a row of axes, with a label before them."""
    for axis, image in zip(axes, to_pixels(images[: len(axes)], model.mean, model.std), strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
    for axis in axes:
        axis.set(xticks=[], yticks=[], frame_on=False)
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize="small")


def noise_profile(quantized: QuantizedModel, noise: pd.DataFrame, *, save: str | None = None) -> Figure:
    """Return a picture of which tensor hurts: signal to noise of each, from the image to the logits.

    `noise` is from `tables.noise`. With `save`, a name, the figure is written to NAME.svg and the numbers behind it to
    NAME.csv.
    """
    figure, axis = _profile(quantized, "signal to noise (dB)")
    order = list(quantized.activation_quantizers())
    tensors = noise[noise.kind == "tensor"].set_index("name").loc[order]
    axis.plot(order, tensors.own, "o", markersize=3, label="own rounding")
    axis.plot(order, tensors.accumulated, label="with all before it")
    axis.legend(fontsize="small")
    return saved(figure, noise, save)


def unit_profile(quantized: QuantizedModel, *, save: str | None = None) -> Figure:
    """Return a picture of which unit hurts: the error of each before and after it learned, in the order of learning.

    With `save`, a name, the figure is written to NAME.svg and the numbers behind it to NAME.csv.

    Raises:
        ValueError: nothing was learned.
    """
    errors = pd.DataFrame(quantized.about.get("units", []))
    if errors.empty:
        raise ValueError(f"{quantized.about['method']} learns no units: there is nothing to draw")
    figure, axis = _profile(quantized, "error / energy of the float output")
    for (learned, part), colour in zip(errors.groupby("learned", sort=False), sns.color_palette(), strict=False):
        axis.plot(part.unit, part.before, "o", markersize=4, color=colour, mfc="none", label=f"{learned}: before")
        axis.plot(part.unit, part.after, "o", markersize=4, color=colour, label=f"{learned}: after")
    axis.set_yscale("log")
    axis.legend(fontsize="small")
    return saved(figure, errors, save)


def _profile(quantized: QuantizedModel, ylabel: str) -> tuple[Figure, Axes]:
    """Return an empty figure of values along the depth of a network."""
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axis.set(ylabel=ylabel, title=f"{quantized.about['model']}, {quantized.about['method']}")
    axis.tick_params(axis="x", labelrotation=90, labelsize="x-small")
    return figure, axis


def if_any(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Let a figure say so where there are no records to draw."""

    @wraps(draw)
    def drawn(records: Sequence[Record], *, save: str | None = None, **settings: str) -> Figure:
        if records:
            return draw(records, save=save, **settings)
        figure, axis = plt.subplots(figsize=(5.2, 0.8))
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no records of these settings and versions", ha="center", va="center")
        return saved(figure, nothing(), save)

    return drawn


def saved(figure: Figure, data: pd.DataFrame, save: str | None) -> Figure:
    """Return a finished figure; with `save`, a name, write it to NAME.svg and the numbers behind it to NAME.csv."""
    if save:
        figure.savefig(f"{save}.svg")
        data.to_csv(f"{save}.csv", index=False)
    plt.close(figure)  # else the notebook shows it twice
    return figure
