"""The embedded benchmark for detection: scenes of 1 to 4 drawn objects, with boxes in COCO's format.

An object's category is its outline. Position, size, rotation, texture, colours, lighting, background, clutter, blur and
noise vary. Objects hardly cover each other, and lie almost completely inside the image.

Images are uint8 (N, 3, 64, 64); sides of boxes are 12 to 40 pixels.
"""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dghlib.choices import look_up
from dghlib.datasets.annotated import AnnotatedImages
from dghlib.datasets.drawing import TEXTURES, DrawnObject, Floats, paint
from dghlib.datasets.surroundings import background, blur, contrasting, light

SIZE = 64  # pixels, height and width
CATEGORIES = ("disc", "square", "triangle", "star", "cross", "heart")

_SEEDS = {"train": 3, "test": 4}
_MOST_OBJECTS = 4
_TRIES = 8  # to find a free position for an object
_MOST_COVERED = 0.1  # largest covered share of both boxes


def detection(split: str, num_images: int) -> AnnotatedImages:
    """Draw the first `num_images` scenes of a split, "train" or "test".

    Every scene has its own random stream: scene k is the same for every `num_images`, and no scene is in both splits.
    Image ids count from 1, and so do category ids, in the order of CATEGORIES.

    Raises:
        ValueError: `split` is unknown, or `num_images` is below 1.
    """
    seed = look_up(_SEEDS, split, "split of shapes")
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    images = np.empty((num_images, 3, SIZE, SIZE), dtype=np.uint8)
    annotations: list[dict[str, Any]] = []
    for k in tqdm(range(num_images), desc=f"draw scenes {split}", unit="image", delay=3, leave=False):
        images[k], found = _draw(np.random.default_rng((seed, k)))
        annotations += [{"id": len(annotations) + n, "image_id": k + 1, **entry} for n, entry in enumerate(found, 1)]
    described = [
        {"id": k + 1, "file_name": f"{split}_{k:06}.png", "height": SIZE, "width": SIZE} for k in range(num_images)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, 1)]
    return AnnotatedImages(
        torch.from_numpy(images), {"images": described, "annotations": annotations, "categories": categories}
    )


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return a scene (3, 64, 64) uint8, and its annotations without their ids."""
    image, mean_colour = background(rng, SIZE)
    for _ in range(2):
        paint(image, _clutter(rng))
    annotations: list[dict[str, Any]] = []
    for _ in range(rng.integers(1, _MOST_OBJECTS + 1)):
        for _ in range(_TRIES):
            category, drawn = _object(rng, mean_colour)
            annotation = _annotated(category, drawn)
            if not any(_covers(annotation["bbox"], other["bbox"]) for other in annotations):
                paint(image, drawn)
                annotations.append(annotation)
                break
    image = blur(image, side=rng.uniform(0, 0.2)) * light(rng, SIZE)
    image += rng.uniform(0, 0.04) * rng.standard_normal(image.shape, dtype=np.float32)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8), annotations


def _clutter(rng: np.random.Generator) -> DrawnObject:
    return DrawnObject(
        outline="bar",
        texture="plain",
        centre=(rng.uniform(0, SIZE), rng.uniform(0, SIZE)),
        radius=rng.uniform(2, 5),
        angle=rng.uniform(0, 2 * np.pi),
        period=1.0,
        colours=rng.uniform(0, 1, (2, 3)),
    )


def _object(rng: np.random.Generator, behind: Floats) -> tuple[int, DrawnObject]:
    """Return an object and the id of its category."""
    category = int(rng.integers(len(CATEGORIES)))
    radius = rng.uniform(7, 18)
    colour = contrasting(rng, behind, 0.25)
    drawn = DrawnObject(
        outline=CATEGORIES[category],
        texture=list(TEXTURES)[rng.integers(len(TEXTURES))],
        centre=(rng.uniform(0.8 * radius, SIZE - 0.8 * radius), rng.uniform(0.8 * radius, SIZE - 0.8 * radius)),
        radius=radius,
        angle=rng.uniform(0, 2 * np.pi),
        period=rng.uniform(4, 6.5),
        colours=np.stack([colour, contrasting(rng, colour, 0.2)]),
    )
    return category + 1, drawn


def _annotated(category: int, drawn: DrawnObject) -> dict[str, Any]:
    """Return an object's box around the pixels that are at least half covered, and the number of these pixels."""
    alone = np.zeros((3, SIZE, SIZE), dtype=np.float32)
    paint(alone, DrawnObject(**{**vars(drawn), "colours": np.ones((2, 3))}))
    rows, columns = np.nonzero(alone[0] >= 0.5)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
    return {"category_id": category, "bbox": box, "area": len(rows), "iscrowd": 0}


def _covers(box: list[int], other: list[int]) -> bool:
    """Return whether 2 boxes share more than a small part of the smaller one."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    smaller = min(box[2] * box[3], other[2] * other[3])
    return max(width, 0) * max(height, 0) > _MOST_COVERED * smaller
