"""Records: the inputs of a run, as JSON with a fingerprint, and its outputs; written such that no file is ever partial.

A *fingerprint* is a hash of a run's inputs. The file name of a record is the fingerprint of its inputs. So a run that
was computed is found by its inputs, on any machine, and a changed setting gives another file.
"""

import errno
import glob
import hashlib
import itertools
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

log = logging.getLogger(__name__)

_BEFORE = "before it was there"
_PARTS = ("inputs", "outputs", "provenance")  # of a record


def added_later(default: Any, *, before: Any = MISSING) -> Any:
    """Return a field, for a dataclass of settings, that was added after records had been written.

    A record does not contain the field if its value is the one before the addition, so earlier records are still
    found. This value is the default, or `before` if the default changes the result.
    """
    return field(default=default, metadata={_BEFORE: default if before is MISSING else before})


def plain(value: Any) -> Any:
    """Return `value` in JSON form: dataclasses and mappings as dicts, tuples as lists, paths as strings.

    Settings that were added later (`added_later`) are omitted if they have their value from before the addition.

    Raises:
        TypeError: JSON cannot hold a value (the message names its type), including NaN and infinities.
    """
    if is_dataclass(value) and not isinstance(value, type):
        settings = {each.name: getattr(value, each.name) for each in fields(value) if not _as_before(each, value)}
        return plain(settings)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(f"a record cannot hold {value!r} of type {type(value).__name__}")


def always_recorded(settings: type[Any]) -> set[str]:
    """Return the names of the fields of a dataclass of settings that every record contains: those not added later."""
    return {each.name for each in fields(settings) if _BEFORE not in each.metadata}


def completed(settings: type[Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings; those that were added later and are missing get their value from before."""
    before = {each.name: plain(each.metadata[_BEFORE]) for each in fields(settings) if _BEFORE in each.metadata}
    return before | dict(recorded)


def _as_before(setting: Field[Any], settings: Any) -> bool:
    return _BEFORE in setting.metadata and getattr(settings, setting.name) == setting.metadata[_BEFORE]


def fingerprint(inputs: Any) -> str:
    """Return 16 hexadecimal digits that depend on every value of `inputs` and on nothing else."""
    text = json.dumps(plain(inputs), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old or the new file.

    Raises:
        OSError: the disk is full or the folder cannot be written, whichever error `write` raises; the message names
            `path`, and no temporary file remains.
    """
    with _to_be_named(Path(path)) as temporary:
        temporary.touch()
        usual = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(usual)  # safetensors makes its files readable only for their owner


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder, then rename it to `path`, which must not exist or be an empty folder.

    Raises: as `write_atomically`.
    """
    with _to_be_named(path) as temporary:
        write(temporary)


class _NotWritten(OSError):
    """A file or folder that could not be written; of one in a folder, the reason is that of the file."""

    def __init__(self, path: Path, error: Exception):
        number = getattr(error, "errno", None) or errno.EIO
        self.reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
        self.reason = self.reason or str(error).partition("\n")[0]
        super().__init__(number, f"could not write {path}: {self.reason}; {_room(path)}")


@contextmanager
def _to_be_named(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; at the end of the block the file with this name is renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        raise _NotWritten(path, error) from error
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _room(path: Path) -> str:
    """Return a note on the free space for `path` and the remedy if it is too small."""
    free = shutil.disk_usage(path.parent).free
    return f"{free / 1e6:.0f} MB are free there: make room, or name another place"


def temporary_beside(path: Path) -> Path:
    """Return a new name beside `path`, on the same disk, for a file that gets its name when it is complete."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")


def temporaries(path: Path) -> list[Path]:
    """Return the existing files with names from `temporary_beside`."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(plain(value), indent=1, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def set_aside(path: Path, reason: str) -> Path:
    """Rename a file that cannot be used to a new name `NAME.corrupt`, with a warning; existing files are never lost.

    Return the new name, or the old one if the folder cannot be written.
    """
    names = (path.with_name(f"{path.name}.corrupt{number or ''}") for number in itertools.count())
    kept = next(name for name in names if not name.exists())
    try:
        os.replace(path, kept)
    except OSError as error:
        log.warning("%s: %s; it stays there (%s), and is not used", path, reason, error.strerror)
        return path
    log.warning("%s: %s; kept as %s, it will be computed again", path, reason, kept.name)
    return kept


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record at `path`, or None if there is none or it is corrupt; a corrupt record is set aside.

    A record is sound if it parses, its parts are there, its numbers are finite, its outputs are numbers or tables, and
    its file name is the fingerprint of its inputs.
    """
    try:
        return _checked_record(path.read_text(encoding="utf-8"), path.stem)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:  # deeply nested JSON raises a RecursionError
        set_aside(path, f"not a record ({error})")
        return None


def _checked_record(text: str, name: str) -> dict[str, Any]:
    """Return the record of a text; raises ValueError, TypeError or RecursionError if it is not sound."""
    record = json.loads(text)
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in _PARTS):
        raise ValueError(f"it lacks {', '.join(_PARTS)}, each with entries by name")
    plain(record)
    strange = [name for name, value in record["outputs"].items() if type(value) not in (int, float, dict)]
    if strange or not record["outputs"]:
        raise ValueError(f"outputs are numbers, or tables by name; it has {', '.join(strange) or 'none'}")
    if (found := fingerprint(record["inputs"])) != name:
        raise ValueError(f"its inputs have the fingerprint {found}, not its name's")
    return record


def provenance(seconds: float) -> dict[str, Any]:
    """Return the origin of a result: commit, versions, processor and threads, seconds."""
    import torch

    # The kernels that add up sums, and their order: methods that learn may end elsewhere on another machine.
    computed_by = [_processor(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    devices = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return {
        **code_version(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv[0].endswith("dgh") else "library",
        "versions": {name: metadata.version(name) for name in ("dghlib", "torch", "torchvision", "numpy")}
        | {"python": platform.python_version()},
        "machine": ", ".join([f"{platform.system()} {platform.machine()}", *devices, *computed_by]),
        "seconds": round(seconds, 2),
    }


@cache
def _processor() -> str:
    """Return the model of the processor."""
    try:
        return processor_in(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:  # not on Linux
        return processor_in("")


def processor_in(cpuinfo: str) -> str:
    """Return the model from Linux's /proc/cpuinfo with its numbers, since virtual machines may hide its name."""
    lines = cpuinfo.partition("\n\n")[0].splitlines()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{name} {told[name]}" for name in ("cpu family", "model") if name in told]
    named = told.get("model name") or platform.processor() or platform.machine()
    return f"{named} ({', '.join(numbers)})" if numbers else named


@cache
def code_version() -> dict[str, Any]:
    """Return the commit of the code, and whether its files differ from the commit, at the time of the first call.

    Call this before a long run: later changes in the checkout are not part of the code that runs.
    """
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".")),
    }


def _git(*arguments: str) -> str:
    """Return the output of git for the folder of the package, or an empty string outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
