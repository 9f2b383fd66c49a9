"""Plants faults in a copy of the package, one at a time, and counts how many the tests notice.

`python tests/planted_faults.py` plants all faults of `planted_faults.txt` that have no outcome, in a quarter of
an hour to an hour; with WORDs, only those in files whose names contain one. It can be stopped and started again, and
several processes can run at once: the last outcome of each fault is saved in `_build/planted_faults`. A fault is
planted again if its file has changed, or if it was not noticed and its tests have changed. With `--save`, a record is
written to `results/benchmarks`. pytest does not collect this file.

Each fault is planted for its own process, forked from one that has imported what the package needs, so that a
fault takes only the time of its tests. A fault that ends the process counts as noticed.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dghlib.storage.locks import Busy, claim
from dghlib.storage.records import code_version, fingerprint, provenance, write_json

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".txt")
KEPT = ROOT / "_build" / "planted_faults"
RECORD = ROOT / "results" / "benchmarks" / "planted_faults.json"
SECONDS = 900  # for the tests of one fault; tests that hang count as failed
ENDED, FAILED = 0, 1  # exit status of pytest if all tests passed, or if one failed
NEEDED = ("torch", "torchvision", "numpy", "pandas", "scipy.stats", "seaborn", "onnx", "onnxruntime", "nbformat", "PIL")


class Fault(NamedTuple):
    """A mistake that somebody could make: in `file` of the package, `old` becomes `new`.

    `tests` are the names of test files that should notice it, some with a word in brackets that selects tests.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old!r} => {self.new!r}"


def listed() -> list[Fault]:
    """Return the faults of the list."""
    faults: list[Fault] = []
    file, tests = "", tuple[str, ...]()
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if " => " in line:
            old, new = (part.replace("\\n", "\n") for part in line.split(" => "))
            faults.append(Fault(file, old, new, tests))
        elif line and not line.startswith("#"):
            file, _, named = line.partition(": ")
            tests = tuple(named.split())
    return faults


def planted(fault: Fault, text: str) -> str:
    """Return the text of a file with a fault in it.

    Raises:
        ValueError: the file does not hold the old text exactly once: the list is of an earlier version.
    """
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file} holds {fault.old!r} {text.count(fault.old)} times, not once: renew {LIST.name}")
    return text.replace(fault.old, fault.new)


@contextlib.contextmanager
def private_copy() -> Iterator[Path]:
    """Yield a copy of package and tests, with links to the rest of the repository."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        for path in ROOT.iterdir():
            if path.name in ("dghlib", "tests"):
                shutil.copytree(path, Path(folder) / path.name, symlinks=True)
            elif path.name != "_build" and not path.name.startswith("."):
                (Path(folder) / path.name).symlink_to(path)
        yield Path(folder)


def fails(copy: Path, tests: Sequence[str]) -> bool:
    """Return whether one of the tests fails, hangs, or ends its process."""
    if (child := os.fork()) == 0:
        _be_the_tests(copy, tests)
    ended = _status(child)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also ends what the tests have started
    if ended is None:
        os.waitpid(child, 0)
    return ended != ENDED


def _status(child: int) -> int | None:
    """Return the exit status of a process, or None if it takes too long."""
    started = time.monotonic()
    while time.monotonic() - started < SECONDS:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    return None


def _be_the_tests(copy: Path, tests: Sequence[str]) -> None:
    """Replace this process by a run of the tests."""
    os.setsid()
    os.chdir(copy)
    quiet = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(path for path in sys.path if path != str(ROOT))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "dghlib"]:
        del sys.modules[name]
    status: int = ENDED
    for name in tests:
        file, _, word = name.rstrip("]").partition("[")
        chosen = ["-k", word] if word else []
        status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", f"tests/test_{file}.py", *chosen])
        if status != ENDED:
            break
    os._exit(status)


def outcome_of(fault: Fault, copy: Path) -> dict[str, Any]:
    """Plant a fault in a copy, and return whether the tests noticed."""
    path = copy / "dghlib" / fault.file
    sound = path.read_text(encoding="utf-8")
    started = time.monotonic()
    try:
        path.write_text(planted(fault, sound), encoding="utf-8")
        noticed = fails(copy, fault.tests)
    finally:
        path.write_text(sound, encoding="utf-8")
    seconds = round(time.monotonic() - started, 1)
    code = _sum(f"dghlib/{fault.file}")
    return {**fault._asdict(), "tests": _tests_of(fault), "code": code, "noticed": noticed, "seconds": seconds}


def kept(fault: Fault) -> Path:
    """Return the file with a fault's last outcome."""
    return KEPT / f"{fingerprint([fault.file, fault.old, fault.new])}.json"


