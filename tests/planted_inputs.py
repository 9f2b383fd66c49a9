"""Files that a command reads, sound ones and damaged in every way that `campaigns.py` knows."""

import gzip
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

NETWORK = "shapes_residual"
MARKER = "code-was-run"
ALIKE = "all values -1, those of steps, too"
TWO = ("--num-images", "2")


class Case(NamedTuple):
    """A command, and the file of those that it reads that is damaged.

    `made_anew` says that it is a state of the command's own, which it can do without.
    """

    file: str
    words: tuple[str, ...]
    made_anew: bool = False


RUN = (*("run", "table2", "--budget", "smoke", "--models", NETWORK, "--sources", "noise", "--bits", "W8A8"), "--anew")
GENERATE = ("generate", NETWORK, "--method", "zeroq", "--set", "num_images=2", "--set", "steps=2")
CASES = (
    Case("images.safetensors", ("quantize", NETWORK, "--images", "images.safetensors", "--out", "OUT.safetensors")),
    Case(
        "images.safetensors",
        ("report", NETWORK, "--quantized", "quantized.safetensors", "--images", "images.safetensors", "--out", "OUT"),
    ),
    Case("quantized.safetensors", ("export", NETWORK, "--quantized", "quantized.safetensors", "--out", "OUT.onnx")),
    Case("quantized.safetensors", ("evaluate", NETWORK, "--quantized", "quantized.safetensors", *TWO)),
    Case(
        "quantized.safetensors",
        ("report", NETWORK, "--quantized", "quantized.safetensors", "--images", "images.safetensors", "--out", "OUT"),
    ),
    Case("model.onnx", ("evaluate", NETWORK, "--quantized", "model.onnx", *TWO)),
    Case("photos.npz", ("quantize", NETWORK, "--real", "photos.npz", *TWO, "--out", "OUT.safetensors")),
    Case("photos.npz", ("evaluate", NETWORK, "--data", "photos.npz", *TWO)),
    Case("photos/a/0.png", ("quantize", NETWORK, "--real", "photos", *TWO, "--out", "OUT.safetensors")),
    Case("state.checkpoint", (*GENERATE, "--out", "state.safetensors"), made_anew=True),
    Case("records", (*RUN, "--seeds", "1", "--results", "records"), made_anew=True),
    Case("weights", ("evaluate", "cifar10_resnet20", "--data", "photos.npz", *TWO, "--data-dir", "weights")),
)


class _Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARKER),)


def make_sound(folder: Path, dgh: Callable[..., Any]) -> None:
    """Make sound files of all kinds in a folder."""
    images = ("--method", "noise", "--set", "num_images=8", "--out", "images.safetensors")
    for words in (
        ("generate", NETWORK, *images),
        ("quantize", NETWORK, "--images", "images.safetensors", "--out", "quantized.safetensors"),
        ("export", NETWORK, "--quantized", "quantized.safetensors", "--out", "model.onnx"),
        (*RUN, "--seeds", "1", "--results", "records"),
    ):
        ended = dgh(*words)
        if ended.status != 0:
            raise RuntimeError(f"dgh {' '.join(words)} fails: {ended.said}")
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.savez(
        folder / "photos.npz", images=pixels, labels=np.array([0, 47]), classes=np.array(list(map(str, range(48))))
    )
    (folder / "photos" / "a").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "photos" / "a" / f"{number}.png")
    state = {"key": "of another run", "states": [{"finished": [], "step": 1, "task": None}], "elapsed": 1.0}
    torch.save(state, folder / "state.checkpoint")
    shutil.rmtree(folder / "images", ignore_errors=True)  # that the run's records are made of; they are there


def damage(path: Path, case: Case, round_: int, draws: random.Random) -> tuple[str, bool]:
    """Damage a file; return how, and whether nobody can take it for sound."""
    if case.file == "weights":
        path = path / "cifar10" / "resnet20.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(draws.randbytes(30_000))
        path = _weights_of(path)
    if case.file == "state.checkpoint":
        path = path.rename(path.with_name("state.safetensors.checkpoint"))
    if case.file == "records":
        path = draws.choice(sorted(path.rglob("*.json")))
    kinds = {**BYTES, **_OF_ENDING.get(path.suffix, {})}
    name = list(kinds)[(round_ + draws.randrange(2)) % len(kinds)]
    kinds[name](path, draws)
    # A byte of a tensor is as good as another, and images that are all alike get a warning.
    harmless = {"a bit flipped", "longer", *{".png": ["cut by a byte"]}.get(path.suffix, [])}
    return name, name not in harmless and (case.file, name) != ("images.safetensors", ALIKE)


def _weights_of(path: Path) -> Path:
    """Move a file to where a manifest has the weights of ResNet-20."""
    from dghlib.storage import assets

    wanted = path.parents[1] / assets.manifests()["cifar10_resnet20"].path
    wanted.parent.mkdir(parents=True, exist_ok=True)
    return path.rename(wanted)


