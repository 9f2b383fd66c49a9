"""How much longer a book will take: what the runs it lacks cost in the records, scaled by what this machine has shown.

Runs of the notebooks' plans are counted, each once and only if it has no record. What else a page takes (its kernel,
its figures) is taken to be what it was on the pages before.
"""

import ast
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat

from dghlib.experiments import costs
from dghlib.experiments.experiment import Run
from dghlib.experiments.profiles import first_models
from dghlib.experiments.run import Workshop, results_dir
from dghlib.plans import fine_tuned, methods, observations, papers, quantized
from dghlib.showing.leaderboard import all_records

PAGE_SECONDS = 15.0  # of a page that computes nothing, before there was one
TRUST = 60.0  # seconds of work at the records' own speed that are taken for granted, so that no short page decides
BUILDING = 2  # the book itself is built in about the time of so many pages
# What notebooks choose their runs with, by the names that they use.
_CHOOSING = {
    "methods": methods,
    "papers": papers,
    "fine_tuned": fine_tuned,
    "observations": observations,
    "quantized": quantized,
    "first_models": first_models,
    "table3": methods.table3,  # by its own name, since that notebook calls a parameter `methods`
    "detector_widths": methods.detector_widths,
}


class Forecast:
    """The time that the notebooks of a book still take.

    Args:
        work: notebook -> seconds that its runs are expected to take, in the order in which they are executed.
    """

    def __init__(self, work: Mapping[str, float]):
        self.work = dict(work)
        self.took: dict[str, float] = {}

    def done(self, name: str, seconds: float) -> None:
        """Take in what a notebook took."""
        self.took[name] = seconds

    @property
    def seconds(self) -> float:
        """The seconds that are left."""
        idle = [seconds for name, seconds in self.took.items() if not self.work[name]]
        page = sum(idle) / len(idle) if idle else PAGE_SECONDS
        busy = [name for name in self.took if self.work[name]]
        shown = sum(max(self.took[name] - page, 0) for name in busy)
        scale = (shown + TRUST) / (sum(self.work[name] for name in busy) + TRUST)
        left = [work for name, work in self.work.items() if name not in self.took]
        return scale * sum(left) + page * (len(left) + BUILDING)

    def __str__(self) -> str:
        minutes = max(1, round(self.seconds / 60))
        return f"about {minutes} min left" if minutes <= 120 else f"about {round(minutes / 60)} h left"


def lacking_runs(values: Mapping[Path, Mapping[str, Any]]) -> dict[str, list[Run]]:
    """Return, by name of notebook, the runs of its plans that have no record, given the values of its parameters."""
    workshop, lacking = Workshop(results_dir()), {}
    for notebook, chosen in values.items():
        lacking[notebook.stem] = [run for run in _runs(notebook, chosen) if workshop.find(run) is None]
    return lacking


def forecast(lacking: Mapping[str, Sequence[Run]]) -> Forecast:
    """Return the forecast of notebooks that lack these runs."""
    if not any(lacking.values()):
        return Forecast(dict.fromkeys(lacking, 0.0))
    return Forecast(costs.seconds_in_turn(lacking, costs.unit_costs(list(all_records()))))


def _runs(notebook: Path, values: Mapping[str, Any]) -> list[Run]:
    """Return the runs that a notebook hands to `run.run`, given the values of its parameters.

    Its cells are followed as far as that: with the plans, and without anything else that they import or Python has.
    """
    runs: list[Run] = []
    names = {"__builtins__": {}, "run": SimpleNamespace(run=runs.extend), **_CHOOSING, **values}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            with contextlib.suppress(Exception):  # a table of the records, say; what is wrong is told on the page
                tree = ast.parse(cell.source)
                tree.body = [each for each in tree.body if not isinstance(each, ast.Import | ast.ImportFrom)]
                exec(compile(tree, notebook.name, "exec"), names)
    return runs
