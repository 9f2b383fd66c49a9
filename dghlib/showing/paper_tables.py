"""Tables of the papers in which a method varies: the meaning of a row, and the paper's numbers for it."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from dghlib.experiments.experiment import FLOAT
from dghlib.experiments.run import Record
from dghlib.plans.papers import INTRAQ_PARTS, PARTS
from dghlib.showing import tables
from dghlib.showing.tables import PAPER, QUANTIZER_TITLES, TITLES, WIDEST, cell, nothing, paper_table, short_name

# From a record of a quantized network to the name of its row.
RowOf = Callable[[Record], str]


def by_row(
    records: Sequence[Record], row_of: RowOf, *, title: str, rows: Sequence[str] = (), paper: str | None = None
) -> pd.DataFrame:
    """Return top-1 in percent, mean ± standard deviation over seeds: rows of `row_of` by (network, bits).

    The float networks are the last row. `rows` orders them; by default they have the order of the records. With
    `paper`, the name of a table whose methods have the names of the rows, its numbers follow in columns of their own.
    """
    if not records:
        return nothing()
    numbers = labelled(records, row_of)
    quantized = numbers[numbers.bits != FLOAT]
    groups = quantized.groupby(["model", "bits", "row"], sort=False).top1
    cells = {(short_name(model), bits, row): cell(group.mean(), group.std()) for (model, bits, row), group in groups}
    widths = list(dict.fromkeys(quantized.bits))
    for line in numbers[numbers.bits == FLOAT].itertuples(index=False):
        cells |= {(short_name(str(line.model)), width, TITLES[FLOAT]): cell(float(line.top1), None) for width in widths}
    if paper:
        for line in paper_table(paper).itertuples(index=False):
            cells[PAPER + str(line.network), str(line.setting), str(line.method)] = cell(line.mean, line.spread)
    columns = tables.in_order([(model, bits) for model, bits, _ in cells])
    lines = [*(rows or dict.fromkeys(quantized.row)), TITLES[FLOAT]]
    table = pd.DataFrame([[cells.get((*column, row), "") for column in columns] for row in lines])
    table.index = pd.Index(lines, name=title)
    table.columns = pd.MultiIndex.from_tuples(columns, names=["top-1 in %", ""])
    return tables.with_feet(table, numbers.assign(model=numbers.model.map(short_name)), "row")


def labelled(records: Sequence[Record], row_of: RowOf) -> pd.DataFrame:
    """Return `tables.frame` with a column `row`: the result of `row_of` for a quantized network, otherwise "Float"."""
    names = [TITLES[FLOAT] if "images" not in record["inputs"] else row_of(record) for record in records]
    return tables.frame(records).assign(row=names)


def settings_of(record: Record) -> dict[str, Any]:
    """Return the settings of a record's images."""
    return record["inputs"]["images"]["config"]


def parts_of(record: Record) -> str:
    """Return which of DGH's parts a record has, in the form of the rows of its Table 4."""
    settings = settings_of(record)
    on = [settings["scope"] is None, settings["preprocessing"], settings["output_stretching"]]
    return " + ".join(part for part, is_on in zip(PARTS, on, strict=True) if is_on) or "none"


def table4(records: Sequence[Record]) -> pd.DataFrame:
    """Return DGH's Table 4 with the paper's numbers: a tick for every part that is on."""
    rows = list(dict.fromkeys(paper_table("dgh_table4").method))
    table = by_row(records, parts_of, title="parts", rows=rows, paper="dgh_table4")
    if "parts" not in table.index.names:
        return table
    feet = [(name, "", "") for name in (TITLES[FLOAT], *tables.FEET)]
    ticks = [tuple("✓" if part in str(row).split(" + ") else "" for part in PARTS) for row in table.index[: -len(feet)]]
    table.index = pd.MultiIndex.from_tuples([*ticks, *feet], names=PARTS)
    return table


def intraq_part_of(record: Record) -> str:
    """Return which of `INTRAQ_PARTS` a record's settings are: of those that match, the most specific."""
    settings = settings_of(record)
    fitting = [name for name, changed in INTRAQ_PARTS.items() if changed.items() <= settings.items()]
    return max(fitting, key=lambda name: len(INTRAQ_PARTS[name]))