def _written(make: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, draws: (path.write_bytes(make(path.read_bytes(), draws)), None)[1]


def _flipped(content: bytes, draws: random.Random) -> bytes:
    place = draws.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draws.randrange(8))]) + content[place + 1 :]


def _folder(path: Path, draws: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _bomb(path: Path, draws: random.Random) -> None:
    if draws.random() < 0.5:
        path.write_bytes(pickle.dumps(_Bomb()))
    else:
        torch.save({"key": _Bomb(), "images": _Bomb()}, path)


BYTES: dict[str, Callable[[Path, random.Random], None]] = {
    "empty": _written(lambda content, draws: b""),
    "cut": _written(lambda content, draws: content[: draws.randrange(1, len(content))]),
    "cut by a byte": _written(lambda content, draws: content[:-1]),
    "without its beginning": _written(lambda content, draws: content[draws.randrange(1, 64) :]),
    "random": _written(lambda content, draws: draws.randbytes(len(content))),
    "zeros": _written(lambda content, draws: bytes(len(content))),
    "a page": _written(lambda content, draws: b"<!DOCTYPE html><title>404</title>" * draws.randrange(1, 99)),
    "compressed": _written(lambda content, draws: gzip.compress(content)),
    "a bit flipped": _written(_flipped),
    "the first bytes random": _written(lambda content, draws: draws.randbytes(16) + content[16:]),
    "longer": _written(lambda content, draws: content + draws.randbytes(99)),
    "text in a strange coding": _written(lambda content, draws: "Bücher".encode("utf-16") * 99),
    "code": _bomb,
}


def _changed_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path, random.Random], None]:
    def changed(path: Path, draws: random.Random) -> None:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata()
        change(tensors)
        save_file(tensors, path, metadata=about)

    return changed


def _changed_facts(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, random.Random], None]:
    """Change what a file of tensors says of itself: its header, and what is in there as text."""

    def changed(path: Path, draws: random.Random) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return changed


def _of_all(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensor) for name, tensor in tensors.items()})


def _with_nan(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor.flatten().index_fill(0, torch.tensor(0), torch.nan).view(tensor.shape)
        if tensor.is_floating_point()
        else tensor
    )


def _changed_arrays(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, random.Random], None]:
    def changed(path: Path, draws: random.Random) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)

    return changed


def _changed_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, random.Random], None]:
    def changed(path: Path, draws: random.Random) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return changed


_OF_ENDING: dict[str, dict[str, Callable[[Path, random.Random], None]]] = {
    ".safetensors": {
        "not finite": _changed_tensors(_of_all(_with_nan)),
        "in half precision": _changed_tensors(_of_all(lambda tensor: tensor.half())),
        "of another shape": _changed_tensors(_of_all(lambda tensor: tensor.reshape(-1).clone())),
        "of no tensors": _changed_tensors(lambda tensors: tensors.clear()),
        "by other names": _changed_tensors(
            lambda tensors: [tensors.update({f"{name}x": tensors.pop(name)}) for name in list(tensors)]
        ),
        ALIKE: _changed_tensors(_of_all(lambda tensor: tensor.zero_() - 1)),
        "a header that says too much": _written(lambda content, draws: struct.pack("<Q", 2**40) + content[8:]),
        "metadata that are none": _changed_facts(
            lambda header: header.update(__metadata__={"dghlib": "{", "space": "["})
        ),
        "nested metadata": _changed_facts(
            lambda header: header.update(__metadata__={"dghlib": "[" * 9999, "space": "[" * 9999})
        ),
        "offsets beyond the end": _changed_facts(
            lambda header: [each.update(data_offsets=[0, 2**50]) for name, each in header.items() if name[0] != "_"]
        ),
    },
    ".npz": {
        "no labels": _changed_arrays(lambda arrays: arrays.pop("labels")),
        "pixels of another type": _changed_arrays(lambda arrays: arrays.update(images=arrays["images"] / 255)),
        "no images in it": _changed_arrays(
            lambda arrays: arrays.update(images=arrays["images"][:0], labels=arrays["labels"][:0])
        ),
        "labels below zero": _changed_arrays(lambda arrays: arrays.update(labels=-arrays["labels"] - 1)),
        "more labels than images": _changed_arrays(lambda arrays: arrays.update(labels=np.arange(9))),
        "objects": _changed_arrays(lambda arrays: arrays.update(labels=np.array([_Bomb(), None], dtype=object))),
    },
    ".json": {
        "a number that is none": _changed_record(lambda record: record["outputs"].update(top1=float("nan"))),
        "deeply nested": _written(lambda content, draws: b"[" * 100_000),
        "a list": _written(lambda content, draws: b"[1, 2]"),
        "other inputs": _changed_record(lambda record: record["inputs"].update(test_images=1)),
        "no outputs": _changed_record(lambda record: record.pop("outputs")),
    },
}
