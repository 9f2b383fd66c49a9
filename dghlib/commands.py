"""What each command of `dgh` does: reads what was chosen, calls the library, prints a line or a table."""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import os
import shlex
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dghlib import datasets, models
from dghlib.choices import look_up
from dghlib.evaluation import top1
from dghlib.experiments import run
from dghlib.experiments.experiment import Run
from dghlib.experiments.profiles import EMBEDDED, PROFILES
from dghlib.experiments.recorded import ANEW_VARIABLE, RECORDED_VARIABLE
from dghlib.experiments.scoring import DRAWN_TRAINING_IMAGES, TEST_BATCH, quality, real_images
from dghlib.generators import GENERATORS
from dghlib.images import load_images, normalise, save_images
from dghlib.models import FloatModel
from dghlib.plans.catalogue import PLANS
from dghlib.plans.parts import parse_bits
from dghlib.quantizers import QUANTIZERS, WITHOUT_IMAGES, QuantizedModel
from dghlib.quantizers.starting import LearningSettings
from dghlib.running import processes
from dghlib.running.copies import private_copy
from dghlib.storage import assets, checkpoints
from dghlib.storage.locks import claim
from dghlib.storage.records import plain

Namespace = argparse.Namespace

ENOUGH = 4  # images for every class, with which none should be missing


def generate(options: Namespace) -> None:
    """Make calibration images and write them; the first of several processes does."""
    method = look_up(GENERATORS, options.method, "generator")
    model = _model(options.model)
    config = look_up(method.PRESETS, options.preset, f"preset of {options.method}")
    config = dataclasses.replace(config, **parse_settings(config, options.set))
    if options.compile and options.method != "dgh":
        raise ValueError(f"--compile works with dgh alone, not with {options.method}")
    _check_set(options.out, options.force)
    checkpoint = _checkpoint(options.out)
    with processes.joined(options.device) as device, contextlib.ExitStack() as held:
        first = processes.rank() == 0
        if first:
            held.enter_context(claim(options.out))
        if processes.count() > 1 and options.method != "dgh":
            raise ValueError(f"{options.method} works in one process; several can share the images of dgh alone")
        how = {"compiled": True} if options.compile else {}
        images = method.generate(model, config, device=device, progress=first, checkpoint=checkpoint, **how)
        if first:
            about = {"model": model.name, "method": options.method, "config": str(plain(config))}
            loss = _save_set(options.out, images, model, about)
            checkpoints.remove(checkpoint)
            print(f"{len(images)} images of shape {tuple(images.shape[1:])} in {options.out}{loss}")
            if model.task == "classification":
                _tell_classes(model, images)


def _tell_classes(model: FloatModel, images: torch.Tensor) -> None:
    """Print how many classes a classifier sees in images, and what to do if many images show few of them.

    Of a network that returns anything else than logits (N, K) nothing is said.
    """
    logits = _logits(model, images)
    if logits is None:
        return
    seen, count = len(logits.argmax(1).unique()), logits.shape[1]
    low, high = (bound.item() for bound in logits.aminmax())
    print(f"the network sees {seen} of {count} classes in them; its logits reach from {low:.1f} to {high:.1f}")
    if seen < count <= len(images) // ENOUGH:
        print("a quantizer that learns may lose the other classes; more images or more steps may bring them back")


def _logits(model: FloatModel, images: torch.Tensor) -> torch.Tensor | None:
    """Return what a classifier answers to images (N, C, H, W), (N, K), or None if that is something else."""
    net, found = private_copy(model.net), []
    with torch.inference_mode():
        for batch in tqdm(images.split(TEST_BATCH), desc="classes", unit="batch", leave=False, delay=3):
            found.append(net(batch))
            if not isinstance(found[-1], torch.Tensor) or found[-1].ndim != 2:
                return None
    return torch.cat(found)


def _save_set(path: Path, images: torch.Tensor, model: FloatModel, about: dict[str, str]) -> str:
    """Write images in the form that the name of `path` asks for; return what is to be said of it."""
    if path.suffix == ".npz":
        _export().save_npz(path, images, model.mean, model.std)
    elif not path.suffix:
        return f": {_export().save_png(path, images, model.mean, model.std)}"
    else:
        save_images(path, images, about, (model.mean, model.std))
    return ""


