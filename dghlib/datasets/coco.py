"""COCO val2017: 5000 photographs with the boxes of 80 kinds of objects, read from the public archives.

Ids of categories run from 1 to 90, with gaps. An archive with only some of the photographs is also read, if it has the
requested ones.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dghlib.choices import look_up
from dghlib.datasets.annotated import AnnotatedImages, Annotations
from dghlib.datasets.files import read_image
from dghlib.datasets.labelled import choose
from dghlib.storage import assets
from dghlib.storage.reading import reading

ANNOTATIONS = "annotations/instances_val2017.json"
CALIBRATION_IMAGES = 1_000  # the last of the photographs, which no test uses


def coco(split: str, num_images: int | None = None) -> AnnotatedImages:
    """Return photographs of a split, "test" or "train"; `num_images` of them, or all.

    val2017 is divided: its last 1000 photographs, by id, are for calibration ("train"), the others for tests.

    Raises:
        ValueError: an unknown split, more images than there are, or an archive with another layout.
        MissingAsset: the data directory has no archive.
        FileNotFoundError: the archive lacks a photograph, which the message names.
    """
    parts = {"test": slice(None, -CALIBRATION_IMAGES), "train": slice(-CALIBRATION_IMAGES, None)}
    part = look_up(parts, split, "split of coco")
    annotations = read_annotations(assets.locate("coco_annotations", strict=False), ANNOTATIONS)
    annotations["images"] = sorted(annotations["images"], key=lambda entry: entry["id"])
    files = [f"val2017/{entry['file_name']}" for entry in annotations["images"]]
    everything = AnnotatedImages(ArchivedImages(assets.locate("coco", strict=False), files), annotations)
    indices = range(len(everything))[part]
    return everything.part([indices[k] for k in choose(len(indices), num_images).tolist()])


def read_annotations(archive: Path, member: str) -> Annotations:
    """Return annotations from a zip archive.

    Raises:
        ValueError: it is not a zip archive, has another layout, or its content is not JSON.
    """
    with (
        reading(archive, "laid out as the public archive", "`dgh data coco` downloads that one"),
        zipfile.ZipFile(archive) as opened,
    ):
        return json.loads(opened.read(member))


class ArchivedImages(Sequence[Tensor]):
    """Image files in a zip archive; each is read as RGB, uint8 (3, H, W), when it is requested.

    Args:
        archive: the archive. names: of the files in it, in their order.

    Raises:
        FileNotFoundError: when the archive lacks a requested file.
        ValueError: when the file is not an image, or the archive is not a zip file.
    """

    def __init__(self, archive: Path, names: Sequence[str]):
        self.path, self.names = archive, list(names)
        with reading(archive, "a zip archive", "`dgh data coco` downloads it"):
            self.archive = zipfile.ZipFile(archive)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        name = self.names[index]
        try:
            with self.archive.open(name) as file:
                return torch.from_numpy(read_image(file, name).copy())
        except KeyError as error:
            raise FileNotFoundError(f"{self.path} lacks the image {name}") from error
