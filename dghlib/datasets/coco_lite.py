"""A part of COCO for 2 cores: 287 photographs of val2017, and 127 of train2017 for calibration, scaled.

`data_manifests/coco_lite.csv` lists them; other content of an archive is ignored. `prepare` makes an archive of them
from COCO's own files: the longer side of a photograph becomes 416 pixels (none is enlarged), and its boxes are scaled,
too. Lanczos filter and JPEG quality are those of the archive of our records: from the published photographs, Pillow
makes the same files again.
"""

import csv
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dghlib.choices import look_up
from dghlib.datasets.annotated import AnnotatedImages, Annotations
from dghlib.datasets.coco import ArchivedImages, read_annotations
from dghlib.datasets.files import open_image
from dghlib.datasets.labelled import choose
from dghlib.storage import assets
from dghlib.storage.records import write_atomically

ARCHIVE = "coco_lite/coco_lite.zip"  # in the data directory
_PARTS = {"test": "val", "train": "train"}
_LONGER_SIDE, _JPEG_QUALITY = 416, 88
_ADDRESS = "https://s3.amazonaws.com/images.cocodataset.org"


def coco_lite(split: str, num_images: int | None = None) -> AnnotatedImages:
    """Return photographs of a split, "test" or "train"; `num_images` of them, or all.

    Raises:
        ValueError: an unknown split, more images than there are, or an archive with another layout or without the
            annotations of a photograph.
        MissingAsset: the data directory has no archive.
        FileNotFoundError: the archive lacks a photograph, which the message names.
    """
    part = look_up(_PARTS, split, "split of coco_lite")
    path = assets.data_dir() / ARCHIVE
    if not path.is_file():
        raise assets.MissingAsset(
            f"{path} is missing. `dgh data coco_lite` (or `make data PROFILE=coco_lite`) makes it from COCO's own "
            f"files, of which it downloads 0.3 GB; or set {assets.DATA_DIR_VARIABLE} (or --data-dir) to the "
            "directory that has it."
        )
    annotations = _part_of(read_annotations(path, _annotations_of(part)), _chosen_ids()[part])
    names = [_file_of(part, entry) for entry in annotations["images"]]
    everything = AnnotatedImages(ArchivedImages(path, names), annotations)
    return everything.part(choose(len(everything), num_images).tolist())


def _annotations_of(part: str) -> str:
    return f"coco_lite/instances_{part}.json"


def _file_of(part: str, entry: Mapping[str, Any]) -> str:
    return f"coco_lite/{part}/{entry['file_name']}"


def prepare(*, progress: bool = True) -> Path:
    """Make the archive, unless it exists, and return its path.

    COCO's annotations are downloaded completely. Photographs of val2017 are taken from its archive if the data
    directory has it; other photographs are downloaded one by one.

    Raises:
        WrongChecksum, DownloadFailed: as `assets.fetch`.
        ValueError: the size of a photograph differs from its annotation, or its file is damaged.
    """
    target = assets.data_dir() / ARCHIVE
    if not target.exists():
        source = assets.fetch(assets.manifests()["coco_annotations"], progress=progress)
        chosen = _chosen_ids()
        write_atomically(target, lambda temporary: _write(temporary, source, chosen, progress))
    return target


def _chosen_ids() -> dict[str, set[int]]:
    """Return the ids of the photographs of both parts, "val" and "train"."""
    with (assets.MANIFESTS / "coco_lite.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {part: {int(row["image_id"]) for row in rows if row["split"] == part} for part in _PARTS.values()}


def _write(target: Path, source: Path, chosen: Mapping[str, set[int]], progress: bool) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, ids in chosen.items():
            annotations = _part_of(read_annotations(source, f"annotations/instances_{part}2017.json"), ids)
            for entry in tqdm(annotations["images"], desc=f"photographs of {part}", unit="image", disable=not progress):
                archive.writestr(_file_of(part, entry), _smaller(_photograph(part, entry)))
            archive.writestr(_annotations_of(part), json.dumps(scaled(annotations)))


def _part_of(annotations: Annotations, ids: set[int]) -> Annotations:
    """Return the annotations of some photographs, in the order of their ids.

    Raises:
        ValueError: a photograph has no annotations, or a list is missing.
    """
    if lacking := {"images", "annotations", "categories"} - annotations.keys():
        raise ValueError(f"COCO annotations lack {', '.join(sorted(lacking))}")
    images = sorted((entry for entry in annotations["images"] if entry["id"] in ids), key=lambda entry: entry["id"])
    if missing := ids - {entry["id"] for entry in images}:
        raise ValueError(f"the annotations do not describe photograph {min(missing)}, which coco_lite.csv names")
    boxes = [entry for entry in annotations["annotations"] if entry["image_id"] in ids]
    return {"images": images, "annotations": boxes, "categories": annotations["categories"]}


def _photograph(part: str, entry: Mapping[str, Any]) -> Image.Image:
    """Return a published photograph, from the archive of val2017 or from its own address.

    Raises:
        ValueError: its size differs from its annotation.
    """
    member = f"{part}2017/{entry['file_name']}"
    whole = assets.data_dir() / assets.manifests()["coco"].path
    if part == "val" and whole.is_file():
        with zipfile.ZipFile(whole) as archive:
            image = open_image(io.BytesIO(archive.read(member)), member)
    else:
        image = open_image(assets.fetch(_manifest(member), progress=False, verify=False), member)
    if image.size != (entry["width"], entry["height"]):
        raise ValueError(f"{member} has {image.size} pixels, COCO says {entry['width']} x {entry['height']}")
    return image


def _manifest(member: str) -> assets.Manifest:
    return assets.Manifest(
        path=f"coco/{member}",
        profile="coco_lite",
        url=f"{_ADDRESS}/{member}",
        origin="COCO 2017",
        licence="the photographs: terms of Flickr; non-commercial research",
        bytes=None,
        sha256="",
    )


def scaled_size(width: int, height: int) -> tuple[int, int]:
    """Return the width and height of a photograph in the archive."""
    scale = min(1, _LONGER_SIDE / max(width, height))
    return round(width * scale), round(height * scale)


def _smaller(image: Image.Image) -> bytes:
    """Return a photograph in the form of the archive: a JPEG file."""
    file = io.BytesIO()
    image.resize(scaled_size(*image.size), Image.Resampling.LANCZOS).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def scaled(annotations: Annotations) -> Annotations:
    """Return COCO's annotations of photographs, converted to the scaled photographs, without outlines."""
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in annotations["images"]}
    return {
        "images": [_described(entry) for entry in annotations["images"]],
        "annotations": [_scaled_box(entry, *sizes[entry["image_id"]]) for entry in annotations["annotations"]],
        "categories": annotations["categories"],
    }


def _described(entry: Mapping[str, Any]) -> dict[str, Any]:
    width, height = scaled_size(entry["width"], entry["height"])
    return {"id": entry["id"], "file_name": entry["file_name"], "width": width, "height": height}


def _scaled_box(entry: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    scaled_width, scaled_height = scaled_size(width, height)
    across, down = scaled_width / width, scaled_height / height
    sides = zip(entry["bbox"], (across, down, across, down), strict=True)
    return {
        **{key: entry[key] for key in ("id", "image_id", "category_id", "iscrowd")},
        "bbox": [round(value * factor, 2) for value, factor in sides],
        "area": round(entry["area"] * across * down, 2),
    }