def _check_set(path: Path, force: bool) -> None:
    """Check, before anything is computed, that a set of images can be written to `path`.

    Raises:
        ValueError: its name has an ending that no form of sets has.
        FileExistsError: it exists and is not to be replaced, or is a folder that is not empty.
    """
    if path.suffix not in ("", ".npz", ".safetensors"):
        raise ValueError(f"--out must end in .safetensors or .npz, or be a folder without an ending, got {path}")
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty: choose a new folder")
        return
    _check_free(path, force)


def _export() -> types.ModuleType:
    """Return the room that needs the extra `onnx`; raises as `_needing` does."""
    with _needing("onnx"):
        return importlib.import_module("dghlib.export")


@contextlib.contextmanager
def _needing(extra: str) -> Iterator[None]:
    """Tell, in the place of an import that fails in this block, which extra brings what is missing.

    Raises:
        ValueError: the extra is not installed; the message says how to.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'dghlib[{extra}]'") from error


@contextlib.contextmanager
def _claimed(path: Path, force: bool) -> Iterator[None]:
    """Hold the right to write a file, for as long as it is computed; raises as `_check_free` and `claim` do."""
    _check_free(path, force)
    with claim(path):
        yield


def _check_free(path: Path, force: bool) -> None:
    """Ask before a file is replaced; without a terminal to ask at, refuse.

    Raises:
        IsADirectoryError: it is a folder.
        FileExistsError: the answer is no.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'NAME'}")
    if force or not path.exists():
        return
    if sys.stdin.isatty() and input(f"{path} exists. Replace it? [y/N] ").strip().lower() in ("y", "yes"):
        return
    raise FileExistsError(f"{path} exists; --force replaces it")


def _checkpoint(path: Path) -> Path:
    return path.with_name(path.name + ".checkpoint")


def quantize(options: Namespace) -> None:
    """Quantize a network and write it."""
    if options.out.suffix == ".onnx":
        raise ValueError(
            f"`dgh quantize` writes the simulation, a .safetensors file, got --out {options.out}; "
            "`dgh export --quantized` makes an ONNX file of that"
        )
    method = look_up(QUANTIZERS, options.method, "quantizer")
    weight_bits, activation_bits = parse_bits(options.bits)
    config = method.Config(weight_bits=weight_bits, activation_bits=activation_bits)
    config = dataclasses.replace(config, **parse_settings(config, options.set))
    with _claimed(options.out, options.force):
        model = _model(options.model)
        images = _images_for(options.method, model, options)
        checkpoint = _checkpoint(options.out)
        learned = {"checkpoint": checkpoint} if isinstance(config, LearningSettings) else {}
        quantized = method.quantize(model.on(options.device), images, config, **learned)
        quantized.save(options.out)
        if learned:
            checkpoints.remove(checkpoint)
    counts = f"{len(quantized.weight_quantizers())} weights and {len(quantized.activation_quantizers())} tensors"
    print(f"{model.name} with {counts} at W{config.weight_bits}A{config.activation_bits} in {options.out}")


def _images_for(method: str, model: FloatModel, options: Namespace) -> torch.Tensor | None:
    """Return the images that were chosen, or None if there are none and the method needs none."""
    if options.images or options.real:
        return _calibration_images(model, options)
    if method not in WITHOUT_IMAGES:
        raise ValueError(
            f"{method} is calibrated with images: name a set with --images or a data set with --real. "
            f"No images are needed by --method {' or '.join(WITHOUT_IMAGES)}"
        )
    return None


def _calibration_images(model: FloatModel, options: Namespace) -> torch.Tensor:
    if options.images:
        if options.images.is_dir() or options.images.suffix == ".npz":
            raise ValueError(
                f"--images reads the .safetensors form that `dgh generate` writes, got {options.images}; "
                "photographs with labels, as .npz or in folders, go with --real"
            )
        return load_images(options.images, (model.mean, model.std))[0]
    if model.task == "detection":
        return real_images(options.real, model, options.num_images, options.seed)
    available = DRAWN_TRAINING_IMAGES.get(options.real)  # so that they are the real images of the book
    data = datasets.draw(options.real, "train", options.num_images, options.seed, available, model.image_shape)
    return normalise(data.images, model.mean, model.std)


