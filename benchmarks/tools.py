"""Other people's tools, each in its own process and environment, which `make bench` makes.

A tool's worker, `workers/NAME_worker.py`, runs without dghlib in `_build/tools/NAME`. It starts with a folder of its
inputs, reads questions as lines of JSON from its standard input, and answers with lines on its standard output (see
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
    """A tool cannot do its task, or took too long."""


class Tool:
    """The process of a tool.

    Attributes:
        versions: versions of its packages.
        folder: the folder that both processes read and write.
    """

    def __init__(self, folder: Path, questions: IO[str], answers: IO[str]):
        self.folder, self.questions, self.answers = folder, questions, answers
        self.versions = self._answer()

    def ask(self, **question: Any) -> tuple[Seconds, Any]:
        """Send a question; return the seconds of the work and the result.

        Raises:
            ToolFailed: the tool reported an error, or its process ended.
        """
        with contextlib.suppress(BrokenPipeError):  # an ended process gives no answer, which is reported below
            print(json.dumps(question), file=self.questions, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise ToolFailed(answer["error"])
        return Seconds(**answer["seconds"]), answer["result"]

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            raise ToolFailed("its process ended before it answered: it took too long, or its error is printed above")
        return json.loads(line)


def python_of(name: str) -> Path:
    """Return the path of the interpreter in a tool's environment, which may not exist."""
    return ENVIRONMENTS / name / "bin" / "python"


@contextmanager
def tool(
    name: str, net: nn.Module, images: Tensor | None = None, *, test: Tensor | None = None, limit: float | None = None
) -> Iterator[Tool]:
    """Start a tool on a network, with images to quantize with, or test images to compute logits of.

    It is stopped after `limit` seconds, in any state.

    Raises:
        SystemExit: the tool has no environment.
    """
    if not python_of(name).exists():
        raise SystemExit(f"{python_of(name)} does not exist; `make bench` makes it")
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
