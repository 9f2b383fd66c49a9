"""The embedded benchmark `shapes`: 48 classes of small images, drawn when asked for.

A class is an outline with a surface texture: "striped star", "plain heart". All other properties vary from image to
image: position, size, rotation, colours, lighting, background, clutter, an object in front, blur and noise. There are
many classes because the error that output stretching corrects grows with their number.

Images are uint8 (N, 3, 32, 32). Labels are cyclic: image k has label k modulo 48.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from dghlib.choices import check_at_least, look_up
from dghlib.datasets.drawing import OUTLINES, TEXTURES, DrawnObject, Floats, paint
from dghlib.datasets.labelled import LabelledImages
from dghlib.datasets.surroundings import background, blur, contrasting, light

SIZE = 32  # pixels, height and width
CLASSES = tuple(f"{texture} {outline}" for outline in OUTLINES for texture in TEXTURES)

_SEEDS = {"train": 1, "test": 2}
_PLAIN_SEED = 3


def classification(split: str, num_images: int) -> LabelledImages:
    """Draw the first `num_images` of a split, "train" or "test".

    Every image has its own random stream: image k is the same for every `num_images`, and no image is in both splits.

    Raises:
        ValueError: `split` is unknown, or `num_images` is below 1.
    """
    return chosen(split, _first(num_images))


def chosen(split: str, numbers: Sequence[int]) -> LabelledImages:
    """Draw the images of a split that have these numbers, in this order.

    Raises:
        UnknownName: there is no such split.
    """
    return _drawn(_draw, look_up(_SEEDS, split, "split of shapes"), numbers, f"draw shapes {split}")


def plain_drawings(num_images: int) -> LabelledImages:
    """Draw images with only the object of their class, posed as in a catalogue; neither split has such images.

    Raises:
        ValueError: `num_images` is below 1.
    """
    return _drawn(_draw_plainly, _PLAIN_SEED, _first(num_images), "draw plain shapes")


def _first(num_images: int) -> range:
    check_at_least(1, "num_images", num_images)
    return range(num_images)


def _drawn(
    draw: Callable[[np.random.Generator, int], np.ndarray], seed: int, numbers: Sequence[int], title: str
) -> LabelledImages:
    images = np.empty((len(numbers), 3, SIZE, SIZE), dtype=np.uint8)
    for row, k in enumerate(tqdm(numbers, desc=title, unit="image", delay=3, leave=False)):
        images[row] = draw(np.random.default_rng((seed, k)), k % len(CLASSES))
    labels = torch.tensor(numbers) % len(CLASSES)
    return LabelledImages(torch.from_numpy(images), labels, CLASSES)


def _draw(rng: np.random.Generator, label: int) -> np.ndarray:
    """Return an image (3, 32, 32) uint8 of the class."""
    image, mean_colour = background(rng, SIZE)
    for _ in range(2):
        paint(image, _clutter(rng))
    subject = _subject(rng, label, mean_colour)
    paint(image, subject)
    paint(image, _occluder(rng, subject))
    image = blur(image, side=rng.uniform(0, 0.22)) * light(rng, SIZE)
    image += rng.uniform(0, 0.06) * rng.standard_normal(image.shape, dtype=np.float32)
    return _to_bytes(image)


def _draw_plainly(rng: np.random.Generator, label: int) -> np.ndarray:
    """Return an image (3, 32, 32) uint8 of the class: only the object, large, centred and upright."""
    image, mean_colour = background(rng, SIZE)
    subject = dataclasses.replace(
        _subject(rng, label, mean_colour),
        centre=(SIZE / 2 + rng.uniform(-1, 1), SIZE / 2 + rng.uniform(-1, 1)),
        radius=rng.uniform(11.5, 13),
        angle=rng.uniform(-0.1, 0.1),
        period=6.0,
    )
    paint(image, subject)
    return _to_bytes(image)


def _to_bytes(image: Floats) -> np.ndarray:
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _clutter(rng: np.random.Generator) -> DrawnObject:
    return DrawnObject(
        outline=list(OUTLINES)[rng.integers(len(OUTLINES))],
        texture="plain",
        centre=(rng.uniform(0, SIZE), rng.uniform(0, SIZE)),
        radius=rng.uniform(2, 5),
        angle=rng.uniform(0, 2 * np.pi),
        period=1.0,
        colours=rng.uniform(0, 1, (2, 3)),
    )


def _subject(rng: np.random.Generator, label: int, behind: Floats) -> DrawnObject:
    """Return the object that gives the image its label."""
    outline, texture = divmod(label, len(TEXTURES))
    radius = rng.uniform(8.5, 13)
    room = SIZE / 2 - 0.85 * radius  # from the centre, so that little is cut off
    colour = contrasting(rng, behind, 0.2)
    return DrawnObject(
        outline=list(OUTLINES)[outline],
        texture=list(TEXTURES)[texture],
        centre=(SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room)),
        radius=radius,
        angle=rng.uniform(0, 2 * np.pi),
        period=rng.uniform(4, 6.5),
        colours=np.stack([colour, contrasting(rng, colour, 0.25)]),
    )


def _occluder(rng: np.random.Generator, subject: DrawnObject) -> DrawnObject:
    """Return a plain bar whose centre lies near the subject's edge, slightly inside or well outside."""
    direction, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.6) * subject.radius
    x, y = subject.centre
    return DrawnObject(
        outline="bar",
        texture="plain",
        centre=(x + distance * np.cos(direction), y + distance * np.sin(direction)),
        radius=rng.uniform(4, 9),
        angle=rng.uniform(0, 2 * np.pi),
        period=1.0,
        colours=rng.uniform(0, 1, (2, 3)),
    )
