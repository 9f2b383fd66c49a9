"""Commands that ask for the impossible: settings, networks, images, manifests, other words; see `planted_inputs`."""

import dataclasses
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import planted_networks
import torch
from campaign_commands import NETWORK, nothing
from PIL import Image
from safetensors.torch import save_file

from dghlib.generators import GENERATORS
from dghlib.quantizers import QUANTIZERS

OUT = ("--out", "OUT.safetensors")
QUANTIZE = ("quantize", NETWORK, "--images", "images.safetensors", *OUT)


class Words(NamedTuple):
    """Words of an impossible or odd command: their name, what is planted for them, how the command may end."""

    name: str
    words: tuple[str, ...]
    names: tuple[str, ...] = ()
    ends: Literal["refused", "taken or refused", "warned"] = "refused"
    plant: Callable[[Path], object] = lambda folder: None
    before: Callable[[], object] = nothing


# Values that a setting of a type cannot have.
WRONG: dict[Any, tuple[str, ...]] = {
    bool: ("no", "2", "1.0"),
    int: ("1.9", "many", "inf", "1e3"),
    float: ("nan", "inf", "much", "-inf"),
    str: ("nothing",),
}
FREE = ("pipeline", "revision", "scheduler", "prompt", "token", "class_names")  # settings that take any text
AMOUNTS = ("num_images", "batch_size", "steps", "iterations", "candidates", "latent_size", "mixed_classes")


def _settings() -> Iterator[Words]:
    """Yield an impossible value for every setting of every method."""
    for method, module in (GENERATORS | QUANTIZERS).items():
        of = ("generate", NETWORK, *OUT) if method in GENERATORS else QUANTIZE
        for number, (field, kind) in enumerate(_kinds(module.Config)):
            wrong = "-3" if field in AMOUNTS and number % 2 else WRONG[kind][number % len(WRONG[kind])]
            words = (*of, "--method", method, "--set", f"{field}={wrong}")
            yield Words(f"{method}: {field}={wrong}", words, (field, wrong))
        yield Words(f"{method}: no such setting", (*of, "--method", method, "--set", "stpes=3"), ("stpes", "setting"))


def _kinds(config: type) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next((kind for kind in (bool, int, float, str) if kind in kinds), str)
        if field.init and field.name not in FREE:
            yield field.name, kind


def _networks() -> Iterator[Words]:
    """Yield every network of `planted_networks`, with the commands that take it."""
    few = ("--set", "num_images=4", "--set", "steps=2")
    taken = ("answers_a_dict", "answers_a_tuple", "answers_a_list", "draws_by_chance", "chooses_by_values")
    for name, function in inspect.getmembers(planted_networks, inspect.isfunction):
        if function.__module__ != planted_networks.__name__ or name.startswith("_"):
            continue
        network = f"planted_networks:{name}"
        for words in (
            ("generate", network, "--method", "zeroq", *few, *OUT),
            ("quantize", network, "--images", "small.safetensors", *OUT),
            ("export", network, "--out", "OUT.onnx"),
            ("evaluate", network, "--data", "small.npz"),
        ):
            ends: Any = "refused" if words[0] == "evaluate" and name in taken[:3] else "taken or refused"
            yield Words(f"{words[0]} a network that {name.replace('_', ' ')}", words, ends=ends, plant=_small)


