"""The command `dgh`: images from a network, a quantized network from images, and the runs of the book.

dgh generate cifar10_resnet20 --out images.safetensors
dgh quantize cifar10_resnet20 --images images.safetensors --bits W4A8 --out model.safetensors
dgh export cifar10_resnet20 --quantized model.safetensors --out model.onnx
dgh evaluate cifar10_resnet20 --quantized model.onnx
"""

import argparse
import dataclasses
import logging
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from dghlib import commands, models
from dghlib.choices import check_between
from dghlib.experiments import run
from dghlib.experiments.profiles import BUDGETS, PROFILES
from dghlib.generators import GENERATORS
from dghlib.plans.catalogue import PLANS
from dghlib.quantizers import QUANTIZERS
from dghlib.running import processes
from dghlib.running.allocator import keep_freed_memory
from dghlib.storage import assets

_Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_Action: TypeAlias = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error that was told, 130 for Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="dgh: %(message)s")
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    if options.data_dir:
        assets.use_data_dir(options.data_dir)
    try:
        if options.threads is not None:
            check_between(1, processes.cores(), "--threads", options.threads)
            torch.set_num_threads(options.threads)
            os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of processes that are started from here
        options.command(options)
    except KeyboardInterrupt:
        print("dgh: stopped; what is finished, or lies in a checkpoint, is not computed again", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        print(f"dgh: {_told(error)}", file=sys.stderr)
        return 1
    return 0


def _told(error: Exception) -> str:
    """Return what is said of an error: its message, and where that was not written for users, more."""
    if isinstance(error, ValueError | TypeError | OSError | ImportError | RuntimeError | FloatingPointError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (--traceback shows where)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dgh", description=__doc__, formatter_class=_Formatter)
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for declare in (_generate, _quantize, _export, _report, _evaluate, _run, _results, _data, _notebook, _book):
        declare(subparsers)
    return parser


def _generate(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "generate",
        commands.generate,
        "Make calibration images from a network, without any data.",
        "dgh generate shapes_residual --out images.safetensors --set num_images=256 --set steps=300",
        on_device=True,
    )
    _add_model(sub)
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write, .safetensors or .npz, or a folder for PNG files; a killed run continues beside it",
    )
    _add_force(sub)
    sub.add_argument("--method", default="dgh", help=f"one of: {', '.join(GENERATORS)} (default: dgh)")
    sub.add_argument("--preset", default="default", help="by name, dgh: default, fixed_weight, paper, toolkit")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=_settings_help(GENERATORS))
    sub.add_argument(
        "--compile",
        action="store_true",
        help="let torch compile the network first, a minute or two: shortens long runs on MobileNets; of dgh alone",
    )


def _quantize(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "quantize",
        commands.quantize,
        "Quantize a network, calibrated with generated or real images, or by a method that needs none. hptq takes "
        "seconds; adaround, brecq, qdrop and genie_m learn block by block; lsq, genq_qat, intraq_qat, ait and synq as "
        "a whole, from the float network's answers.",
        "dgh quantize shapes_residual --images images.safetensors --bits W4A8 --out model.safetensors",
        on_device=True,
    )
    _add_model(sub)
    _add_images(sub, "real ones", num_images=256, required=False)
    sub.add_argument("--method", default="hptq", help=f"one of: {', '.join(QUANTIZERS)} (default: hptq)")
    sub.add_argument("--bits", default="W8A8", help="of weights and activations, 2 to 8, 16 or 32 (default: W8A8)")
    sub.add_argument("--out", type=Path, required=True, help="file to write; a killed run continues beside it")
    _add_force(sub)
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=_settings_help(QUANTIZERS))


def _export(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "export",
        commands.export,
        "Write a network, float or quantized, to an ONNX file with true 4- and 8-bit integers.",
        "dgh export shapes_residual --quantized model.safetensors --out model.onnx",
    )
    _add_model(sub)
    sub.add_argument("--quantized", type=Path, help="a file that `dgh quantize` wrote (default: the float network)")
    sub.add_argument("--out", type=Path, required=True, help="file to write")
    _add_force(sub)


def _report(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "report",
        commands.report,
        "Say which layer hurts: signal to noise, in dB, of every quantized weight and tensor, the worst first; and the "
        "errors of units that learned, before and after.",
        "dgh report shapes_residual --quantized model.safetensors --images images.safetensors --out report",
    )
    _add_model(sub)
    sub.add_argument("--quantized", type=Path, required=True, help="a file that `dgh quantize` wrote")
    _add_images(sub, "of them, generated or real", num_images=32)
    sub.add_argument("--worst", type=int, default=12, help="how many rows to print (default: 12)")
    sub.add_argument("--out", type=Path, help="folder for all rows as CSV and for pictures of them as SVG")
    _add_force(sub)


def _evaluate(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "evaluate",
        commands.evaluate,
        "Measure the top-1 accuracy of a classifier, or the mAP of a detector, float or quantized.",
        "dgh evaluate shapes_residual --quantized model.safetensors",
        on_device=True,
    )
    _add_model(sub)
    sub.add_argument(
        "--quantized", type=Path, help="a file that `dgh quantize` or `dgh export` wrote (default: the float network)"
    )
    sub.add_argument("--data", help="a data set's name, an .npz file or an image folder (default: the network's own)")
    sub.add_argument("--num-images", type=int, help="size of the test set (default: all)")
    sub.add_argument("--boxes", type=Path, help="file to write what a detector finds to, in COCO's results format")
    _add_force(sub)


