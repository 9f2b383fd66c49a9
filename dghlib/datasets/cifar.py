"""CIFAR-10: 32x32 images of 10 classes (Krizhevsky, 2009), from the public archive.

Split "test" has the 10 000 test images, "train" the 50 000 training images.
"""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dghlib.choices import look_up
from dghlib.datasets import files
from dghlib.datasets.labelled import LabelledImages, choose
from dghlib.storage import assets
from dghlib.storage.reading import reading

_BATCHES = {"test": ["test_batch"], "train": [f"data_batch_{number}" for number in range(1, 6)]}

# If .npz files with the same images lie beside the archive, they are read instead: this is faster, and allows a few
# training images to represent all.
_PREPARED = {"test": "cifar10_test.npz", "train": "cifar10_train2048.npz"}


def cifar10(split: str, num_images: int | None = None) -> LabelledImages:
    """Return uint8 images (N, 3, 32, 32) of a split, "test" or "train"; `num_images` of them, or all.

    Raises:
        ValueError: an unknown split, more images than there are, or another file in place of the archive.
        MissingAsset: the data directory has neither the archive nor the .npz file.
    """
    names = look_up(_BATCHES, split, "split of cifar10")
    prepared = assets.data_dir() / "cifar10" / _PREPARED[split]
    if prepared.is_file():
        return files.npz(prepared, num_images)
    path = assets.locate("cifar10")
    with reading(path, "laid out as the public archive", "`dgh data cifar10` downloads that one"):
        batches, classes = _unpack(path, names)
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([batch["labels"] for batch in batches])
        data = LabelledImages(torch.from_numpy(images), torch.from_numpy(labels), classes)
    return data[choose(len(data), num_images)]


def _unpack(path: Path, names: list[str]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the named batches and the class names; the checksum of the pickles is in the manifest."""
    members = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) and Path(member.name).name in {*names, "batches.meta"}:
                members[Path(member.name).name] = pickle.load(file, encoding="latin1")
    return [members[name] for name in names], tuple(members["batches.meta"]["label_names"])
