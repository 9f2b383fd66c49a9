"""Commands of `dgh` in their own processes: the files that they make and leave behind, and how errors are reported.

The calling process has imported the package (`preload`), so that a command takes no longer than its work, and a kill at
any moment of it hits this work.
"""

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dghlib import cli, datasets
from dghlib.images import normalise, save_images
from dghlib.storage import checkpoints

NETWORK = "shapes_residual"
RUN = (*("run", "table2", "--budget", "smoke", "--models", NETWORK, "--sources", "noise", "--bits", "W8A8"), "--anew")
PROCESSOR_SECONDS = 120  # a command of a campaign takes a few; one that takes this long has not noticed the fault
LARGEST = 8 * 2**30  # bytes of a file, and half the bytes of memory: other programs must not run out of either
CHANGED = "THE FLOAT MODEL WAS CHANGED"
_BAR = ("it/s", "s/it", "image/s", "s/image", "batch/s", "s/batch", "B/s", "?", "%|")  # of progress bars
_NEEDED = (
    *("dghlib.commands.networks", "dghlib.commands.runs", "dghlib.commands.settings", "dghlib.experiments.cluster"),
    *("dghlib.export", "dghlib.showing.plan_tables", "dghlib.showing.figures", "dghlib.bookmaking.book"),
    *("dghlib.bookmaking.holdings", "torch._dynamo", "distributed", "pycocotools.cocoeval", "timm"),
)


class Ended(NamedTuple):
    """How a command ended: its exit status (negative for a signal), its messages, and what it printed.

    `seconds` is processor time, `wall` is wall time.
    """

    status: int
    said: str
    seconds: float
    printed: str = ""
    wall: float = 0.0


def preload() -> None:
    """Import what commands need without computing anything: processes are forked from this one."""
    for name in _NEEDED:
        importlib.import_module(name)
    torch.set_num_threads(1)


def nothing() -> None:
    """Do nothing."""


def dgh(
    folder: Path,
    words: Sequence[str],
    *,
    before: Callable[[], object] = nothing,
    eager: bool = False,
    orphans: bool = False,
) -> Ended:
    """Run `dgh` in a folder, in its own process, which first calls `before`; `eager` saves a checkpoint at every step.

    Processes that it leaves behind are ended with it, unless `orphans` allows them.
    """
    said, printed = (folder.with_name(f"{folder.name}.{stream}") for stream in ("said", "printed"))
    started = time.monotonic()
    if (child := os.fork()) == 0:
        _be_the_command(folder, words, said, printed, before, eager)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - started
    if not orphans:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    texts = [path.read_text(errors="replace") for path in (said, printed)]
    seconds = usage.ru_utime + usage.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), texts[0], seconds, texts[1], wall)


def _be_the_command(
    folder: Path, words: Sequence[str], said: Path, printed: Path, before: Callable[[], object], eager: bool
) -> None:
    """Replace this process by `dgh`."""
    with contextlib.suppress(BaseException):
        status = 99
        status = _command(folder, words, said, printed, before, eager)
    os._exit(status)


