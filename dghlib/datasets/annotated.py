"""Images with boxes: the common form of all data sets for detection.

Annotations are COCO's: a dictionary with the lists `images`, `annotations` and `categories`. An image has an `id`; an
annotation has an `id`, the `image_id` and `category_id` to which it belongs, a `bbox` (x, y, width, height) in pixels,
an `area`, and `iscrowd`, which is 1 if a box holds a crowd that nobody counted.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Annotations = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class AnnotatedImages:
    """Images of individual sizes, with the boxes of the objects in them.

    Args:
        images: uint8 RGB (3, H, W) each; files are read only when requested.
        annotations: in COCO's format; entry k of `annotations["images"]` describes image k.

    Raises:
        ValueError: a list is missing, the numbers of images and entries differ, or an annotation names an image or a
            category that is not listed, or its box is not 4 numbers.
    """

    images: Sequence[Tensor] | Tensor
    annotations: Annotations

    def __post_init__(self) -> None:
        if missing := {"images", "annotations", "categories"} - self.annotations.keys():
            raise ValueError(f"COCO annotations lack {', '.join(sorted(missing))}")
        if len(self.images) != len(self.annotations["images"]):
            raise ValueError(f"{len(self.images)} images, but {len(self.annotations['images'])} are described")
        known = {key: {entry["id"] for entry in self.annotations[key]} for key in ("images", "categories")}
        for annotation in self.annotations["annotations"]:
            if annotation["image_id"] not in known["images"] or annotation["category_id"] not in known["categories"]:
                raise ValueError(
                    f"annotation {annotation['id']} is of image {annotation['image_id']} and category "
                    f"{annotation['category_id']}, of which at least one is not listed"
                )
            if len(annotation["bbox"]) != 4:
                raise ValueError(f"the box of annotation {annotation['id']} is {annotation['bbox']}, not x, y, w, h")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_ids(self) -> list[int]:
        """Return the id of every image, in their order."""
        return [entry["id"] for entry in self.annotations["images"]]

    def part(self, indices: Sequence[int]) -> "AnnotatedImages":
        """Return some of the images with their annotations."""
        entries = [self.annotations["images"][index] for index in indices]
        ids = {entry["id"] for entry in entries}
        kept = [annotation for annotation in self.annotations["annotations"] if annotation["image_id"] in ids]
        images = self.images[list(indices)] if isinstance(self.images, Tensor) else _Part(self.images, indices)
        return AnnotatedImages(images, {**self.annotations, "images": entries, "annotations": kept})

    def target(self, index: int) -> dict[str, Tensor]:
        """Return the training target of torchvision's detectors: boxes (n, 4) as x1, y1, x2, y2; labels (n,).

        A label is a category's id. Crowds and boxes without an area are left out, since they are not single objects.
        """
        found = self._of_image.get(self.annotations["images"][index]["id"], [])
        whole = [entry for entry in found if not entry.get("iscrowd") and min(entry["bbox"][2:]) > 0]
        boxes = torch.tensor([entry["bbox"] for entry in whole], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return {"boxes": boxes, "labels": torch.tensor([entry["category_id"] for entry in whole], dtype=torch.int64)}

    @cached_property
    def _of_image(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self.annotations["annotations"]:
            found[annotation["image_id"]].append(annotation)
        return found


class _Part(Sequence[Tensor]):
    """Some of many images, which are read only when requested."""

    def __init__(self, images: Sequence[Tensor], indices: Sequence[int]):
        self.images, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.images[self.indices[index]]
