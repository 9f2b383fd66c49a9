"""The differences of results by chance, from the record of `benchmarks/chance.py`."""

from typing import Any

import pandas as pd

from dghlib.experiments.run import PUBLISHED
from dghlib.showing.speed import benchmark
from dghlib.showing.tables import QUANTIZER_TITLES, nothing, short_name

RECORDED = "the record's processor"  # which made the published record of the same inputs


def found() -> dict[str, Any] | None:
    """Return the record, None if there is none."""
    return benchmark("chance") if (PUBLISHED / "benchmarks" / "chance.json").exists() else None


def changes(record: dict[str, Any]) -> pd.DataFrame:
    """Return the points of top-1 by which each repetition differs from the first variant of the same run.

    A row for each: network, method, bits, seed, `differs` (the difference of the variant), `points`.
    """
    rows = pd.DataFrame(record["outputs"])
    run = ["network", "method", "bits", "seed"]
    first = rows[rows.differs == ""].set_index(run)
    again = rows[rows.differs != ""].assign(points=lambda each: each.top1)
    recorded = first.dropna(subset="recorded").assign(differs=RECORDED, points=lambda each: each.recorded).reset_index()
    every = pd.concat([again, recorded])[[*run, "differs", "points"]]
    return every.assign(points=every.points - first.top1.loc[pd.MultiIndex.from_frame(every[run])].to_numpy())


def table(record: dict[str, Any] | None) -> pd.DataFrame:
    """Return the standard deviation over seeds, and the median and largest change by other causes: runs by cause.

    Points of top-1; the first column has the number of seeds.
    """
    if record is None:
        return nothing()
    run = ["network", "method", "bits"]
    rows = pd.DataFrame(record["outputs"])
    first = rows[rows.differs == ""].groupby(run).top1
    size = changes(record).assign(points=lambda each: each.points.abs()).groupby([*run, "differs"]).points
    cells = size.agg(["median", "max"]).apply(lambda each: f"{each['median']:.2f} ({each['max']:.2f})", axis=1)
    spread = pd.DataFrame({"seeds": first.size(), "seeds ±": first.std().map("{:.2f}".format).replace("nan", "")})
    joined = spread.join(cells.unstack("differs", fill_value=""))
    joined = joined.rename(index=short_name, level="network").rename(index=QUANTIZER_TITLES, level="method")
    return joined.rename_axis(columns="points: median (largest)")
