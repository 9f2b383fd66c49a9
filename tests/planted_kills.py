"""Kills: of every command at any moment, during saves, during tests, on a cluster, and of a book.

`CASES` lists them; a case keeps its number as long as the list is unchanged. A killed command is repeated, and must
make and print exactly what an undisturbed one does, bit for bit, and leave nothing else.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from campaign_commands import NETWORK, Undisturbed, Workplace, content_of, dgh, differing, told
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SET = ("--set", "num_images=6", "--set", "batch_size=4", "--set")
LEARN = ("--images", "images.safetensors", "--bits", "W4A4", "--method")
SHORT = ("--set", "iterations=4", "--set", "step_iterations=2", "--out", "OUT.safetensors")
TABLE = ("run", "table2", "--budget", "smoke", "--models", NETWORK, "--bits", "W8A8", "--seeds", "1", "--anew")
# Commands that are killed, or get too little room: each writes OUT, and reads the intact files.
COMMANDS: dict[str, tuple[str, ...]] = {
    "generate zeroq": ("generate", NETWORK, "--method", "zeroq", *SET, "steps=6", "--out", "OUT.safetensors"),
    "generate dgh": ("generate", NETWORK, *SET, "steps=6", "--out", "OUT.npz"),
    "generate genie_d": ("generate", NETWORK, "--method", "genie_d", *SET, "steps=4", "--out", "OUT.safetensors"),
    "generate a folder": ("generate", NETWORK, "--method", "noise", "--set", "num_images=200", "--out", "OUT"),
    "quantize hptq": ("quantize", NETWORK, "--images", "images.safetensors", "--out", "OUT.safetensors"),
    "quantize brecq": ("quantize", NETWORK, *LEARN, "brecq", *SHORT),
    "quantize lsq": (
        *("quantize", NETWORK, "--images", "drawn.safetensors", "--bits", "W4A4", "--method", "lsq"),
        *("--set", "steps=8", "--out", "OUT.safetensors"),
    ),
    "export": ("export", NETWORK, "--quantized", "quantized.safetensors", "--out", "OUT.onnx"),
    "report": (
        *("report", NETWORK, "--quantized", "quantized.safetensors", "--images", "images.safetensors", "--out", "OUT"),
    ),
    "evaluate": ("evaluate", NETWORK, "--quantized", "quantized.safetensors", "--num-images", "192"),
    "evaluate boxes": ("evaluate", "shapes_ssdlite", "--num-images", "32", "--boxes", "OUT.json"),
    "run": (*TABLE, "--sources", "noise", "zeroq", "--results", "OUT/results"),
}
SAVING = [name for name in COMMANDS if name != "evaluate"]
CLUSTER = (*TABLE, "--sources", "noise", "zeroq", "--results", "OUT/results", "--cluster", "scheduler.json")
BOOK = ("book", "--budget", "smoke")


class Case(NamedTuple):
    """A command, and when it is killed: at `any moment`, `in saving`, `in a test`; on a cluster, which process."""

    command: str
    when: str


CASES = [
    *(Case(name, when) for when in ("any moment", "in saving") for name in SAVING for _ in range(2)),
    *(Case(name, "in a test") for name in ("evaluate", "evaluate boxes", "run") for _ in range(8)),
    *(Case("cluster", who) for who in ("the one who asks", "a worker", "the scheduler") for _ in range(6)),
    *(Case("book", "any moment") for _ in range(4)),
    *(Case(name, "any moment") for name in SAVING[:10]),
]


def kill(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Kill the process of a case; return the case's name, and what was wrong with the outcome."""
    case = CASES[number]
    return {"cluster": _on_a_cluster, "book": _a_book}.get(case.command, _alone)(work, case, number, draws)


def _alone(work: Workplace, case: Case, number: int, draws: random.Random) -> tuple[str, str]:
    words = COMMANDS[case.command]
    wanted = work.wanted(case.command, words, eager=True)
    folder = work.fresh(f"kill{number}")
    how, death = _death(case.when, wanted.ended.seconds, draws)
    killed = dgh(folder, words, before=death, eager=True)
    name = f"{case.command}, killed {how}"
    if killed.status > 0:
        return name, f"it failed instead: {killed.said[-300:]}"
    return name, _again(work, folder, _forced(words, folder), wanted)


