"""Files that commands write: asked for before anything is computed, held while it is; and extras that are missing."""

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from dghlib.storage.locks import claim


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Tell, in the place of an import that fails in this block, which extra brings what is missing.

    Raises:
        ValueError: the extra is not installed; the message says how to.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'dghlib[{extra}]'") from error


def export_room() -> types.ModuleType:
    """Return the room that needs the extra `onnx`; raises as `needing` does."""
    with needing("onnx"):
        return importlib.import_module("dghlib.export")


@contextlib.contextmanager
def claimed(path: Path, force: bool) -> Iterator[None]:
    """Hold the right to write a file, for as long as it is computed; raises as `check_free` and `claim` do."""
    check_free(path, force)
    with claim(path):
        yield


def check_free(path: Path, force: bool) -> None:
    """Ask before a file is replaced; without a terminal to ask at, refuse.

    Raises:
        IsADirectoryError: it is a folder.
        FileExistsError: the answer is no.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'NAME'}")
    if force or not path.exists():
        return
    if sys.stdin.isatty() and input(f"{path} exists. Replace it? [y/N] ").strip().lower() in ("y", "yes"):
        return
    raise FileExistsError(f"{path} exists; --force replaces it")


def check_set(path: Path, force: bool) -> None:
    """Check, before anything is computed, that a set of images can be written to `path`.

    Raises:
        ValueError: its name has an ending that no form of sets has.
        FileExistsError: it exists and is not to be replaced, or is a folder that is not empty.
    """
    if path.suffix not in ("", ".npz", ".safetensors"):
        raise ValueError(f"--out must end in .safetensors or .npz, or be a folder without an ending, got {path}")
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty: choose a new folder")
        return
    check_free(path, force)


def checkpoint_of(path: Path) -> Path:
    """Return where the checkpoint of a file lies while it is computed."""
    return path.with_name(path.name + ".checkpoint")
