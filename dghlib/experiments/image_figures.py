"""Figures of what sets of images look like to a network: its statistics, its features, and how both come about."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from dghlib.batchnorm import StoredStatistics, stored_statistics, variance_of, working_copy
from dghlib.experiments.figures import saved, show_images
from dghlib.experiments.plans import REAL, source_config
from dghlib.experiments.profiles import Budget
from dghlib.experiments.run import Workshop, load_model, results_dir
from dghlib.experiments.sources import budget_for, calibration_images, distance_from_statistics
from dghlib.experiments.tables import TITLES, short_name
from dghlib.generators import deep_inversion
from dghlib.generators.classes import find_head
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.matching import measure, spread_of
from dghlib.hooks import recorded_inputs
from dghlib.images import flip_and_crop, load_images, save_images
from dghlib.models import FloatModel
from dghlib.records import fingerprint
from dghlib.seeds import stream


def layer_errors(
    profile: str,
    model: str,
    budget: str = "quick",
    *,
    num_images: int = 512,
    margin: int = 3,
    repetitions: int = 5,
    save: str | None = None,
) -> Figure:
    """Return DGH's Figure 3: by layer, how far real images are from the running statistics, augmented and not.

    Augmented images are mirrored half the time and moved at random by up to `margin` pixels. Each of `repetitions`
    draws other images. With `save`, a name, the figure is written to NAME.svg and the numbers behind it to NAME.csv.
    """
    workshop, spend = Workshop(results_dir(), progress=True), budget_for(budget, num_images)
    float_model = load_model(model)
    net = working_copy(float_model.net, "cpu", float_model.image_shape)
    layers = stored_statistics(net, float_model.image_shape)
    rows = []
    for seed in range(repetitions):
        images, _ = calibration_images(workshop, profile, model, REAL, spend, seed=seed)
        kinds = {"augmented": augmented(images, margin, stream(seed, "figure 3")), "as they are": images}
        for kind, shown in kinds.items():
            with torch.no_grad():
                moments = measure(net, shown, layers).moments[0]
            for statistic, errors in _errors(moments, layers).items():
                rows += [
                    {"layer": place, "images": kind, "seed": seed, "statistic": statistic, "error": error}
                    for place, error in enumerate(errors, start=1)
                ]
    data = pd.DataFrame(rows)
    grid = sns.relplot(
        data, x="layer", y="error", hue="images", col="statistic", kind="line", errorbar="sd", height=3.2, aspect=1.3
    )
    grid.set(yscale="log", xlabel="batch norm, from the image on", ylabel="mean squared error")
    return saved(grid.figure, data, save)


def augmented(images: Tensor, margin: int, draws: torch.Generator) -> Tensor:
    """Return images (N, C, H, W), half of them mirrored, each moved at random by up to `margin` pixels."""
    flips = torch.rand(len(images), generator=draws) < 0.5
    tops, lefts = torch.randint(2 * margin + 1, (2, len(images)), generator=draws)
    height, width = images.shape[2:]
    return flip_and_crop(F.pad(images, (margin,) * 4, mode="replicate"), flips, tops, lefts, (height, width))


def _errors(moments: Tensor, layers: StoredStatistics) -> dict[str, list[float]]:
    """Return the mean squared error of each statistic at every layer."""
    deviations = spread_of(variance_of(moments), "std") - spread_of(layers.variance, "std")
    errors = {"mean": moments[0] - layers.mean, "standard deviation": deviations}
    return {name: [part.mean().item() for part in layers.per_layer(error.square())] for name, error in errors.items()}


def feature_map(
    profile: str,
    model: str,
    budget: str = "quick",
    *,
    sources: Sequence[str],
    student: str | None = None,
    save: str | None = None,
) -> tuple[Figure, pd.DataFrame]:
    """Return the features of sets of images in a plane, and a table of how sets differ in the whole space.

    The plane is that of the two directions in which the features of all sets together vary most. With `student`, a
    network, there is a set that DeepInversion makes in competition with it. With `save`, a name, the figure is written
    to NAME.svg and the points to NAME.csv.
    """
    workshop, spend, float_model = Workshop(results_dir(), progress=True), budget_for(budget), load_model(model)
    sets = {}
    for source in sources:
        images, _ = calibration_images(workshop, profile, model, source, spend)
        sets[TITLES[source]] = features_of(float_model, images)
    if student:
        images = competing_images(workshop.cache, float_model, load_model(student), spend)
        sets["DeepInversion against a student"] = features_of(float_model, images)
    points = principal_plane(torch.cat([features for features, _ in sets.values()]))
    data = pd.DataFrame(points.numpy(), columns=["first", "second"])
    data["images"] = [title for title, (features, _) in sets.items() for _ in range(len(features))]
    figure, axis = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
    sns.scatterplot(data, x="first", y="second", hue="images", style="images", s=22, alpha=0.8, ax=axis)
    axis.set(title=short_name(model), xlabel="first principal component", ylabel="second principal component")
    axis.legend(fontsize="small", title=None)
    return saved(figure, data, save), spreads(sets, TITLES[REAL])


def competing_images(cache: Path, model: FloatModel, student: FloatModel, spend: Budget) -> Tensor:
    """Return DeepInversion's images, seed 0, in competition with a student; once made they are kept in `cache`."""
    weight = deep_inversion.PRESETS["adi"].competition_weight
    config = source_config("deep_inversion", spend, seed=0, competition_weight=weight)
    both = [images_fingerprint(each, "deep_inversion", deep_inversion.VERSION, config) for each in (model, student)]
    path = cache / f"{fingerprint(both)}.safetensors"
    if not path.is_file():
        save_images(path, deep_inversion.generate(model, config, student=student), {"student": student.name})
    return load_images(path)[0]