def _again(
    work: Workplace, folder: Path, words: Sequence[str], wanted: Undisturbed, under: str = "OUT", eager: bool = True
) -> str:
    """Repeat a killed command; return what is wrong with the outcome."""
    again = dgh(folder, words, eager=eager)
    if again.status != 0:
        return f"given again: {told(again) or again.said[-300:]}"
    if again.printed.replace(str(folder), "") != wanted.ended.printed.replace(str(work.folder / "undisturbed"), ""):
        return f"given again, it printed {again.printed[-300:]!r}"
    return differing(content_of(folder, under), wanted.made)


def _forced(words: Sequence[str], folder: Path) -> Sequence[str]:
    """Return a command that may replace the killed command's output; a folder of images is deleted first."""
    if words[0] == "generate" and words[-1] == "OUT":
        shutil.rmtree(folder / "OUT", ignore_errors=True)
    return words if words[0] in ("run", "book") else (*words, "--force")


def _death(when: str, seconds: float, draws: random.Random) -> tuple[str, Callable[[], object]]:
    """Return the words for a moment, and a function that has the process killed at this moment."""
    times, before = draws.randint(1, 3), draws.random() < 0.5
    if when == "in saving":
        return f"{'before' if before else 'after'} save {times}", partial(_die_in_saving, times, before)
    if when == "in a test":
        return f"in test {times}", partial(_die_in_a_test, times)
    moment = draws.uniform(0.02, 1.0) * seconds
    return f"after {moment:.2f} of {seconds:.2f} s", partial(signal.setitimer, signal.ITIMER_PROF, moment)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_saving(times: int, before: bool) -> None:
    """Let this process be killed before or after it renames a finished file for the `times`-th time."""
    rename, count = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == times and before:
            _die()
        rename(source, target)
        if count == times:
            _die()

    os.replace = replace  # type: ignore[assignment]


