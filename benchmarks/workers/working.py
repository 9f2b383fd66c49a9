"""What the workers of all tools share: how they read questions and answer them.

A worker is started with a folder that contains `net.pt`, and `images.pt` and `test.pt` if they are needed. It answers
with lines of JSON: first the versions of packages, then the seconds and the result of each question, which is a line of
the standard input. Everything else that a tool prints goes to the standard error.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BATCH_SIZE = 32
FOLDER = Path(sys.argv[1])
COPY, LOGITS = FOLDER / "copy.onnx", FOLDER / "logits.pt"
FLOAT = FOLDER / "net.onnx"  # for tools that read ONNX files

# Does a task on the network, with the settings of the question. Returns a function for the result, which is not timed.
Task = Callable[..., Callable[[], Any]]


def calibration_batches() -> list[Tensor]:
    """Return the calibration images, in batches."""
    return list(torch.load(FOLDER / "images.pt").split(BATCH_SIZE))


def outcome(answer: Callable[[Tensor], Tensor], export: Callable[[], object]) -> Callable[[], dict[str, Any]]:
    """Return a function that saves a copy's logits of the test images and exports it; it returns the export's error."""

    @torch.no_grad()
    def tell() -> dict[str, Any]:
        batches = torch.load(FOLDER / "test.pt").split(BATCH_SIZE)
        torch.save(torch.cat([torch.as_tensor(answer(batch)) for batch in batches]), LOGITS)
        COPY.unlink(missing_ok=True)
        try:
            export()
        except Exception as error:  # every error of a tool is an answer
            return {"export_error": f"{type(error).__name__}: {error}"[:300]}
        return {"export_error": ""}

    return tell


def onnx_answers(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file on images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def work(tasks: dict[str, Task], packages: Sequence[str], modules: Sequence[str] = ()) -> None:
    """Answer all questions; `modules` are imported first, so that the first question's time does not include it."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with contextlib.redirect_stdout(sys.stderr):
        for name in modules:
            importlib.import_module(name)
        net: nn.Module = torch.load(FOLDER / "net.pt", weights_only=False)
    print(json.dumps({name: version(name) for name in packages}), flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            answer = _answer(tasks, net, **json.loads(line))
        print(json.dumps(answer), flush=True)


def _answer(tasks: dict[str, Task], net: nn.Module, do: str, **settings: Any) -> dict[str, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    try:
        result = tasks[do](net, **settings)
        took = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
        return {"seconds": took, "result": result()}
    except Exception as error:  # every error of a tool is an answer
        import traceback

        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}