def features_of(model: FloatModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features (N, F) of images, the input of the last linear layer, and their classes (N,) to the network.

    Raises:
        NotAClassifier, NoFeatures: the network has none.
    """
    net = working_copy(model.net, "cpu", model.image_shape)
    layer = find_head(model, net, "The map of features").layer
    with torch.no_grad(), recorded_inputs(net, [layer]) as inputs:
        classes = net(images).argmax(1)
    return inputs[layer][-1], classes


def principal_plane(points: Tensor) -> Tensor:
    """Return the coordinates (N, 2) of points (N, F) in the two directions in which they vary most."""
    centred = points - points.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T


def spreads(sets: Mapping[str, tuple[Tensor, Tensor]], real: str) -> pd.DataFrame:
    """Return how sets of (features, classes) spread, and how well they can be told from the set called `real`."""
    rows = {
        title: {
            "within a class": _within_class(features, classes),
            "classes seen": len(classes.unique()),
            "nearest neighbour of its own set": "" if title == real else f"{_told_apart(features, sets[real][0]):.0%}",
        }
        for title, (features, classes) in sets.items()
    }
    return pd.DataFrame(rows).T.rename_axis("features of")


def _within_class(features: Tensor, classes: Tensor) -> str:
    """Return the mean cosine distance of images from the centre of their class, where a class has several."""
    distances = []
    for label in classes.unique():
        members = features[classes == label]
        if len(members) > 1:
            distances.append(1 - torch.cosine_similarity(members, members.mean(0, keepdim=True)))
    return f"{torch.cat(distances).mean():.3f}" if distances else ""


def _told_apart(features: Tensor, real: Tensor) -> float:
    """Return for which part of two sets the nearest other image is of the same set: a half if they are alike."""
    together = torch.cat([features, real])
    distances = torch.cdist(together, together).fill_diagonal_(torch.inf)
    ours = torch.arange(len(together)) < len(features)
    return (ours == ours[distances.argmin(1)]).float().mean().item()


def traces(profile: str, model: str, budget: str, *, num_images: int, save: str | None = None) -> Figure:
    """Return GENIE's Figure A5: how the distance from the statistics falls, for three ways to make images.

    Of ZeroQ, of a generator network that is given fixed noise (GBA), and of GENIE, whose latent vectors learn, too.
    Each point is a run of its own with so many steps, which for these methods is the beginning of a longer one.
    """
    workshop, spend = Workshop(results_dir(), progress=True), budget_for(budget, num_images)
    kinds = {"ZeroQ": ("zeroq", {}), "GBA": ("genie_d", {"latent_learning_rate": 0.0}), "GENIE": ("genie_d", {})}
    rows = []
    for title, (source, settings) in kinds.items():
        for steps in sorted({max(1, spend.steps // share) for share in (16, 8, 4, 2, 1)}):
            shorter = dataclasses.replace(spend, steps=steps)
            images, _ = calibration_images(workshop, profile, model, source, shorter, **settings)
            distance = distance_from_statistics(load_model(model), images)
            rows.append({"images": title, "steps": steps, "distance": distance})
    data = pd.DataFrame(rows)
    figure, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    sns.lineplot(data, x="steps", y="distance", hue="images", style="images", markers=True, ax=axis)
    axis.set(title=short_name(model), yscale="log", ylabel="distance from the statistics (DGH, Eq. 4)")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize="small", title=None)
    return saved(figure, data, save)


def long_runs(
    profile: str, model: str, budget: str, *, iterations: int, num_images: int, save: str | None = None
) -> Figure:
    """Return DGH's Figures 8 and 9 side by side: images after a budget's iterations, and after more of them."""
    workshop, spend, columns = Workshop(results_dir(), progress=True), budget_for(budget, num_images), 10
    counts = sorted({spend.steps, iterations})
    size = (columns * 0.85, len(counts) * 0.95)
    figure, axes = plt.subplots(len(counts), columns, figsize=size, squeeze=False, layout="constrained")
    facts = []
    for line, steps in zip(axes, counts, strict=True):
        images, seconds = calibration_images(workshop, profile, model, "dgh", dataclasses.replace(spend, steps=steps))
        distance = distance_from_statistics(load_model(model), images)
        facts.append({"iterations": steps, "distance from the statistics": distance, "seconds": seconds})
        show_images(line, images, load_model(model), f"{steps}")
    return saved(figure, pd.DataFrame(facts), save)
