"""Mean average precision: by hand, of the annotations themselves, and with wrong annotations and outputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dghlib.datasets import scenes
from dghlib.evaluation import found_boxes, mean_average_precision
from dghlib.evaluation.detection import NoBoxes, save_results


def annotated(boxes: list[dict[str, Any]], categories: tuple[int, ...] = (1,)) -> dict[str, list[dict[str, Any]]]:
    """Return annotations of 2 images of 100x100 pixels."""
    defaults = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1600}
    return {
        "images": [{"id": k, "height": 100, "width": 100, "file_name": f"{k}.png"} for k in (1, 2)],
        "categories": [{"id": number, "name": str(number)} for number in categories],
        "annotations": [{"id": k, **defaults, **box} for k, box in enumerate(boxes, 1)],
    }


def box(left: float, *, image: int = 1, category: int = 1, score: float = 0.9, width: float = 40) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [left, 0, width, 40], "score": score}


def test_the_annotated_boxes_score_100() -> None:
    data = scenes.detection("test", 20)
    truth = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        for entry in data.annotations["annotations"]
    ]
    percent = mean_average_precision(data.annotations, truth)
    assert percent["map"] == percent["map50"] == percent["map_small"] == pytest.approx(100)


def test_precision_by_hand() -> None:
    annotations = annotated([{"bbox": [0, 0, 40, 40]}, {"bbox": [50, 0, 40, 40]}])
    # The box with the better score is wrong, the other right: precision 1/2 up to recall 1/2, then 0. COCO uses 101
    # recalls, 0 to 1, of which 51 are up to 1/2.
    found = [box(20, image=2, score=0.9), box(0, score=0.8)]
    assert mean_average_precision(annotations, found)["map"] == pytest.approx(100 * 0.5 * 51 / 101)


def test_overlap_counts_at_ten_thresholds() -> None:
    annotations = annotated([{"bbox": [0, 0, 40, 40]}])
    found = [box(0, width=29)]  # 29 of 40 pixels overlap: 0.725, above 0.5, 0.55, ... 0.7
    percent = mean_average_precision(annotations, found)
    assert percent["map"] == pytest.approx(50)
    assert percent["map50"] == pytest.approx(100)
    assert percent["map75"] == 0


def test_precision_is_split_by_object_size() -> None:
    annotations = annotated([{"bbox": [0, 0, 10, 10], "area": 100}, {"bbox": [50, 0, 40, 40]}])
    percent = mean_average_precision(annotations, [box(50)])
    assert (percent["map_small"], percent["map_medium"]) == (0, pytest.approx(100))
    assert "map_large" not in percent


def test_boxes_in_a_crowd_do_not_count() -> None:
    crowd = {"bbox": [50, 0, 40, 40], "iscrowd": 1}
    annotations = annotated([{"bbox": [0, 0, 40, 40]}, crowd])
    assert mean_average_precision(annotations, [box(50, score=0.95), box(0)])["map"] == pytest.approx(100)


def test_ids_of_categories_may_have_gaps() -> None:
    annotations = annotated(
        [{"bbox": [0, 0, 40, 40], "category_id": 3}, {"bbox": [50, 0, 40, 40], "category_id": 90}], (3, 90)
    )
    assert mean_average_precision(annotations, [box(0, category=3)])["map"] == pytest.approx(50)


def test_no_boxes_score_0() -> None:
    assert mean_average_precision(annotated([{"bbox": [0, 0, 40, 40]}]), [])["map"] == 0


@pytest.mark.parametrize("boxes", [[], [{"bbox": [0, 0, 40, 40], "iscrowd": 1}]], ids=["no boxes", "only a crowd"])
def test_annotations_without_objects_have_no_precision(boxes: list[dict[str, Any]]) -> None:
    with pytest.raises(NoBoxes, match="no box"):
        mean_average_precision(annotated(boxes), [])


def test_a_box_in_an_unknown_image_is_named() -> None:
    with pytest.raises(ValueError, match="image 7"):
        mean_average_precision(annotated([{"bbox": [0, 0, 40, 40]}]), [box(0, image=7)])


def answer(corners: list[list[float]]) -> dict[str, Tensor]:
    count = len(corners)
    boxes = torch.tensor(corners).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.full((count,), 3), "scores": torch.full((count,), 0.5)}


def test_outputs_become_coco_results(tmp_path: Path) -> None:
    def detector(images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert all(float(image.max()) <= 1 for image in images)
        return [answer([[1.0, 2.0, 4.0, 8.0]]), answer([])][: len(images)]

    images = torch.full((3, 3, 8, 8), 255, dtype=torch.uint8)
    found = found_boxes(detector, images, [5, 6, 9], batch_size=2)
    expected = {"category_id": 3, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    assert found == [{"image_id": 5, **expected}, {"image_id": 9, **expected}]
    save_results(tmp_path / "results.json", found)
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_boxes_that_are_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="image 5"):
        found_boxes(lambda _: [answer([[0.0, 0.0, float("nan"), 1.0]])], torch.zeros(1, 3, 8, 8), [5])
