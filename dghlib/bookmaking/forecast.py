"""The remaining time of a book: the costs of its missing runs in the records, scaled by the speed of this machine.

Runs of the notebooks' plans are counted once and only if they have no record. The other time of a page (its kernel, its
figures) is assumed to be the same as on the pages before.
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
from dghlib.plans import fine_tuned, methods, observations, papers, parts, quantized
from dghlib.showing.leaderboard import all_records

PAGE_SECONDS = 5.0  # for a page that computes nothing, until one has been executed
TRUST = 60.0  # seconds of work at the records' speed that are assumed at first, so that short pages weigh little
BUILDING = 2  # the build of the book takes about the time of this many pages
# The functions by which notebooks choose their runs, by the names that they use.
_CHOOSING = {
    "methods": methods,
    "papers": papers,
    "parts": parts,
    "fine_tuned": fine_tuned,
    "observations": observations,
    "quantized": quantized,
    "first_models": first_models,
    "table3": methods.table3,  # by its own name, because that notebook has a parameter `methods`
    "detector_widths": methods.detector_widths,
}


class Forecast:
    """The remaining time of the notebooks of a book.

    Args:
        work: notebook -> expected seconds of its runs, in the order of execution.
    """

    def __init__(self, work: Mapping[str, float]):
        self.work = dict(work)
        self.took: dict[str, float] = {}

    def done(self, name: str, seconds: float) -> None:
        """Record the time of a notebook."""
        self.took[name] = seconds

    @property
    def seconds(self) -> float:
        """The remaining seconds."""
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
    """Return, by name of notebook, the runs of its plans without a record, for the values of its parameters."""
    workshop, lacking = Workshop(results_dir()), {}
    for notebook, chosen in values.items():
        lacking[notebook.stem] = [run for run in _runs(notebook, chosen) if workshop.find(run) is None]
    return lacking


def forecast(lacking: Mapping[str, Sequence[Run]]) -> Forecast:
    """Return the forecast for notebooks that lack these runs."""
    if not any(lacking.values()):
        return Forecast(dict.fromkeys(lacking, 0.0))
    return Forecast(costs.seconds_in_turn(lacking, costs.unit_costs(list(all_records()))))


def _runs(notebook: Path, values: Mapping[str, Any]) -> list[Run]:
    """Return the runs that a notebook passes to `run.run`, for the values of its parameters.

    Only this part of its cells is executed: with the plans, and without other imports or Python's built-ins.
    """
    runs: list[Run] = []
    names = {"__builtins__": {}, "run": SimpleNamespace(run=runs.extend), **_CHOOSING, **values}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            with contextlib.suppress(Exception):  # for example a table of the records; the page reports errors
                tree = ast.parse(cell.source)
                tree.body = [each for each in tree.body if not isinstance(each, ast.Import | ast.ImportFrom)]
                exec(compile(tree, notebook.name, "exec"), names)
    return runs