def _die_in_a_test(times: int) -> None:
    """Let this process be killed while a network is tested, at the `times`-th batch or image."""
    from dghlib.evaluation import classification, detection

    count = 0

    def counted(original: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == times:
            _die()
        return original(*arguments)

    classification._check = partial(counted, classification._check)
    detection._as_results = partial(counted, detection._as_results)


class Cluster:
    """A scheduler and 2 workers, each a process in its own folder."""

    def __init__(self, folder: Path):
        self.folder, self.address = folder, folder / "scheduler.json"
        self.pids = {"scheduler": self._scheduler()}
        while not self.address.is_file():
            time.sleep(0.02)
        for name in ("worker0", "worker1"):
            self.start_worker(name)

    def _scheduler(self) -> int:
        return self._start(
            "scheduler", ["--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(self.address)]
        )

    def start_worker(self, name: str) -> None:
        """Start a worker, in an empty folder."""
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--scheduler-file", str(self.address)]
        self.pids[name] = self._start(name, options)

    def _start(self, name: str, options: list[str]) -> int:
        here = self.folder / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        if child := os.fork():
            return child
        os.setsid()
        os.chdir(here)
        log = os.open(here / "log", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ["DGHLIB_RESULTS"] = str(here / "results")
        from distributed.cli import dask_scheduler, dask_worker

        program = dask_scheduler if name == "scheduler" else dask_worker
        with contextlib.suppress(BaseException):
            program.main(options, standalone_mode=False)
        os._exit(0)

    def kill(self, name: str) -> None:
        """Kill one of its processes."""
        os.kill(self.pids[name], signal.SIGKILL)
        os.waitpid(self.pids.pop(name), 0)

    def close(self) -> None:
        """Kill all processes."""
        for name in list(self.pids):
            self.kill(name)


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[Cluster]:
    folder.mkdir()
    started = Cluster(folder)
    try:
        yield started
    finally:
        started.close()


def _kill_later(process: int, seconds: float) -> None:
    """Start a process that kills another one after some seconds; nobody waits for it."""
    if os.fork() == 0:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os._exit(0)


def _on_a_cluster(work: Workplace, case: Case, number: int, draws: random.Random) -> tuple[str, str]:
    alone = work.wanted("run", COMMANDS["run"], eager=True).made
    # The images stay with the workers; the records are those of a run without a cluster.
    made = {name: content for name, content in alone.items() if "/images/" not in name}
    if "cluster" not in work.known:
        folder = work.fresh("undisturbed-cluster")
        with _cluster(work.folder / "cluster"):
            work.known["cluster"] = Undisturbed(made, dgh(folder, _words_of(work.folder / "cluster")))
        shutil.rmtree(work.folder / "cluster")
    wanted = work.known["cluster"]
    seconds = wanted.ended.wall
    moment = draws.uniform(0.05, 1.0) * seconds
    name = f"{case.when} of a cluster run, killed after {moment:.2f} of {seconds:.2f} s"
    folder, shared = work.fresh(f"kill{number}"), work.folder / f"kill{number}-cluster"
    words = _words_of(shared)
    with _cluster(shared) as started:
        killed = dgh(folder, words, before=_death_on(started, case.when, moment))
        if case.when == "a worker":  # the other worker continues: the command need not be repeated
            problem = told(killed) if killed.status else differing(content_of(folder), wanted.made)
            return name, problem
    if killed.status == 0 or (killed.status > 0 and case.when != "the scheduler"):
        return name, f"it failed instead: {killed.said[-300:]}" if killed.status else ""
    if killed.status > 0 and (problem := told(killed)):
        return name, problem
    shutil.rmtree(shared)
    with _cluster(shared):
        return name, _again(work, folder, words, wanted, eager=False)


def _words_of(shared: Path) -> Sequence[str]:
    """Return the command for a cluster, whose address is in a file of the folder."""
    return [*CLUSTER[:-1], str(shared / "scheduler.json")]


def _death_on(cluster: Cluster, who: str, moment: float) -> Callable[[], object]:
    if who == "the one who asks":
        return partial(signal.setitimer, signal.ITIMER_REAL, moment)
    if who == "a worker":
        return partial(_kill_later, cluster.pids["worker0"], moment)

    def without_a_scheduler() -> None:
        from dghlib.experiments import cluster as asking

        asking.SECONDS_TO_CONNECT = 5  # otherwise each case waits a minute for it
        _kill_later(cluster.pids["scheduler"], moment)

    return without_a_scheduler


def make_book(folder: Path) -> None:
    """Write a repository of 2 notebooks, one that computes and one that shows records."""
    (folder / "book").mkdir()
    (folder / "notebooks").mkdir()
    (folder / "book" / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters:\n- file: notebooks/table2\n- file: notebooks/figure9\n"
    )
    (folder / "book" / "_config.yml").write_text("title: A book\nexecute: {execute_notebooks: 'off'}\n")
    (folder / "book" / "index.md").write_text("# A book\n\nOf two pages.\n")
    chosen = f'models=["{NETWORK}"], sources=["noise", "zeroq"], bits=["W8A8"], seeds=1'
    table = f"""from dghlib.experiments import run
from dghlib.plans import methods
from dghlib.showing import tables
records = run.run(methods.table2("shapes", budget, {chosen}))
tables.save_csv(records, "table2.csv")
tables.accuracy(records)"""
    shown = f"""from dghlib.experiments import run
from dghlib.plans import observations
records = run.run(observations.figure9("shapes", budget, iterations=6, num_images=4, models=["{NETWORK}"]))
len(records)"""
    for name, code in (("table2", table), ("figure9", shown)):
        cells = [
            new_markdown_cell(f"# {name}\n\nA question."),
            new_code_cell('budget: str = "smoke"  # how much to compute', metadata={"tags": ["parameters"]}),
            new_code_cell(code),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / "notebooks" / f"{name}.ipynb")


def _a_book(work: Workplace, case: Case, number: int, draws: random.Random) -> tuple[str, str]:
    wanted = work.wanted("book", BOOK, "_build")
    moment = draws.uniform(0.02, 1.0) * wanted.ended.wall
    folder = work.fresh(f"kill{number}")
    killed = dgh(folder, BOOK, before=partial(signal.setitimer, signal.ITIMER_REAL, moment), orphans=True)
    name = f"book, killed after {moment:.1f} of {wanted.ended.wall:.1f} s"
    if killed.status > 0:
        return name, f"it failed instead: {killed.said[-300:]}"
    return name, _again(work, folder, BOOK, wanted, "_build", eager=False)
