"""Checkpoints: a file from which a killed run continues to the same result.

What is too large to be written again and again lies in a folder beside the file, see `dghlib.storage.large_sets`.
In a job of several processes one file holds the states of all, so that they are of the same step.
"""

import logging
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dghlib.running import processes
from dghlib.storage.records import set_aside, write_atomically

log = logging.getLogger(__name__)

# What reading a file may raise that is no checkpoint, or one of an earlier version.
_UNREADABLE = (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError)


def folder_beside(path: Path) -> Path:
    """Return the folder of what belongs to a checkpoint and is too large for it."""
    return path.with_name(path.name + ".values")


def elapsed(path: Path) -> float:
    """Return the seconds that a run had taken, over all times it was started, when it saved; 0 without a checkpoint."""
    try:
        return float(torch.load(path, weights_only=True, mmap=True)["elapsed"])
    except _UNREADABLE:
        return 0.0


def remove(path: Path) -> None:
    """Delete a checkpoint: the run is finished and its result is kept elsewhere."""
    path.unlink(missing_ok=True)
    shutil.rmtree(folder_beside(path), ignore_errors=True)


class Checkpoint:
    """One run's checkpoint file, or no file at all.

    Args:
        path: the file; None saves nothing.
        key: fingerprint of the run. A checkpoint of another run is never continued.
        seconds: shortest time between two saves; a save costs a copy of the images, so it should be rare.
    """

    def __init__(self, path: Path | None, key: str, seconds: float = 20.0):
        self.path = path
        self.key = key if processes.count() == 1 else f"{key} of {processes.count()} processes"
        self.seconds = seconds
        self._started_at = self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None. A corrupt or foreign file is set aside with a warning."""
        return processes.scattered(self._read() if processes.rank() == 0 else None)

    def _read(self) -> list[dict[str, Any]] | None:
        """Return the states of all processes."""
        if self.path is None or not self.path.exists():
            return None
        try:
            content = torch.load(self.path, weights_only=True)
            key, states, earlier = content["key"], content["states"], content["elapsed"]
        except _UNREADABLE as error:
            set_aside(self.path, f"not a checkpoint ({type(error).__name__})")
            return None
        if key != self.key:
            set_aside(self.path, "a checkpoint of another run (other settings or another network)")
            return None
        self._started_at -= earlier
        return states

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, lists and dicts of them), atomically."""
        states = processes.gathered(state) if self.path is not None else []
        if self.path is not None and processes.rank() == 0:
            content = {"key": self.key, "states": states, "elapsed": time.monotonic() - self._started_at}
            write_atomically(self.path, lambda temporary: torch.save(content, temporary))
        self._saved_at = time.monotonic()

    def save_when_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """Save if the last save is long enough ago, by the clock of the first process; `state` is called only then."""
        if self.path is not None and processes.agreed(time.monotonic() - self._saved_at >= self.seconds):
            self.save(state())

    def remove(self) -> None:
        """Delete the file: the run is finished and its result is kept elsewhere."""
        if self.path is not None:
            remove(self.path)
