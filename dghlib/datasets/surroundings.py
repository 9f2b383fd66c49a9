"""The surroundings of drawn objects: backgrounds, contrasting colours, blur and light.

Images are square, (3, size, size), values from 0 to 1.
"""

import numpy as np

from dghlib.datasets.drawing import Floats


def background(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    """Return an image that blends 2 colours along a ramp with waves, and its mean colour."""
    first = rng.uniform(0, 1, 3)
    second = (first + rng.uniform(-0.35, 0.35, 3)).clip(0, 1)
    wave = np.sin(rng.uniform(6, 40) * _ramp(rng, size) + rng.uniform(0, 2 * np.pi))
    blend = (0.5 + _ramp(rng, size) + rng.uniform(0, 0.25) * wave).clip(0, 1)
    image = first[:, None, None] + (second - first)[:, None, None] * blend
    return image.astype(np.float32), (first + second) / 2


def _ramp(rng: np.random.Generator, size: int) -> Floats:
    """Return (size, size): the position of every pixel along a random direction; about -0.5 to 0.5."""
    angle = rng.uniform(0, 2 * np.pi)
    positions = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)  # of pixel centres, -0.5 to 0.5
    return np.cos(angle) * positions + np.sin(angle) * positions[:, None]


def contrasting(rng: np.random.Generator, colour: Floats, gap: float) -> Floats:
    """Return a colour whose brightness differs from that of the given colour by at least about `gap`."""
    brightness = colour.mean()
    below, above = max(brightness - gap, 0), max(1 - brightness - gap, 0)
    position = rng.uniform(0, below + above)
    wanted = position if position < below else brightness + gap + position - below
    tint = rng.uniform(-0.25, 0.25, 3)
    return (wanted + tint - tint.mean()).clip(0, 1)


def blur(image: Floats, side: float) -> Floats:
    """Return the image smoothed along both axes with the weights (side, 1 - 2 side, side)."""
    rows = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    image = (1 - 2 * side) * image + side * (rows[:, :-2] + rows[:, 2:])
    columns = np.pad(image, ((0, 0), (0, 0), (1, 1)), mode="edge")
    return (1 - 2 * side) * image + side * (columns[:, :, :-2] + columns[:, :, 2:])


def light(rng: np.random.Generator, size: int) -> Floats:
    """Return the brightness (size, size) of a light of random strength from one side."""
    return rng.uniform(0.6, 1.1) * (1 + rng.uniform(0, 0.8) * _ramp(rng, size))
