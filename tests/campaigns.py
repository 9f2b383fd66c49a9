"""Campaigns: kills, full disks, damaged inputs and hostile servers, by the hundred, and how many the package survives.

`python tests/campaigns.py` runs what has no outcome yet of each kind, an hour or so; with names of KINDs, those alone.
It may be stopped and started again: outcomes are kept in `_build/campaigns`, with the commit, and what failed is tried
again; delete that folder to begin anew. With `--save`, a record goes to `results/benchmarks`, with what
`planted_faults.py` recorded beside it. pytest does not collect this file.

Each case has a seed and can be repeated: `python tests/campaigns.py inputs --only 17`. A command runs in a process of
its own, forked from one that has imported the package. It survives

* a **kill** at any moment if the same command, given again, ends with the bytes of an undisturbed run, and leaves
  nothing beside them;
* a full **disk** if it says so in one line with the path, leaves nothing half written, and the same command succeeds
  once there is room;
* a damaged **input** if it says so in one line with the file's name and writes nothing; or makes a damaged state anew,
  and keeps what it could not read;
* a hostile **server** if what gets the file's name is the file, and an honest one makes up for it.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import planted_inputs
import planted_servers
import torch

from dghlib import cli
from dghlib.storage import checkpoints
from dghlib.storage.records import code_version, provenance, write_json

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "_build" / "campaigns"
RECORD = ROOT / "results" / "benchmarks" / "campaigns.json"
FAULTS = RECORD.with_name("planted_faults.json")
COUNTS = {"kills": 100, "disks": 40, "inputs": 250, "servers": 40}

NETWORK = "shapes_residual"
SET = ("--set", "num_images=6", "--set", "batch_size=4", "--set")
# What is killed, and what is given too little room: each writes OUT, and what it begins with is among the sound files.
COMMANDS: dict[str, tuple[str, ...]] = {
    "generate zeroq": ("generate", NETWORK, "--method", "zeroq", *SET, "steps=6", "--out", "OUT.safetensors"),
    "generate dgh": ("generate", NETWORK, *SET, "steps=6", "--out", "OUT.safetensors"),
    "generate genie_d": ("generate", NETWORK, "--method", "genie_d", *SET, "steps=4", "--out", "OUT.safetensors"),
    "generate a folder": ("generate", NETWORK, "--method", "noise", "--set", "num_images=40", "--out", "OUT"),
    "quantize hptq": ("quantize", NETWORK, "--images", "images.safetensors", "--out", "OUT.safetensors"),
    "quantize brecq": (
        *("quantize", NETWORK, "--images", "images.safetensors", "--method", "brecq", "--bits", "W4A4"),
        *("--set", "iterations=4", "--set", "step_iterations=2", "--out", "OUT.safetensors"),
    ),
    "export": ("export", NETWORK, "--quantized", "quantized.safetensors", "--out", "OUT.onnx"),
    "run": (
        *("run", "table2", "--budget", "smoke", "--models", NETWORK, "--sources", "zeroq", "--bits", "W8A8"),
        *("--seeds", "1", "--anew", "--results", "OUT/results"),
    ),
}


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, what it said, and its seconds of the processor."""

    status: int
    said: str
    seconds: float


def dgh(
    folder: Path, words: Sequence[str], *, before: Callable[[], object] = lambda: None, eager: bool = False
) -> Ended:
    """Run `dgh` in a folder, in a process of its own; `before` is called in there, `eager` saves every step."""
    said = folder.with_name(f"{folder.name}.said")
    if (child := os.fork()) == 0:
        os.setsid()
        os.chdir(folder)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(output, stream)
        status = 99
        try:
            if eager:
                checkpoints.Checkpoint.save_when_due = _save_always  # type: ignore[method-assign]
            before()
            status = cli.main(words)
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    text = said.read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), text, usage.ru_utime + usage.ru_stime)


