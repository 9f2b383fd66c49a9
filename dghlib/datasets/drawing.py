"""Draw flat objects with an outline and a surface texture onto an image.

An outline is a region of the plane within `REACH` of the origin; a texture is a pattern of 2 colours that repeats with
every unit. Both are functions of coordinates, so an object can have any position, size and rotation. Edges are smooth,
because a pixel is the mean of `SUPERSAMPLING`**2 points. Positions and sizes are in pixels, x to the right and y
downwards from the image's upper left corner; angles are in radians.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Booleans = NDArray[np.bool_]
Region = Callable[[Floats, Floats], Booleans]

REACH = 1.2
SUPERSAMPLING = 3


def _disc(x: Floats, y: Floats) -> Booleans:
    return x**2 + y**2 < 0.85**2


def _ring(x: Floats, y: Floats) -> Booleans:
    return np.abs(np.hypot(x, y) - 0.72) < 0.26


def _square(x: Floats, y: Floats) -> Booleans:
    return np.maximum(np.abs(x), np.abs(y)) < 0.78


def _triangle(x: Floats, y: Floats) -> Booleans:
    return np.maximum(y, 0.866 * np.abs(x) - 0.5 * y) < 0.52


def _star(x: Floats, y: Floats) -> Booleans:
    # Fold the plane into one of 10 equal sectors; there, the edge between tip and notch is a straight line.
    sector = np.pi / 5
    angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    return along + 1.9 * across < 1.0


def _cross(x: Floats, y: Floats) -> Booleans:
    across, along = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return (across < 0.33) & (along < 0.95)


def _crescent(x: Floats, y: Floats) -> Booleans:
    return (x**2 + y**2 < 0.95**2) & ((x - 0.5) ** 2 + y**2 > 0.68**2)


def _heart(x: Floats, y: Floats) -> Booleans:
    return x**2 + (1.15 * y + 0.46 * np.sqrt(np.abs(x)) - 0.1) ** 2 < 0.8**2


def _arrow(x: Floats, y: Floats) -> Booleans:
    head = (x > 0.05) & (np.abs(y) < 0.85 * (0.95 - x))
    return head | ((np.abs(x + 0.4) < 0.5) & (np.abs(y) < 0.3))


def _bar(x: Floats, y: Floats) -> Booleans:
    return (np.abs(x) < 0.98) & (np.abs(y) < 0.38)


def _hourglass(x: Floats, y: Floats) -> Booleans:
    return (np.abs(y) < 0.85) & (np.abs(x) < 0.12 + 0.72 * np.abs(y))


def _clover(x: Floats, y: Floats) -> Booleans:
    return np.hypot(x, y) < 0.62 + 0.33 * np.cos(3 * np.arctan2(y, x))


def _plain(u: Floats, v: Floats) -> Booleans:
    return np.ones_like(u, dtype=bool)


def _striped(u: Floats, v: Floats) -> Booleans:
    return u % 1 < 0.5


def _checkered(u: Floats, v: Floats) -> Booleans:
    return (u % 1 < 0.5) ^ (v % 1 < 0.5)


def _spotted(u: Floats, v: Floats) -> Booleans:
    return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 > 0.32**2


OUTLINES: dict[str, Region] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
    "bar": _bar,
    "hourglass": _hourglass,
    "clover": _clover,
}

TEXTURES: dict[str, Region] = {
    "plain": _plain,
    "striped": _striped,
    "checkered": _checkered,
    "spotted": _spotted,
}


@dataclass(frozen=True, kw_only=True)
class DrawnObject:
    """An object to paint: its position and appearance.

    Args:
        outline, texture: names in OUTLINES and TEXTURES.
        centre: (x, y). radius: the outline's unit in pixels.
        angle: rotation of the outline together with its texture. period: the texture's unit in pixels.
        colours: (2, 3), RGB from 0 to 1: where the texture is True, and where it is False.
    """

    outline: str
    texture: str
    centre: tuple[float, float]
    radius: float
    angle: float
    period: float
    colours: Floats


def paint(image: Floats, drawn: DrawnObject) -> None:
    """Paint an object onto an image (3, H, W), in place. It may extend beyond the image, or lie outside."""
    rows = _window(drawn.centre[1], drawn.radius, image.shape[1])
    columns = _window(drawn.centre[0], drawn.radius, image.shape[2])
    x = _sample_points(columns) - drawn.centre[0]
    y = _sample_points(rows)[:, None] - drawn.centre[1]
    cos, sin = np.cos(drawn.angle), np.sin(drawn.angle)
    x, y = cos * x + sin * y, cos * y - sin * x  # in coordinates of an upright object at the origin
    inside = OUTLINES[drawn.outline](x / drawn.radius, y / drawn.radius)
    pattern = TEXTURES[drawn.texture](x / drawn.period, y / drawn.period)
    first, second = _coverage(inside & pattern), _coverage(inside & ~pattern)
    part = image[:, rows.start : rows.stop, columns.start : columns.stop]
    part *= 1 - first - second
    part += first * drawn.colours[0, :, None, None] + second * drawn.colours[1, :, None, None]


def _window(centre: float, radius: float, size: int) -> range:
    """Return the pixels that an object can cover along an axis of an image."""
    first, last = int(centre - REACH * radius), int(centre + REACH * radius)
    return range(min(max(first, 0), size), min(max(last + 1, 0), size))


def _sample_points(pixels: range) -> Floats:
    numbers = np.arange(pixels.start * SUPERSAMPLING, pixels.stop * SUPERSAMPLING, dtype=np.float32)
    return (numbers + np.float32(0.5)) / SUPERSAMPLING


def _coverage(inside: Booleans) -> Floats:
    """Return how much of every pixel is inside, from 0 to 1."""
    points = inside.view(np.uint8)
    columns = np.add.reduce([points[:, start::SUPERSAMPLING] for start in range(SUPERSAMPLING)])
    counts = np.add.reduce([columns[start::SUPERSAMPLING] for start in range(SUPERSAMPLING)])
    return (counts / SUPERSAMPLING**2).astype(np.float32)
