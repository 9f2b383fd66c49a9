"""Records: what went into a run, as JSON with a fingerprint; what came out, written so that nothing is ever half there.

A *fingerprint* is a hash of a run's inputs. A record's file name is the fingerprint of its inputs, so a run that was
done is found by asking for it, on any machine, and a changed setting is another file.
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
    """Return the field of a dataclass of settings that came after records had been written.

    It is in no record in which it is what it was before it was there: the records from then are still found. That is
    its default, or `before`, where what is computed unless asked otherwise has changed.
    """
    return field(default=default, metadata={_BEFORE: default if before is MISSING else before})


def plain(value: Any) -> Any:
    """Return `value` as JSON has it: dataclasses and mappings as dicts, tuples as lists, paths as strings.

    Settings that were added later (`added_later`) are left out where they are what they were before.

    Raises:
        TypeError: a value that JSON cannot hold (its type is named), NaN and infinities included.
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
    """Return the names of the fields of a dataclass of settings that are in every record: those not added later."""
    return {each.name for each in fields(settings) if _BEFORE not in each.metadata}


def completed(settings: type[Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings with those that were added later as they were before, where the record lacks them."""
    before = {each.name: plain(each.metadata[_BEFORE]) for each in fields(settings) if _BEFORE in each.metadata}
    return before | dict(recorded)


def _as_before(setting: Field[Any], settings: Any) -> bool:
    return _BEFORE in setting.metadata and getattr(settings, setting.name) == setting.metadata[_BEFORE]


def fingerprint(inputs: Any) -> str:
    """Return 16 hexadecimal digits that depend on every value of `inputs` and on nothing else."""
    text = json.dumps(plain(inputs), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old or the new one.

    Raises:
        OSError: the disk is full or the folder cannot be written, whatever `write` calls that; the message names
            `path`, nothing is left behind.
    """
    with _to_be_named(Path(path)) as temporary:
        temporary.touch()
        usual = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(usual)  # safetensors lets nobody but the owner read its files


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make and fill a temporary folder, then rename it to `path`, where nothing is or an empty folder.

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
    """Yield a temporary name beside `path`; what has it by the end of the block gets the right one."""
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
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _room(path: Path) -> str:
    """Say how much room there is for `path`, and what to do if it is too little."""
    free = shutil.disk_usage(path.parent).free
    return f"{free / 1e6:.0f} MB are free there: make room, or name another place"


def temporary_beside(path: Path) -> Path:
    """Return a new name beside `path`, on the same disk, for what is to get its name once it is complete."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")


def temporaries(path: Path) -> list[Path]:
    """Return what `temporary_beside` named, and what is still there."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(plain(value), indent=1, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def set_aside(path: Path, reason: str) -> Path:
    """Rename a file that cannot be used to a new name `NAME.corrupt` and say so; nothing that was kept is lost.

    Returns the new name; the old one where the folder cannot be written.
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
    """Return the record at `path`, or None when there is none, or a corrupt one, which is set aside.

    A record is sound when it parses, its parts are there, its numbers are finite, its outputs are numbers or tables,
    and its file name is the fingerprint of its inputs.
    """
    try:
        return _checked_record(path.read_text(encoding="utf-8"), path.stem)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:  # nested ever deeper, JSON ends in the last
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
    """Return where and how a result came to be: commit, versions, processor and threads, seconds."""
    import torch

    # What sums are added up by, and in which order: what learns for long may end elsewhere on another machine.
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
    except OSError:  # where there is no Linux
        return processor_in("")


def processor_in(cpuinfo: str) -> str:
    """Return the model that Linux tells in /proc/cpuinfo, with its numbers: virtual machines may hide its name."""
    lines = cpuinfo.partition("\n\n")[0].splitlines()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{name} {told[name]}" for name in ("cpu family", "model") if name in told]
    named = told.get("model name") or platform.processor() or platform.machine()
    return f"{named} ({', '.join(numbers)})" if numbers else named


@cache
def code_version() -> dict[str, Any]:
    """Return the commit of the code, and whether its files differ from it, as they were when this was first asked.

    Ask before a long run: what changes in the checkout meanwhile is not what has run.
    """
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".")),
    }


def _git(*arguments: str) -> str:
    """Return what git prints about the folder of the package, or an empty string outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