def _tests_of(fault: Fault) -> dict[str, str]:
    """Return the checksums of a fault's test files."""
    return {name: _sum(f"tests/test_{name.partition('[')[0]}.py") for name in fault.tests}


@functools.cache
def _sum(file: str) -> str:
    """Return the checksum of a file as it was at the first call, which is also its state in the copy."""
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()


def last(fault: Fault) -> dict[str, Any] | None:
    """Return the last outcome of a fault, which may be of another version of its file, or None if it has none."""
    path = kept(fault)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def known(fault: Fault) -> dict[str, Any] | None:
    """Return a fault's outcome if its file is unchanged, and its tests too unless they noticed it; else None."""
    outcome = last(fault)
    if outcome is None or outcome["code"] != _sum(f"dghlib/{fault.file}"):
        return None
    return outcome if outcome["noticed"] or outcome["tests"] == _tests_of(fault) else None


def plant(faults: Sequence[Fault]) -> None:
    """Plant all faults whose outcome is not known, first those that were never planted.

    Tests that fail without any fault show nothing: their faults are left out, with a message.
    """
    for name in NEEDED:
        importlib.import_module(name)
    sound: dict[tuple[str, ...], bool] = {}
    with private_copy() as copy:
        for fault in sorted(faults, key=lambda fault: last(fault) is not None):
            path = copy / "dghlib" / fault.file
            if known(fault) is not None or path.read_text(encoding="utf-8").count(fault.old) != 1:
                continue
            with contextlib.suppress(Busy), claim(kept(fault)):
                if fault.tests not in sound:
                    sound[fault.tests] = not fails(copy, fault.tests)
                    if not sound[fault.tests]:
                        text = (copy / "output.txt").read_text(encoding="utf-8", errors="replace")
                        print(f"without any fault, tests fail in {' '.join(fault.tests)}:\n{text[-3000:]}", flush=True)
                if not sound[fault.tests]:
                    continue
                found = outcome_of(fault, copy)
                write_json(kept(fault), found)
                print(f"{'noticed' if found['noticed'] else 'MISSED '} {found['seconds']:5.1f} s  {fault}", flush=True)


def summed_up(faults: Sequence[Fault]) -> dict[str, Any]:
    """Return how many faults were noticed, in all and by file, and which were missed, by their last outcomes."""
    found = [outcome for fault in faults if (outcome := last(fault))]
    by_file: dict[str, list[int]] = {}
    for outcome in found:
        counts = by_file.setdefault(outcome["file"], [0, 0])
        counts[0] += outcome["noticed"]
        counts[1] += 1
    missed = [outcome for outcome in found if not outcome["noticed"]]
    return {
        "noticed": len(found) - len(missed),
        "planted": len(found),
        "planted in the code as it is": sum(known(fault) is not None for fault in faults),
        "by file, noticed and planted": by_file,
        "missed": [{name: outcome[name] for name in ("file", "old", "new")} for outcome in missed],
        "seconds": sum(outcome["seconds"] for outcome in found),
    }


def main() -> None:
    """Plant the chosen faults, print the outcomes, and save them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("words", nargs="*", help="words in names of files; default: all files")
    options.add_argument("--save", action="store_true", help="write a record of the outcomes to results/benchmarks")
    options.add_argument("--known", action="store_true", help="plant nothing, and sum up the saved outcomes")
    chosen = options.parse_args()
    for fault in listed():
        _ = kept(fault), _tests_of(fault)  # so that the checksums of all files are those at the start
    faults = [fault for fault in listed() if not chosen.words or any(word in fault.file for word in chosen.words)]
    version = code_version()
    if not chosen.known:
        plant(faults)
    found = summed_up(faults)
    for outcome in found["missed"]:
        print("MISSED ", outcome)
    print(f"{found['noticed']} of {found['planted']} faults were noticed")
    if chosen.save:
        seconds = found.pop("seconds")
        inputs = {"benchmark": "planted_faults", "listed": len(faults), "words": chosen.words}
        write_json(RECORD, {"inputs": inputs, "outputs": found, "provenance": provenance(seconds) | version})
        print(RECORD)


if __name__ == "__main__":
    main()