def _small(folder: Path) -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"images": images}, folder / "small.safetensors", metadata={"space": "null"})
    np.savez(folder / "small.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, 1]))


def _images() -> Iterator[Words]:
    """Yield sets of images that are empty, impossible or odd, as image sets and as folders."""
    sets: dict[str, tuple[torch.Tensor, Any]] = {
        "all zero": (torch.zeros(4, 3, 32, 32), "warned"),
        "pixels from 0 to 1": (torch.rand(4, 3, 32, 32), "warned"),
        "pixels from 0 to 255": (255 * torch.rand(4, 3, 32, 32), "refused"),
        "bytes": (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "refused"),
        "doubles": (torch.zeros(4, 3, 32, 32, dtype=torch.float64), "refused"),
        "one infinite": (torch.full((4, 3, 32, 32), math.inf), "refused"),
        "none at all": (torch.zeros(0, 3, 32, 32), "refused"),
        "of no height": (torch.zeros(4, 3, 0, 32), "refused"),
        "gray": (torch.randn(4, 1, 32, 32), "refused"),
        "smaller": (torch.randn(4, 3, 16, 16), "refused"),
        "without a first dimension": (torch.randn(3, 32, 32), "refused"),
    }
    for name, (images, ends) in sets.items():
        named = ("images", *(["float32"] if name in ("bytes", "doubles") else []))
        yield Words(f"quantize with images: {name}", QUANTIZE, named, ends, _saved(images))
    folders: dict[str, tuple[Callable[[Path], object], Any]] = {
        "no image": (lambda folder: None, "refused"),
        "a class without images": (_one_class_empty, "refused"),
        "a folder by the name of an image": (lambda folder: (folder / "a" / "x.png").mkdir(parents=True), "refused"),
        "images in folders of folders": (lambda folder: _picture(folder / "a" / "b" / "c"), "refused"),
        "a file that may not be opened": (_closed_picture, "either"),
        "a link to nowhere": (lambda folder: (folder / "x.png").symlink_to("nowhere"), "refused"),
        "one pixel": (lambda folder: _picture(folder, (1, 1)), "either"),
        "one class of two": (lambda folder: _picture(folder / "a"), "either"),
    }
    for name, (make, ends) in folders.items():
        allowed: Any = "taken or refused" if ends == "either" else ends
        plant = _in_folder(make)
        real = ("quantize", NETWORK, "--real", "pictures/", "--num-images", "1", *OUT)
        yield Words(f"quantize with a folder: {name}", real, ("pictures",), allowed, plant)
        tested = ("evaluate", NETWORK, "--data", "pictures/")
        yield Words(f"evaluate on a folder: {name}", tested, (), "refused", plant)


def _saved(images: torch.Tensor) -> Callable[[Path], object]:
    return lambda folder: save_file({"images": images}, folder / "images.safetensors")


def _picture(folder: Path, size: tuple[int, int] = (9, 9)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 90)).save(folder / "x.png")


def _one_class_empty(folder: Path) -> None:
    _picture(folder / "a")
    (folder / "b").mkdir()


def _closed_picture(folder: Path) -> None:
    _picture(folder)
    (folder / "x.png").chmod(0)


