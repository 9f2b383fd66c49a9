"""Inputs that are damaged or impossible: `CASES` lists them, each with a command that reads it.

A command survives a bad input if it reports this in 1 line that names the input, runs no code in it, writes nothing,
and leaves the float network unchanged. Some bad inputs may be accepted: an image with a flipped bit is an image. State
that a command can do without is computed again, and the unreadable file is kept.
"""

import gzip
import json
import pickle
import random
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import planted_words
import torch
from campaign_commands import NETWORK, RUN, Workplace, dgh, nothing, told
from PIL import Image
from planted_words import Words
from safetensors import safe_open
from safetensors.torch import save_file

MARKER = "code-was-run"
WEIGHTS = "weights/resnet18_imagenet.pth.tar"  # no checksum of this file is published
TWO = ("--num-images", "2")
ALIKE = "all values -1, those of steps, too"
Ends = Literal["refused", "taken or refused", "warned", "made again", "taken or made again"]
Damage = Callable[[Path, random.Random], object]


class Reader(NamedTuple):
    """A command, the damaged file that it reads, and how the command may end."""

    file: str
    words: tuple[str, ...]
    ends: Ends = "refused"


class Input(NamedTuple):
    """A command with a bad input: its name, what plants it, how the command may end, what its error must name."""

    name: str
    words: tuple[str, ...]
    plant: Callable[[Path, random.Random], object]
    ends: Ends
    names: tuple[str, ...]
    before: Callable[[], object] = nothing
    statuses: tuple[int, ...] = (1,)


GENERATE = ("generate", NETWORK, "--method", "zeroq", "--set", "num_images=2", "--set", "steps=2")
QUANTIZED = ("--quantized", "quantized.safetensors")
IMAGES = ("--images", "images.safetensors")
REPORT = ("report", NETWORK, *QUANTIZED, *IMAGES, "--out", "OUT")
EXPORT = ("export", NETWORK, *QUANTIZED, "--out", "OUT.onnx")
EVALUATE = ("evaluate", NETWORK, *QUANTIZED, *TWO)
QUANTIZE_REAL = ("quantize", NETWORK, "--out", "OUT.safetensors", *TWO, "--real")
READERS = (
    Reader("images.safetensors", ("quantize", NETWORK, *IMAGES, "--out", "OUT.safetensors")),
    Reader("images.safetensors", REPORT),
    Reader("quantized.safetensors", EXPORT),
    Reader("quantized.safetensors", EVALUATE),
    Reader("quantized.safetensors", REPORT),
    Reader("model.onnx", ("evaluate", NETWORK, "--quantized", "model.onnx", *TWO)),
    Reader("photos.npz", (*QUANTIZE_REAL, "photos.npz")),
    Reader("photos.npz", ("evaluate", NETWORK, "--data", "photos.npz", *TWO)),
    Reader("photos/a/0.png", (*QUANTIZE_REAL, "photos")),
    Reader("state.safetensors.checkpoint", (*GENERATE, "--out", "state.safetensors"), "made again"),
    Reader("records", (*RUN, "--seeds", "1", "--results", "records"), "made again"),
    Reader(WEIGHTS, ("export", "imagenet_resnet18", "--out", "OUT.onnx", "--data-dir", ".")),
)


class _Bomb:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARKER),)


def _written(make: Callable[[bytes, random.Random], bytes]) -> Damage:
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


