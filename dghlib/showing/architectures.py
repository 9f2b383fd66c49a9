"""How far public architectures come, as the record of `benchmarks/architectures.py` tells."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

# What an architecture passes one after the other, with the titles of columns.
STAGES = {"traced": "traced", "quantized": "quantized", "exported": "written", "ran": "ran", "equal": "bit for bit"}


def stages_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return how many architectures of each library passed each stage, and how many of all."""
    rows = _rows(record)
    normed = rows[rows.batch_norm]
    table = normed[list(STAGES.values())].groupby(normed.library).sum()
    table.insert(0, "with batch norm", normed.groupby("library").size())
    table.insert(0, "architectures", rows.groupby("library").size())
    table.loc["all"] = table.sum()
    return table


def failures_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return the architectures that failed, at what, and what was said."""
    rows = _rows(record)
    failed = rows[rows.failure != ""]
    first = [next(title for title in STAGES.values() if not passed[title]) for _, passed in failed.iterrows()]
    table = pd.DataFrame({"not": first, "what was said": failed.failure})
    return table.set_index(pd.Index(failed.name, name="architecture")).sort_values("not", kind="stable")


def percent(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the percent of the architectures with batch norm that were traced and that ran, and of files that equal.

    "traced", "ran", and "equal": the last of those that ran.
    """
    rows = _rows(record)
    normed = rows[rows.batch_norm]
    ran = normed[normed[STAGES["ran"]]]
    found = {name: 100 * normed[STAGES[name]].mean() for name in ("traced", "ran")}
    return found | {"equal": 100 * ran[STAGES["equal"]].mean()}


def in_float(record: Mapping[str, Any]) -> int:
    """Return the number of architectures with weights that no layer holds, which stay in float, and are told."""
    return int((_rows(record).in_float > 0).sum())


def _rows(record: Mapping[str, Any]) -> pd.DataFrame:
    rows = pd.DataFrame(record["outputs"])
    rows["library"] = rows.name.str.partition(":")[0]
    for stage, title in STAGES.items():
        rows[title] = [stage in passed for passed in rows.stages]
    return rows
