"""Files that commands write: checked before anything is computed, and locked meanwhile; and missing extras."""

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from dghlib.storage.locks import claim


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """If an import fails in this block, report which extra installs the missing package.

    Raises:
        ValueError: the extra is not installed; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'dghlib[{extra}]'") from error


def export_room() -> types.ModuleType:
    """Return the package `export`, which needs the extra `onnx`; raises as `needing` does."""
    with needing("onnx"):
        return importlib.import_module("dghlib.export")


@contextlib.contextmanager
def claimed(path: Path, force: bool) -> Iterator[None]:
    """Lock a file that will be written, while it is computed; raises as `check_free` and `claim` do."""
    check_free(path, force)
    with claim(path):
        yield


def check_free(path: Path, force: bool) -> None:
    """Ask before a file is replaced; refuse if there is no terminal to ask at.

    Raises:
        IsADirectoryError: the path is a folder.
        FileExistsError: the file exists and the answer is no.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'NAME'}")
    if force or not path.exists():
        return
    if sys.stdin.isatty() and input(f"{path} exists. Replace it? [y/N] ").strip().lower() in ("y", "yes"):
        return
    raise FileExistsError(f"{path} exists; --force replaces it")


def check_set(path: Path, force: bool, channels: int) -> None:
    """Check, before anything is computed, that a set of images with so many channels can be written to `path`.

    Raises:
        ValueError: no format of image sets has the ending of this name, or PNG files cannot hold these channels.
        FileExistsError: the file exists and may not be replaced, or the folder is not empty.
    """
    if path.suffix not in ("", ".npz", ".safetensors"):
        raise ValueError(f"--out must end in .safetensors or .npz, or be a folder without an ending, got {path}")
    if not path.suffix and channels not in (1, 3):
        raise ValueError(f"PNG files have 1 or 3 channels, the network's images have {channels}: name an .npz file")
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty: choose a new folder")
        return
    check_free(path, force)


def checkpoint_of(path: Path) -> Path:
    """Return the path of a file's checkpoint while the file is computed."""
    return path.with_name(path.name + ".checkpoint")
