"""Other people's tools, each in a process and an environment of its own, which `make bench` makes.

A tool's worker, `workers/NAME_worker.py`, runs without dghlib in `_build/tools/NAME`. It is started with a folder of
what it needs, asked by lines of JSON on its standard input, and answers by lines on its standard output (see
`workers/working.py`).
"""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import Seconds

ENVIRONMENTS = Path(__file__).parents[1] / "_build" / "tools"
WORKERS = Path(__file__).with_name("workers")


class ToolFailed(RuntimeError):
    """A tool cannot do what it was asked for, or took too long."""


class Tool:
    """The other process.

    Attributes:
        versions: of its packages.
        folder: which both read and write.
    """

    def __init__(self, folder: Path, questions: IO[str], answers: IO[str]):
        self.folder, self.questions, self.answers = folder, questions, answers
        self.versions = self._answer()

    def ask(self, **question: Any) -> tuple[Seconds, Any]:
        """Let it work; return what the work took and came to.

        Raises:
            ToolFailed: it said that it cannot, or ended.
        """
        with contextlib.suppress(BrokenPipeError):  # an ended process answers nothing, which is told below
            print(json.dumps(question), file=self.questions, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise ToolFailed(answer["error"])
        return Seconds(**answer["seconds"]), answer["result"]

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            raise ToolFailed("its process ended before it answered: it took too long, or what it said is above")
        return json.loads(line)


def python_of(name: str) -> Path:
    """Return the interpreter of a tool's environment, which need not be there."""
    return ENVIRONMENTS / name / "bin" / "python"


@contextmanager
def tool(
    name: str, net: nn.Module, images: Tensor | None = None, *, test: Tensor | None = None, limit: float | None = None
) -> Iterator[Tool]:
    """Start a tool on a network: on images if it is to quantize, on test images if it is to answer them.

    After `limit` seconds it is stopped, whatever it is at.

    Raises:
        SystemExit: it has no environment.
    """
    if not python_of(name).exists():
        raise SystemExit(f"{python_of(name)} is not there; `make bench` makes it")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        for what, value in (("net", net), ("images", images), ("test", test)):
            torch.save(value, Path(folder) / f"{what}.pt")
        command = [str(python_of(name)), str(WORKERS / f"{name}_worker.py"), folder]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            end = threading.Timer(limit or threading.TIMEOUT_MAX, process.kill)
            end.daemon = True
            end.start()
            try:
                yield Tool(Path(folder), process.stdin, process.stdout)
            finally:
                end.cancel()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
