"""Runs that this machine has computed for a page, beside the published records of the same runs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML

from dghlib.experiments.experiment import FLOAT, NO_IMAGES, changed_settings
from dghlib.experiments.run import Record, published_twin
from dghlib.showing.quantizer_tables import method_title
from dghlib.showing.tables import MEASURES, TITLES, captioned, observed, short_name

NOTHING = "<p>Nothing was computed for this page: its numbers are those of published records.</p>"
HERE, PUBLISHED = "this machine", "published"
_IF_VARIED = ("number of images", "seed")  # parts of the name of a row that are left out if all rows have the same


def compared(computed: Sequence[Record]) -> HTML:
    """Return a table of the quantized networks that were computed here: accuracy, published accuracy, difference.

    Published records among `computed` are left out, since nothing was computed for them; if there are no others, a
    sentence says so. A run without a published record has empty cells.
    """
    pairs = [pair for pair in _computed_here(computed) if _is_quantized(pair[0]["inputs"])]
    measure = "top1" if all("top1" in record["outputs"] for record, _ in pairs) else "map"
    rows = [
        _name(record["inputs"], method_title(record))
        | {HERE: record["outputs"][measure], PUBLISHED: twin["outputs"][measure] if twin else None}
        for record, twin in pairs
    ]
    return _table(pd.DataFrame(rows), MEASURES[measure], digits=2)


def looked_at(computed: Sequence[Record], table: str, column: str, title: str, digits: int) -> HTML:
    """Return the same for a column of a table of observations: its mean for each network and set of images."""
    parts = []
    for record, twin in _computed_here(computed):
        own, theirs = (_means(each, table, column) if each else None for each in (record, twin))
        parts.append(pd.DataFrame({HERE: own, PUBLISHED: theirs}))
    rows = pd.concat(parts).reset_index() if parts else pd.DataFrame()
    return _table(rows.rename(columns={"model": "network"}).replace({"images": TITLES}), title, digits)


def _means(record: Record, table: str, column: str) -> pd.Series:
    return observed([record], table).groupby(["model", "images", "seed"], sort=False)[column].mean()


def _computed_here(records: Sequence[Record]) -> list[tuple[Record, Record | None]]:
    """Return the records that are not published ones, each with the published record of the same run, if any."""
    pairs = [(record, published_twin(record)) for record in records]
    return [(record, twin) for record, twin in pairs if twin is None or twin["provenance"] != record["provenance"]]


def _is_quantized(inputs: dict[str, Any]) -> bool:
    return "look" not in inputs and inputs["quantizer"]["method"] != FLOAT


def _name(inputs: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the parts of the name of a row, by column."""
    config = inputs["quantizer"]["config"]
    images = inputs.get("images", {"source": NO_IMAGES, "config": {"num_images": 0, "seed": config.get("seed", 0)}})
    settings = [f"{name} = {value}" for name, value in changed_settings(images["source"], images["config"]).items()]
    maker = f" of {short_name(images['model']['name'])}" if "model" in images else ""
    return {
        "network": short_name(inputs["model"]["name"]),
        "method": method,
        "bits": f"W{config['weight_bits']}A{config['activation_bits']}",
        "images": ", ".join([TITLES[images["source"]] + maker, *settings]),
        "number of images": images["config"]["num_images"],
        "seed": images["config"]["seed"],
    }


def _table(rows: pd.DataFrame, what: str, digits: int) -> HTML:
    """Return the table of rows that have a value here and a published one."""
    if rows.empty:
        return HTML(NOTHING)
    here, published = (pd.to_numeric(rows[column]).round(digits) for column in (HERE, PUBLISHED))
    shown = rows.assign(difference=here - published)  # of the rounded values, which readers see
    forms = {HERE: f"{{:.{digits}f}}", PUBLISHED: f"{{:.{digits}f}}", "difference": f"{{:+.{digits}f}}"}
    for column, form in forms.items():
        shown[column] = ["" if pd.isna(value) else form.format(value) for value in shown[column]]
    same = [column for column in _IF_VARIED if column in shown and shown[column].nunique() == 1]
    keys = [column for column in shown if column not in (*forms, *same)]
    title = f"Computed for this page, beside the published records of the same runs: {what}"
    return captioned(shown.drop(columns=same).set_index(keys), title)
