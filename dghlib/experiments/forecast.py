"""How much longer a book will take: what the runs it lacks cost in the records, scaled by what this machine has shown.

Runs of the notebooks' plans are counted, each once and only if it has no record. What else a page takes (its kernel,
its figures, images that only it shows) is taken to be what it was on the pages before.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from dghlib.experiments import costs, image_plans, paper_plans, plans
from dghlib.experiments.experiment import Run
from dghlib.experiments.leaderboard import all_records
from dghlib.experiments.profiles import first_models
from dghlib.experiments.run import Workshop, results_dir

PAGE_SECONDS = 15.0  # of a page that computes nothing, before there was one
TRUST = 60.0  # seconds of work at the records' own speed that are taken for granted, so that no short page decides
BUILDING = 2  # the book itself is built in about the time of so many pages
_PLAN = re.compile(r"\b(plans|paper_plans|image_plans)\.(\w+)\(\s*profile, budget\b")


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


def _models(values: Mapping[str, Any]) -> list[str]:
    """Return the networks that a notebook is about: one by name, so many of its profile, or all."""
    if values.get("network"):
        return [values["network"]]
    return first_models(values["profile"], values.get("networks", int("network" in values)))


def forecast(lacking: Mapping[str, Sequence[Run]]) -> Forecast:
    """Return the forecast of notebooks that lack these runs."""
    if not any(lacking.values()):
        return Forecast(dict.fromkeys(lacking, 0.0))
    return Forecast(costs.seconds_in_turn(lacking, costs.unit_costs(list(all_records()))))


def _runs(notebook: Path, values: Mapping[str, Any]) -> list[Run]:
    """Return the runs of the plans that a notebook calls with its parameters, for its own profile and budget."""
    cells = nbformat.read(notebook, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    runs: list[Run] = []
    for module, name in _PLAN.findall(source):
        plan = getattr({"plans": plans, "paper_plans": paper_plans, "image_plans": image_plans}[module], name)
        runs += plan(values["profile"], values["budget"], seeds=values.get("seeds") or None, models=_models(values))
    return runs
