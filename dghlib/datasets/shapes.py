"""The embedded benchmark `shapes`: 48 classes of small images, drawn when asked for.

A class is an outline with a surface texture: "striped star", "plain heart". Everything else varies from image
to image: place, size, turn, colours, lighting, background, clutter, an object in front, blur and noise. Many
classes are wanted because the error that output stretching cures grows with their number.

Images are uint8 (N, 3, 32, 32). Labels go round: image k has label k modulo 48.
"""

import numpy as np
import torch
from tqdm import tqdm

from dghlib.choices import look_up
from dghlib.datasets.drawing import OUTLINES, TEXTURES, DrawnObject, Floats, paint
from dghlib.datasets.labelled import LabelledImages

SIZE = 32  # pixels, height and width
CLASSES = tuple(f"{texture} {outline}" for outline in OUTLINES for texture in TEXTURES)

_SEEDS = {"train": 1, "test": 2}
_POSITIONS = ((np.arange(SIZE) + 0.5) / SIZE - 0.5).astype(np.float32)  # of pixel centres, -0.5 to 0.5


def classification(split: str, num_images: int) -> LabelledImages:
    """Draw the first `num_images` of a split, "train" or "test".

    Every image has a random stream of its own: image k is the same whatever `num_images` is, and no image is
    in both splits.

    Raises:
        ValueError: `split` is unknown, or `num_images` is below 1.
    """
    seed = look_up(_SEEDS, split, "split of shapes")
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    images = np.empty((num_images, 3, SIZE, SIZE), dtype=np.uint8)
    for k in tqdm(range(num_images), desc=f"draw shapes {split}", unit="image", delay=3, leave=False):
        images[k] = _draw(np.random.default_rng((seed, k)), k % len(CLASSES))
    labels = torch.arange(num_images) % len(CLASSES)
    return LabelledImages(torch.from_numpy(images), labels, CLASSES)


def _draw(rng: np.random.Generator, label: int) -> np.ndarray:
    """Return one image (3, 32, 32) uint8 of the class."""
    image, mean_colour = _background(rng)
    for _ in range(2):
        paint(image, _clutter(rng))
    subject = _subject(rng, label, mean_colour)
    paint(image, subject)
    paint(image, _occluder(rng, subject))
    image = _blur(image, side=rng.uniform(0, 0.22)) * _light(rng)
    image += rng.uniform(0, 0.06) * rng.standard_normal(image.shape, dtype=np.float32)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _background(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return an image that blends two colours along a ramp with waves, and its mean colour."""
    first = rng.uniform(0, 1, 3)
    second = (first + rng.uniform(-0.35, 0.35, 3)).clip(0, 1)
    wave = np.sin(rng.uniform(6, 40) * _ramp(rng) + rng.uniform(0, 2 * np.pi))
    blend = (0.5 + _ramp(rng) + rng.uniform(0, 0.25) * wave).clip(0, 1)
    image = first[:, None, None] + (second - first)[:, None, None] * blend
    return image.astype(np.float32), (first + second) / 2


def _ramp(rng: np.random.Generator) -> Floats:
    """Return (32, 32): the position of every pixel along a random direction; about -0.5 to 0.5."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * _POSITIONS + np.sin(angle) * _POSITIONS[:, None]


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


def _subject(rng: np.random.Generator, label: int, background: Floats) -> DrawnObject:
    """Return the object that gives the image its label."""
    outline, texture = divmod(label, len(TEXTURES))
    radius = rng.uniform(8.5, 13)
    room = SIZE / 2 - 0.85 * radius  # from the middle, so that little is cut off
    colour = _contrasting(rng, background, 0.2)
    return DrawnObject(
        outline=list(OUTLINES)[outline],
        texture=list(TEXTURES)[texture],
        centre=(SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room)),
        radius=radius,
        angle=rng.uniform(0, 2 * np.pi),
        period=rng.uniform(4, 6.5),
        colours=np.stack([colour, _contrasting(rng, colour, 0.25)]),
    )


def _contrasting(rng: np.random.Generator, colour: Floats, gap: float) -> Floats:
    """Return a colour whose brightness is at least about `gap` below or above that of the given one."""
    brightness = colour.mean()
    below, above = max(brightness - gap, 0), max(1 - brightness - gap, 0)
    position = rng.uniform(0, below + above)
    wanted = position if position < below else brightness + gap + position - below
    tint = rng.uniform(-0.25, 0.25, 3)
    return (wanted + tint - tint.mean()).clip(0, 1)


def _occluder(rng: np.random.Generator, subject: DrawnObject) -> DrawnObject:
    """Return a plain bar whose middle lies near the subject's edge, a little inside or well outside."""
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


def _blur(image: Floats, side: float) -> Floats:
    """Return the image smoothed along both axes with the weights (side, 1 - 2 side, side)."""
    rows = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    image = (1 - 2 * side) * image + side * (rows[:, :-2] + rows[:, 2:])
    columns = np.pad(image, ((0, 0), (0, 0), (1, 1)), mode="edge")
    return (1 - 2 * side) * image + side * (columns[:, :, :-2] + columns[:, :, 2:])


def _light(rng: np.random.Generator) -> Floats:
    """Return the brightness (32, 32) of a light of random strength that falls in from one side."""
    return rng.uniform(0.6, 1.1) * (1 + rng.uniform(0, 0.8) * _ramp(rng))