def _run(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "run",
        commands.run_plan,
        "Compute the runs of a table that have no record yet, and print the table.",
        "dgh run table2 --profile cifar10 --budget quick --seeds 1 --models cifar10_resnet20",
        on_device=True,
    )
    sub.add_argument("plan", help=f"one of: {', '.join(PLANS)}")
    _add_profile(sub)
    sub.add_argument("--seeds", type=int, help="repetitions (default: the budget's)")
    sub.add_argument("--models", nargs="+", help="networks (default: all of the profile)")
    sub.add_argument(
        "--sources", nargs="+", help=f"of images, out of: {', '.join(GENERATORS)}, real (default: the plan's)"
    )
    sub.add_argument("--bits", nargs="+", help="such as W8A8 W4A4")
    sub.add_argument("--methods", nargs="+", help=f"out of: {', '.join(QUANTIZERS)} (default: the plan's)")
    sub.add_argument(
        "--results", type=Path, help=f"folder of records (default: {run.RESULTS_VARIABLE} or _build/results)"
    )
    _add_anew(sub)
    _add_cluster(sub)


def _results(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "results",
        commands.results,
        "Compute the runs that the published book shows and the repository's results/ lacks: first repetitions first. "
        "It takes hours, may be stopped at any time, and may run in several processes at once, which divide the work.",
        "dgh results --profile cifar10 --threads 1",
        on_device=True,
    )
    sub.add_argument("--profile", help=f"of this profile only, one of: {', '.join(PROFILES)} (default: all)")
    sub.add_argument(
        "--list", action="store_true", help="compute and copy nothing: say what there is and what is missing"
    )
    _add_cluster(sub)


def _data(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers, "data", commands.fetch_data, "Download and verify the files of a profile.", "dgh data cifar10"
    )
    sub.add_argument(
        "profile",
        help="cifar10, tiny_imagenet, coco, coco_lite or imagenet (its networks; the images are not ours to download)",
    )


def _notebook(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "notebook",
        commands.execute_notebook,
        "Execute one notebook with other parameters.",
        "dgh notebook table2 seeds=5",
    )
    sub.add_argument("name", help="a file of notebooks/, without its ending")
    sub.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="a wrong one lists those that there are")
    sub.add_argument(
        "--words", default="", help='more of them in one text, as `make` has them: P="seeds=5 budget=quick"'
    )
    _add_anew(sub)


def _book(subparsers: _Subparsers) -> None:
    sub = _command(
        subparsers,
        "book",
        commands.build,
        "Execute all notebooks, computing anew what this machine has not computed before, and build the book.",
        "dgh book --budget quick",
    )
    _add_profile(sub)
    sub.add_argument("--recorded", action="store_true", help="compute nothing, show the records of results/ alone")


def _command(
    subparsers: _Subparsers, name: str, action: _Action, about: str, example: str, *, on_device: bool = False
) -> argparse.ArgumentParser:
    text = f"{about}\n\nexample:\n  {example}"
    sub = subparsers.add_parser(name, help=about, description=text, formatter_class=_Formatter)
    sub.set_defaults(command=action)
    sub.add_argument("--data-dir", type=Path, help=f"where data and public weights lie ({assets.DATA_DIR_VARIABLE})")
    if on_device:
        sub.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    sub.add_argument("--threads", type=int, help="CPU threads of each process (default: all cores)")
    sub.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return sub


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "model",
        help=f"{', '.join(models.MODELS)}; timm:NAME, a network of timm; or module:function that returns a FloatModel",
    )


def _add_images(sub: argparse.ArgumentParser, counted: str, num_images: int, required: bool = True) -> None:
    source = sub.add_mutually_exclusive_group(required=required)
    source.add_argument("--images", type=Path, help="a set that `dgh generate` wrote to a .safetensors file")
    source.add_argument("--real", metavar="DATA", help="a data set's name, an .npz file or an image folder")
    sub.add_argument("--num-images", type=int, default=num_images, help=f"how many {counted} (default: {num_images})")
    sub.add_argument("--seed", type=int, default=0, help="which real images (default: 0)")


def _add_profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", default="shapes", help=f"one of: {', '.join(PROFILES)} (default: shapes)")
    sub.add_argument("--budget", default="quick", help=f"one of: {', '.join(BUDGETS)} (default: quick)")


def _add_cluster(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="compute on a Dask cluster: tcp://HOST:8786, or the .json file of its scheduler",
    )


def _add_anew(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--anew", action="store_true", help="compute what the repository's results/ has records of, too")


def _add_force(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--force", action="store_true", help="replace a file that exists, without asking")


def _settings_help(methods: dict[str, types.ModuleType]) -> str:
    lists = (
        f"{name}: {', '.join(field.name for field in dataclasses.fields(method.Config) if field.init)}"
        for name, method in methods.items()
    )
    return f"change a setting; may be given several times. {'; '.join(lists)}"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples."""


if __name__ == "__main__":
    sys.exit(main())
