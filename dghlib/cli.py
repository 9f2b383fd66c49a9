"""The command `dgh`: its commands, their common options, and the reports of errors.

The function of a command is imported only when the command is called, so that `dgh --help` need not wait for torch.
The function's parameters are the command's own options.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from dghlib.choices import check_between, whole

ABOUT = """Calibration images from a network, a quantized network from images, and the runs of the book.

dgh generate shapes_residual --out images.safetensors
dgh quantize shapes_residual --images images.safetensors --out q.safetensors
dgh evaluate shapes_residual --quantized q.safetensors
dgh export shapes_residual --quantized q.safetensors --out model.onnx"""

# command: function, description, example
COMMANDS = {
    "generate": (
        "networks:generate",
        "Make calibration images from a network, without any data.",
        "dgh generate shapes_residual --out images.safetensors --set steps=300",
    ),
    "quantize": (
        "networks:quantize",
        "Quantize a network, calibrated with generated or real images, or with a method that needs none.\n\n"
        "hptq takes seconds. adaround, brecq, qdrop and genie_m learn block by block: an hour or more with the "
        "published settings, minutes with --preset quick. lsq, genq_qat, intraq_qat, ait and synq train the whole "
        "network towards the outputs of the float network; gdfq, qimera_qat and adadfq also make the images for this. "
        "These, squant, dfq and ocs need no images.",
        "dgh quantize shapes_residual --real shapes --bits W4A8 --out q.safetensors",
    ),
    "export": (
        "networks:export",
        "Write a network, float or quantized, to an ONNX file with true 4-bit and 8-bit integers.",
        "dgh export shapes_residual --quantized q.safetensors --out model.onnx",
    ),
    "report": (
        "networks:report",
        "Show which layers cost most accuracy: signal to noise of every weight and tensor, the worst first.\n\n"
        "For units that learned, also show their errors before and after.",
        "dgh report shapes_residual --quantized q.safetensors --real shapes",
    ),
    "evaluate": (
        "networks:evaluate",
        "Measure the top-1 accuracy of a classifier, or the mAP of a detector, float or quantized.",
        "dgh evaluate shapes_residual --quantized q.safetensors",
    ),
    "settings": (
        "settings:show",
        "List the settings and presets of a method, either a generator or a quantizer.",
        "dgh settings brecq",
    ),
    "run": (
        "runs:run_plan",
        "Compute the runs of a table that have no record yet, and print the table.",
        "dgh run table2 --profile cifar10 --seeds 1 --models cifar10_resnet20",
    ),
    "results": (
        "runs:results",
        "Compute the runs that the published book shows and the repository's results/ lacks.\n\n"
        "First repetitions are computed first. The command takes hours, can be stopped at any time, and can run in "
        "several processes at once, which divide the work.",
        "dgh results --profile cifar10 --threads 1",
    ),
    "data": ("runs:fetch_data", "Download and verify the files of a profile.", "dgh data cifar10"),
    "notebook": (
        "runs:execute_notebook",
        "Execute one notebook with other parameters.",
        "dgh notebook table2 seeds=5",
    ),
    "book": (
        "runs:build",
        "Execute all notebooks, compute all runs that this machine has not computed before, and build the book.",
        "dgh book --budget quick",
    ),
}

app = App(
    name="dgh",
    help=ABOUT,
    help_format="plaintext",
    version=metadata.version("dghlib"),
    default_parameter=Parameter(negative=()),
    result_action="return_value",
)
app.meta.suppress_keyboard_interrupt = False  # `main` reports it
for _place, (_name, (_path, _about, _example)) in enumerate(COMMANDS.items()):
    _help = f"{_about}\n\nexample:\n  {_example}"
    app.command(f"dghlib.commands.{_path}", name=_name, help=_help, sort_key=_place)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 2 for wrong arguments, 130 for Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="dgh: %(message)s")
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app.meta(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"dgh: {error} `dgh --help` lists commands, `dgh COMMAND --help` lists options.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dgh: stopped; finished runs and checkpoints are kept and not computed again", file=sys.stderr)
        return 130
    except Exception as error:
        if "--traceback" in words:
            raise
        print(f"dgh: {_told(error)}", file=sys.stderr)
        return 1
    return 0


@app.meta.default
def _with_common_options(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    data_dir: Annotated[
        Path | None, Parameter(help="folder of data and public weights (default: DGHLIB_DATA or ~/.cache/dghlib)")
    ] = None,
    threads: Annotated[
        int | None, Parameter(converter=whole, help="CPU threads of each process (default: all cores)")
    ] = None,
    traceback: Annotated[bool, Parameter(show_default=False, help="show where in the code an error occurred")] = False,
) -> None:
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    if command.__module__.startswith("dghlib."):  # not a command that prints help
        _prepare(data_dir, threads)
    command(*bound.args, **bound.kwargs)


def _prepare(data_dir: Path | None, threads: int | None) -> None:
    """Set the options that all commands share; torch is imported by now."""
    import torch

    from dghlib.running import processes
    from dghlib.running.allocator import keep_freed_memory
    from dghlib.storage import assets

    keep_freed_memory()
    if data_dir:
        assets.use_data_dir(data_dir)
    if threads is not None:
        check_between(1, processes.cores(), "--threads", threads)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes that are started from here


def _told(error: Exception) -> str:
    """Return the text that reports an error: its message, and more if the message was not written for users."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"there is not enough memory for this; ask for fewer images or for smaller batches ({error})"
    if isinstance(error, ValueError | TypeError | OSError | ImportError | RuntimeError | FloatingPointError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (--traceback shows where)"


if __name__ == "__main__":
    sys.exit(main())