def export(options: Namespace) -> None:
    """Write an ONNX file."""
    with _claimed(options.out, options.force):
        model = _model(options.model)
        quantized = QuantizedModel.load(options.quantized, model) if options.quantized else None
        _export().export_onnx(options.out, model, quantized)
    print(f"{model.name}, {options.out.stat().st_size / 1e6:.2f} MB in {options.out}")


def report(options: Namespace) -> None:
    """Print which layer hurts, and write tables and pictures of it."""
    with _needing("book"):
        from dghlib.showing import figures, tables

    if options.out and options.out.exists() and not (options.force and options.out.is_dir()):
        raise FileExistsError(f"{options.out} exists; --force writes into it, if it is a folder")
    with claim(options.out) if options.out else contextlib.nullcontext():
        model = _model(options.model)
        quantized = QuantizedModel.load(options.quantized, model)
        images = _calibration_images(model, options)[: options.num_images]
        noise, units = tables.noise(model, quantized, images), tables.units(quantized)
        print(noise.drop(columns="place").head(options.worst).to_string(float_format="%.1f"))
        if len(units):
            print("\nErrors of units, over the energy of the float output, before and after they learned:")
            print(units.drop(columns="place").head(options.worst).to_string(float_format="%.2g"))
        if not options.out:
            return
        options.out.mkdir(parents=True, exist_ok=True)
        title = f"{model.name}, {quantized.about['method']}"
        figures.noise_profile(noise, title=title, save=str(options.out / "noise"))
        if len(units):
            figures.unit_profile(units, title=title, save=str(options.out / "units"))
        print(f"\nAll of it, as tables and pictures, in {options.out}")


