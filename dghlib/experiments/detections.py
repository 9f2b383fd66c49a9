"""What detectors find, in pictures, and what those of full size take."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from dghlib import datasets
from dghlib.experiments.figures import show_images
from dghlib.experiments.plans import (
    DETECTION_SOURCES,
    FLOAT,
    Experiment,
    calibrated,
    detection_budget,
    source_config,
)
from dghlib.experiments.run import Workshop, load_model, quantized, results_dir
from dghlib.experiments.tables import TITLES
from dghlib.models.detectors import detector_of

_SHOWN = 0.4  # boxes of a lower score are left out


def detections(
    profile: str,
    model: str,
    budget: str = "quick",
    *,
    method: str = "hptq",
    width: str = "W4A8",
    sources: Sequence[str] = DETECTION_SOURCES,
    columns: int = 6,
    save: str | None = None,
) -> Figure:
    """Return the first test images with the boxes that a detector finds: in float, then quantized with every source.

    With `save`, a name, the figure is written to NAME.svg.
    """
    float_model, spend = load_model(model), detection_budget(budget)
    scenes = datasets.load_annotated(profile, "test", columns)
    images = [scenes.images[k] for k in range(columns)]
    nets = {TITLES[FLOAT]: float_model.net}
    for source in sources:
        config = source_config(source, spend, seed=0)
        experiment = calibrated(profile, model, source, config, width, spend, method)
        nets[TITLES[source]] = quantized(experiment)[1]
    figure, axes = plt.subplots(
        len(nets), columns, figsize=(1.5 * columns, 1.55 * len(nets)), squeeze=False, layout="constrained"
    )
    names = {entry["id"]: entry["name"] for entry in scenes.annotations["categories"]}
    for row, (title, net) in zip(axes, nets.items(), strict=True):
        with torch.inference_mode():
            answers = detector_of(float_model, net)([image.float() / 255 for image in images])
        for axis, image, answer in zip(row, images, answers, strict=True):
            _draw(axis, image, answer, names)
        row[0].set_ylabel(title, fontsize="small")
    if save:
        figure.savefig(f"{save}.svg")
    return figure


def _draw(axis: Axes, image: Tensor, answer: dict[str, Tensor], names: dict[int, str]) -> None:
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set(xticks=[], yticks=[])
    for box, label, score in zip(*(answer[key].tolist() for key in ("boxes", "labels", "scores")), strict=True):
        if score >= _SHOWN:
            left, top, right, bottom = box
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="white", linewidth=1.2))
            axis.text(left, top, names[label], fontsize=5, color="white", va="bottom")


def calibration_sets(
    profile: str, model: str, budget: str = "quick", *, sources: Sequence[str] = DETECTION_SOURCES, columns: int = 8
) -> Figure:
    """Return the first images of every set that `detections` quantizes a detector with, a row for each source."""
    float_model, spend = load_model(model), detection_budget(budget)
    workshop = Workshop(results_dir(), progress=True)
    size = (columns * 0.85, len(sources) * 0.85)
    figure, axes = plt.subplots(len(sources), columns, figsize=size, squeeze=False, layout="constrained")
    for row, source in zip(axes, sources, strict=True):
        config = source_config(source, spend, seed=0)
        wanted = Experiment(profile=profile, model=model, source=source, source_config=config)
        show_images(row, workshop.images(wanted)[0], float_model, TITLES[source])
    return figure


def full_size_costs(record: dict[str, Any]) -> pd.DataFrame:
    """Return the processor seconds that each of COCO's detectors takes, from the record of that benchmark."""
    rows = []
    for cost in record["outputs"]:
        _, height, width = cost["image_shape"]
        seconds = {
            "forward pass": cost["forward"],
            "one image, one step of DGH": cost["generation"],
            "HPTQ with it": cost["quantization"],
            "forward pass, quantized": cost["quantized_forward"],
        }
        facts = {
            "detector": cost["model"],
            "weights": cost["weights"],
            "image": f"{height} x {width}",
            "quantized layers": cost["quantized_layers"],
            "quantized tensors": cost["quantized_tensors"],
        }
        rows.append(facts | {title: f"{took['processor']:.2f} s" for title, took in seconds.items()})
    return pd.DataFrame(rows).set_index("detector")
