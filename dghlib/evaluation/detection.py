"""Mean average precision of a detector, as COCO's own tool computes it.

Boxes are kept in COCO's results format: a list of {image_id, category_id, bbox, score}, with `bbox` as x, y, width,
height in pixels.
"""

import contextlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dghlib.storage.records import write_atomically

Found = list[dict[str, Any]]
Detector = Callable[[list[Tensor]], list[dict[str, Tensor]]]

# The position of COCOeval's results, and our names. "Small" is below 32^2 pixels, "large" above 96^2.
_PLACES = {"map": 0, "map50": 1, "map75": 2, "map_small": 3, "map_medium": 4, "map_large": 5}


class NoBoxes(ValueError):
    """The annotations hold no box of any object, so there is nothing to find."""


@torch.inference_mode()
def found_boxes(
    detector: Detector,
    images: Sequence[Tensor] | Tensor,
    image_ids: Sequence[int],
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> Found:
    """Return the objects that a detector finds in images, in COCO's results format.

    Args:
        detector: takes a list of images (3, H, W) from 0 to 1, returns for each `boxes` (n, 4) as x1, y1, x2, y2,
            `labels` (n,), which are ids of categories, and `scores` (n,).
        images: uint8, (3, H, W) each.
        image_ids: COCO's id of every image.
        batch_size: images that pass at once; it does not affect the result.
        progress: whether to show a bar.

    Raises:
        ValueError: boxes or scores are NaN or infinite; the message names the image.
    """
    found: Found = []
    starts = range(0, len(image_ids), batch_size)
    for start in tqdm(starts, desc="boxes", unit="batch", disable=not progress, leave=False):
        ids = image_ids[start : start + batch_size]
        batch = [images[start + k].float() / 255 for k in range(len(ids))]
        for image_id, answer in zip(ids, detector(batch), strict=True):
            found += _as_results(image_id, answer)
    return found


def _as_results(image_id: int, answer: dict[str, Tensor]) -> Found:
    boxes, scores = answer["boxes"].cpu().double(), answer["scores"].cpu()
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError(f"boxes or scores found in image {image_id} are NaN or infinite")
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(answer["labels"].tolist(), boxes.tolist(), scores.tolist(), strict=True)
    ]


def save_results(path: Path, found: Found) -> None:
    """Write boxes as COCO's results file, which its tools and servers read."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(json.dumps(found)))


def mean_average_precision(annotations: dict[str, list[dict[str, Any]]], found: Found) -> dict[str, float]:
    """Return precision in percent: `map` (the mean over overlaps of 50 to 95 %), `map50`, `map75`, and by size.

    `map_small`, `map_medium` and `map_large` are left out if there are no objects of that size. Crowds count as in
    COCO: boxes there are neither right nor wrong. Ids of categories may have gaps.

    Raises:
        ImportError: pycocotools is not installed: pip install 'dghlib[detection]'.
        NoBoxes: there is nothing to find.
        ValueError: a box was found in an image that is not listed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not any(not annotation.get("iscrowd") for annotation in annotations["annotations"]):
        raise NoBoxes("the annotations hold no box of an object (crowds do not count): precision has no meaning")
    known = {entry["id"] for entry in annotations["images"]}
    if strange := {box["image_id"] for box in found} - known:
        raise ValueError(f"boxes were found in image {min(strange)}, which is not among the {len(known)} annotated")
    if not found:
        return {name: 0.0 for name, value in _PLACES.items() if value < 3}
    with contextlib.redirect_stdout(io.StringIO()):  # the tool prints its progress
        truth = COCO()
        truth.dataset = {"info": {}, **annotations}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(box) for box in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    percent = {name: 100 * float(evaluation.stats[place]) for name, place in _PLACES.items()}
    return {name: value for name, value in percent.items() if value >= 0 and not math.isnan(value)}
