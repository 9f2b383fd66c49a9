"""The differences of results by chance, from the record of `benchmarks/chance.py`."""

from typing import Any

import pandas as pd

from dghlib.experiments.run import PUBLISHED
from dghlib.showing.readings import NOT_RECORDED
from dghlib.showing.speed import benchmark
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES, nothing

UNNAMED = "records, processor not named"  # made before records named it
OTHER = "records of another processor"
_ROW = ["method", "bits", "source"]
_CHANGE = ["run", *_ROW, "differs", "points", "seeds"]


def found(name: str = "chance") -> dict[str, Any] | None:
    """Return the record of this name, None if there is none."""
    return benchmark(name) if (PUBLISHED / "benchmarks" / f"{name}.json").exists() else None


def changes(record: dict[str, Any] | None) -> pd.DataFrame:
    """Return the points of top-1 by which each repetition, and each published record, differs from the first variant.

    A row for each: run, method, bits, source, `differs` (the difference of the variant, `UNNAMED` or `OTHER`),
    `points`, and `seeds`, the top-1 of the published records of all seeds. Without a record there are no rows.
    """
    if record is None:
        return pd.DataFrame(columns=_CHANGE).astype({"points": float})
    rows = pd.DataFrame(record["outputs"])
    first = rows[rows.differs == ""]
    again = rows[rows.differs != ""].assign(points=lambda each: each.top1)
    recorded = first.dropna(subset="recorded").assign(points=lambda each: each.recorded)
    recorded["differs"] = [UNNAMED if _unnamed(machine) else OTHER for machine in recorded.recorded_on]
    every = pd.concat([again, recorded], ignore_index=True)[_CHANGE]
    return every.assign(points=every.points - every.run.map(first.set_index("run").top1))


def _unnamed(machine: str) -> bool:
    """Return whether a record's machine has only its architecture in place of a processor."""
    return "(" not in machine


def deviation(points: pd.Series) -> float:
    """Return the standard deviation of results of which these are the differences of pairs."""
    return float((points.pow(2).mean() / 2) ** 0.5)


def deviation_of_seeds(rows: pd.DataFrame) -> float:
    """Return the standard deviation over seeds in the published records, from the mean of the runs' variances."""
    return float(pd.Series([pd.Series(seeds, dtype=float).var() for seeds in rows.seeds]).mean() ** 0.5)


def size(points: pd.Series) -> str:
    """Return a standard deviation in the form of sentences, see `deviation`."""
    return f"{deviation(points):.1f}" if len(points) else NOT_RECORDED


def size_of_seeds(rows: pd.DataFrame) -> str:
    """Return the standard deviation over seeds in the form of sentences."""
    return f"{deviation_of_seeds(rows):.1f}" if len(rows) else NOT_RECORDED


def beyond(rows: pd.DataFrame) -> str:
    """Return how many differences exceed the standard deviation over the seeds of their run: "3 of 4"."""
    limits = pd.Series([pd.Series(seeds, dtype=float).std() for seeds in rows.seeds], index=rows.index, dtype=float)
    known = limits.notna()
    return f"{(rows.points.abs() > limits)[known].sum()} of {known.sum()}" if known.any() else NOT_RECORDED


def equal(points: pd.Series) -> str:
    """Return how many results are exactly the same: "3 of 4"."""
    return f"{(points == 0).sum()} of {len(points)}" if len(points) else NOT_RECORDED


def table(record: dict[str, Any] | None) -> pd.DataFrame:
    """Return standard deviations over seeds and by other causes, with the largest difference: (method, bits, images).

    Points of top-1, over all networks; the first columns have the number of runs and their mean top-1.
    """
    if record is None:
        return nothing()
    rows = pd.DataFrame(record["outputs"])
    first = rows[rows.differs == ""].groupby(_ROW)
    seeds = first[["seeds"]].apply(deviation_of_seeds).map("{:.2f}".format).replace("nan", "")
    cells = changes(record).groupby([*_ROW, "differs"]).points
    moved = cells.apply(lambda points: f"{deviation(points):.2f} ({points.abs().max():.2f})")
    facts = {"runs": first.size(), "top-1": first.top1.mean().map("{:.1f}".format), "seeds ±": seeds}
    spread = pd.DataFrame(facts).join(moved.unstack("differs", fill_value=""))
    named = spread.rename(index=QUANTIZER_TITLES, level="method").rename(index=TITLES, level="source").fillna("")
    return named.rename_axis(index={"source": "images"}, columns="points: ± (largest)")
