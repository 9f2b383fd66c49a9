"""Helper processes that compute runs beside another process."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from conftest import until

from dghlib.experiments import helpers
from dghlib.experiments.experiment import Experiment
from dghlib.experiments.run import RESULTS_VARIABLE, Workshop
from dghlib.plans import methods
from dghlib.running import processes
from dghlib.storage.records import provenance

RUNS = methods.table2("shapes", "smoke", sources=["noise"], bits=["W8A8"], seeds=1, models=["shapes_residual"])


def test_helpers_start_with_the_last_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path / "results"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    broken = Experiment(profile="shapes", model="no such network")
    workshop = Workshop(tmp_path / "results")
    with helpers.helped([*RUNS, broken]):
        assert os.environ["OMP_NUM_THREADS"] == "1"
        until(lambda: workshop.find(RUNS[0]) is not None, multiprocessing.active_children)
    assert "OMP_NUM_THREADS" not in os.environ
    first, last = (workshop.record_path(run).stat().st_mtime_ns for run in RUNS)
    assert last < first


def test_there_are_no_helpers_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with helpers.helped(RUNS):
        assert "OMP_NUM_THREADS" not in os.environ


def test_pages_state_one_thread_while_helpers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with helpers._one_thread():
        assert "1 threads" in provenance(0.0)["machine"]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "count"), [(1, 3), (2, 1), (4, 0)])
def test_processes_of_several_threads_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int, count: int
) -> None:
    started: list[str] = []
    monkeypatch.setattr(processes, "cores", lambda: 4)
    monkeypatch.setattr(helpers.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", lambda process: started.append(process.name))
    monkeypatch.setattr("multiprocessing.process.BaseProcess.terminate", lambda process: None)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.join", lambda process: None)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    with helpers.helped(RUNS * 3):
        assert len(started) == count
