"""Processes that compute runs beside the one that will show them.

They share its folders of records and images, and so divide the work with it (see `dghlib.experiments.run`). The
networks of the embedded benchmark are small: two runs on a core each are done sooner than one after the other on two.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence

from dghlib.experiments.experiment import Run
from dghlib.experiments.run import Workshop, results_dir

MOST = 7  # helpers; each takes one to two GB of memory


@contextlib.contextmanager
def helped(experiments: Sequence[Run]) -> Iterator[None]:
    """Compute `experiments`, from the last to the first, in a process for each core that is left, for as long as this.

    Who goes through them from the first to the last meets the helpers in the middle, and should use one thread: the
    environment variable that says so reaches all processes that are started meanwhile.
    """
    count = min(_cores() - 1, MOST, len(experiments))
    if count < 1:
        yield
        return
    spawn = multiprocessing.get_context("spawn")
    helpers = [spawn.Process(target=_compute, args=(list(experiments)[::-1],), daemon=True) for _ in range(count)]
    with _one_thread():
        try:
            for helper in helpers:
                helper.start()
            yield
        finally:
            for helper in helpers:
                helper.terminate()  # what it was at continues from its checkpoint
                helper.join()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile use one thread, unless they are told how many."""
    told = "OMP_NUM_THREADS" in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if not told:
            del os.environ["OMP_NUM_THREADS"]


def _compute(experiments: Sequence[Run]) -> None:
    """Compute what has no record. What fails here fails again where it is shown, and is told there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the helpers
    logging.disable()
    workshop, helped_one = Workshop(results_dir()), multiprocessing.parent_process()
    for experiment in experiments:
        if helped_one and not helped_one.is_alive():  # killed: nobody would end this process
            return
        with contextlib.suppress(Exception):  # a Timeout among them: another process is at it
            workshop.compute(experiment, wait=False)
