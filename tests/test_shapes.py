"""The embedded benchmark: its images, and that they are reproducible."""

from typing import Any

import numpy as np
import pytest
import torch

from dghlib.choices import UnknownName
from dghlib.datasets import drawing, shapes
from dghlib.datasets.drawing import OUTLINES, TEXTURES, DrawnObject, paint

CORNERS = np.linspace(-2, 2, 161, dtype=np.float32)
X, Y = np.meshgrid(CORNERS, CORNERS)


def painted(size: int = 16, **changes: Any) -> np.ndarray:
    """Return a black image (3, size, size) with a white square, or whatever `changes` make of it."""
    settings: dict[str, Any] = {
        "outline": "square",
        "texture": "plain",
        "centre": (8.0, 8.0),
        "radius": 5.0,
        "angle": 0.0,
        "period": 1.0,
        "colours": np.array([[1, 1, 1], [0.5, 0.5, 0.5]]),
    }
    image = np.zeros((3, size, size), dtype=np.float32)
    paint(image, DrawnObject(**{**settings, **changes}))
    return image


def test_images_have_the_promised_form() -> None:
    data = shapes.classification("train", 100)
    assert data.images.shape == (100, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert len(data.classes) == len(set(data.classes)) == 48
    assert data.classes[int(data.labels[17])] == "striped star"


def test_images_are_reproducible() -> None:
    first, second = shapes.classification("test", 60), shapes.classification("test", 60)
    assert first.images.equal(second.images)


def test_an_image_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = shapes.classification("train", 5), shapes.classification("train", 60)
    assert few.images.equal(many.images[:5])
    assert few.labels.equal(many.labels[:5])


def test_no_image_is_drawn_twice() -> None:
    both = [shapes.classification(split, 96).images for split in ("train", "test")]
    assert len({image.numpy().tobytes() for image in torch.cat(both)}) == 192


def test_every_class_is_drawn_equally_often() -> None:
    labels = shapes.classification("test", 2 * 48).labels
    assert labels.bincount().tolist() == [2] * 48


def test_images_vary_in_brightness_and_colour() -> None:
    means = shapes.classification("train", 96).images.float().mean((2, 3)) / 255
    assert 0.3 < means.mean() < 0.6
    assert (means.std(0) > 0.1).all()


def test_an_unknown_split_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'tset' \(did you mean 'test'"):
        shapes.classification("tset", 1)


@pytest.mark.parametrize("num_images", [0, -3])
def test_no_images_is_an_error(num_images: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {num_images}"):
        shapes.classification("train", num_images)


@pytest.mark.parametrize("outline", OUTLINES)
def test_an_outline_has_its_radius_and_area(outline: str) -> None:
    inside = OUTLINES[outline](X, Y)
    assert np.hypot(X, Y)[inside].max() < drawing.REACH
    assert 1.2 < inside.mean() * 16 < 2.5  # its area: no outline is much smaller than the others


def test_outlines_differ_in_any_orientation() -> None:
    # The share of ink at every distance from the centre does not depend on the orientation.
    distance = np.hypot(X, Y)
    rings = [(distance >= start) & (distance < start + 0.1) for start in np.arange(0, 1.2, 0.1)]
    profiles = [[region(X, Y)[ring].mean() for ring in rings] for region in OUTLINES.values()]
    gaps = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(profiles) for b in profiles[:i]]
    assert min(gaps) > 0.1


@pytest.mark.parametrize("texture", [name for name in TEXTURES if name != "plain"])
def test_a_texture_shows_both_colours(texture: str) -> None:
    pattern = TEXTURES[texture](X, Y)
    assert 0.3 < pattern.mean() < 0.7
    assert (pattern == TEXTURES[texture](X + 1, Y)).mean() > 0.99  # 1 period per unit


def test_an_object_covers_its_area() -> None:
    image = painted(outline="disc")
    assert image.sum() / 3 == pytest.approx(np.pi * (0.85 * 5) ** 2, rel=0.05)
    assert image[:, 8, 8].tolist() == [1, 1, 1]
    assert image[:, 2, 2].tolist() == [0, 0, 0]


def test_edges_are_smooth() -> None:
    assert 0 < painted(centre=(8.4, 8.0))[0, 8, 12] < 1


def test_an_arrow_points_right_until_it_is_turned() -> None:
    across = painted(outline="arrow")[0].sum(0)  # ink in every column
    assert 8 <= across.argmax() <= 9  # the head is widest a little right of the centre
    down = painted(outline="arrow", angle=np.pi / 2)[0].sum(1)
    np.testing.assert_allclose(down, across, atol=1)


def test_rotation_keeps_the_area() -> None:
    assert painted(angle=np.pi / 4).sum() == pytest.approx(painted().sum(), rel=0.06)


@pytest.mark.parametrize("outline", OUTLINES)
def test_objects_inside_the_image_are_not_cropped(outline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: dict[str, Any] = {"outline": outline, "size": 24, "centre": (11.9, 12.6), "radius": 8.9, "angle": 0.8}
    image = painted(**looks)
    monkeypatch.setattr(drawing, "REACH", 5)
    np.testing.assert_array_equal(image, painted(**looks))


def test_both_colours_of_a_texture_are_painted() -> None:
    image = painted(texture="striped", period=4.0)
    assert {0.0, 0.5, 1.0} <= set(np.unique(image).tolist())


@pytest.mark.parametrize("centre", [(-40.0, 8.0), (8.0, 99.0)])
def test_an_object_outside_the_image_is_not_drawn(centre: tuple[float, float]) -> None:
    assert painted(centre=centre).sum() == 0


def test_an_object_is_cropped_at_the_border() -> None:
    whole, half = painted(), painted(centre=(0.0, 8.0))
    assert half.sum() == pytest.approx(whole.sum() / 2, rel=0.1)


def test_plain_drawings_show_one_object_and_belong_to_no_split() -> None:
    plain = shapes.plain_drawings(2)
    assert plain.labels.tolist() == [0, 1]
    assert torch.equal(plain.images[:1], shapes.plain_drawings(1).images)
    for split in ("train", "test"):
        assert not torch.equal(plain.images, shapes.classification(split, 2).images)
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        shapes.plain_drawings(0)
