"""A public part of ImageNet: 1 300 validation images, and 1 image of each of the 1 000 classes.

Split "test" has the validation images of VeriSilicon's `acuity-dataset`, scaled to 227x227 by its publisher; "train"
has the samples of `imagenet-sample-images`, of all sizes. Both are read from the archives of the repositories. A class
is the index of its WordNet id among the sorted 1 000 ids.

The validation images are easier than the whole set: networks score about 8 points higher on them.
"""

import io
import re
import zipfile
from pathlib import PurePosixPath

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dghlib.choices import look_up
from dghlib.datasets.files import evaluation_crop
from dghlib.datasets.imagenet import DEFAULT_SIZE
from dghlib.datasets.labelled import LabelledImages, choose
from dghlib.storage import assets
from dghlib.storage.archives import matching, opened

NUM_CLASSES = 1000
_ROOT = "ILSVRC2012_VAL_SET"
_ARCHIVES = {"test": "imagenet_lite", "train": "imagenet_lite_samples"}  # their manifests


def imagenet_lite(
    split: str, num_images: int | None = None, image_size: tuple[int, int] = DEFAULT_SIZE
) -> LabelledImages:
    """Return uint8 images (N, 3, H, W) of a split, "test" or "train"; `num_images` of them, or all.

    As in the tests of EfficientNet, images are scaled bicubically until the shorter side is 8/7 of `image_size`, and
    the centre is cut out. An archive with only some of the images is also read, with a warning.

    Raises:
        ValueError: an unknown split, more images than there are, an archive that is damaged or has another layout, a
            list of classes that does not fit the archive, an image that cannot be decoded.
        MissingAsset: the data directory has no archive.
    """
    path = assets.locate(look_up(_ARCHIVES, split, "split of imagenet_lite"), strict=False)
    with opened(path) as archive:
        try:
            files, classes = _validation_files(archive) if split == "test" else _samples(archive)
        except ValueError as error:
            raise ValueError(f"{path} is not laid out as the public archive: {error}") from error
        chosen = [files[k] for k in choose(len(files), num_images)]
        pixels = np.empty((len(chosen), 3, *image_size), dtype=np.uint8)
        for k, (name, _) in enumerate(tqdm(chosen, desc="read imagenet_lite", unit="image", delay=3, leave=False)):
            # read first: this distinguishes a damaged archive from a member that is not an image
            file = io.BytesIO(archive.read(name))
            pixels[k] = evaluation_crop(file, f"{name} in {path}", image_size, Image.Resampling.BICUBIC)
    return LabelledImages(torch.from_numpy(pixels), torch.tensor([label for _, label in chosen]), classes)


Files = list[tuple[str, int]]  # the archive members that are images, and their classes


def _validation_files(archive: zipfile.ZipFile) -> tuple[Files, tuple[str, ...]]:
    """Return the images in the list of the validation images, and the names of the classes."""
    (list_name, lines), (_, words) = (_lines(archive, name) for name in ("dataset.txt", "synset_words.txt"))
    if len(words) != NUM_CLASSES or words != sorted(words):
        raise ValueError(f"synset_words.txt names {len(words)} classes, expected {NUM_CLASSES}, sorted by WordNet id")
    members, folder = set(archive.namelist()), PurePosixPath(list_name).parent
    files = []
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(r"(.+), *(\d+)", line)
        if found is None or int(found[2]) >= NUM_CLASSES:
            raise ValueError(
                f'line {number} of dataset.txt is {line!r}, expected "path, class" with classes 0 to {NUM_CLASSES - 1}'
            )
        if (name := str(folder / found[1])) not in members:
            raise ValueError(f"dataset.txt names {name}, which is not in the archive")
        files.append((name, int(found[2])))
    return files, tuple(line.partition(" ")[2] for line in words)


def _lines(archive: zipfile.ZipFile, name: str) -> tuple[str, list[str]]:
    """Return the path of a text file of the validation images, and its nonempty lines."""
    found = matching(archive, f"{_ROOT}/{name}")
    if len(found) != 1:
        raise ValueError(f"it holds {len(found)} files {_ROOT}/{name}, expected 1")
    return found[0], [line.strip() for line in archive.read(found[0]).decode().splitlines() if line.strip()]


def _samples(archive: zipfile.ZipFile) -> tuple[Files, tuple[str, ...]]:
    """Return the sample of every class, which its file name contains, such as n01443537_goldfish.JPEG."""
    found = {
        match[1]: (name, match[2].replace("_", " "))
        for name in archive.namelist()
        if (match := re.fullmatch(r"(n\d{8})_(.+)\.JPEG", PurePosixPath(name).name))
    }
    if len(found) != NUM_CLASSES:
        raise ValueError(
            f"it holds images of {len(found)} WordNet ids, expected one of each of {NUM_CLASSES}, "
            "named as n01443537_goldfish.JPEG"
        )
    ordered = [found[wordnet_id] for wordnet_id in sorted(found)]
    return [(name, label) for label, (name, _) in enumerate(ordered)], tuple(words for _, words in ordered)
