"""Processes that compute runs beside another one."""

import os
import time
from pathlib import Path

import pytest

from dghlib.experiments import helpers, plans
from dghlib.experiments.experiment import Experiment
from dghlib.experiments.run import RESULTS_VARIABLE, Workshop

RUNS = plans.table2("shapes", "smoke", sources=["noise"], bits=["W8A8"], seeds=1, models=["shapes_residual"])


def test_helpers_begin_with_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "_cores", lambda: 2)
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path / "results"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    broken = Experiment(profile="shapes", model="no such network")
    workshop, deadline = Workshop(tmp_path / "results"), time.monotonic() + 120
    with helpers.helped([*RUNS, broken]):
        assert os.environ["OMP_NUM_THREADS"] == "1"
        while workshop.find(RUNS[0]) is None and time.monotonic() < deadline:
            time.sleep(0.1)
    assert "OMP_NUM_THREADS" not in os.environ
    first, last = (workshop._record_path(run).stat().st_mtime_ns for run in RUNS)
    assert last < first


def test_one_core_has_no_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "_cores", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with helpers.helped(RUNS):
        assert "OMP_NUM_THREADS" not in os.environ
