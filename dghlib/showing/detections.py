"""Detections in figures, and the costs of detectors of full size."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dghlib import datasets
from dghlib.experiments.experiment import FLOAT
from dghlib.experiments.run import Record
from dghlib.showing.figures import if_any, saved
from dghlib.showing.tables import (
    MEASURES,
    QUANTIZER_TITLES,
    TITLES,
    cell,
    frame,
    in_order,
    nothing,
    observed,
    short_name,
    with_feet,
)


def by_quantizer(records: Sequence[Record], measure: str = "map") -> pd.DataFrame:
    """Return a measure, mean ± standard deviation over seeds: sources by (network, quantizer and width).

    The float networks are the last row.
    """
    if not records:
        return nothing()
    numbers = frame(records)
    quantized = numbers[numbers.bits != FLOAT]
    groups = quantized.groupby(["model", "quantizer", "bits", "source"], sort=False)[measure]
    cells = {
        (short_name(model), f"{QUANTIZER_TITLES[quantizer]} {bits}", source): cell(group.mean(), group.std())
        for (model, quantizer, bits, source), group in groups
    }
    columns = in_order([(network, setting) for network, setting, _ in cells])
    for row in numbers[numbers.bits == FLOAT].itertuples(index=False):
        own = [column for column in columns if column[0] == short_name(row.model)]
        cells |= {(*column, FLOAT): cell(getattr(row, measure), None) for column in own}
    rows = [source for source in TITLES if any(source == key[2] for key in cells)]
    table = pd.DataFrame([[cells.get((*column, source), "") for column in columns] for source in rows])
    table.index = pd.Index([TITLES[source] for source in rows], name="calibrated with")
    table.columns = pd.MultiIndex.from_tuples(columns, names=[MEASURES[measure], ""])
    named = quantized.assign(
        model=quantized.model.map(short_name), setting=quantized.quantizer.map(QUANTIZER_TITLES) + " " + quantized.bits
    )
    return with_feet(table, named, "source", ("model", "setting"))


def head_outputs(records: Sequence[Record]) -> pd.DataFrame:
    """Return the ranges of the tensors of heads: tensors and sources by quantile, of the first repetition."""
    if not records:
        return nothing()
    rows = observed(records, "tensors")
    rows = rows[rows.seed == rows.seed.min()].assign(images=rows.images.map(TITLES))
    titles = {"q0.0": "the smallest", "q0.01": "1 % are below", "q0.99": "1 % are above", "q1.0": "the largest"}
    table = rows.set_index(["model", "tensor", "images"])[list(titles)].rename(columns=titles)
    return table.sort_index(level=["model", "tensor"], sort_remaining=False).map("{:.1f}".format)


@if_any
def detections(records: Sequence[Record], *, save: str | None = None) -> Figure:
    """Return test scenes with the boxes that a detector finds, in float and quantized: a record of `boxes`.

    Solid boxes are detections, dotted boxes are the annotations. With `save`, a name, the figure is written to NAME.svg
    and the boxes to NAME.csv. The scenes come from the data set: a public one must be on this machine.
    """
    (record,) = records
    profile, columns = record["inputs"]["profile"], record["inputs"]["look"]["settings"]["scenes"]
    scenes = datasets.load_annotated(profile, "test", columns)
    names = {entry["id"]: entry["name"] for entry in scenes.annotations["categories"]}
    boxes, sets = observed(records, "boxes"), record["inputs"]["sets"]
    networks = [FLOAT, *(source for source in TITLES if source in sets)]
    size = (1.5 * columns, 1.55 * len(networks))
    figure, axes = plt.subplots(len(networks), columns, figsize=size, squeeze=False, layout="constrained")
    for row, network in zip(axes, networks, strict=True):
        for scene, axis in enumerate(row):
            axis.imshow(scenes.images[scene].permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            for truth in scenes.annotations["annotations"]:
                if truth["image_id"] == scenes.image_ids[scene]:
                    _outline(axis, *truth["bbox"], linestyle=":", linewidth=0.8)
            _draw(axis, boxes[(boxes.network == network) & (boxes.scene == scene)], names)
        row[0].set_ylabel(TITLES[network], fontsize="small")
    return saved(figure, boxes, save)


def _draw(axis: Axes, boxes: pd.DataFrame, names: dict[int, str]) -> None:
    for box in boxes.itertuples():
        _outline(axis, box.left, box.top, box.right - box.left, box.bottom - box.top, linewidth=1.2)
        axis.text(box.left, box.top, names[box.label], fontsize=5, color="white", va="bottom")


def _outline(axis: Axes, left: float, top: float, width: float, height: float, **line: Any) -> None:
    axis.add_patch(Rectangle((left, top), width, height, fill=False, color="white", **line))


def full_size_costs(record: dict[str, Any]) -> pd.DataFrame:
    """Return the processor seconds of each of COCO's detectors, from the record of that benchmark."""
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
