"""Plants faults in copies of the package, one at a time, and counts how many the tests notice.

Run it on demand, it takes minutes: `python tests/planted_faults.py [WORD ...]` plants those whose file has a WORD in
its name, or all. pytest does not collect it. What it found is printed, and written to `_build/planted_faults.json`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dghlib.storage.records import code_version, write_json

ROOT = Path(__file__).parents[1]
SECONDS = 600  # for the tests of one fault; a test that hangs has noticed it


class Fault(NamedTuple):
    """A mistake that somebody could make: in `file` of the package, `old` becomes `new`; `tests` should notice."""

    file: str
    old: str
    new: str
    tests: str


FAULTS = [
    Fault("generators/schedules.py", "self.bad_steps > self.patience", "self.bad_steps >= self.patience", "schedules"),
    Fault("generators/schedules.py", "self.best, self.bad_steps = inf, 0", "self.bad_steps = 0", "schedules"),
    Fault("generators/schedules.py", "self.threshold * abs(self.best)", "self.threshold * self.best * 2", "schedules"),
    Fault(
        "generators/schedules.py", "max(self.minimum, self.learning_rate", "max(0.0, self.learning_rate", "schedules"
    ),
    Fault("generators/schedules.py", "loss < self.best -", "loss < self.best +", "schedules"),
    Fault("generators/schedules.py", "max(1, round(length", "max(0, round(length", "schedules"),
    Fault("storage/locks.py", "os.O_NOFOLLOW", "0", "locks"),
    Fault("storage/locks.py", "os.fchmod(handle, 0o666)", "os.fchmod(handle, 0o644)", "locks"),
    Fault("storage/locks.py", "            remove(leftover)\n", "            pass\n", "locks"),
    Fault("storage/locks.py", "lock.unlink(missing_ok=True)", "pass", "locks"),
    Fault("storage/records.py", "sort_keys=True, separators", "separators", "records"),
    Fault("storage/records.py", "    plain(record)\n", "", "records"),
    Fault("storage/records.py", "next(name for name in names if not name.exists())", "next(names)", "records"),
    Fault("storage/checkpoints.py", 'if content is not None and content["key"] != self.key', "if False", "checkpoints"),
    Fault("storage/checkpoints.py", "self._started_at -= content", "content", "checkpoints"),
    Fault("storage/large_sets.py", "_allocate(handle.fileno(), size)", "pass", "large_sets"),
    Fault("storage/reading.py", "    except Unreadable:\n        raise\n", "", "reading"),
    Fault("storage/assets.py", 'or ".." in place.parts', "", "assets"),
    Fault("storage/assets.py", "flags | os.O_NOFOLLOW", "flags", "assets"),
    Fault("storage/assets.py", "if start and not told.startswith", "if not told and not told.startswith", "assets"),
    Fault("choices.py", "not math.isfinite(value)", "False", "choices"),
    Fault("choices.py", "(int, float) if wanted is float else (wanted,)", "(int, float, bool)", "choices"),
    Fault("evaluation/classification.py", "100 * correct / seen", "100 * correct / (seen + 1)", "evaluation"),
    Fault("evaluation/classification.py", "images.to(device, dtype)", "images.to(device)", "cli"),
    Fault("datasets/files.py", "choose(len(files), num_images, seed)", "choose(len(files), num_images)", "datasets"),
]


def noticed(fault: Fault) -> bool:
    """Return whether the tests fail where the fault is.

    Raises:
        ValueError: the file does not hold the old text exactly once: the list is of an earlier version.
    """
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = _copy(Path(folder))
        path = copy / "dghlib" / fault.file
        text = path.read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            raise ValueError(f"{fault.file} holds {fault.old!r} {text.count(fault.old)} times, not once")
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        return _fails(copy, fault.tests)


def check_that_tests_pass(names: Iterable[str]) -> None:
    """Raise ValueError if tests fail without any fault: what they notice then says nothing."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = _copy(Path(folder))
        if failing := [name for name in names if _fails(copy, name)]:
            raise ValueError(f"without any fault, tests fail in {', '.join(failing)}: mend these first")


def _copy(folder: Path) -> Path:
    for name in ("dghlib", "tests", "data_manifests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _fails(copy: Path, tests: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/test_{tests}.py"]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    try:
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main(words: list[str]) -> None:
    """Plant every chosen fault; print and record what the tests noticed."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.file for word in words)]
    check_that_tests_pass(dict.fromkeys(fault.tests for fault in chosen))
    found = []
    for fault in chosen:
        found.append({**fault._asdict(), "noticed": noticed(fault)})
        print(
            f"{'noticed' if found[-1]['noticed'] else 'MISSED '}  {fault.file}: {fault.old!r} -> {fault.new!r}",
            flush=True,
        )
    count = sum(each["noticed"] for each in found)
    print(f"{count} of {len(found)} faults were noticed")
    write_json(ROOT / "_build" / "planted_faults.json", {"code": code_version(), "noticed": count, "faults": found})


if __name__ == "__main__":
    main(sys.argv[1:])