BYTES: dict[str, Damage] = {
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


def _changed_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def changed(path: Path, draws: random.Random) -> None:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata()
        change(tensors)
        save_file(tensors, path, metadata=about)

    return changed


def _changed_facts(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of a file of tensors, and the text in it."""

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


def _changed_arrays(change: Callable[[dict[str, Any]], object]) -> Damage:
    def changed(path: Path, draws: random.Random) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)

    return changed


def _changed_record(change: Callable[[dict[str, Any]], object]) -> Damage:
    def changed(path: Path, draws: random.Random) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return changed


def _of_scales(change: Callable[[torch.Tensor], object]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: [change(tensor) for name, tensor in tensors.items() if name.endswith("scale")]


def _of_zero_points(change: Callable[[torch.Tensor], object]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: [change(tensor) for name, tensor in tensors.items() if name.endswith("zero_point")]


def _changed_header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of a file of a quantized network."""

    def changed(metadata: dict[str, Any]) -> None:
        header = json.loads(metadata["__metadata__"]["dghlib"])
        change(header)
        metadata["__metadata__"]["dghlib"] = json.dumps(header)

    return _changed_facts(changed)


def _changed_grids(change: Callable[[list[Any]], Any], *parts: str) -> Damage:
    """Change the grids in it, those of weights and tensors, or of one of them."""
    wanted: Sequence[str] = parts or ("weights", "activations")
    return _changed_header(
        lambda header: [header.update({part: {k: change(v) for k, v in header[part].items()}}) for part in wanted]
    )


def _both(first: Damage, second: Damage) -> Damage:
    return lambda path, draws: (first(path, draws), second(path, draws))


def _changed_state(change: Callable[[dict[str, Any]], object]) -> Damage:
    def changed(path: Path, draws: random.Random) -> None:
        state = dict(torch.load(path, weights_only=True))
        change(state)
        torch.save(state, path)

    return changed


OF_ENDING: dict[str, dict[str, Damage]] = {
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
        "labels that are no whole numbers": _changed_arrays(lambda arrays: arrays.update(labels=np.array([0.5, 1.5]))),
        "images of one dimension": _changed_arrays(lambda arrays: arrays.update(images=np.zeros(9, np.uint8))),
        "images of another size": _changed_arrays(lambda arrays: arrays.update(images=arrays["images"][:, :9, :9])),
        "four channels": _changed_arrays(lambda arrays: arrays.update(images=np.zeros((2, 32, 32, 4), np.uint8))),
        "labels beyond the classes": _changed_arrays(lambda arrays: arrays.update(labels=arrays["labels"] + 48)),
    },
    ".png": {
        "a header that says too much": _written(
            lambda content, draws: content[:16] + struct.pack(">II", 2**30, 2**30) + content[24:]
        ),
        "no pixels": _written(lambda content, draws: content[:16] + struct.pack(">II", 0, 0) + content[24:]),
        "text by that name": _written(lambda content, draws: b"this is no image"),
        "of cyan, magenta, yellow and black": lambda path, draws: Image.new("CMYK", (9, 9)).save(path, "TIFF"),
        "gray of 16 bits": lambda path, draws: Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(path),
    },
    ".checkpoint": {
        "another key": _changed_state(lambda state: state.update(key="of a third run")),
        "no states": _changed_state(lambda state: state.pop("states")),
        "a list": lambda path, draws: torch.save([1, 2], path),
        "text": lambda path, draws: torch.save("text", path),
        "not a number of seconds": _changed_state(lambda state: state.update(elapsed="long")),
    },
    ".json": {
        "a number that is none": _changed_record(lambda record: record["outputs"].update(top1=float("nan"))),
        "an infinite number": _changed_record(lambda record: record["outputs"].update(top1=float("inf"))),
        "deeply nested": _written(lambda content, draws: b"[" * 100_000),
        "a list": _written(lambda content, draws: b"[1, 2]"),
        "other inputs": _changed_record(lambda record: record["inputs"].update(test_images=1)),
        "no outputs": _changed_record(lambda record: record.pop("outputs")),
        "outputs that are a list": _changed_record(lambda record: record.update(outputs=[1.0])),
        "inputs that are text": _changed_record(lambda record: record.update(inputs="all")),
        "provenance that is none": _changed_record(lambda record: record.update(provenance=None)),
        "no result among its outputs": _changed_record(lambda record: record.update(outputs={})),
        "a result that is text": _changed_record(lambda record: record["outputs"].update(top1="high")),
    },
    ".tar": {
        "of another network": lambda path, draws: torch.save({"weight": torch.zeros(3)}, path),
        "a list": lambda path, draws: torch.save([1, 2], path),
        "one tensor": lambda path, draws: torch.save(torch.zeros(3), path),
        "numbers for tensors": _changed_state(lambda state: state.update(dict.fromkeys(state, 1.0))),
        "not finite": _changed_state(lambda state: state["conv1.weight"].fill_(torch.nan)),
        "of other shapes": _changed_state(lambda state: state.update({"conv1.weight": torch.zeros(3)})),
        "a layer less": _changed_state(lambda state: state.pop("fc.bias")),
    },
}
# Grids of a quantized network's file that are impossible.
GRIDS: dict[str, Damage] = {
    "scale 0": _changed_tensors(_of_scales(lambda tensor: tensor.zero_())),
    "a negative scale": _changed_tensors(_of_scales(lambda tensor: tensor.neg_())),
    "a scale that is none": _changed_tensors(_of_scales(lambda tensor: tensor.fill_(torch.nan))),
    "an infinite scale": _changed_tensors(_of_scales(lambda tensor: tensor.fill_(torch.inf))),
    "one scale of many negative": _changed_tensors(_of_scales(lambda tensor: tensor.view(-1)[:1].neg_())),
    "zero points beyond the codes": _changed_tensors(_of_zero_points(lambda tensor: tensor.fill_(9999))),
    "zero points below the codes": _changed_tensors(_of_zero_points(lambda tensor: tensor.fill_(-9999))),
    "a tensor less": _changed_tensors(lambda tensors: tensors.pop(next(iter(tensors)))),
    "a tensor more": _changed_tensors(lambda tensors: tensors.update(more=torch.zeros(3))),
    "1 bit": _changed_grids(lambda grid: [1, *grid[1:]]),
    "9 bits": _changed_grids(lambda grid: [9, *grid[1:]]),
    "bits that are text": _changed_grids(lambda grid: ["8", *grid[1:]]),
    "bits that are no whole number": _changed_grids(lambda grid: [8.0, *grid[1:]]),
    "bits that are true": _changed_grids(lambda grid: [True, *grid[1:]]),
    "fewer bits than its zero points": _both(
        _changed_tensors(_of_zero_points(lambda tensor: tensor.fill_(5))),
        _changed_grids(lambda grid: [2, *grid[1:]], "activations"),
    ),
    "a sign that is a number": _changed_grids(lambda grid: [grid[0], 1]),
    "no sign": _changed_grids(lambda grid: [grid[0]]),
    "grids of no kind": _changed_grids(lambda grid: [*grid, "magic"]),
    "grids that are text": _changed_grids(lambda grid: "8 bits"),
    "no grids": _changed_header(lambda header: header.pop("weights")),
    "grids of weights that are not there": _changed_header(lambda header: header["weights"].update(none=[8, True])),
    "grids of tensors that are not there": _changed_header(
        lambda header: header["activations"].update(none=[8, False])
    ),
    "another format": _changed_header(lambda header: header.update(format=99)),
    "no format": _changed_header(lambda header: header.pop("format")),
    "facts that are a list": _changed_header(lambda header: header.update(about=[1])),
    "a preparation that nobody knows": _changed_header(lambda header: header["about"].update(preparation={"no": {}})),
    "a preparation that is a list": _changed_header(lambda header: header["about"].update(preparation=["no"])),
    "a preparation with other settings": _changed_header(
        lambda header: header["about"].update(preparation={"equalize": {"no": 1}})
    ),
}


def _read(reader: Reader, name: str, damage: Damage) -> Input:
    """Return the input of a command that reads a damaged file."""
    # Any byte of a tensor is valid, and images that are all equal get a warning.
    harmless = {"a bit flipped", "longer", "of cyan, magenta, yellow and black", "gray of 16 bits"}
    if reader.file.endswith(".png"):
        harmless |= {"cut by a byte"}
    ends: Ends = "taken or refused" if name in harmless and reader.ends == "refused" else reader.ends
    if (reader.file, name) == ("images.safetensors", ALIKE):
        ends = "warned"
    if reader.file == "records" and name in ("a bit flipped", "cut by a byte"):  # any digit is valid
        ends = "taken or made again"
    return Input(
        f"{reader.words[0]} of {reader.file}: {name}",
        reader.words,
        partial(_damage, reader.file, damage),
        ends,
        (reader.file.partition("/")[0],) if reader.file != WEIGHTS else (Path(WEIGHTS).name,),
    )


def _damage(file: str, damage: Damage, folder: Path, draws: random.Random) -> None:
    path = folder / file
    if file == WEIGHTS:
        from torchvision.models import resnet18

        path.parent.mkdir()
        torch.save(resnet18().state_dict(), path)
    damage(draws.choice(sorted(path.rglob("*.json"))) if path.is_dir() else path, draws)


def _ending(file: str) -> str:
    return ".json" if file == "records" else Path(file).suffix


def _cut_at(share: float) -> Damage:
    return _written(lambda content, draws: content[: int(len(content) * share)])


def _as_input(words: Words) -> Input:
    def plant(folder: Path, draws: random.Random) -> None:
        words.plant(folder)

    return Input(words.name, words.words, plant, words.ends, words.names, words.before, (1, 2))


QUANTIZED_READERS = [reader for reader in READERS if reader.file == "quantized.safetensors"]
CASES: list[Input] = [
    *(
        _read(reader, name, damage)
        for reader in READERS
        for name, damage in (BYTES | OF_ENDING.get(_ending(reader.file), {})).items()
    ),
    *(
        _read(QUANTIZED_READERS[number % len(QUANTIZED_READERS)], name, damage)
        for number, (name, damage) in enumerate(GRIDS.items())
    ),
    *(_read(READERS[2 * (tenth % 2)], f"cut at {tenth} tenths", _cut_at(tenth / 10)) for tenth in range(1, 10)),
    *(_as_input(words) for words in planted_words.CASES),
]


def damaged_input(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Give a command a bad input; return the name of the case, and what was wrong with the outcome."""
    case = CASES[number]
    folder = work.fresh(f"input{number}")
    case.plant(folder, draws)
    before = _files(folder)
    ended = dgh(folder, case.words, before=case.before)
    if (folder / MARKER).exists():
        return case.name, "code in the file was run"
    if ended.status == 0 and case.ends == "taken or made again":
        return case.name, ""
    if case.ends.endswith("made again"):
        return case.name, _made_again(folder, ended.status, ended.said)
    if ended.status == 0 and case.ends in ("taken or refused", "warned"):
        warned = case.ends != "warned" or "dgh: " in ended.said
        return case.name, "" if warned else "it was taken without a warning"
    if ended.status == 0:
        return case.name, "it was taken for sound"
    if problem := told(ended, *case.names, statuses=case.statuses):
        return case.name, problem
    after = _files(folder)
    changed = [name for name, content in before.items() if after.get(name) != content]
    made = sorted(after.keys() - before.keys())
    return case.name, f"changed {changed}, made {made}" if changed or made else ""


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _made_again(folder: Path, status: int, said: str) -> str:
    kept = any(".corrupt" in path.name or ".checkpoint." in path.name for path in folder.rglob("*"))
    return "" if status == 0 and kept else f"not made again: {said[-300:]}"
