"""Checkpoints: a file from which a killed run continues to the same result."""

import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dghlib.records import set_aside, write_atomically

log = logging.getLogger(__name__)


class Checkpoint:
    """One run's checkpoint file, or no file at all.

    Args:
        path: the file; None saves nothing.
        key: fingerprint of the run. A checkpoint of another run is never continued.
        seconds: shortest time between two saves; a save costs a copy of the images, so it should be rare.
    """

    def __init__(self, path: Path | None, key: str, seconds: float = 20.0):
        self.path = path
        self.key = key
        self.seconds = seconds
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None. A corrupt or foreign file is set aside with a warning."""
        if self.path is None or not self.path.exists():
            return None
        try:
            content = torch.load(self.path, weights_only=True)
            key, state = content["key"], content["state"]
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            set_aside(self.path, f"not a checkpoint ({type(error).__name__})")
            return None
        if key != self.key:
            set_aside(self.path, "a checkpoint of another run (other settings or another network)")
            return None
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, lists and dicts of them), atomically."""
        if self.path is not None:
            content = {"key": self.key, "state": state}
            write_atomically(self.path, lambda temporary: torch.save(content, temporary))
        self._saved_at = time.monotonic()

    def save_when_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """Save if the last save is long enough ago; `state` is called only then."""
        if self.path is not None and time.monotonic() - self._saved_at >= self.seconds:
            self.save(state())

    def remove(self) -> None:
        """Delete the file: the run is finished and its result is kept elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