def _save_always(self: checkpoints.Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
    if self.path is not None:
        self.save(state())


def told(ended: Ended, *names: str) -> str:
    """Return what is wrong with how an error was told; nothing if it is one line that names what it is about."""
    lines = [line for line in ended.said.splitlines() if line.startswith("dgh: ")]
    if ended.status < 0:
        return f"killed by signal {-ended.status}"
    if ended.status != 1:
        return f"exit status {ended.status}: {ended.said[-300:]}"
    if "Traceback" in ended.said or len(lines) < 1:
        return f"not told in one line: {ended.said[-300:]}"
    if "--traceback shows where" in lines[-1]:
        return f"told in words that are not for users: {lines[-1][:300]}"
    if not any(name in lines[-1] for name in names):
        return f"names none of {', '.join(names)}: {lines[-1][:300]}"
    return ""


def content_of(folder: Path) -> dict[str, bytes]:
    """Return all files that a command made, by their paths; of records, what was computed."""
    made = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name.startswith("OUT"):
            made[name] = _computed(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
        elif path.is_file() and name.startswith(".") and "OUT" in name:
            made[name] = b"left behind"
    return made


def _computed(record: bytes) -> bytes:
    content = json.loads(record)
    outputs = {name: value for name, value in content["outputs"].items() if not name.endswith("seconds")}
    return json.dumps([content["inputs"], outputs]).encode()


def differing(found: dict[str, bytes], wanted: dict[str, bytes]) -> str:
    """Return what is wrong with the files that a command left."""
    apart = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
    # A set of images that the book's runs share is kept with the seconds that it took.
    apart = {name for name in apart if not (name.startswith("OUT/images/") and name in found and name in wanted)}
    return f"other than an undisturbed run: {', '.join(sorted(apart))}" if apart else ""


class Workplace:
    """Sound files, and what each command makes of them undisturbed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sound = folder / "sound"
        self.sound.mkdir()
        planted_inputs.make_sound(self.sound, lambda *words: dgh(self.sound, words))
        self.undisturbed: dict[str, tuple[dict[str, bytes], float]] = {}

    def fresh(self, name: str) -> Path:
        """Return a new folder with the sound files."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.sound, target)
        return target

    def wanted(self, command: str) -> tuple[dict[str, bytes], float]:
        """Return the files that a command makes, and the seconds it takes."""
        if command not in self.undisturbed:
            folder = self.fresh("undisturbed")
            ended = dgh(folder, COMMANDS[command], eager=True)
            if ended.status != 0:
                raise RuntimeError(f"{command} fails undisturbed: {ended.said}")
            self.undisturbed[command] = content_of(folder), ended.seconds
        return self.undisturbed[command]


def kill(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Kill a command at a moment of its work, or in the middle of saving; give it again."""
    command = list(COMMANDS)[number % len(COMMANDS)]
    wanted, seconds = work.wanted(command)
    folder = work.fresh(f"kill{number}")
    if in_saving := draws.random() < 0.3:
        times = draws.randint(1, 3)
        killed = dgh(folder, COMMANDS[command], before=lambda: _die_in_saving(times, draws.random() < 0.5), eager=True)
    else:
        moment = draws.uniform(0.0, 1.0) * seconds
        killed = dgh(folder, COMMANDS[command], before=lambda: signal.setitimer(signal.ITIMER_PROF, moment), eager=True)
    name = f"{command}, killed {'in saving' if in_saving else f'after {moment:.2f} of {seconds:.2f} s'}"
    if killed.status > 0:
        return name, f"it failed instead: {killed.said[-300:]}"
    again = dgh(folder, _forced(COMMANDS[command], folder), eager=True)
    if again.status != 0:
        return name, f"given again: {told(again) or again.said[-300:]}"
    return name, differing(content_of(folder), wanted)


def _forced(words: Sequence[str], folder: Path) -> Sequence[str]:
    """Return a command that may replace what the killed one finished; a folder of images has to go first."""
    if words[0] == "generate" and words[-1] == "OUT":
        shutil.rmtree(folder / "OUT", ignore_errors=True)
    return words if words[0] == "run" else (*words, "--force")


def _die_in_saving(times: int, before: bool) -> None:
    """Let this process be killed when it names a finished file for so many-th time, before or after it does."""
    rename, count = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == times and before:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if count == times:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]


def disk(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Give a command a disk that is too small, then room."""
    command = list(COMMANDS)[number % len(COMMANDS)]
    wanted, _ = work.wanted(command)
    needed = sum(map(len, wanted.values()))
    room = int(draws.uniform(0.02, 0.95) * needed) // 4096 * 4096
    name = f"{command}, {room} of {needed} bytes"
    folder = work.fresh(f"disk{number}")
    with _small_disk(folder, room) as (limit, enlarge):
        files = {path.name for path in folder.iterdir()}
        full = dgh(folder, COMMANDS[command], before=limit)
        if full.status == 0:
            return name, differing(content_of(folder), wanted)
        if problem := told(full, "OUT"):
            return name, problem
        half = [path for path in content_of(folder) if not path.endswith(".checkpoint") and "OUT/" not in path]
        if half or {path.name for path in folder.iterdir()} - files - {"OUT", "OUT.safetensors.checkpoint"}:
            return name, f"left {half or sorted(path.name for path in folder.iterdir())}"
        enlarge()
        again = dgh(folder, COMMANDS[command])
        return name, differing(content_of(folder), wanted) if again.status == 0 else again.said[-300:]


@contextlib.contextmanager
def _small_disk(folder: Path, room: int) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """Mount a small disk of memory over a folder, its files linked; where that is forbidden, limit each file's size."""
    own = folder.rename(folder.with_name(f"{folder.name}.files"))
    folder.mkdir()
    pages = max(1, room // 4096) + 1  # of its own list of names
    options = f"size={pages * 4096}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    try:
        for path in own.iterdir():
            (folder / path.name).symlink_to(path)
        if mounted.returncode == 0:
            remount = ["mount", "-o", "remount,size=64m", str(folder)]
            yield lambda: None, lambda: subprocess.run(remount, check=True)
        else:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room // 2, room // 2)), lambda: None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def damaged_input(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Damage a file, and give it to a command that reads it."""
    case = planted_inputs.CASES[number % len(planted_inputs.CASES)]
    folder = work.fresh(f"input{number}")
    name, must_fail = planted_inputs.damage(folder / case.file, case, number // len(planted_inputs.CASES), draws)
    marker = folder / planted_inputs.MARKER
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = dgh(folder, case.words)
    name = f"{' '.join(case.words[:1])} of {case.file}: {name}"
    if marker.exists():
        return name, "code in the file was run"
    if case.made_anew:
        kept = any(".corrupt" in path.name or ".checkpoint." in path.name for path in folder.rglob("*"))
        if ended.status != 0 or not kept:
            return name, f"not made anew: {ended.said[-300:]}"
        return name, ""
    if ended.status == 0:
        return name, "it was taken for sound" if must_fail else ""
    if problem := told(ended, case.file.partition("/")[0]):
        return name, problem
    changed = {
        str(path.relative_to(folder)) for path in before if not path.exists() or path.read_bytes() != before[path]
    }
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        str(path.relative_to(folder)) for path in before
    }
    return name, f"changed {sorted(changed)}, made {sorted(made)}" if changed or made else ""


def hostile_server(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Download from a server that sends something else than the file."""
    folder = work.folder / f"server{number}"
    folder.mkdir()
    return planted_servers.tried(folder, draws)


KINDS: dict[str, Callable[[Workplace, int, random.Random], tuple[str, str]]] = {
    "kills": kill,
    "disks": disk,
    "inputs": damaged_input,
    "servers": hostile_server,
}


def run(kind: str, numbers: Sequence[int], version: dict[str, Any]) -> None:
    """Run the cases of a kind that have not survived yet."""
    file = KEPT / f"{kind}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {outcome["case"] for outcome in outcomes(kind) if not outcome["problem"]}
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        work = Workplace(Path(folder))
        for number in numbers:
            if number in done and len(numbers) > 1:
                continue
            started = time.monotonic()
            name, problem = KINDS[kind](work, number, random.Random(f"{kind} {number}"))
            seconds = round(time.monotonic() - started, 1)
            outcome = {"case": number, "name": name, "problem": problem, "seconds": seconds, **version}
            print(f"{'survived' if not problem else 'FAILED  '} {kind} {number}: {name} {problem}", flush=True)
            with file.open("a") as lines:
                lines.write(json.dumps(outcome) + "\n")
            for path in Path(folder).glob(f"{kind[:-1]}{number}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def outcomes(kind: str) -> list[dict[str, Any]]:
    """Return the outcomes of a kind, the last of each case."""
    file = KEPT / f"{kind}.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return list({outcome["case"]: outcome for outcome in found}.values())


def save(version: dict[str, Any]) -> None:
    """Write a record of all outcomes, and of the commits that they are of."""
    found = {kind: outcomes(kind) for kind in KINDS}
    table = {
        kind: {"tried": len(each), "survived": sum(not one["problem"] for one in each)} for kind, each in found.items()
    }
    if FAULTS.exists():
        faults = json.loads(FAULTS.read_text())["outputs"]
        table["faults"] = {"tried": faults["planted"], "survived": faults["noticed"]}
    failed = [{"kind": kind, **one} for kind, each in found.items() for one in each if one["problem"]]
    if any(one["modified"] for each in found.values() for one in each):
        raise SystemExit(f"some outcomes are of code that no commit holds: delete {KEPT} and begin anew")
    commits = sorted({one["commit"] for each in found.values() for one in each})
    seconds = sum(one["seconds"] for each in found.values() for one in each)
    outputs = {"kinds": table, "failed": failed, "commits": commits}
    write_json(
        RECORD, {"inputs": {"benchmark": "campaigns"}, "outputs": outputs, "provenance": provenance(seconds) | version}
    )
    print(RECORD)


def main() -> None:
    """Run what is asked for, and say how it ended."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all without")
    options.add_argument("--only", type=int, help="the number of a case, to be repeated")
    options.add_argument("--count", type=int, help="of cases of each kind (default: those of a whole campaign)")
    options.add_argument("--save", action="store_true", help="write a record to results/benchmarks")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    version = code_version()
    for kind in chosen.kinds or KINDS:
        count = COUNTS[kind] if chosen.count is None else chosen.count
        run(kind, range(count) if chosen.only is None else [chosen.only], version)
        found = outcomes(kind)
        print(f"{kind}: {sum(not one['problem'] for one in found)} of {len(found)} survived")
    if chosen.save:
        save(version)


if __name__ == "__main__":
    main()
