"""The commands for networks: generate, quantize, export, report and evaluate."""

import contextlib
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from tqdm import tqdm

from dghlib import datasets, models
from dghlib.choices import look_up, whole
from dghlib.commands.files import check_set, checkpoint_of, claimed, export_room, needing
from dghlib.commands.options import Device, Flag, Force, Images, Model, Preset, Real, Seed, Settings
from dghlib.commands.settings import parse_settings
from dghlib.evaluation import top1
from dghlib.experiments.profiles import PROFILES
from dghlib.experiments.scoring import TEST_BATCH, quality, real_images
from dghlib.generators import GENERATORS
from dghlib.images import load_images, save_images
from dghlib.models import FloatModel
from dghlib.plans.parts import parse_bits
from dghlib.quantizers import QUANTIZERS, WITHOUT_IMAGES, QuantizedModel, in_float, presets_of
from dghlib.quantizers.starting import LearningSettings
from dghlib.running import processes
from dghlib.running.copies import output_for, private_copy
from dghlib.storage import checkpoints
from dghlib.storage.locks import claim
from dghlib.storage.records import plain, write_folder_atomically

ENOUGH = 4  # images per class, with which no class should be missing


def generate(
    model: Model,
    /,
    *,
    out: Annotated[
        Path,
        Parameter(
            help="file to write, .safetensors or .npz, or a folder for PNG files; a killed run continues when repeated"
        ),
    ],
    method: Annotated[str, Parameter(help=f"one of: {', '.join(GENERATORS)}")] = "dgh",
    preset: Preset = "default",
    settings: Settings = (),
    compiled: Annotated[
        Flag,
        Parameter(
            name="--compile",
            help="let torch compile the network first (1 or 2 minutes), for faster long runs on MobileNets; dgh only",
        ),
    ] = False,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Make calibration images and write them; if several processes share the work, the first one writes."""
    processes.check_device(device)
    module = look_up(GENERATORS, method, "generator")
    network = _model(model)
    config = look_up(module.PRESETS, preset, f"preset of {method}")
    config = dataclasses.replace(config, **parse_settings(config, settings))
    if compiled and method != "dgh":
        raise ValueError(f"--compile works only with dgh, not with {method}")
    check_set(out, force, network.image_shape[0])
    checkpoint = checkpoint_of(out)
    with processes.joined(device) as own_device, contextlib.ExitStack() as held:
        first = processes.rank() == 0
        if first:
            held.enter_context(claim(out))
        if processes.count() > 1 and method != "dgh":
            raise ValueError(f"{method} works only in a single process; only dgh divides its images among several")
        how = {"compiled": True} if compiled else {}
        images = module.generate(network, config, device=own_device, progress=first, checkpoint=checkpoint, **how)
        if first:
            about = {"model": network.name, "method": method, "config": str(plain(config))}
            loss = _save_set(out, images, network, about)
            checkpoints.remove(checkpoint)
            print(f"{len(images)} images of shape {tuple(images.shape[1:])} in {out}{loss}")
            if network.task == "classification":
                _tell_classes(network, images)


def _tell_classes(model: FloatModel, images: torch.Tensor) -> None:
    """Print how many classes a classifier sees in images, and a hint if many images show only some of them.

    Print nothing for a network whose outputs are not logits (N, K).
    """
    logits = _logits(model, images)
    if logits is None:
        return
    seen, count = len(logits.argmax(1).unique()), logits.shape[1]
    low, high = (bound.item() for bound in logits.aminmax())
    print(f"the network sees {seen} of {count} classes in them; its logits range from {low:.1f} to {high:.1f}")
    if seen < count <= len(images) // ENOUGH:
        print("a quantizer that learns may lose the other classes; more images or more steps may restore them")


def _logits(model: FloatModel, images: torch.Tensor) -> torch.Tensor | None:
    """Return the outputs of a classifier for images (N, C, H, W), (N, K), or None if they are not logits."""
    net, found = private_copy(model.net), []
    with torch.inference_mode():
        for batch in tqdm(images.split(TEST_BATCH), desc="classes", unit="batch", leave=False, delay=3):
            found.append(net(batch))
            if not isinstance(found[-1], torch.Tensor) or found[-1].ndim != 2:
                return None
    return torch.cat(found)


def _save_set(path: Path, images: torch.Tensor, model: FloatModel, about: dict[str, str]) -> str:
    """Write images in the format that the name of `path` asks for; return a note on the loss of precision."""
    if path.suffix == ".npz":
        export_room().save_npz(path, images, model.mean, model.std)
    elif not path.suffix:
        return f": {export_room().save_png(path, images, model.mean, model.std)}"
    else:
        save_images(path, images, about, (model.mean, model.std))
    return ""


def quantize(
    model: Model,
    /,
    *,
    images: Images = None,
    real: Real = None,
    num_images: Annotated[int, Parameter(converter=whole, help="number of real images")] = 256,
    seed: Seed = 0,
    method: Annotated[str, Parameter(help=f"one of: {', '.join(QUANTIZERS)}")] = "hptq",
    preset: Preset = "default",
    bits: Annotated[str, Parameter(help="width of weights and activations, 2 to 8, 16 or 32")] = "W8A8",
    settings: Settings = (),
    out: Annotated[Path, Parameter(help="file to write; a killed run continues when repeated")],
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Quantize a network and write it."""
    processes.check_device(device)
    if out.suffix == ".onnx":
        raise ValueError(
            f"`dgh quantize` writes the simulation to a .safetensors file, got --out {out}; "
            "`dgh export --quantized` then writes an ONNX file"
        )
    module = look_up(QUANTIZERS, method, "quantizer")
    weight_bits, activation_bits = parse_bits(bits)
    config = look_up(presets_of(module), preset, f"preset of {method}")
    widths = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    config = dataclasses.replace(config, **widths | parse_settings(config, settings))
    with claimed(out, force):
        network = _model(model)
        chosen = None
        if images or real or method not in WITHOUT_IMAGES:
            chosen = calibration_images(network, images, real, num_images, seed)
        checkpoint = checkpoint_of(out)
        learned = {"checkpoint": checkpoint} if isinstance(config, LearningSettings) else {}
        quantized = module.quantize(network.on(device), chosen, config, **learned)
        quantized.save(out)
        if learned:
            checkpoints.remove(checkpoint)
    counts = f"{len(quantized.weight_quantizers())} weights and {len(quantized.activation_quantizers())} tensors"
    print(f"{network.name} with {counts} at W{config.weight_bits}A{config.activation_bits} in {out}")


def calibration_images(
    model: FloatModel, images: Path | None, real: str | None, num_images: int, seed: int
) -> torch.Tensor:
    """Return the chosen images, normalised (N, C, H, W): a generated set, or real images.

    Raises:
        ValueError: neither or both are named, or the set has another format.
    """
    if (images is None) == (real is None):
        raise ValueError(
            f"name the calibration images: either a set with --images or a data set with --real; got "
            f"{'both' if images else 'neither'}. No images are needed by --method {' or '.join(WITHOUT_IMAGES)}"
        )
    if images:
        if images.is_dir() or images.suffix == ".npz":
            raise ValueError(
                f"--images reads the .safetensors files that `dgh generate` writes, got {images}; "
                "use --real for photographs with labels, as .npz or in folders"
            )
        return load_images(images, (model.mean, model.std))[0]
    assert real is not None  # mypy does not follow the comparison above
    return real_images(real, model, num_images, seed)


def export(
    model: Model,
    /,
    *,
    quantized: Annotated[
        Path | None, Parameter(help="a file that `dgh quantize` wrote (default: the float network)")
    ] = None,
    out: Annotated[Path, Parameter(help="file to write")],
    unsigned_weights: Annotated[
        Flag,
        Parameter(
            help="write weights as unsigned bytes: correct on x86 processors without VNNI, slower on those with VNNI"
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Write an ONNX file."""
    with claimed(out, force):
        network = _model(model)
        integers = QuantizedModel.load(quantized, network) if quantized else None
        export_room().export_onnx(out, network, integers, signed_weights=not unsigned_weights)
    print(f"{network.name}, {out.stat().st_size / 1e6:.2f} MB in {out}")


def report(
    model: Model,
    /,
    *,
    quantized: Annotated[Path, Parameter(help="a file that `dgh quantize` wrote")],
    images: Images = None,
    real: Real = None,
    num_images: Annotated[int, Parameter(converter=whole, help="number of these images, generated or real")] = 32,
    seed: Seed = 0,
    worst: Annotated[int, Parameter(converter=whole, help="number of rows to print")] = 12,
    out: Annotated[Path | None, Parameter(help="folder for all rows as CSV and for figures as SVG")] = None,
    force: Force = False,
) -> None:
    """Print which layers cost most accuracy, and write tables and figures of all layers."""
    with needing("book"):
        from dghlib.showing import figures, tables

    if out and out.exists() and not (force and out.is_dir()):
        raise FileExistsError(f"{out} exists; if it is a folder, --force writes into it")
    with claim(out) if out else contextlib.nullcontext():
        network = _model(model)
        integers = QuantizedModel.load(quantized, network)
        seen = calibration_images(network, images, real, num_images, seed)[:num_images]
        noise, units = tables.noise(network, integers, seen), tables.units(integers)
        print(noise.drop(columns="place").head(worst).to_string(float_format="%.1f"))
        if floats := in_float(integers):
            print("\nStays in float:", *floats, sep="\n  ")
        if len(units):
            print("\nErrors of units relative to the energy of the float output, before and after they learned:")
            print(units.drop(columns="place").head(worst).to_string(float_format="%.2g"))
        if not out:
            return

        def write(folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            title = f"{network.name}, {integers.about['method']}"
            figures.noise_profile(noise, title=title, save=str(folder / "noise"))
            if len(units):
                figures.unit_profile(units, title=title, save=str(folder / "units"))

        if out.exists():
            write(out)
        else:
            write_folder_atomically(out, write)
        print(f"\nAll rows, as tables and figures, are in {out}")


def evaluate(
    model: Model,
    /,
    *,
    quantized: Annotated[
        Path | None, Parameter(help="a file that `dgh quantize` or `dgh export` wrote (default: the float network)")
    ] = None,
    data: Annotated[
        str | None, Parameter(help="name of a data set, an .npz file or an image folder (default: the network's own)")
    ] = None,
    num_images: Annotated[int | None, Parameter(converter=whole, help="size of the test set (default: all)")] = None,
    boxes: Annotated[
        Path | None, Parameter(help="file for the boxes that a detector finds, in COCO's results format")
    ] = None,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Print the top-1 accuracy of a classifier, or the mean average precision of a detector.

    Raises:
        ValueError: boxes are asked for, but the network is not a detector.
    """
    processes.check_device(device)
    network = _model(model)
    if network.task == "detection":
        with needing("detection"):
            importlib.import_module("pycocotools")
        with claimed(boxes, force) if boxes else contextlib.nullcontext():
            name, net = data or _test_data_of(network.name), _network_to_test(network, quantized)
            reached = quality(name, num_images, network, net, device=device, progress=True, boxes=boxes)
        print(", ".join(f"{measure} {percent:.2f} %" for measure, percent in reached.items()))
        return
    if boxes:
        raise ValueError(f"{network.name} is for {network.task}, only a detector finds boxes: leave out --boxes")
    net = _network_to_test(network, quantized)
    name = data or _test_data_of(network.name)
    images = datasets.load(name, "test", num_images, image_shape=network.image_shape)
    pairs = datasets.batches(images, network.mean, network.std, TEST_BATCH)
    # The label of an image in a folder is the index of its class among the classes of the folder.
    classes = len(images.classes) if Path(name).is_dir() else None
    total = -(-len(images) // TEST_BATCH)
    percent = top1(net.to(device), pairs, num_classes=classes, total=total, progress=True)
    print(f"top-1 {percent:.2f} % of {len(images)} images")


def _network_to_test(model: FloatModel, path: Path | None) -> torch.nn.Module:
    if path is None:
        return model.net
    if path.suffix == ".onnx":
        network = export_room().OnnxNetwork(path, torch.get_num_threads())
        if network.name != model.name:
            raise ValueError(f"{path} holds {network.name!r}, not {model.name!r}")
        return network
    return QuantizedModel.load(path, model)


def _model(name: str) -> FloatModel:
    """Return a network of the package by name, or from the user's function `module:function` in the current folder.

    Raises:
        ValueError: there is no such network, module or function, the function does not return a FloatModel, or the
            network fails on images of its own shape.
    """
    module, colon, function = name.partition(":")
    if not colon or module == "timm":
        return models.load(name)
    sys.path.insert(0, "")
    try:
        model = getattr(importlib.import_module(module), function)()
    except Exception as error:  # it is the user's code
        raise ValueError(f"cannot get a network from {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(model, FloatModel):
        raise ValueError(f"{name} must return a dghlib.FloatModel, it returned {type(model).__name__}")
    with torch.no_grad():  # what fails in there had better do it now
        output_for(private_copy(model.net), torch.zeros(2, *model.image_shape))
    return model


def _test_data_of(model: str) -> str:
    for profile in PROFILES.values():
        if model in profile.models:
            return profile.data_set
    raise ValueError(f"{model} has no test set; name one with --data: a data set, an .npz file or an image folder")
