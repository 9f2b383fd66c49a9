"""The small part of COCO: read from its archive, and made from COCO's own files."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dghlib.choices import UnknownName
from dghlib.datasets import coco_lite, load_annotated
from dghlib.storage import assets

NAME = "coco_lite"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DGHLIB_DATA", str(tmp_path))
    return tmp_path


def described(number: int, width: int, height: int, boxes: list[list[float]], **other: Any) -> dict[str, Any]:
    return {
        "images": [{"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height}],
        "annotations": [
            {"id": 7, "image_id": number, "category_id": 3, "bbox": box, "area": 100.0, "iscrowd": 0} for box in boxes
        ],
        "categories": [{"id": 3, "name": "car"}],
        **other,
    }


def photograph(width: int, height: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_zip(path: Path, members: dict[str, bytes | str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_archive(folder: Path, annotations: dict[str, Any]) -> None:
    write_zip(folder / coco_lite.ARCHIVE, {"coco_lite/instances_val.json": json.dumps(annotations)})


def test_a_missing_archive_is_reported_with_the_command(data_dir: Path) -> None:
    with pytest.raises(assets.MissingAsset, match="dgh data coco_lite"):
        load_annotated(NAME)
    with pytest.raises(UnknownName, match="split of coco_lite 'tset'"):
        load_annotated(NAME, "tset")


def test_errors_of_an_archive_are_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_lite, "_chosen_ids", lambda: {"val": {5}, "train": {6}})
    write_archive(data_dir, described(5, 8, 8, []))
    with pytest.raises(FileNotFoundError, match=r"lacks the image coco_lite/val/000000000005\.jpg"):
        load_annotated(NAME).images[0]
    with pytest.raises(ValueError, match=r"not laid out as the public archive .*instances_train"):
        load_annotated(NAME, "train")
    with pytest.raises(ValueError, match="num_images must be 1 to 1"):
        load_annotated(NAME, "test", 2)
    write_archive(data_dir, {key: value for key, value in described(5, 8, 8, []).items() if key != "categories"})
    with pytest.raises(ValueError, match="annotations lack categories"):
        load_annotated(NAME)
    write_archive(data_dir, described(5, 8, 8, [[0, 0, 1, 1]], categories=[]))
    with pytest.raises(ValueError, match="category 3, of which at least one is not listed"):
        load_annotated(NAME)


@pytest.fixture
def published(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small versions of COCO's own files; photograph 7 is not in the part."""
    monkeypatch.setattr(coco_lite, "_chosen_ids", lambda: {"val": {5}, "train": {6}})
    everything = described(5, 640, 426, [[236.98, 142.51, 24.7, 69.5]])
    everything["images"] += described(7, 50, 50, [])["images"]
    write_zip(
        data_dir / "coco/annotations_trainval2017.zip",
        {
            "annotations/instances_val2017.json": json.dumps(everything),
            "annotations/instances_train2017.json": json.dumps(described(6, 300, 416, [[1, 2, 3, 4]])),
        },
    )
    write_zip(data_dir / "coco/val2017.zip", {"val2017/000000000005.jpg": photograph(640, 426)})
    (data_dir / "coco/train2017").mkdir()
    (data_dir / "coco/train2017/000000000006.jpg").write_bytes(photograph(300, 416))
    real = assets.fetch

    def unverified(manifest: assets.Manifest, **how: bool) -> Path:
        return real(manifest, **{**how, "verify": False})

    monkeypatch.setattr(assets, "fetch", unverified)
    return data_dir


def test_the_archive_is_made_of_the_published_files(published: Path) -> None:
    path = coco_lite.prepare(progress=False)
    assert path == published / coco_lite.ARCHIVE
    data = load_annotated(NAME)
    assert data.image_ids == [5]
    assert data.images[0].shape == (3, 277, 416)
    assert data.annotations["annotations"][0]["bbox"] == [154.04, 92.66, 16.05, 45.19]  # as in the records
    train = load_annotated(NAME, "train")
    assert train.images[0].shape == (3, 416, 300)  # it is small enough
    assert train.annotations["annotations"][0]["bbox"] == [1, 2, 3, 4]
    made = path.stat().st_mtime_ns
    assert coco_lite.prepare(progress=False).stat().st_mtime_ns == made  # it is not made again


def test_a_photograph_that_differs_from_its_annotation_is_refused(published: Path) -> None:
    (published / "coco/train2017/000000000006.jpg").write_bytes(photograph(300, 300))
    with pytest.raises(ValueError, match=r"train2017/000000000006\.jpg has \(300, 300\) pixels, COCO says 300 x 416"):
        coco_lite.prepare(progress=False)
    assert not (published / coco_lite.ARCHIVE).exists()


def test_annotations_without_a_listed_photograph_are_refused(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_lite, "_chosen_ids", lambda: {"val": {5, 99}, "train": {6}})
    with pytest.raises(ValueError, match="do not describe photograph 99"):
        coco_lite.prepare(progress=False)


def test_the_list_matches_the_photographs_of_the_archive() -> None:
    with (assets.MANIFESTS / "coco_lite.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["image_id"] for row in rows}) == len(rows) == 287 + 127
    try:
        test, train = (load_annotated(NAME, split) for split in ("test", "train"))
    except FileNotFoundError as error:
        pytest.skip(f"the photographs are not here: {error}")
    assert [int(row["image_id"]) for row in rows] == test.image_ids + train.image_ids
    assert len(test.annotations["annotations"]) == 2415
