"""Tables of quantizers beside each other: their accuracy, the tensors they quantize, and their costs."""

import math
from collections.abc import Sequence

import pandas as pd

from dghlib.experiments.experiment import FLOAT, changed_settings
from dghlib.experiments.run import Record
from dghlib.showing.tables import (
    MEASURES,
    QUANTIZER_TITLES,
    SPARED,
    TITLES,
    cell,
    counts,
    fitting,
    frame,
    in_order,
    nothing,
    short_name,
    with_feet,
)


def quantizers(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 in percent, mean ± standard deviation over seeds, of every quantizer, by (network, source).

    Rows are (width, quantized tensors, quantizer); the float networks, and the number of seeds, are the last rows.
    """
    if not records:
        return nothing()
    rows = frame(records)
    quantized = rows[rows.bits != FLOAT]
    cells = {
        key: cell(group.mean(), group.std())
        for key, group in quantized.groupby(["bits", "quantized", "quantizer", "model", "source"], sort=False).top1
    }
    columns = list(dict.fromkeys(zip(quantized.model, quantized.source, strict=True)))
    lines = [
        (width, what, method)
        for width in dict.fromkeys(quantized.bits)
        for what in sorted(set(quantized.quantized), key=lambda title: title.endswith(SPARED))
        for method in QUANTIZER_TITLES
        if any((width, what, method, *column) in cells for column in columns)
    ]
    table = pd.DataFrame([[cells.get((*line, *column), "") for column in columns] for line in lines])
    index = [(width, what, QUANTIZER_TITLES[method]) for width, what, method in lines]
    table.index = pd.MultiIndex.from_tuples(index, names=["bits", "quantized", "method"])
    table.columns = pd.MultiIndex.from_tuples([(short_name(model), TITLES[source]) for model, source in columns])
    float_top1 = rows[rows.bits == FLOAT].groupby("model").top1.mean()
    table.loc[(FLOAT.capitalize(), "", ""), :] = [cell(float_top1.get(model, math.nan), None) for model, _ in columns]
    seeds = quantized.groupby(["model", "source", "bits", "quantized", "quantizer"]).seed.nunique()
    table.loc[("seeds", "", ""), :] = [counts(seeds.loc[column]) for column in columns]
    return fitting(table)


def ways(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 in percent, mean ± standard deviation over seeds: ways to quantize by (network, width).

    A way is the source of images, the quantized tensors, the method, and the settings of the method that differ from
    its default; the float networks are the last row.
    """
    if not records:
        return nothing()
    rows = frame(records)
    rows["model"] = rows.model.map(short_name)
    rows["method"] = [method_title(record) for record in records]
    quantized = rows[rows.bits != FLOAT]
    way = ["source", "quantized", "method"]
    groups = quantized.groupby([*way, "model", "bits"], sort=False).top1.agg(["mean", "std"])
    cells = groups.apply(lambda row: cell(row["mean"], row["std"]), axis=1)
    index = list(dict.fromkeys(quantized[way].itertuples(index=False, name=None)))
    columns = in_order(list(zip(quantized.model, quantized.bits, strict=True)))
    table = pd.DataFrame([[cells.get((*way, *column), "") for column in columns] for way in index])
    table.index = pd.MultiIndex.from_tuples(
        [(TITLES[source], *rest) for source, *rest in index], names=["images", "quantized", "method"]
    )
    table.columns = pd.MultiIndex.from_tuples(columns, names=[MEASURES["top1"], ""])
    whole = rows[rows.bits == FLOAT].groupby("model").top1.mean()
    table.loc[(TITLES[FLOAT], "", ""), :] = [cell(whole.get(model, math.nan), None) for model, _ in columns]
    seeds = quantized.groupby(["model", "bits", *way]).seed.nunique()
    table.loc[("seeds", "", ""), :] = [counts(seeds.loc[column]) for column in columns]
    return fitting(table)


def method_title(record: Record) -> str:
    """Return the name of a record's quantizer, with the settings that differ from the default."""
    quantizer = record["inputs"]["quantizer"]
    changed = changed_settings(quantizer["method"], quantizer.get("config", {}))
    settings = [f"{name} = {value}" for name, value in changed.items()]
    return ", ".join([QUANTIZER_TITLES[quantizer["method"]], *settings])


def placements(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 in percent, mean ± standard deviation over seeds: sources by (network, bits, placement)."""
    if not records:
        return nothing()
    rows = frame(records)
    rows = rows[rows.bits != FLOAT].assign(model=rows.model.map(short_name))
    groups = rows.groupby(["model", "bits", "placement", "source"], sort=False).top1.agg(["mean", "std"])
    table = groups.apply(lambda row: cell(row["mean"], row["std"]), axis=1).unstack([0, 1, 2]).fillna("")
    table = table.loc[[source for source in TITLES if source in table.index]].rename(index=TITLES)
    table = table.rename_axis("calibrated with").rename_axis(columns=["top-1 in %", "", ""]).sort_index(axis=1)
    return with_feet(table, rows, "source", ("model", "bits", "placement"))


def costs(records: Sequence[Record]) -> pd.DataFrame:
    """Return the seconds that each quantizer takes per run, median over all widths and seeds, by network."""
    if not records:
        return nothing()
    rows = frame(records)
    rows = rows[rows.bits != FLOAT].assign(model=[short_name(name) for name in rows[rows.bits != FLOAT].model])
    seconds = (
        rows.groupby(["quantizer", "model"]).quantization_seconds.median().map("{:.0f}".format).unstack(fill_value="")
    )
    order = [name for name in QUANTIZER_TITLES if name in seconds.index]
    return seconds.loc[order].rename(index=QUANTIZER_TITLES).rename_axis(index="seconds per run", columns=None)