def evaluate(options: Namespace) -> None:
    """Print the top-1 accuracy of a classifier, or the mean average precision of a detector.

    Raises:
        ValueError: boxes are asked for of a network that finds none.
    """
    model = _model(options.model)
    if model.task == "detection":
        _evaluate_detector(model, options)
        return
    if options.boxes:
        raise ValueError(f"{model.name} is for {model.task}, only a detector finds boxes: leave out --boxes")
    net = _network_to_test(model, options.quantized)
    name = options.data or _test_data_of(model.name)
    data = datasets.load(name, "test", options.num_images, image_shape=model.image_shape)
    pairs = datasets.batches(data, model.mean, model.std, TEST_BATCH)
    # The label of an image in a folder is the place of its class among those of the folder.
    classes = len(data.classes) if Path(name).is_dir() else None
    total = -(-len(data) // TEST_BATCH)
    percent = top1(net.to(options.device), pairs, num_classes=classes, total=total, progress=True)
    print(f"top-1 {percent:.2f} % of {len(data)} images")


def _evaluate_detector(model: FloatModel, options: Namespace) -> None:
    with _needing("detection"):
        importlib.import_module("pycocotools")
    with _claimed(options.boxes, options.force) if options.boxes else contextlib.nullcontext():
        reached = quality(
            options.data or _test_data_of(model.name),
            options.num_images,
            model,
            _network_to_test(model, options.quantized),
            device=options.device,
            progress=True,
            boxes=options.boxes,
        )
    print(", ".join(f"{measure} {percent:.2f} %" for measure, percent in reached.items()))


def _network_to_test(model: FloatModel, path: Path | None) -> torch.nn.Module:
    if path is None:
        return model.net
    if path.suffix == ".onnx":
        network = _export().OnnxNetwork(path, torch.get_num_threads())
        if network.name != model.name:
            raise ValueError(f"{path} holds {network.name!r}, not {model.name!r}")
        return network
    return QuantizedModel.load(path, model)


def run_plan(options: Namespace) -> None:
    """Compute the missing runs of a plan and print its table."""
    # pandas takes a second to import, which --help need not wait for
    with _needing("book"):
        from dghlib.showing.plan_tables import table_of

    plan = look_up(PLANS, options.plan, "plan")
    chosen = _chosen(options, "seeds", "models", "sources", "bits", "methods")
    _compute_anew(options.anew)
    known = inspect.signature(plan).parameters
    for name in chosen:
        look_up(known, name, f"option of plan {options.plan}")
    experiments = plan(options.profile, options.budget, **chosen)
    records = _records(experiments, options, options.results)
    print(table_of(options.plan, records).to_string())
    workshop = run.Workshop(options.results or run.results_dir())
    if came := sum(workshop.find(each) is None for each in experiments):
        print(f"{came} of {len(experiments)} records came with the repository; --anew computes them here")


def _records(experiments: Sequence[Run], options: Namespace, results: Path | None = None) -> list[run.Record]:
    """Return the records of experiments; compute those that are missing, here or on the cluster that was named."""
    if options.cluster:
        from dghlib.experiments.cluster import run_on_cluster

        return run_on_cluster(experiments, options.cluster, results=results, device=options.device)
    return run.run(experiments, results=results, device=options.device)


def results(options: Namespace) -> None:
    """Compute the runs that the repository's `results/` lacks, and copy their records there."""
    with _needing("book"):
        from dghlib.bookmaking import holdings

    if not run.PUBLISHED.is_dir():
        raise FileNotFoundError(f"no folder {run.PUBLISHED}: `dgh results` fills the one of a clone of the repository")
    new = 0 if options.list else holdings.publish(options.profile)
    print(holdings.coverage(options.profile).to_string())
    if options.list:
        return
    try:
        _records(holdings.lacking(options.profile), options)
    finally:
        new += holdings.publish(options.profile)
        print(f"{new} records are new in {run.PUBLISHED}, {len(holdings.lacking(options.profile))} are missing")


def fetch_data(options: Namespace) -> None:
    """Download and verify the files of a profile."""
    if options.profile in EMBEDDED:
        print(f"{options.profile} needs no data: its images are drawn, its networks are part of the package")
        return
    for manifest in assets.of_profile(options.profile):
        path = assets.fetch(manifest, progress=True)
        verified = "verified" if manifest.sha256 else "which nobody can verify: no sum is published"
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, {verified}")
    if prepare := datasets.PREPARED.get(options.profile):
        path = prepare()
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, made of files as they are published")


def execute_notebook(options: Namespace) -> None:
    """Execute one notebook with other parameters."""
    with _needing("book"):
        from dghlib.bookmaking import notebooks

    _compute_anew(options.anew)
    if Path(options.name).name != options.name:
        raise ValueError(f"a notebook is named without its folder and ending, such as table2; got {options.name}")
    path = Path("notebooks") / f"{options.name}.ipynb"
    output = Path("_build/notebooks") / "own" / path.name
    words = [*options.parameters, *shlex.split(options.words)]
    notebooks.run_notebook(path, notebooks.parse_assignments(words), output)
    print(f"executed: {output}")


def _compute_anew(wanted: bool) -> None:
    """Take no notice of the repository's records, here and in the kernels of notebooks."""
    if wanted:
        os.environ[ANEW_VARIABLE] = "1"


def build(options: Namespace) -> None:
    """Execute all notebooks and build the book."""
    with _needing("book"):
        from dghlib.bookmaking.book import build_book

    if options.recorded:
        os.environ[RECORDED_VARIABLE] = "1"  # for the kernels of the notebooks, too
    _compute_anew(not options.recorded)
    page = build_book(Path(), {"profile": options.profile, "budget": options.budget})
    print(f"the book: {page}")


def _model(name: str) -> FloatModel:
    """Return a network by its name here, or from a function of the user's: `module:function`, found from this folder.

    Raises:
        ValueError: there is no such network, module or function, or it returns something else than a FloatModel.
    """
    module, colon, function = name.partition(":")
    if not colon or module == "timm":
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


def parse_settings(config: Any, assignments: Sequence[str]) -> dict[str, Any]:
    """Return `name=value` words as settings of a Config, each in the type of its field.

    A list of words is written with commas, or is the name of a text file with one of them in each line.

    Raises:
        ValueError: no such setting (the nearest is suggested), or a value that is not of its type.
    """
    types_of = typing.get_type_hints(type(config))
    hints = {field.name: types_of[field.name] for field in dataclasses.fields(config) if field.init}
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
    if type(None) in kinds and value.lower() == "none":
        return None
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            return tuple(Path(value).read_text().splitlines() if Path(value).is_file() else value.split(","))
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
