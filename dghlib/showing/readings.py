"""What a page says of its numbers, computed from the records that it shows: no sentence has to be kept up with them.

The distance of a source from another is that of runs that have network, quantizer, width, number of images and seed in
common, as a mean over seeds for each network. A cell spans the networks, from the worst to the best.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from dghlib.experiments.experiment import FLOAT, REAL
from dghlib.experiments.run import Record
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES, frame, nothing

_PAIR = ["model", "quantizer", "policy", "bits", "num_images", "seed"]


def distances(
    sets: Mapping[str, Sequence[Record]], other: str = REAL, *, measure: str = "top1", by_quantizer: bool = False
) -> pd.DataFrame:
    """Return how far the images of each source end above (+) or below (-) those of `other`, in points.

    Args:
        sets: records by the name of their data, which heads a column.
        other: the source that the rest is compared with.
        measure: of the outputs.
        by_quantizer: whether quantizers have columns of their own; else each width has one.
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
    return table.rename_axis(index="calibrated with")


def _columns(
    records: Sequence[Record], other: str, measure: str, by_quantizer: bool
) -> dict[tuple[str, ...], pd.Series]:
    """Return the cells of one set of records: by (width,) or (quantizer, width), a series over titles of sources."""
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
    """Return a range of points, such as "+0.3 to +2.1", one number where there is one, nothing for none."""
    if not len(points):
        return ""
    low, high = f"{points.min():+.1f}", f"{points.max():+.1f}"
    return low if low == high else f"{low} to {high}"
