"""Sony's Model Compression Toolkit (MCT), in a process and an environment of its own; see `mct_worker`."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import Seconds

MCT_PYTHON = Path(__file__).parents[1] / "_build" / "mct" / "bin" / "python"


class Mct:
    """The other process.

    Attributes:
        versions: of its packages.
        folder: which both read and write.
    """

    def __init__(self, folder: Path, questions: IO[str], answers: IO[str]):
        self.folder, self.questions, self.answers = folder, questions, answers
        self.versions = self._answer()

    def ask(self, **question: Any) -> tuple[Seconds, Any]:
        """Let it work; return what the work took and came to."""
        print(json.dumps(question), file=self.questions, flush=True)
        answer = self._answer()
        return Seconds(**answer["seconds"]), answer["result"]

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            raise RuntimeError("MCT's process ended before it answered; what it said is above")
        return json.loads(line)


@contextmanager
def mct(net: nn.Module, images: Tensor | None = None) -> Iterator[Mct]:
    """Start the toolkit on a network, and on images if it is to quantize."""
    if not MCT_PYTHON.exists():
        raise SystemExit(f"{MCT_PYTHON} is not there; `make bench` makes it")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(net, Path(folder) / "net.pt")
        torch.save(images, Path(folder) / "images.pt")
        command = [str(MCT_PYTHON), str(Path(__file__).with_name("mct_worker.py")), folder]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield Mct(Path(folder), process.stdin, process.stdout)
