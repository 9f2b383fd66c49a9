"""The numbers in the sentences of a page, computed from its records, so that no sentence needs updates.

A difference is between runs that are equal in all respects but one (`_ALIKE`), seed by seed, as a mean over seeds for
each setting. A number in a sentence is the range of these over all settings of the sentence: a notebook computes it,
`say` names it, and the sentence has the role {glue:text} with that name instead of the number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from myst_nb import glue

from dghlib.experiments.experiment import FLOAT, NO_IMAGES, REAL
from dghlib.experiments.run import Record
from dghlib.showing.paper_figures import discarded_of, filter_of
from dghlib.showing.paper_tables import settings_of
from dghlib.showing.quantizer_tables import method_title
from dghlib.showing.tables import (
    QUANTIZER_TITLES,
    TITLES,
    WIDEST,
    frame,
    nothing,
    observed,
    settings_title,
)

_PAIR = ["model", "quantizer", "policy", "bits", "num_images", "seed"]
_ALIKE = ("model", "source", "quantizer", "policy", "placement", "bits", "num_images", "seed")
NOT_RECORDED = "(not recorded)"  # replaces a number without a record

# The property by which runs are compared: a column of `tables.frame`, or a function of a record.
By = str | Callable[[Record], str]


def say(**numbers: str | float) -> None:
    """Name the numbers of a page's sentences; whole numbers have separated thousands."""
    for name, number in numbers.items():
        text = f"{number:,}".replace(",", " ") if isinstance(number, int) else str(number)
        glue(name, text, display=False)


def gaps(
    records: Sequence[Record],
    row: str | Sequence[str],
    than: str | Sequence[str],
    *,
    by: By = "source",
    but: Sequence[str] = (),
    measure: str = "top1",
    **where: Any,
) -> pd.Series:
    """Return by how many points some runs are above others: one number per setting, the mean over its seeds.

    Args:
        records: may include other runs.
        row: the value of `by` for the former, or several values.
        than: the value for the latter; with several, each is compared with each.
        by: the differing property; if it is a function, the source may differ, too.
        but: other columns in which runs may differ; these differences are averaged.
        measure: of the outputs.
        where: required values of columns of `tables.frame`, one value or a list: `bits="W4A4"`.
    """
    rows = _quantized(records, by, where)
    alike = [name for name in _ALIKE if name not in (by, *but) and not (callable(by) and name == "source")]
    if rows.empty:
        return pd.Series(dtype=float)
    reached = rows.groupby([*alike, "row"])[measure].mean().unstack("row")
    pairs = {
        (one, other): reached[one] - reached[other]
        for one in _several(row)
        for other in _several(than)
        if one != other and {one, other} <= set(reached)
    }
    if not pairs:
        return pd.Series(dtype=float)
    away = pd.concat(pairs, names=["row", "than"]).dropna()
    return away.groupby(["row", "than", *(name for name in alike if name != "seed")]).mean()


def lost(records: Sequence[Record], *, measure: str = "top1", **where: Any) -> pd.Series:
    """Return the points that quantized networks lose against float: one number per setting, the mean over its seeds."""
    rows = _quantized(records, "source", where)
    everything = frame(records)
    if rows.empty:
        return pd.Series(dtype=float)
    whole = everything[everything.bits == FLOAT].groupby("model")[measure].mean()
    setting = [name for name in _ALIKE if name != "seed"]
    return (rows.model.map(whole) - rows[measure]).groupby([rows[name] for name in setting]).mean().dropna()


def minutes(records: Sequence[Record], **where: Any) -> pd.Series:
    """Return the minutes of images and quantization together: one number per setting, the mean over its seeds."""
    rows = _quantized(records, "source", where)
    if rows.empty:
        return pd.Series(dtype=float)
    seconds = rows.generation_seconds + rows.quantization_seconds
    return (seconds / 60).groupby([rows[name] for name in _ALIKE if name != "seed"]).mean()


def whole(records: Sequence[Record], measure: str = "top1") -> str:
    """Return the range of the float networks' values."""
    rows = frame(records)
    return between(rows[rows.bits == FLOAT][measure] if len(rows) else pd.Series(dtype=float))


