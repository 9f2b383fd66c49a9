"""The command `dgh`: images from a network, a quantized network from images, and the runs of the book.

dgh generate cifar10_resnet20 --out images.safetensors
dgh quantize cifar10_resnet20 --images images.safetensors --bits W4A8 --out model.safetensors
dgh export cifar10_resnet20 --quantized model.safetensors --out model.onnx
dgh evaluate cifar10_resnet20 --quantized model.onnx
"""

import argparse
import dataclasses
import importlib
import inspect
import logging
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dghlib import assets, datasets, models
from dghlib.allocator import keep_freed_memory
from dghlib.choices import look_up
from dghlib.evaluation import top1
from dghlib.experiments import plans, run
from dghlib.experiments.profiles import BUDGETS, PROFILES
from dghlib.generators import GENERATORS
from dghlib.images import load_images, normalise, save_images
from dghlib.models import FloatModel
from dghlib.quantizers import QUANTIZERS, QuantizedModel
from dghlib.quantizers.reconstruction import Settings
from dghlib.records import plain

TEST_BATCH = 32  # on a CPU larger ones take up to three times as long
Namespace = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error that was told, 130 for Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="dgh: %(message)s")
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    if options.data_dir:
        assets.use_data_dir(options.data_dir)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        options.command(options)
    except KeyboardInterrupt:
        print("dgh: stopped; the same command continues where it was", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        if options.traceback:
            raise
        print(f"dgh: {error}", file=sys.stderr)
        return 1
    return 0


def _generate(options: Namespace) -> None:
    method = look_up(GENERATORS, options.method, "generator")
    model = _model(options.model)
    config = look_up(method.PRESETS, options.preset, f"preset of {options.method}")
    config = dataclasses.replace(config, **_settings(config, options.set))
    _check_free(options.out, options.force)
    checkpoint = _checkpoint(options.out)
    images = method.generate(model, config, device=options.device, checkpoint=checkpoint)
    about = {"model": model.name, "method": options.method, "config": str(plain(config))}
    loss = _save_set(options.out, images, model, about)
    checkpoint.unlink(missing_ok=True)
    print(f"{len(images)} images of shape {tuple(images.shape[1:])} in {options.out}{loss}")


def _save_set(path: Path, images: torch.Tensor, model: FloatModel, about: dict[str, str]) -> str:
    """Write images in the form that the name of `path` asks for; return what is to be said of it."""
    if path.suffix == ".npz":
        _export().save_npz(path, images, model.mean, model.std)
    elif not path.suffix:
        return f": {_export().save_png(path, images, model.mean, model.std)}"
    else:
        save_images(path, images, about)
    return ""


def _export() -> types.ModuleType:
    """Return the room that needs the extra `onnx`.

    Raises:
        ValueError: the extra is not installed.
    """
    try:
        return importlib.import_module("dghlib.export")
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'dghlib[onnx]'") from error


def _check_free(path: Path, force: bool) -> None:
    """Ask before a file is replaced; without a terminal to ask at, refuse.

    Raises:
        FileExistsError: the answer is no.
    """
    if force or not path.exists():
        return
    if sys.stdin.isatty() and input(f"{path} exists. Replace it? [y/N] ").strip().lower() in ("y", "yes"):
        return
    raise FileExistsError(f"{path} exists; --force replaces it")


def _checkpoint(path: Path) -> Path:
    return path.with_name(path.name + ".checkpoint")


def _quantize(options: Namespace) -> None:
    method = look_up(QUANTIZERS, options.method, "quantizer")
    weight_bits, activation_bits = plans.parse_bits(options.bits)
    model = _model(options.model)
    images = _calibration_images(model, options)
    config = method.Config(weight_bits=weight_bits, activation_bits=activation_bits)
    config = dataclasses.replace(config, **_settings(config, options.set))
    _check_free(options.out, options.force)
    learned = {"checkpoint": _checkpoint(options.out)} if isinstance(config, Settings) else {}
    quantized = method.quantize(model, images, config, **learned)
    quantized.save(options.out)
    counts = f"{len(quantized.weight_quantizers())} weights and {len(quantized.activation_quantizers())} tensors"
    print(f"{model.name} with {counts} at {options.bits} in {options.out}")


def _calibration_images(model: FloatModel, options: Namespace) -> torch.Tensor:
    if options.images:
        return load_images(options.images)[0]
    data = datasets.sample(datasets.load(options.real, "train"), options.num_images, options.seed)
    return normalise(data.images, model.mean, model.std)


def _write_onnx(options: Namespace) -> None:
    model = _model(options.model)
    quantized = QuantizedModel.load(options.quantized, model) if options.quantized else None
    _check_free(options.out, options.force)
    _export().export_onnx(options.out, model, quantized)
    print(f"{model.name}, {options.out.stat().st_size / 1e6:.2f} MB in {options.out}")


def _report(options: Namespace) -> None:
    from dghlib.experiments import tables

    model = _model(options.model)
    quantized = QuantizedModel.load(options.quantized, model)
    images = _calibration_images(model, options)[: options.num_images]
    print(tables.noise(model, quantized, images, options.worst).to_string(float_format="%.1f"))


def _evaluate(options: Namespace) -> None:
    model = _model(options.model)
    data = datasets.load(
        options.data or _test_data_of(model.name), "test", options.num_images, image_size=model.image_shape[1:]
    )
    net = _network_to_test(model, options.quantized)
    pairs = datasets.batches(data, model.mean, model.std, TEST_BATCH)
    percent = top1(net.to(options.device), pairs, total=-(-len(data) // TEST_BATCH), progress=True)
    print(f"top-1 {percent:.2f} % of {len(data)} images")


def _network_to_test(model: FloatModel, path: Path | None) -> torch.nn.Module:
    if path is None:
        return model.net
    if path.suffix == ".onnx":
        return _export().OnnxNetwork(path, torch.get_num_threads())
    return QuantizedModel.load(path, model)


def _run(options: Namespace) -> None:
    plan = look_up(plans.PLANS, options.plan, "plan")
    chosen = _chosen(options, "seeds", "models", "sources", "bits", "methods")
    known = inspect.signature(plan).parameters
    for name in chosen:
        look_up(known, name, f"option of plan {options.plan}")
    experiments = plan(options.profile, options.budget, **chosen)
    from dghlib.experiments import tables  # pandas takes a second to import, which --help need not wait for

    records = run.run(experiments, results=options.results, device=options.device)
    of_plan = {
        "quantizers": tables.quantizers,
        "placements": tables.placements,
        "dgh_settings": tables.settings,
    }
    print(of_plan.get(options.plan, tables.accuracy)(records).to_string())


def _data(options: Namespace) -> None:
    for manifest in assets.of_profile(options.profile):
        path = assets.fetch(manifest, progress=True)
        verified = "verified" if manifest.sha256 else "which nobody can verify: no sum is published"
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, {verified}")


def _notebook(options: Namespace) -> None:
    from dghlib.experiments import notebooks

    path = Path("notebooks") / f"{options.name}.ipynb"
    output = Path("_build/notebooks") / "own" / path.name
    notebooks.run_notebook(path, notebooks.parse_assignments(options.parameters), output)
    print(f"executed: {output}")


def _book(options: Namespace) -> None:
    from dghlib.experiments.book import build_book

    page = build_book(Path(), {"profile": options.profile, "budget": options.budget})
    print(f"the book: {page}")


def _model(name: str) -> FloatModel:
    """Return a network by its name here, or from a function of the user's: `module:function`, found from this folder.

    Raises:
        ValueError: there is no such network, module or function, or it returns something else than a FloatModel.
    """
    module, colon, function = name.partition(":")
    if not colon:
        return models.load(name)
    sys.path.insert(0, "")
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot get a network from {name!r}: {error}") from error
    if not isinstance(model, FloatModel):
        raise ValueError(f"{name} must return a dghlib.FloatModel, it returned {type(model).__name__}")
    return model


def _test_data_of(model: str) -> str:
    for profile in PROFILES.values():
        if model in profile.models:
            return profile.name
    raise ValueError(f"{model} has no test set of its own; name one with --data: a data set, .npz file or image folder")


def _chosen(options: Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _settings(config: Any, assignments: Sequence[str]) -> dict[str, Any]:
    """Return `name=value` words as settings of a Config, each in the type of its field.

    Raises:
        ValueError: no such setting (the nearest is suggested), or a value that is not of its type.
    """
    hints = typing.get_type_hints(type(config))
    settings = {}
    for word in assignments:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"cannot read the setting {word!r}; write name=value")
        settings[name] = _parsed(name, value, look_up(hints, name, f"setting of {type(config).__module__}"))
    return settings


def _parsed(name: str, value: str, hint: Any) -> Any:
    """Return `value` as the first type of `hint` that it can be read as."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Literal:
        kinds: tuple[Any, ...] = typing.get_args(hint)
    else:
        kinds = (hint,)
    for kind in kinds:
        if kind is type(None) and value.lower() == "none":
            return None
        if kind is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind in (int, float, str):
            try:
                return kind(value)
            except ValueError:
                continue
        if value == str(kind):  # a literal
            return kind
    raise ValueError(f"{name} cannot be {value!r}; it takes {' or '.join(_type_name(kind) for kind in kinds)}")


def _type_name(kind: Any) -> str:
    if kind is type(None):
        return "none"
    return kind.__name__ if isinstance(kind, type) else repr(kind)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", type=Path, help=f"where data and public weights lie ({assets.DATA_DIR_VARIABLE})")
    common.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    common.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    common.add_argument("--traceback", action="store_true", help="show where in the code an error arose")

    parser = argparse.ArgumentParser(prog="dgh", description=__doc__, formatter_class=_Formatter)
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, action: Any, about: str, example: str) -> argparse.ArgumentParser:
        text = f"{about}\n\nexample:\n  {example}"
        sub = commands.add_parser(name, help=about, description=text, parents=[common], formatter_class=_Formatter)
        sub.set_defaults(command=action)
        return sub

    model_help = f"{', '.join(models.MODELS)}; or module:function that returns a FloatModel"
    sub = command(
        "generate",
        _generate,
        "Make calibration images from a network, without any data.",
        "dgh generate shapes_residual --out images.safetensors --set num_images=256 --set steps=300",
    )
    sub.add_argument("model", help=model_help)
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write, .safetensors or .npz, or a folder for PNG files; a killed run continues beside it",
    )
    _add_force(sub)
    sub.add_argument("--method", default="dgh", help=f"one of: {', '.join(GENERATORS)} (default: dgh)")
    sub.add_argument("--preset", default="default", help="published settings; of dgh: default, paper, toolkit")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=_settings_help(GENERATORS))

    sub = command(
        "quantize",
        _quantize,
        "Quantize a network, calibrated with generated or real images.",
        "dgh quantize shapes_residual --images images.safetensors --bits W4A8 --out model.safetensors",
    )
    sub.add_argument("model", help=model_help)
    _add_images(sub, num_images=256)
    sub.add_argument("--method", default="hptq", help=f"one of: {', '.join(QUANTIZERS)} (default: hptq)")
    sub.add_argument("--bits", default="W8A8", help="of weights and activations, 2 to 8, 16 or 32 (default: W8A8)")
    sub.add_argument("--out", type=Path, required=True, help="file to write; a killed run continues beside it")
    _add_force(sub)
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=_settings_help(QUANTIZERS))

    sub = command(
        "export",
        _write_onnx,
        "Write a network, float or quantized, to an ONNX file with true 4- and 8-bit integers.",
        "dgh export shapes_residual --quantized model.safetensors --out model.onnx",
    )
    sub.add_argument("model", help=model_help)
    sub.add_argument("--quantized", type=Path, help="a file that `dgh quantize` wrote (default: the float network)")
    sub.add_argument("--out", type=Path, required=True, help="file to write")
    _add_force(sub)

    sub = command(
        "report",
        _report,
        "Say which layer hurts: signal to noise, in dB, of every quantized weight and tensor, the worst first.",
        "dgh report shapes_residual --quantized model.safetensors --images images.safetensors",
    )
    sub.add_argument("model", help=model_help)
    sub.add_argument("--quantized", type=Path, required=True, help="a file that `dgh quantize` wrote")
    _add_images(sub, num_images=32)
    sub.add_argument("--worst", type=int, default=12, help="how many rows (default: 12)")

    sub = command(
        "evaluate",
        _evaluate,
        "Measure the top-1 accuracy of a network, float or quantized.",
        "dgh evaluate shapes_residual --quantized model.safetensors",
    )
    sub.add_argument("model", help=model_help)
    sub.add_argument(
        "--quantized", type=Path, help="a file that `dgh quantize` or `dgh export` wrote (default: the float network)"
    )
    sub.add_argument("--data", help="a data set's name, an .npz file or an image folder (default: the network's own)")
    sub.add_argument("--num-images", type=int, help="size of the test set (default: all)")

    sub = command(
        "run",
        _run,
        "Compute the runs of a table that have no record yet, and print the table.",
        "dgh run table2 --profile cifar10 --budget quick --seeds 1 --models cifar10_resnet20",
    )
    sub.add_argument("plan", help=f"one of: {', '.join(plans.PLANS)}")
    sub.add_argument("--profile", default="shapes", help=f"one of: {', '.join(PROFILES)} (default: shapes)")
    sub.add_argument("--budget", default="quick", help=f"one of: {', '.join(BUDGETS)} (default: quick)")
    sub.add_argument("--seeds", type=int, help="repetitions (default: the budget's)")
    sub.add_argument("--models", nargs="+", help="networks (default: all of the profile)")
    sub.add_argument("--sources", nargs="+", help=f"of images (default: {', '.join(plans.SOURCES)})")
    sub.add_argument("--bits", nargs="+", help="such as W8A8 W4A4")
    sub.add_argument("--methods", nargs="+", help=f"quantizers (default: {', '.join(QUANTIZERS)})")
    sub.add_argument(
        "--results", type=Path, help=f"folder of records (default: {run.RESULTS_VARIABLE} or _build/results)"
    )

    sub = command("data", _data, "Download and verify the files of a profile.", "dgh data cifar10")
    sub.add_argument(
        "profile", help="cifar10, tiny_imagenet or imagenet (its networks; the images are not for us to download)"
    )

    sub = command("notebook", _notebook, "Execute one notebook with other parameters.", "dgh notebook table2 seeds=5")
    sub.add_argument("name", help="a file of notebooks/, without its ending")
    sub.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="a wrong one lists those that there are")

    sub = command("book", _book, "Execute all notebooks and build the book.", "dgh book --budget quick")
    sub.add_argument("--profile", default="shapes", help=f"one of: {', '.join(PROFILES)} (default: shapes)")
    sub.add_argument("--budget", default="quick", help=f"one of: {', '.join(BUDGETS)} (default: quick)")
    return parser


def _add_images(sub: argparse.ArgumentParser, num_images: int) -> None:
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="a set that `dgh generate` wrote to a .safetensors file")
    source.add_argument("--real", metavar="DATA", help="a data set's name, an .npz file or an image folder")
    sub.add_argument("--num-images", type=int, default=num_images, help=f"how many real ones (default: {num_images})")
    sub.add_argument("--seed", type=int, default=0, help="which real images (default: 0)")


def _add_force(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--force", action="store_true", help="replace a file that exists, without asking")


def _settings_help(methods: dict[str, types.ModuleType]) -> str:
    lists = (
        f"{name}: {', '.join(field.name for field in dataclasses.fields(method.Config))}"
        for name, method in methods.items()
    )
    return f"change a setting; may be given several times. {'; '.join(lists)}"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples."""


if __name__ == "__main__":
    sys.exit(main())
