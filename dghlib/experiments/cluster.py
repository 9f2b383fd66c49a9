"""Plans on many machines: the same experiments, distributed over the workers of a Dask cluster.

A set of images is a task; an experiment is another task that waits for its images, which Dask transfers to its worker;
an observation makes its own images. So workers share no folder and no clock, only the code. The machine that started
the command writes the records as they arrive, the same as those of `run.run`; the tasks of a lost worker run again on
another.

The cluster is at an address: `dask scheduler` and `dask worker` by hand, dask-jobqueue under Slurm, Dask's operator
under Kubernetes. A worker computes one experiment at a time, so it is started with 1 thread and, if there are GPUs,
once for each of them.
"""

import importlib.util
import logging
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from dghlib.experiments.experiment import REAL, Experiment, Run
from dghlib.experiments.run import Record, Workshop, results_dir
from dghlib.storage.records import code_version, fingerprint

SECONDS_TO_CONNECT = 60
_LIBRARIES = ("distributed", "tornado", "asyncio")


class ClusterError(RuntimeError):
    """The cluster cannot be reached, has no workers, or an experiment failed on it; the message names it."""


def run_on_cluster(
    experiments: Sequence[Run],
    address: str,
    *,
    results: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[Record]:
    """Return the records of `experiments`, in their order; compute the missing ones on a cluster.

    Args:
        experiments: the wanted experiments.
        address: a scheduler's address such as "tcp://host:8786", or the path of the .json file it wrote.
        results: the folder of records on this machine.
        device: the device of each worker; "cuda" is the GPU that it sees.
        progress: show a bar.

    Raises:
        ClusterError: as described there. Experiments that did not fail are computed and kept.
    """
    workshop = Workshop(results or results_dir())
    missing = [experiment for experiment in dict.fromkeys(experiments) if workshop.known(experiment) is None]
    if missing:
        with _connect(address) as client:
            _compute_all(client, missing, workshop, device, progress)
    return [record for experiment in experiments if (record := workshop.known(experiment))]


def _connect(address: str) -> Any:
    """Return a client of the cluster at `address`, which has at least 1 worker."""
    if importlib.util.find_spec("distributed") is None:
        raise ClusterError("runs on a cluster need Dask: pip install 'dghlib[cluster]'")
    from distributed import Client

    if address.endswith(".json"):
        _wait_for(Path(address))
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(_LIBRARIES)]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a lost scheduler is reported once, as a ClusterError
    where = "scheduler_file" if address.endswith(".json") else "address"
    try:
        client = Client(**{where: address}, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no scheduler answers at {address!r}: {error}; start one with: dask scheduler") from error
    try:
        client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
    except TimeoutError as error:
        client.close()
        raise ClusterError(f"the cluster at {address} has no workers: dask worker {address} --nthreads 1") from error
    return client


def _wait_for(scheduler_file: Path) -> None:
    """Wait until a scheduler, which may have been started at the same time, has written its file."""
    deadline = time.monotonic() + SECONDS_TO_CONNECT
    while not scheduler_file.is_file():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"no scheduler has written {scheduler_file}: dask scheduler --scheduler-file {scheduler_file}"
            )
        time.sleep(0.2)


def _compute_all(client: Any, experiments: list[Run], workshop: Workshop, device: str, progress: bool) -> None:
    """Compute `experiments` and keep each record when it arrives; raise the first failure when all have ended.

    Raises:
        ClusterError: experiments failed, or the scheduler is lost; records that have arrived by then are kept.
    """
    from distributed import as_completed

    tasks = _submit(client, experiments, device)
    failures = []
    with tqdm(total=len(tasks), desc="experiments", disable=not progress) as bar:
        for future in as_completed(list(tasks)):
            experiment = tasks.pop(future)
            try:
                if future.status == "finished":
                    workshop.keep(experiment, future.result())
                elif error := future.exception():
                    failures.append(f"{experiment.title}: {error}")
                else:
                    raise CancelledError
                workers = client.scheduler_info(n_workers=0)["n_workers"]
            except (CancelledError, KeyError, OSError) as error:
                raise ClusterError(
                    f"the cluster's scheduler is lost, with {len(tasks) + 1} of {len(experiments)} experiments: start "
                    "it again and give the same command, which computes what has no record"
                ) from error
            bar.set_postfix_str(f"{experiment.title}, {workers} workers")
            bar.update()
    if failures:
        listed = "\n  ".join(failures)
        raise ClusterError(f"{len(failures)} of {len(experiments)} experiments failed on the cluster:\n  {listed}")


def _submit(client: Any, experiments: list[Run], device: str) -> dict[Any, Run]:
    """Submit a task for every set of images and a task for every experiment; return the latter."""
    code = code_version()
    sets: dict[str, Any] = {}
    tasks = {}
    for experiment in experiments:
        images = None
        if isinstance(experiment, Experiment) and experiment.source not in (None, REAL):
            wanted = [experiment.maker, experiment.source, experiment.source_config]
            key = "images-" + fingerprint([*wanted, device, code])
            if key not in sets:
                sets[key] = client.submit(_make_images, experiment, device, code, key=key)
            images = sets[key]
        key = "record-" + fingerprint([experiment, device, code])
        tasks[client.submit(_compute, experiment, images, device, code, key=key)] = experiment
    return tasks


@cache
def _workshop(device: str) -> Workshop:
    """Return the workshop of this worker, which keeps networks and data between tasks."""
    return Workshop(results_dir(), device)


def _make_images(experiment: Experiment, device: str, code: dict[str, Any]) -> tuple[Tensor, float]:
    _check_code(code)
    return _workshop(device).images(experiment)


def _compute(experiment: Run, images: tuple[Tensor, float] | None, device: str, code: dict[str, Any]) -> Record:
    _check_code(code)
    workshop = _workshop(device)
    if images is not None and isinstance(experiment, Experiment):
        workshop.lay_out(experiment, *images)
    return workshop.compute(experiment, wait=True)


def _check_code(code: dict[str, Any]) -> None:
    """Refuse to compute with code that differs from the starting machine's: the records would look the same."""
    if code != code_version():
        raise RuntimeError(f"this worker runs {code_version()} and the run was started from {code}; check out the same")