def together(several: Sequence[pd.Series]) -> str:
    """Return the range of several sets of differences, with signs."""
    return above(pd.concat([pd.Series(numbers.to_numpy(), dtype=float) for numbers in several]))


def spreads(records: Sequence[Record], *, measure: str = "top1", **where: Any) -> pd.Series:
    """Return the standard deviations over seeds: one per setting with several seeds; for images of any settings."""
    rows = _quantized(records, settings_title, where)
    if rows.empty:
        return pd.Series(dtype=float)
    return rows.groupby(["row", *(name for name in _ALIKE if name != "seed")])[measure].std().dropna()


def _quantized(records: Sequence[Record], by: By, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of quantized networks that match `where`, with the value of `by` in the column "row"."""
    chosen = [record for record in records if record["inputs"].get("quantizer", {}).get("method", FLOAT) != FLOAT]
    rows = frame(chosen)
    for name, wanted in where.items() if chosen else ():
        rows = rows[rows[name].isin(_several(wanted))]
    if rows.empty:
        return rows
    return rows.assign(row=[by(chosen[place]) for place in rows.index] if callable(by) else rows[by])


def by_scope(record: Record) -> str:
    """Return the scope of a record's images, "all" for the whole set; "real" for real images."""
    scope = settings_of(record).get("scope", REAL)
    return "all" if scope is None else str(scope)


def by_filter(record: Record) -> str:
    """Return the filter that selected a record's images, and the percentage it discarded: "energy 30"."""
    return f"{filter_of(record)} {discarded_of(record)}"


def by_search(record: Record) -> str:
    """Return the search for the initial step sizes of a record's weights."""
    return str(record["inputs"]["quantizer"]["config"]["weight_search"])


def by_source_and_number(record: Record) -> str:
    """Return the source of a record's images and their number: "real 32"."""
    return f"{record['inputs']['images']['source']} {settings_of(record)['num_images']}"


def seen(records: Sequence[Record], table: str, value: str, *sets: str) -> pd.DataFrame:
    """Return the results of observations of sets of images, means over repetitions: networks by `sets`, or NaN."""
    if not records:
        return pd.DataFrame(columns=list(sets), dtype=float)
    return observed(records, table).pivot_table(value, "model", "images").reindex(columns=list(sets))


def by_way(record: Record) -> str:
    """Return the source of a record's images, and its method: "none SQuant", "real HPTQ"."""
    return f"{record['inputs'].get('images', {'source': NO_IMAGES})['source']} {method_title(record)}"


def by_maker(record: Record) -> str:
    """Return whether a record's images were made from the quantized network, "its own", or from "another's"."""
    inputs = record["inputs"]
    return "another's" if inputs["images"].get("model", inputs["model"]) != inputs["model"] else "its own"


def values(records: Sequence[Record], name: str) -> list[Any]:
    """Return the values of a column of `tables.frame` for quantized networks, in order."""
    rows = _quantized(records, "source", {})
    return sorted(set(rows[name])) if len(rows) else []


def _several(values: Any) -> list[Any]:
    return [values] if isinstance(values, str | int) else list(values)


def between(numbers: pd.Series, digits: int = 1) -> str:
    """Return a range in the form of sentences: "0.3 to 2.1", or a single number."""
    numbers = numbers.dropna()
    if not len(numbers):
        return NOT_RECORDED
    low, high = (f"{round(end, digits) + 0.0:.{digits}f}" for end in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} to {high}"


def above(numbers: pd.Series) -> str:
    """Return a range of differences with their signs, see `span`."""
    return span(numbers.dropna()) or NOT_RECORDED


def below(numbers: pd.Series, digits: int = 1) -> str:
    """Return by how much the former of `gaps` are below the latter, in the form of `between`."""
    return between(-numbers, digits)


def median(numbers: pd.Series) -> str:
    """Return the median of the numbers."""
    return f"{numbers.median():.1f}" if len(numbers) else NOT_RECORDED


def most(numbers: pd.Series, digits: int = 1) -> str:
    """Return the largest magnitude of the numbers."""
    return f"{numbers.abs().max():.{digits}f}" if len(numbers) else NOT_RECORDED


def how_many(numbers: pd.Series, least: float) -> str:
    """Return how many of the numbers are at least `least`: "3 of 4"."""
    return f"{(numbers >= least).sum()} of {len(numbers)}" if len(numbers) else NOT_RECORDED


def distances(
    sets: Mapping[str, Sequence[Record]], other: str = REAL, *, measure: str = "top1", by_quantizer: bool = False
) -> pd.DataFrame:
    """Return by how many points the images of each source end above (+) or below (-) those of `other`.

    Args:
        sets: records by the name of their data, which is the title of a column.
        other: the source with which the others are compared.
        measure: of the outputs.
        by_quantizer: whether quantizers have columns of their own; otherwise each width has a column.

    What would be columns are rows if they are too many for a page.
    """
    columns = {
        (name, *key): column
        for name, records in sets.items()
        for key, column in _columns(records, other, measure, by_quantizer).items()
    }
    table = pd.DataFrame(columns)
    if table.empty:
        return nothing()
    table = table.reindex([title for title in TITLES.values() if title in table.index]).fillna("")
    table.columns.names = [f"points from {TITLES[other]}, over networks"] + [""] * (table.columns.nlevels - 1)
    table = table.rename_axis(index="calibrated with")
    return table if table.shape[1] <= WIDEST else table.T


def gains(sets: Mapping[str, Sequence[Record]], methods: Sequence[str], than: str) -> pd.DataFrame:
    """Return by how many points quantizers end above (+) or below (-) another with the same images: by source.

    Args:
        sets: records by the name of their data, which is the title of a row.
        methods: quantizers, which have a row for each width.
        than: the quantizer with which they are compared; it may quantize other tensors.
    """
    rows = {}
    for name, records in sets.items():
        away = gaps(records, methods, than, by="quantizer", but=("placement",))
        if away.empty:
            continue
        for (method, width), part in away.groupby(level=["row", "bits"], sort=False):
            cells = part.groupby(level="source").apply(span)
            rows[name, QUANTIZER_TITLES[method], width] = {TITLES[source]: cell for source, cell in cells.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    if table.empty:
        return nothing()
    table = table[[title for title in TITLES.values() if title in table]].fillna("")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["data", "method", "bits"])
    return table.rename_axis(columns=f"points from {QUANTIZER_TITLES[than]}")


def _columns(
    records: Sequence[Record], other: str, measure: str, by_quantizer: bool
) -> dict[tuple[str, ...], pd.Series]:
    """Return the cells of a set of records: by (width,) or (quantizer, width), a series over titles of sources."""
    rows = frame(records)
    if rows.empty or not (rows.source == other).any():
        return {}
    rows = rows[rows.bits != FLOAT]
    reached = rows.groupby([*_PAIR, "source"])[measure].mean().unstack("source")
    if other not in reached:
        return {}
    away = reached.drop(columns=other).sub(reached[other], axis=0)
    means = away.groupby(["quantizer", "bits", "model"]).mean()
    keys = ["quantizer", "bits"] if by_quantizer else ["bits"]
    order = dict.fromkeys(zip(*(rows[key] for key in keys), strict=True))
    cells = {}
    for key in order:
        part = means.xs(key, level=keys) if by_quantizer else means.xs(key[0], level="bits")
        named = (QUANTIZER_TITLES[key[0]], key[1]) if by_quantizer else key
        cells[named] = pd.Series({TITLES[str(source)]: span(part[source].dropna()) for source in part}).loc[
            lambda s: s != ""
        ]
    return cells


def span(points: pd.Series) -> str:
    """Return a range of points, such as "+0.3 to +2.1", or a single number, or nothing."""
    if not len(points):
        return ""
    low, high = (f"{round(end, 1) + 0.0:+.1f}" for end in (points.min(), points.max()))
    return low if low == high else f"{low} to {high}"
