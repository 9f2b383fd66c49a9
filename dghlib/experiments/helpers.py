"""Processes that compute runs in parallel with the process that will show them.

They share its folders of records and images, and so divide the work with it (see `dghlib.experiments.run`). The
networks of the embedded benchmark are small: 2 runs on a core each finish sooner than one after the other on 2 cores.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence

import torch

from dghlib.experiments.experiment import Run
from dghlib.experiments.run import Workshop, results_dir
from dghlib.running import processes

MOST = 7  # helpers; each takes 1 to 2 GB of memory
_THREADS = "OMP_NUM_THREADS"  # of torch in processes that are started from here


@contextlib.contextmanager
def helped(experiments: Sequence[Run]) -> Iterator[None]:
    """Compute `experiments`, from the last to the first, in as many processes as there are free cores, during a block.

    A caller that computes them from the first to the last meets the helpers in the middle. Each process uses 1 thread,
    or the number in the environment, which also applies to processes that are started meanwhile.
    """
    threads = torch.get_num_threads() if _THREADS in os.environ else 1
    count = min(processes.cores() // threads - 1, MOST, len(experiments))
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
                helper.terminate()  # its current run continues from its checkpoint
                helper.join()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile use 1 thread, unless a number is given.

    This process does so, too, because it reports the number of threads on pages.
    """
    if _THREADS in os.environ:
        yield
        return
    own = torch.get_num_threads()
    os.environ[_THREADS] = "1"
    torch.set_num_threads(1)
    try:
        yield
    finally:
        del os.environ[_THREADS]
        torch.set_num_threads(own)


def _compute(experiments: Sequence[Run]) -> None:
    """Compute the runs without a record. Failures occur again where the run is shown, and are reported there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started the helpers
    logging.disable()
    workshop, helped_one = Workshop(results_dir()), multiprocessing.parent_process()
    for experiment in experiments:
        if helped_one and not helped_one.is_alive():  # killed: no one would end this process
            return
        with contextlib.suppress(Exception):  # including Busy: another process computes the run
            workshop.compute(experiment, wait=False)