def _command(
    folder: Path, words: Sequence[str], said: Path, printed: Path, before: Callable[[], object], eager: bool
) -> int:
    """Run `dgh` in this process; return its exit status."""
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, path in ((1, printed), (2, said)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), stream)
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (2 * LARGEST, resource.RLIM_INFINITY))
    status = 99
    try:
        if eager:
            checkpoints.Checkpoint.save_when_due = _save_always  # type: ignore[method-assign]
        loaded = _watched_networks()
        before()
        status = cli.main(words)
        for model, weights in loaded:
            if model.sha256() != weights:
                print(CHANGED, file=sys.stderr)
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _save_always(self: checkpoints.Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
    if self.path is not None:
        self.save(state())


def _watched_networks() -> list[tuple[Any, str]]:
    """Return a list of every network that a command loads, with the sum of its weights after loading."""
    from dghlib.commands import networks

    load, loaded = networks._model, list[tuple[Any, str]]()

    def watched(name: str) -> Any:
        model = load(name)
        loaded.append((model, model.sha256()))
        return model

    networks._model = watched
    return loaded


def told(ended: Ended, *names: str, statuses: Sequence[int] = (1,)) -> str:
    """Return what is wrong with how an error is reported; "" if it is one line that names all that it is about."""
    lines = [line.rpartition("\r")[2] for line in ended.said.splitlines()]
    errors = [line for line in lines if line.startswith("dgh: ")]
    if CHANGED in ended.said:
        return CHANGED
    if ended.status < 0:
        return f"killed by signal {-ended.status}: {ended.said[-200:]}"
    if ended.status not in statuses:
        return f"exit status {ended.status}: {ended.said[-300:]}"
    if "Traceback" in ended.said or not errors:
        return f"not told in one line: {ended.said[-300:]}"
    if "--traceback shows where" in errors[-1]:
        return f"told in words that are not for users: {errors[-1][:300]}"
    if lacking := [name for name in names if name not in ended.said[ended.said.index(errors[-1]) :]]:
        return f"does not name {', '.join(lacking)}: {errors[-1][:300]}"
    if strange := [line for line in lines if line.strip() and not _of_a_user(line)]:
        return f"beside the error, {strange[:3]}"
    return ""


def _of_a_user(line: str) -> bool:
    """Return whether a line is meant for users: of an error, a warning, a list below one, or a progress bar."""
    return line.startswith(("dgh: ", "  ")) or any(part in line for part in _BAR)


def content_of(folder: Path, under: str = "OUT") -> dict[str, bytes]:
    """Return all files that a command made, by path, as they must be after the next run."""
    made = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or under not in name:
            continue
        if name.startswith(under):
            made[name] = _content(path, name)
        elif name.startswith("."):
            made[name] = b"left behind"
    return made


def _content(path: Path, name: str) -> bytes:
    """Return the content of a file without seconds: of a record, what was computed; of images, the pixels."""
    content = path.read_bytes()
    if path.suffix == ".json" and b'"provenance"' in content:
        record = json.loads(content)
        outputs = {name: value for name, value in record["outputs"].items() if not name.endswith("seconds")}
        return json.dumps([record["inputs"], outputs]).encode()
    if "/images/" in name and path.suffix == ".safetensors":  # these contain the seconds of the book's runs
        return content[8 + struct.unpack("<Q", content[:8])[0] :]
    # The pages of a book contain times; its tables and records do not.
    paged = name.startswith("_build/") and path.suffix != ".csv"
    return b"there" if paged else content


def differing(found: dict[str, bytes], wanted: dict[str, bytes]) -> str:
    """Return what is wrong with the files that a command left."""
    apart = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
    return f"other than an undisturbed run: {', '.join(sorted(apart))}" if apart else ""


def make_sound(folder: Path) -> None:
    """Make intact files of all kinds in a folder."""
    images = ("--method", "noise", "--set", "num_images=8", "--out", "images.safetensors")
    for words in (
        ("generate", NETWORK, *images),
        ("quantize", NETWORK, "--images", "images.safetensors", "--out", "quantized.safetensors"),
        ("export", NETWORK, "--quantized", "quantized.safetensors", "--out", "model.onnx"),
        (*RUN, "--seeds", "1", "--results", "records"),
    ):
        ended = dgh(folder, words)
        if ended.status != 0:
            raise RuntimeError(f"dgh {' '.join(words)} fails: {ended.said}")
    drawn = datasets.load("shapes", "test", 8).images  # a student needs several classes
    save_images(folder / "drawn.safetensors", normalise(drawn, (0.42,) * 3, (0.26,) * 3), {})
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.savez(
        folder / "photos.npz", images=pixels, labels=np.array([0, 47]), classes=np.array(list(map(str, range(48))))
    )
    (folder / "photos" / "a").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "photos" / "a" / f"{number}.png")
    state = {"key": "of another run", "states": [{"finished": [], "step": 1, "task": None}], "elapsed": 1.0}
    torch.save(state, folder / "state.safetensors.checkpoint")
    shutil.rmtree(folder / "images", ignore_errors=True)  # the run's records, which exist, are made of these


class Undisturbed(NamedTuple):
    """What an undisturbed command makes and prints, and how long it takes."""

    made: dict[str, bytes]
    ended: Ended


class Workplace:
    """Folders of intact files, as a case needs them, and the results of undisturbed commands on them.

    Args:
        folder: the folder of all these folders.
        make_sound: makes the intact files in an existing folder.
    """

    def __init__(self, folder: Path, make_sound: Callable[[Path], object]):
        self.folder = folder
        self.sound = folder / "sound"
        self.sound.mkdir()
        make_sound(self.sound)
        self.known: dict[str, Undisturbed] = {}

    def fresh(self, name: str) -> Path:
        """Return a new folder with the intact files."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.sound, target)
        return target

    def wanted(self, title: str, words: Sequence[str], under: str = "OUT", **how: Any) -> Undisturbed:
        """Return the result of a command, by its title.

        Raises:
            RuntimeError: it fails undisturbed, so that disturbing it would show nothing.
        """
        if title not in self.known:
            folder = self.fresh("undisturbed")
            ended = dgh(folder, words, **how)
            if ended.status != 0:
                raise RuntimeError(f"{title} fails undisturbed: {ended.said}")
            self.known[title] = Undisturbed(content_of(folder, under), ended)
        return self.known[title]
