"""Disks that are full, have no more names, are read-only or take no large file, and are then repaired.

`CASES` lists every command that writes, and the trouble with the place where it writes. The command must say so in 1
line that names the path, and leave nothing half written. Repeated after the repair, it succeeds. Small disks are
mounted in memory, which needs an administrator's rights.
"""

import contextlib
import os
import random
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from campaign_commands import NETWORK, Undisturbed, Workplace, content_of, dgh, differing, nothing, told
from planted_kills import COMMANDS, LEARN, SHORT

NOBODY = 65534  # an unprivileged account
LARGEST = 20_000  # in bytes, where large files are forbidden
PAGE = 4096
WRITERS: dict[str, tuple[str, ...]] = {
    **{name: words for name, words in COMMANDS.items() if name != "evaluate"},
    "generate dgh from files": (*COMMANDS["generate dgh"][:-1], "OUT.safetensors"),
    "quantize brecq from files": ("quantize", NETWORK, *LEARN, "brecq", "--set", "store=disk", *SHORT),
}
MAPPED = [name for name in WRITERS if name.endswith("from files")]
SEVERAL_FILES = ("generate a folder", "report", "run")


class Case(NamedTuple):
    """A command, and the trouble with the disk."""

    command: str
    trouble: str


CASES = [
    *(Case(name, "little room") for name in WRITERS for _ in range(2)),
    *(Case(name, "too few names") for name in SEVERAL_FILES),
    *(Case(name, "read-only") for name in WRITERS),
    *(Case(name, "not allowed") for name in WRITERS),
    *(Case(name, "no large files") for name in WRITERS if name not in MAPPED),
    *(Case(name, "no room for maps") for name in MAPPED for _ in range(3)),
]
OF_CHECKPOINTS = (".checkpoint", ".checkpoint.values")  # these stay, so that nothing is computed again


def disk(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Give a command a broken disk, then an intact one; return the case's name and what was wrong."""
    case = CASES[number]
    words, map_files = WRITERS[case.command], partial(_map_files, case.command in MAPPED)
    wanted = work.wanted(case.command, words, before=map_files)
    folder = work.fresh(f"disk{number}")
    with _broken(folder, case.trouble, wanted, draws) as (name, spoil, mend):
        name, files = f"{case.command}, {name}", {path.name for path in folder.iterdir()}

        def before() -> None:
            map_files()
            spoil()

        full = dgh(folder, words, before=before)
        if full.status == 0:
            return name, differing(content_of(folder), wanted.made)
        if problem := told(full, *([] if case.command in MAPPED else ["OUT"])):  # maps may be in another folder
            return name, problem
        if left := _half_written(folder, files):
            return name, f"left {left}"
        mend()
        again = dgh(folder, words, before=map_files)
        return name, differing(content_of(folder), wanted.made) if again.status == 0 else again.said[-300:]


def _half_written(folder: Path, files: set[str]) -> list[str]:
    """Return files that are not checkpoints and, for a command that writes many files, not complete ones."""
    made = [name for name in content_of(folder) if "/" not in name and not name.endswith(OF_CHECKPOINTS)]
    others = {path.name for path in folder.iterdir()} - files - {"OUT", "tmp"}
    return made + sorted(name for name in others if not name.endswith(OF_CHECKPOINTS))


def _map_files(wanted: bool) -> None:
    """Let a command put its values in mapped files, as a command with large sets does."""
    if wanted:
        from dghlib.generators import dgh as images

        images.LARGEST_IN_MEMORY = 0
        with contextlib.suppress(OSError):  # the disk may be full or read-only
            os.makedirs("tmp", exist_ok=True)
        os.environ["TMPDIR"], tempfile.tempdir = "tmp", None


Broken = tuple[str, Callable[[], object], Callable[[], object]]  # its name, the break, the repair


@contextlib.contextmanager
def _broken(folder: Path, trouble: str, wanted: Undisturbed, draws: random.Random) -> Iterator[Broken]:
    """Break a folder; yield the trouble's name, a function for the command to call, and the repair."""
    if trouble == "not allowed":
        folder.chmod(0o555)
        yield trouble, partial(os.setuid, NOBODY), partial(folder.chmod, 0o777)
    elif trouble == "no large files":
        limits = (LARGEST, resource.RLIM_INFINITY)
        yield trouble, partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits), nothing
    else:
        needed = sum(map(len, wanted.made.values()))
        room = int(draws.uniform(0.02, 0.95) * needed) // PAGE * PAGE
        if trouble == "no room for maps":
            room = draws.randrange(2, 40) * PAGE
        names = len(list(folder.iterdir())) + draws.randrange(2, 7)
        named = {"read-only": trouble, "too few names": f"{names} names"}.get(trouble, f"{room} of {needed} bytes")
        options = {"read-only": "size=64m", "too few names": f"size=64m,nr_inodes={names}"}
        with _mounted(folder, options.get(trouble, f"size={room + 2 * PAGE}")):
            remount = partial(_mount, "-o", "remount,rw,size=64m,nr_inodes=9999", str(folder))
            if trouble == "read-only":
                _mount("-o", "remount,ro", str(folder))
            yield named, nothing, remount


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small disk in memory over a folder, with links to its files."""
    own = folder.rename(folder.with_name(f"{folder.name}.files"))
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        for path in own.iterdir():
            (folder / path.name).symlink_to(path)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
