"""The results of other tools and of dghlib on the same networks, from the records of `benchmarks/peers.py`: tables."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dghlib.experiments.run import PUBLISHED
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES, nothing, short_name

OURS = "dghlib"
TOOLS = {
    OURS: "dghlib",
    "mct": "Model Compression Toolkit",
    "aimet": "AIMET",
    "onnxruntime": "onnxruntime",
    "nncf": "NNCF",
    "brevitas": "Brevitas",
    "quark": "Quark",
}
_METHODS = {"ptq": "ranges", "static": "ranges", "gptq": "GPTQ", "adaround": "AdaRound", **QUANTIZER_TITLES}
_GRADIENT_PTQ = "gradient PTQ"  # MCT's GPTQ, which differs from the usual meaning
_IMAGES = {"mct_dgh": "DGH by MCT", **TITLES}
_LEVEL = 0.5  # points within which a result is level with the best


def records() -> list[dict[str, Any]]:
    """Return the records of all networks that were measured, in the order of their names."""
    paths = sorted((PUBLISHED / "benchmarks").glob("peers_*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def frame(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return a row for each copy: network, images, tool, method, bits, top1, seconds, and facts about its file."""
    rows = []
    for record in found:
        for made in record["outputs"]["copies"]:
            file = made["file"] or {}
            rows.append(
                {
                    "network": short_name(record["inputs"]["model"]),
                    "images": _IMAGES[made["source"]],
                    "tool": TOOLS[made["tool"]],
                    "method": _method(made),
                    "bits": f"W{made['weight_bits']}A{made['activation_bits']}",
                    "top1": made["top1"],
                    "seconds": (made["seconds"] or {}).get("processor"),
                    "file": bool(file),
                    "file_top1": file.get("top1"),
                    "four_bits": file.get("four_bits", 0),
                }
            )
    return pd.DataFrame(rows)


def _method(made: dict[str, Any]) -> str:
    return _GRADIENT_PTQ if (made["tool"], made["method"]) == ("mct", "gptq") else _METHODS[made["method"]]


def accuracy(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return top-1 in percent: (images, tool, method) by (network, bits), and the float networks in the last row."""
    if not found:
        return nothing()
    table = _by_network(frame(found), "top1", "{:.1f}")
    whole = {short_name(record["inputs"]["model"]): record["outputs"]["float"] for record in found}
    table.loc[("Float", "", ""), :] = [f"{whole[network]:.1f}" for network, _ in table.columns]
    table.columns.names = ["top-1 in %", ""]
    return table


def seconds(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return processor seconds of a copy, with real images: (images, tool, method) by (network, bits)."""
    if not found:
        return nothing()
    rows = frame(found)
    table = _by_network(rows[rows.images == TITLES["real"]], "seconds", "{:.1f}")
    table.columns.names = ["processor seconds", ""]
    return table


def _by_network(rows: pd.DataFrame, value: str, shown: str) -> pd.DataFrame:
    way = ["images", "tool", "method"]
    cells = rows.set_index([*way, "network", "bits"])[value].map(
        lambda number: shown.format(number), na_action="ignore"
    )
    order = list(dict.fromkeys(rows[way].itertuples(index=False, name=None)))
    columns = list(dict.fromkeys(rows[["network", "bits"]].itertuples(index=False, name=None)))
    table = pd.DataFrame(
        [[cells.get((*each, *column)) for column in columns] for each in order],
        index=pd.MultiIndex.from_tuples(order, names=way),
        columns=pd.MultiIndex.from_tuples(columns),
    )
    return table.fillna("").astype(object)


def files(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return, for each tool, the lines that a user writes, and at each width the results of its files in onnxruntime.

    A file runs if onnxruntime accepts it, and is in 4 bits if any of its constants is. The difference of its top-1 from
    that of the tool's simulation is the maximum over networks.
    """
    if not found:
        return nothing()
    rows, lines = frame(found), found[-1]["outputs"]["lines"]
    table = {}
    for name, title in TOOLS.items():
        made = rows[rows.tool == title]
        cells = {bits: _fare(made[made.bits == bits]) for bits in dict.fromkeys(rows.bits)}
        table[title] = {"lines": lines.get(name, ""), **{f"files {bits}": cell for bits, cell in cells.items()}}
    return pd.DataFrame(table, dtype=object).T


def _fare(group: pd.DataFrame) -> str:
    if group.empty:
        return "not run"
    made, runs = int(group.file.sum()), int(group.file_top1.notna().sum())
    if not made:
        return "none" if group.top1.notna().any() else "cannot"
    away = (group.file_top1 - group.top1).abs().max()
    kind = ", in 4 bits" if (group.four_bits > 0).any() else ""
    return f"{runs} of {made} run{kind}" + (f"; {away:.1f} points away" if runs else "")


def above(found: Sequence[dict[str, Any]], tool: str, bits: str, images: str | None = None) -> pd.Series:
    """Return by how many points our best method is above a tool's best: one number per network and set of images.

    `tool`: a name in `TOOLS`, or "any" for all others together.
    """
    rows = frame(found) if found else pd.DataFrame(columns=["tool", "bits", "images", "network", "top1"])
    rows = rows[(rows.bits == bits) & rows.top1.notna() & (rows.images == images if images else True)]
    ours, theirs = _of(rows, OURS), _of(rows, tool)
    best = [each.groupby(["network", "images"]).top1.max() for each in (ours, theirs)]
    return (best[0] - best[1]).dropna()


def time_of_level(found: Sequence[dict[str, Any]], bits: str) -> pd.Series:
    """Return our seconds relative to theirs: one number per network and set of images, real and DGH's.

    On both sides the fastest method counts whose top-1 is level with the best of all tools, ours included; if one side
    has none, there is no number.
    """
    if not found:
        return pd.Series(dtype=float)
    rows = frame(found)
    rows = rows[(rows.bits == bits) & rows.top1.notna()]
    parts = {}
    for key, group in rows.groupby(["network", "images"]):
        level = group[group.top1 >= group.top1.max() - _LEVEL]
        fastest = [_of(level, each).seconds.min() for each in (OURS, "any")]
        parts[key] = fastest[0] / fastest[1]
    return pd.Series(parts, dtype=float).dropna()


def _of(rows: pd.DataFrame, tool: str) -> pd.DataFrame:
    return rows[rows.tool != TOOLS[OURS]] if tool == "any" else rows[rows.tool == TOOLS[tool]]


def versions(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the versions of every tool's packages that ran, and where."""
    rows = {}
    for record in found:
        for name, packages in record["inputs"]["tools"].items():
            rows[TOOLS[name]] = {"packages": ", ".join(f"{each} {number}" for each, number in packages.items())}
    return pd.DataFrame(rows).T if rows else nothing()
