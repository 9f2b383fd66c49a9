"""The benchmark for detection, and annotated images from any source."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dghlib.datasets import AnnotatedImages, load_annotated, scenes
from dghlib.storage.assets import DATA_DIR_VARIABLE, MissingAsset


def test_scenes_have_the_promised_form() -> None:
    data = scenes.detection("train", 30)
    assert torch.as_tensor(data.images).shape == (30, 3, 64, 64)
    for k in range(30):
        target = data.target(k)
        assert 1 <= len(target["labels"]) <= 4
        assert target["boxes"].min() >= 0
        assert target["boxes"].max() <= 64
        assert set(target["labels"].tolist()) <= set(range(1, 7))


def test_scenes_are_reproducible_and_in_one_split() -> None:
    few, many, others = (
        scenes.detection("train", 3),
        scenes.detection("train", 5),
        scenes.detection("test", 3),
    )
    assert torch.as_tensor(few.images).equal(torch.as_tensor(many.images[:3]))
    assert few.annotations["annotations"] == many.annotations["annotations"][: len(few.annotations["annotations"])]
    assert not torch.as_tensor(few.images).equal(torch.as_tensor(others.images))


def test_a_box_encloses_its_object_tightly() -> None:
    disc = scenes.DrawnObject(
        outline="disc", texture="striped", centre=(30.0, 20.0), radius=10.0, angle=0.3, period=4.0,
        colours=np.ones((2, 3)),
    )  # fmt: skip
    annotation = scenes._annotated(1, disc)
    np.testing.assert_allclose(annotation["bbox"], [21.5, 11.5, 17, 17], atol=1)
    assert annotation["area"] == pytest.approx(np.pi * 8.5**2, rel=0.05)


def annotations(boxes: list[dict], image_count: int = 2) -> dict:
    return {
        "images": [{"id": 10 + k, "file_name": f"{k}.jpg"} for k in range(image_count)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "brush"}],
        "annotations": [{"id": k, "iscrowd": 0, "category_id": 3, **box} for k, box in enumerate(boxes)],
    }


def test_crowds_and_flat_boxes_are_not_targets() -> None:
    boxes = [
        {"image_id": 10, "bbox": [1, 2, 3, 4]},
        {"image_id": 10, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        {"image_id": 10, "bbox": [1, 2, 0, 4]},
    ]
    data = AnnotatedImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), annotations(boxes))
    assert data.target(0)["boxes"].tolist() == [[1, 2, 4, 6]]
    assert data.target(1)["boxes"].shape == (0, 4)  # an image without objects
    assert len(data.part([1]).annotations["annotations"]) == 0


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"image_id": 99, "bbox": [0, 0, 1, 1]}, "image 99"),
        ({"image_id": 10, "bbox": [0, 0, 1, 1], "category_id": 4}, "category 4"),
        ({"image_id": 10, "bbox": [0, 0, 1]}, "not x, y, w, h"),
    ],
)
def test_wrong_annotations_are_refused(box: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnnotatedImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), annotations([box]))


def test_images_and_their_descriptions_must_agree_in_number() -> None:
    with pytest.raises(ValueError, match="1 images, but 2 are described"):
        AnnotatedImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), annotations([]))
    with pytest.raises(ValueError, match="categories"):
        AnnotatedImages(torch.zeros(0, 3, 8, 8), {"images": [], "annotations": []})


def write_coco(folder: Path, modes: list[str | None]) -> None:
    """Write small public archives: 1 photograph for each of PIL's modes, or none."""
    (folder / "coco").mkdir()
    described = annotations([{"image_id": 10, "bbox": [0, 0, 4, 4], "area": 16}], len(modes))
    with zipfile.ZipFile(folder / "coco/annotations_trainval2017.zip", "w") as archive:
        archive.writestr("annotations/instances_val2017.json", json.dumps(described))
    with zipfile.ZipFile(folder / "coco/val2017.zip", "w") as archive:
        for k, mode in enumerate(modes):
            if mode is not None:
                with archive.open(f"val2017/{k}.jpg", "w") as file:
                    Image.new(mode, (12, 8 + k), 128 if mode == "L" else (200, 100, 50, 255)[: len(mode)]).save(
                        file, "png" if mode == "RGBA" else "jpeg"
                    )


def test_coco_is_read_from_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(sys.modules["dghlib.datasets.coco"], "CALIBRATION_IMAGES", 1)
    write_coco(tmp_path, ["RGB", "L", "RGBA", None, "RGB"])
    data = load_annotated("coco", "test")
    assert [data.images[k].shape for k in range(3)] == [(3, 8, 12), (3, 9, 12), (3, 10, 12)]  # also grey and RGBA
    assert data.target(0)["labels"].tolist() == [3]
    with pytest.raises(FileNotFoundError, match=r"lacks the image val2017/3\.jpg"):
        data.images[3]
    assert load_annotated("coco", "train").image_ids == [14]


def test_missing_coco_is_reported_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(MissingAsset, match="dgh data coco"):
        load_annotated("coco", "test")