def intraq_parts(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 with IntraQ's images, with images that lack a part, and with images of other crops."""
    return by_row(records, intraq_part_of, title="IntraQ", rows=list(INTRAQ_PARTS))


def by_settings(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 by source of images and by its settings that differ from the method's default."""
    return by_row(records, tables.source_title, title="images")


def step_sizes(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 by quantizer and by the search for the initial step sizes of weights."""
    return by_row(records, _search_of, title="first steps")


def _search_of(record: Record) -> str:
    quantizer = record["inputs"]["quantizer"]
    return f"{QUANTIZER_TITLES[quantizer['method']]}, {quantizer['config']['weight_search']}"


def by_amount(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 by width, number of images and source, in the order of the sources."""
    if not records:
        return nothing()
    numbers = tables.frame(records)
    numbers = numbers[numbers.bits != FLOAT]
    groups = numbers.groupby(["model", "bits", "num_images", "source"]).top1.agg(["mean", "std"])
    table = groups.apply(lambda row: cell(row["mean"], row["std"]), axis=1).unstack()
    table = table[[source for source in TITLES if source in table.columns]].rename(columns=TITLES)
    table.index = table.index.map(lambda key: (short_name(key[0]), key[1], int(key[2])))
    return table.rename_axis(index=["network", "bits", "images"], columns=_corner(numbers)).fillna("")


def methods_by_amount(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1, and the seconds of images and quantization together: quantizers by source and number of images."""
    if not records:
        return nothing()
    numbers = tables.frame(records)
    numbers = numbers[numbers.bits != FLOAT]
    numbers = numbers.assign(seconds=numbers.generation_seconds + numbers.quantization_seconds)
    groups = numbers.groupby(["model", "bits", "source", "num_images", "quantizer"])
    means = groups.agg(mean=("top1", "mean"), std=("top1", "std"), seconds=("seconds", "mean"))
    cells = means.apply(lambda row: f"{cell(row['mean'], row['std'])} ({row.seconds:.0f} s)", axis=1).unstack()
    cells = cells[[method for method in QUANTIZER_TITLES if method in cells.columns]].rename(columns=QUANTIZER_TITLES)
    cells.index = cells.index.map(lambda key: (short_name(key[0]), key[1], TITLES[key[2]], int(key[3])))
    names = ["network", "bits", "calibrated with", "images"]
    return cells.rename_axis(index=names, columns=_corner(numbers)).fillna("")


def _corner(rows: pd.DataFrame) -> str:
    """Return the meaning of a table's cells: the measure, the quantized tensors, and the number of seeds."""
    return f"top-1 in %; quantized: {'; '.join(dict.fromkeys(rows.quantized))}; seeds: {tables.seeds_of(rows)}"


def paper_amounts(name: str) -> pd.DataFrame:
    """Return a paper's table of top-1 by number of images: rows are numbers, columns (network, method)."""
    printed = paper_table(name)
    printed["images"] = printed.setting.str.removesuffix(" images").astype(int)
    table = printed.pivot(index="images", columns=["network", "method"], values="mean")
    return table.map("{:.2f}".format).rename_axis(columns=["paper: top-1 in %", ""])


def filtered_classes(records: Sequence[Record]) -> pd.DataFrame:
    """Return how many classes networks (columns) see in the images that GenQ's filters keep: mean over repetitions."""
    if not records:
        return nothing()
    rows = tables.observed(records, "classes")
    means = rows.groupby(["images", "model"], sort=False).classes.mean().map("{:.0f}".format)
    return means.unstack().rename_axis(index="filter, discarded", columns="classes found")


def transfers(records: Sequence[Record]) -> pd.DataFrame:
    """Return GenQ's Table 5: top-1 of networks (columns) quantized with images made from each network (rows)."""
    if not records:
        return nothing()
    rows = labelled(records, _maker_of)
    groups = rows[rows.bits != FLOAT].groupby(["source", "row", "bits", "model"], sort=False).top1.agg(["mean", "std"])
    cells = groups.apply(lambda row: cell(row["mean"], row["std"]), axis=1)
    table = cells.unstack().fillna("").rename(columns=short_name)
    corner = _corner(rows[rows.bits != FLOAT])
    return table.rename(index=TITLES).rename_axis(index=["images", "made from", "bits"], columns=corner)


def _maker_of(record: Record) -> str:
    inputs = record["inputs"]
    return short_name(inputs["images"].get("model", inputs["model"])["name"])


def statistics(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 with images from various statistics, and with other images, by width."""
    return by_row(records, _statistics_of, title="calibrated with")


def _statistics_of(record: Record) -> str:
    images = record["inputs"]["images"]
    title = TITLES[images["source"]]
    if "model" in images:
        return f"{title} of {short_name(images['model']['name'])}"
    config = images["config"]
    parts = [part for part in ("output_stretching", "preprocessing") if config.get(part) is False]
    return ", without ".join([title, *(part.replace("_", " ") for part in parts)])


def printed(name: str) -> pd.DataFrame:
    """Return a paper's table as printed: methods by (setting, network); ‡ marks numbers from another paper.

    A table that would be wider than a page has its settings below each other.
    """
    numbers = paper_table(name, as_text=True)
    borrowed = numbers.source.str.contains(", from ").map({True: " ‡", False: ""})
    numbers["cell"] = (numbers["mean"] + " ± " + numbers.spread).str.removesuffix(" ± ") + borrowed
    columns = list(dict.fromkeys(zip(numbers.setting, numbers.network, strict=True)))
    if len(columns) > WIDEST:
        table = numbers.pivot(index=["setting", "method"], columns="network", values="cell").fillna("")
        rows = list(dict.fromkeys(zip(numbers.setting, numbers.method, strict=True)))
        return table.loc[rows, list(dict.fromkeys(numbers.network))].rename_axis(index=["paper", ""], columns="")
    table = numbers.pivot(index="method", columns=["setting", "network"], values="cell").fillna("")
    return table.loc[list(dict.fromkeys(numbers.method)), columns].rename_axis(index="paper", columns=["", ""])


def printed_ratios(name: str, of: str, to: str) -> dict[str, pd.Series]:
    """Return the ratios of a method's numbers to those of another in a paper's table: networks by setting."""
    numbers = paper_table(name).pivot_table("mean", ["setting", "network"], "method")
    return {str(setting): rows.dropna() for setting, rows in (numbers[of] / numbers[to]).groupby("setting")}


def paper_transfers() -> pd.DataFrame:
    """Return GenQ's Table 5 as printed."""
    printed = paper_table("genq_table5")
    printed["made from"] = printed.setting.str.removeprefix("images from ")
    table = printed.pivot(index=["method", "made from"], columns="network", values="mean")
    return table.map("{:.2f}".format).rename_axis(index=["images", "made from"], columns="paper: top-1 in %")
