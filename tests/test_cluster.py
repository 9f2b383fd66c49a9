"""Plans on a Dask cluster of workers in their own processes and folders, one of which is killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from conftest import until

from dghlib import cli
from dghlib.experiments import cluster, run
from dghlib.experiments.experiment import Run
from dghlib.plans import methods, observations

pytest.importorskip("distributed")

SMOKE: dict[str, Any] = {"profile": "shapes", "budget": "smoke", "models": ["shapes_residual"], "seeds": 1}


class Cluster:
    """A scheduler and workers on this machine, each a process in its own folder."""

    def __init__(self, folder: Path):
        self.folder, self.address = folder, str(folder / "scheduler.json")
        self.scheduler = self._start("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", self.address)
        self.workers = [self._start("worker", *self._worker_options, name=f"worker{n}") for n in range(2)]

    _worker_options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")

    def _start(self, program: str, *options: str, name: str = "scheduler") -> subprocess.Popen:
        if program == "worker":
            self._wait_for_scheduler()
            options = ("--scheduler-file", self.address, *options)
        here = self.folder / name
        here.mkdir()
        with open(here / "log", "w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", program, *options],
                cwd=here,
                env=os.environ | {"OMP_NUM_THREADS": "1", "DGHLIB_RESULTS": str(here / "results")},
                stdout=log,
                stderr=log,
            )

    def _wait_for_scheduler(self) -> None:
        until(Path(self.address).is_file, lambda: self.scheduler.poll() is None)

    def records_of(self, worker: int) -> list[str]:
        return sorted(path.name for path in (self.folder / f"worker{worker}" / "results").rglob("*.json"))

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of 2 workers."""
    started = Cluster(tmp_path)
    yield started
    started.close()


def _comparable(records: list[run.Record]) -> list[tuple[Any, float | list[str]]]:
    return [(record["inputs"], record["outputs"].get("top1", list(record["outputs"]))) for record in records]


def test_records_are_the_same_after_a_worker_was_killed(workers, tmp_path):
    experiments: list[Run] = [*methods.table2(**SMOKE, sources=["noise", "dgh"])]
    experiments += observations.figure3(**SMOKE, num_images=8)
    found: list[run.Record] = []

    def compute() -> None:
        results = tmp_path / "ours"
        found.extend(cluster.run_on_cluster(experiments, workers.address, results=results, progress=False))

    asking = threading.Thread(target=compute)
    asking.start()
    until(lambda: workers.records_of(0) and workers.records_of(1), asking.is_alive)
    workers.workers[0].send_signal(signal.SIGKILL)
    asking.join()
    lost = workers.records_of(0)
    assert 0 < len(lost) < len(experiments)
    assert workers.records_of(1)
    alone = run.run(experiments, results=tmp_path / "alone" / "results", progress=False)
    assert _comparable(found) == _comparable(alone)
    assert len(list((tmp_path / "ours").rglob("*.json"))) == len(experiments)


class Lost:
    """A future and its client after the scheduler was killed."""

    def __init__(self, status: str, workers: dict[str, int]):
        self.status, self.workers = status, workers

    def exception(self) -> None:
        return None

    def result(self) -> run.Record:
        if not self.workers:
            return {"outputs": {"top1": 1.0}}
        raise CancelledError

    def scheduler_info(self, n_workers: int) -> dict[str, int]:
        return self.workers


@pytest.mark.parametrize(
    ("status", "workers"), [("cancelled", {"n_workers": 1}), ("finished", {"n_workers": 1}), ("finished", {})]
)
def test_a_lost_scheduler_is_reported_with_a_remedy(status, workers, tmp_path, monkeypatch):
    lost, experiments = Lost(status, workers), methods.table2(**SMOKE, sources=[])[:1]
    monkeypatch.setattr(cluster, "_submit", lambda *arguments: {lost: experiments[0]})
    monkeypatch.setattr("distributed.as_completed", lambda futures: futures)
    with pytest.raises(cluster.ClusterError, match="scheduler is lost, with 1 of 1 experiments: start it again and"):
        cluster._compute_all(lost, list(experiments), run.Workshop(tmp_path), "cpu", progress=False)


def test_a_plan_with_all_records_needs_no_cluster(tmp_path):
    experiments = methods.table2(**SMOKE, sources=[])[:1]
    first = run.run(experiments, results=tmp_path, progress=False)
    assert cluster.run_on_cluster(experiments, "tcp://127.0.0.1:1", results=tmp_path) == first


def test_an_address_without_a_scheduler_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 1)
    arguments = ["run", "table2", "--budget", "smoke", "--results", str(tmp_path)]
    assert cli.main([*arguments, "--cluster", "tcp://127.0.0.1:1"]) == 1
    assert "no scheduler answers at 'tcp://127.0.0.1:1'" in capsys.readouterr().err
    assert cli.main([*arguments, "--cluster", str(tmp_path / "none.json")]) == 1
    assert "no scheduler has written" in capsys.readouterr().err


def test_a_worker_with_other_code_is_refused(monkeypatch):
    with pytest.raises(RuntimeError, match=r"started from .*0000"):
        cluster._check_code({"commit": "0000", "modified": False})
