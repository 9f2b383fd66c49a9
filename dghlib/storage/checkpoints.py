"""Checkpoints: files from which a killed run continues to the same result.

The caller deletes a checkpoint when the result is on the disk; until then the run's state exists nowhere else.

Values that are too large to be written repeatedly are in a folder beside the file, see `dghlib.storage.large_sets`.
In a job of several processes a single file holds the states of all, so that they belong to the same step.
"""

import glob
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dghlib.running import processes
from dghlib.storage.records import fingerprint, set_aside, temporaries, write_atomically

log = logging.getLogger(__name__)

_STAGE = ".stage."


def folder_beside(path: Path) -> Path:
    """Return the folder of the values that belong to a checkpoint and are too large for it."""
    return path.with_name(path.name + ".values")


def stage(path: Path, name: str) -> Path:
    """Return the checkpoint of a part of a run that finishes first; it is kept as long as the run's own checkpoint."""
    return path.with_name(f"{path.name}{_STAGE}{name}")


def _of_run(path: Path) -> list[Path]:
    """Return the checkpoints of a run: its own, and the existing ones of its stages."""
    return [path, *path.parent.glob(f"{glob.escape(path.name)}{_STAGE}*")]


def elapsed(path: Path) -> float:
    """Return the seconds that a run had taken when it last saved, over all of its starts; 0 without a checkpoint."""
    return sum(_elapsed(each) for each in _of_run(path))


def _elapsed(path: Path) -> float:
    try:
        return float(torch.load(path, weights_only=True, mmap=True)["elapsed"])
    except Exception:  # a damaged file makes readers raise nearly everything
        return 0.0


def remove(path: Path) -> None:
    """Delete a checkpoint: the run is finished and its result is kept elsewhere.

    Temporary files of processes that were killed while they saved are deleted, too.
    """
    of_stages = path.parent.glob(f".{glob.escape(path.name)}{_STAGE}*.????????.tmp")
    for leftover in (*temporaries(path), *of_stages):
        leftover.unlink(missing_ok=True)
    for each in _of_run(path):
        each.unlink(missing_ok=True)
        shutil.rmtree(folder_beside(each), ignore_errors=True)


def _move(path: Path, target: Path) -> None:
    """Move a checkpoint and its folder, or the folder alone, if they exist, and replace existing ones."""
    for source, goal in ((path, target), (folder_beside(path), folder_beside(target))):
        if source.exists() and source != goal:
            if goal.is_dir():
                shutil.rmtree(goal)
            source.replace(goal)


class Checkpoint:
    """The checkpoint file of a run, or no file at all.

    Args:
        path: the file; None saves nothing.
        key: fingerprint of the run. A checkpoint of another run is never continued.
        seconds: shortest time between 2 saves; a save costs a copy of the images, so saves should be rare.
    """

    def __init__(self, path: Path | None, key: str, seconds: float = 20.0):
        self.path = path
        self.key = key if processes.count() == 1 else f"{key} of {processes.count()} processes"
        self.seconds = seconds
        self._started_at = self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None.

        A corrupt file is set aside. A checkpoint of another run gets a name under which that run finds it again. A
        warning reports this. Their folders move with them.
        """
        return processes.scattered(self._read() if processes.rank() == 0 else None)

    def _read(self) -> list[dict[str, Any]] | None:
        """Return the states of all processes."""
        if self.path is None:
            return None
        content = self._content(self.path)
        if content is not None and content["key"] != self.key:
            kept = self._parked(self.path, content["key"])
            _move(self.path, kept)
            log.warning("%s is of another run (other settings or network), which finds it as %s", self.path, kept.name)
            content = None
        if content is None and (own := self._parked(self.path, self.key)).exists():
            _move(own, self.path)
            content = self._content(self.path)
        if content is None:
            return None
        self._started_at -= content["elapsed"]
        return content["states"]

    def _content(self, path: Path) -> dict[str, Any] | None:
        """Return the content of a checkpoint file, or None if there is none or it is corrupt."""
        if not path.exists():
            return None
        try:
            content = torch.load(path, weights_only=True)
            return {name: content[name] for name in ("key", "states", "elapsed")}
        except Exception as error:  # a damaged file makes readers raise nearly everything
            kept = set_aside(path, f"not a checkpoint ({type(error).__name__})")
            _move(folder_beside(path), folder_beside(kept))
            return None

    @staticmethod
    def _parked(path: Path, key: str) -> Path:
        """Return the path of a run's state while another run uses the name."""
        return path.with_name(f"{path.name}.{fingerprint(key)[:8]}")

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, lists and dicts of them), atomically."""
        states = processes.gathered(state) if self.path is not None else []
        if self.path is not None and processes.rank() == 0:
            content = {"key": self.key, "states": states, "elapsed": time.monotonic() - self._started_at}
            write_atomically(self.path, lambda temporary: torch.save(content, temporary))
        self._saved_at = time.monotonic()

    def save_when_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """Save if the last save is long enough ago by the clock of the first process; only then call `state`."""
        if self.path is not None and processes.agreed(time.monotonic() - self._saved_at >= self.seconds):
            self.save(state())