def _in_folder(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        (folder / "pictures").mkdir()
        make(folder / "pictures")

    return plant


SOUND = {"path": "x/file", "profile": "own", "url": "https://127.0.0.1:1/", "origin": "o", "licence": "l"} | {
    "bytes": 3,
    "sha256": "0" * 64,
}


def _manifests() -> Iterator[Words]:
    """Yield manifests that are invalid, or whose paths or addresses lead elsewhere."""
    changes: dict[str, Any] = {
        "a path that leaves the folder": {"path": "../file"},
        "a path that leaves it further down": {"path": "a/../../file"},
        "a path from the root": {"path": "/tmp/file"},
        "an empty path": {"path": ""},
        "a path that is a number": {"path": 3},
        "the address of a file": {"url": "file:///etc/hostname"},
        "an address by ftp": {"url": "ftp://127.0.0.1/file"},
        "no address": {"url": ""},
        "an address that is a number": {"url": 3},
        "a size that is text": {"bytes": "many"},
        "a size below zero": {"bytes": -1},
        "a sum that is a number": {"sha256": 3},
        "a sum that is none": {"sha256": "not hexadecimal"},
        "more than is known": {"more": 1},
        "members that are a number": {"members": 3},
    }
    texts = {name: json.dumps(SOUND | change) for name, change in changes.items()}
    texts |= {f"no {key}": json.dumps({k: v for k, v in SOUND.items() if k != key}) for key in ("path", "sha256")}
    texts |= {"a list": "[1, 2]", "no JSON": "{", "empty": "", "deeply nested": "[" * 100_000, "NaN": "NaN"}
    for name, text in texts.items():
        yield Words(f"data of a manifest: {name}", ("data", "own"), ("own.json",), "refused", _told(text), _use_own)


def _told(text: str) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        (folder / "manifests").mkdir()
        (folder / "manifests" / "own.json").write_text(text)

    return plant


def _use_own() -> None:
    from dghlib.storage import assets

    assets.MANIFESTS = Path("manifests")
    assets.RETRY_DELAYS = ()  # type: ignore[assignment]
    assets.manifests.cache_clear()
    assets.use_data_dir("data")


NOISE = ("generate", NETWORK, "--method", "noise", "--set", "num_images=2")
TABLE = ("run", "table2", "--budget", "smoke", "--results", "OUT")
# name: words, and what the error must name
OTHERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a million threads": ((*NOISE, *OUT, "--threads", "1000000"), ("--threads", "1000000")),
    "no threads": ((*NOISE, *OUT, "--threads", "0"), ("--threads", "0")),
    "threads below zero": ((*NOISE, *OUT, "--threads", "-1"), ("--threads", "-1")),
    "threads that are text": ((*NOISE, *OUT, "--threads", "all"), ("--threads", "all")),
    "half a thread": ((*NOISE, *OUT, "--threads", "0.5"), ("--threads", "0.5")),
    "a device that is none": ((*NOISE[:2], *OUT, "--device", "toaster"), ("toaster",)),
    "a device that is not here": ((*NOISE[:2], *OUT, "--device", "cuda:9"), ("cuda:9",)),
    "a preset that is none": ((*NOISE, *OUT, "--preset", "best"), ("best", "preset")),
    "a method that is none": (("generate", NETWORK, *OUT, "--method", "dhg"), ("dhg", "did you mean")),
    "a network that is none": (("generate", "shapes_residal", *OUT), ("shapes_residal", "did you mean")),
    "a network of timm that is none": (("generate", "timm:nothing", *OUT), ("nothing",)),
    "a network of timm that is not here": (("generate", "timm:resnet18", *OUT), ("resnet18", "timm")),
    "a module that is none": (("generate", "nowhere:make", *OUT), ("nowhere",)),
    "a function that is none": (("generate", "planted_networks:nothing", *OUT), ("nothing",)),
    "a module that is no code": (("generate", "broken:make", *OUT), ("broken",)),
    "a setting without a value": ((*NOISE, *OUT, "--set", "steps"), ("steps", "name=value")),
    "a setting without a name": ((*NOISE, *OUT, "--set", "=3"), ("setting",)),
    "more images than memory": ((*NOISE, "--set", "num_images=1000000000", *OUT), ("memory", "fewer images")),
    "larger batches than memory": (
        (*NOISE[:2], "--set", "num_images=4000000", "--set", "batch_size=4000000", "--set", "steps=1", *OUT),
        ("GB", "batch_size"),
    ),
    "more images than any number": ((*NOISE, "--set", f"num_images={10**30}", *OUT), ("num_images",)),
    "a learning rate that breaks": (
        (*NOISE[:3], "zeroq", "--set", "num_images=2", "--set", "steps=9", "--set", "learning_rate=1e38", *OUT),
        ("learning rate",),
    ),
    "bits that are none": ((*QUANTIZE, "--bits", "W0A8"), ("0", "2 to 8")),
    "many bits": ((*QUANTIZE, "--bits", "W9A8"), ("9", "2 to 8")),
    "half of the bits": ((*QUANTIZE, "--bits", "W4"), ("W4", "W4A8")),
    "bits that are text": ((*QUANTIZE, "--bits", "four"), ("four",)),
    "images twice": ((*QUANTIZE, "--real", "shapes"), ("both",)),
    "no images": (("quantize", NETWORK, *OUT), ("neither", "--images")),
    "a folder for a set": (("quantize", NETWORK, "--images", "photos", *OUT), ("photos", "--real")),
    "a page for a data set": (("quantize", NETWORK, "--real", "http://x/y", *OUT), ("http",)),
    "a data set that is none": (("quantize", NETWORK, "--real", "shapse", *OUT), ("shapse", "did you mean")),
    "no real images": (("quantize", NETWORK, "--real", "photos.npz", "--num-images", "0", *OUT), ("num_images", "0")),
    "fewer than no images": (
        ("quantize", NETWORK, "--real", "photos.npz", "--num-images", "-1", *OUT),
        ("num_images", "-1"),
    ),
    "more real images than there are": (
        ("quantize", NETWORK, "--real", "photos.npz", "--num-images", "99", *OUT),
        ("num_images", "99"),
    ),
    "no images to test": (("evaluate", NETWORK, "--num-images", "0"), ("0",)),
    "fewer than no images to test": (("evaluate", NETWORK, "--num-images", "-5"), ("-5",)),
    "boxes of a classifier": (("evaluate", NETWORK, "--boxes", "OUT.json"), ("boxes",)),
    "a classifier's file for a detector": (
        ("evaluate", "shapes_ssdlite", "--quantized", "quantized.safetensors"),
        ("quantized.safetensors", NETWORK),
    ),
    "another network's file": (
        ("evaluate", "shapes_inverted", "--quantized", "quantized.safetensors"),
        ("quantized.safetensors", NETWORK),
    ),
    "another network's ONNX file": (("evaluate", "shapes_inverted", "--quantized", "model.onnx"), ("model.onnx",)),
    "a quantized file that is not there": (("evaluate", NETWORK, "--quantized", "absent"), ("absent",)),
    "a folder for a quantized file": (("evaluate", NETWORK, "--quantized", "photos"), ("photos",)),
    "an ONNX file of quantize": ((*QUANTIZE[:-1], "OUT.onnx"), ("OUT.onnx", "dgh export")),
    "a set with another ending": ((*NOISE, "--out", "OUT.jpeg"), ("OUT.jpeg", ".safetensors")),
    "a folder that is there": ((*NOISE, "--out", "photos"), ("photos", "empty")),
    "a file that is there": ((*NOISE, "--out", "images.safetensors"), ("images.safetensors", "--force")),
    "a file for a folder": (("export", NETWORK, "--out", "photos.npz/OUT.onnx"), ("photos.npz",)),
    "a folder for a file": (("export", NETWORK, "--out", "photos"), ("photos", "folder")),
    "a place that is none": (("export", NETWORK, "--out", "/proc/OUT.onnx"), ("/proc",)),
    "a name that is too long": (("export", NETWORK, "--out", "O" * 250), ("name",)),
    "a report into a file": (
        ("report", NETWORK, *QUANTIZE[2:4], "--quantized", "quantized.safetensors", "--out", "photos.npz", "--force"),
        ("photos.npz",),
    ),
    "a plan that is none": (("run", "table22"), ("table22", "did you mean")),
    "a profile that is none": ((*TABLE, "--profile", "shape"), ("shape", "did you mean")),
    "a budget that is none": (("run", "table2", "--budget", "all"), ("all", "budget")),
    "a network of another profile": ((*TABLE, "--models", "cifar10_resnet20"), ("cifar10_resnet20",)),
    "a source that is none": ((*TABLE, "--sources", "dhg"), ("dhg",)),
    "widths that are none": ((*TABLE, "--bits", "W4A"), ("W4A",)),
    "fewer than no repetitions": ((*TABLE, "--seeds", "-1"), ("seeds", "-1")),
    "an option of another plan": ((*TABLE, "--methods", "brecq"), ("methods",)),
    "a cluster that is none": ((*TABLE, "--cluster", "tcp://127.0.0.1:1"), ("127.0.0.1:1",)),
    "a cluster by another name": ((*TABLE, "--cluster", "the big one"), ("the big one",)),
    "data of a profile that is none": (("data", "cifar"), ("cifar", "did you mean")),
    "a notebook in another folder": (("notebook", "../own"), ("../own", "table2")),
    "a notebook that is none": (("notebook", "tabel2"), ("tabel2",)),
    "a notebook by its path": (("notebook", "notebooks/table2.ipynb"), ("notebooks/table2.ipynb",)),
    "a parameter that is none": (("notebook", "table2", "bugdet=quick"), ("bugdet", "did you mean")),
    "a parameter of another type": (("notebook", "table2", "budget"), ("budget", "name=value")),
    "a parameter for the shell": (("notebook", "table2", "--words", "budget=quick; touch code-was-run"), (";",)),
    "a quote that does not end": (("notebook", "table2", "--words", "budget='quick"), ("quot",)),
    "a book that is not here": (("book", "--budget", "all"), ("all", "budget")),
    "a command that is none": (("quantise", NETWORK), ("quantise",)),
    "an option that is none": ((*NOISE, *OUT, "--fast"), ("--fast",)),
    "nothing to write": (NOISE, ("--out",)),
}


def _others() -> Iterator[Words]:
    for name, (words, names) in OTHERS.items():
        before = _wait_briefly if "cluster" in name else nothing
        yield Words(name, words, names, plant=_broken_module, before=before)


def _broken_module(folder: Path) -> None:
    (folder / "broken.py").write_text("def make(:\n")


def _wait_briefly() -> None:
    from dghlib.experiments import cluster

    cluster.SECONDS_TO_CONNECT = 1


CASES = [*_settings(), *_networks(), *_images(), *_manifests(), *_others()]
