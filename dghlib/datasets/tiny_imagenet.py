"""Tiny-ImageNet: 64x64 images of 200 classes (Stanford CS231n), read from the public zip archive.

Split "test" is the archive's `val`, 10 000 images, because the labels of its `test` were never published. A class is
the index of its WordNet id in the sorted `wnids.txt`.
"""

import zipfile

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dghlib.choices import look_up
from dghlib.datasets.files import read_image
from dghlib.datasets.labelled import LabelledImages, choose
from dghlib.storage import assets
from dghlib.storage.reading import reading

ROOT = "tiny-imagenet-200"
PUBLIC_ARCHIVE = ("laid out as the public archive", "`dgh data tiny_imagenet` downloads that one")


def tiny_imagenet(split: str, num_images: int | None = None) -> LabelledImages:
    """Return uint8 images (N, 3, 64, 64) of a split, "test" or "train"; `num_images` of them, or all.

    An archive with only some of the images is also read, with a warning.

    Raises:
        ValueError: an unknown split, more images than there are, or an archive with another layout.
        MissingAsset: the data directory has no archive.
    """
    splits = {"test": _validation_files, "train": _training_files}
    list_files = look_up(splits, split, "split of tiny_imagenet")
    path = assets.locate("tiny_imagenet", strict=False)
    with reading(path, *PUBLIC_ARCHIVE), zipfile.ZipFile(path) as archive:
        ids = sorted(_text(archive, "wnids.txt").split())
        names = dict(line.split("\t", 1) for line in _text(archive, "words.txt").splitlines())
        files = list_files(archive)
    which = choose(len(files), num_images)
    with reading(path, *PUBLIC_ARCHIVE), zipfile.ZipFile(path) as archive:
        chosen = [files[k] for k in which]
        images = _decode(archive, [name for name, _ in chosen])
        labels = torch.tensor([ids.index(wordnet_id) for _, wordnet_id in chosen])
        return LabelledImages(images, labels, tuple(names[wordnet_id] for wordnet_id in ids))


def _validation_files(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """Return (member, WordNet id) of every validation image, in the order of the annotations."""
    rows = [line.split("\t") for line in _text(archive, "val/val_annotations.txt").splitlines()]
    return [(f"{ROOT}/val/images/{name}", wordnet_id) for name, wordnet_id, *_box in rows]


def _training_files(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """Return (member, WordNet id) of every training image, sorted."""
    names = sorted(n for n in archive.namelist() if n.startswith(f"{ROOT}/train/") and n.endswith(".JPEG"))
    return [(name, name.split("/")[2]) for name in names]


def _text(archive: zipfile.ZipFile, name: str) -> str:
    return archive.read(f"{ROOT}/{name}").decode()


def _decode(archive: zipfile.ZipFile, names: list[str]) -> Tensor:
    images = np.empty((len(names), 3, 64, 64), dtype=np.uint8)
    for k, name in enumerate(tqdm(names, desc="read tiny_imagenet", unit="image", delay=3, leave=False)):
        with archive.open(name) as file:
            images[k] = read_image(file, name)
    return torch.from_numpy(images)
