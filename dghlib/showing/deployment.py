"""A quantized network outside of dghlib: its files, and the quantizers of other tools, from records."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from dghlib.experiments.experiment import FLOAT
from dghlib.experiments.run import Record
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES, nothing, observed


def files(records: Sequence[Record]) -> pd.DataFrame:
    """Return facts about the ONNX files of a network, in float and quantized; see `quantized_looks.files`."""
    if not records:
        return nothing()
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        quantizer = record["inputs"]["quantizer"]
        width = f"W{quantizer['config']['weight_bits']}A{quantizer['config']['activation_bits']}"
        for row in observed([record], "files").to_dict("records"):
            title = FLOAT if row["network"] == FLOAT else f"{QUANTIZER_TITLES[quantizer['method']]} {width}"
            rows.setdefault(f"{row['model']}, {title}", row)
    return pd.DataFrame.from_dict({network: _about_file(row) for network, row in rows.items()}, orient="index")


def _about_file(row: dict[str, Any]) -> dict[str, Any]:
    measure, title, outputs = ("map", "mAP", "outputs") if "map" in row else ("top1", "top-1", "logits")
    return {
        "file, kB": round(row["bytes"] / 1000),
        "ms per image": f"{1000 * row['seconds']:.2f}",
        f"{title} of file": f"{row[f'{measure} of the file']:.2f}",
        "simulated": f"{row[measure]:.2f}",
        f"{outputs} equal": f"{100 * row['equal']:.0f} %",
    }


def onnxruntime_alone(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 of networks that onnxruntime quantized, by calibration images; see `looks.onnxruntime`."""
    if not records:
        return nothing()
    reached = observed(records, "top1").pivot_table("top1", "images", "model", sort=False)
    return reached.map("{:.2f}".format).rename(index=TITLES).rename_axis(index="calibrated with", columns="top-1 in %")
