"""Images: pixels and back, smoothing compared with a convolution, crops by hand, gradients, files."""

import pytest
import torch
from torch.nn.functional import conv2d

from dghlib import images

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def test_pixels_are_equal_after_normalising_and_back():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    assert torch.equal(images.to_pixels(images.normalise(pixels, MEAN, STD), MEAN, STD), pixels)


def test_normalise_by_hand():
    pixels = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([(1 - 0.5) / 0.2, (0 - 0.4) / 0.25, (0.2 - 0.3) / 0.3])
    torch.testing.assert_close(images.normalise(pixels, MEAN, STD).flatten(), expected)


def test_smoothing_equals_the_normalised_gaussian_convolution():
    x = torch.randn(2, 3, 7, 6)
    offsets = torch.tensor([-1.0, 0.0, 1.0])
    line = torch.exp(-0.5 * (offsets / 1.25).square())
    kernel = torch.outer(line, line) / line.sum() ** 2
    expected = conv2d(x, kernel.expand(3, 1, 3, 3), padding=1, groups=3)
    torch.testing.assert_close(images.smooth(x, 1.25), expected)
    leaf, weights = x.clone().requires_grad_(), torch.randn_like(x)
    (gradient,) = torch.autograd.grad((images.smooth(leaf, 1.25) * weights).sum(), leaf)
    (plain,) = torch.autograd.grad((conv2d(leaf, kernel.expand(3, 1, 3, 3), padding=1, groups=3) * weights).sum(), leaf)
    torch.testing.assert_close(gradient, plain)
    # The values of the authors' code: centre .1663, edge .1207, corner .0877.
    assert kernel.flatten()[[4, 1, 0]].tolist() == pytest.approx([0.1663, 0.1207, 0.0877], abs=1e-4)


def test_flips_and_crops_of_images_equal_slices():
    x = torch.randn(3, 2, 6, 7)
    flips, tops, lefts = torch.tensor([False, True, True]), torch.tensor([0, 1, 2]), torch.tensor([3, 0, 2])
    result = images.flip_and_crop(x, flips, tops, lefts, (4, 4))
    for index in range(3):
        whole = x[index].flip(-1) if flips[index] else x[index]
        top, left = int(tops[index]), int(lefts[index])
        assert torch.equal(result[index], whole[:, top : top + 4, left : left + 4])


def test_gradients_of_flips_and_crops_reach_their_pixels():
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    arguments = (torch.tensor([True, False]), torch.tensor([1, 0]), torch.tensor([0, 1]), (2, 2))
    assert torch.autograd.gradcheck(lambda x: images.flip_and_crop(x, *arguments), x)


def test_images_turn_about_their_centre():
    square, wide = torch.randn(3, 2, 7, 7), torch.randn(2, 2, 4, 10)
    turned = images.rotate(square, torch.tensor([0.0, 90.0, -90.0]))
    expected = [square[0], square[1].rot90(1, (1, 2)), square[2].rot90(-1, (1, 2))]
    torch.testing.assert_close(turned, torch.stack(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.rotate(wide, torch.tensor([180.0, 180.0])), wide.flip(2, 3), rtol=0, atol=1e-5)


def test_a_turn_keeps_shapes_where_images_are_not_square():
    spot = torch.zeros(1, 1, 21, 41)
    spot[0, 0, 10, 30] = 1.0  # ten pixels to the right of the centre
    turned = images.rotate(spot, torch.tensor([90.0]))
    assert turned[0, 0, 0, 20] == pytest.approx(1.0, abs=1e-4)  # ten pixels above it


def test_resized_windows_equal_interpolated_slices():
    x = torch.randn(12, 2, 20, 30)
    draws = torch.Generator().manual_seed(0)
    windows = images.random_windows(12, (20, 30), 0.3, draws)
    flips = torch.arange(12) % 2 == 1
    resized = images.resize_windows(x, windows, flips)
    for index in range(12):
        top, left, height, width = (int(values[index]) for values in windows)
        window = x[index : index + 1, :, top : top + height, left : left + width]
        expected = torch.nn.functional.interpolate(window, size=(20, 30), mode="bilinear")
        torch.testing.assert_close(resized[index : index + 1], expected.flip(3) if flips[index] else expected)


def test_windows_have_the_wanted_area_and_shape_and_fit():
    draws = torch.Generator().manual_seed(0)
    tops, lefts, heights, widths = images.random_windows(2000, (200, 200), 0.5, draws)
    share = heights * widths / 200**2
    assert 0.49 < share.min() < 0.51
    assert 0.98 < share.max() <= 1
    assert (widths / heights).min() > 0.74
    assert (widths / heights).max() < 1.35
    assert (tops + heights).max() == (lefts + widths).max() == 200
    assert tops.min() == lefts.min() == 0
    whole = images.random_windows(50, (8, 64), 1.0, draws)  # none fits: a long image is cropped to what fits
    assert (whole.heights <= 8).all()
    assert (whole.widths <= 64).all()


def test_windows_reach_every_position():
    draws = torch.Generator().manual_seed(0)
    tops, lefts, heights, widths = (each.int() for each in images.random_windows(2000, (6, 5), 0.3, draws))
    for starts, lengths, size in ((tops, heights, 6), (lefts, widths, 5)):
        for length in lengths.unique().tolist():
            found = starts[lengths == length].bincount(minlength=size - length + 1)
            assert len(found) == size - length + 1
            if found.sum() > 100:
                assert found.min() > 0.5 * found.float().mean(), "all positions are equally likely"


def test_clipping_keeps_the_range_of_pixels_and_passes_gradients():
    x = torch.tensor([100.0, -100.0, 0.1]).view(1, 3, 1, 1).requires_grad_()
    clipped = images.clip_straight_through(x, MEAN, STD)
    torch.testing.assert_close(clipped.flatten(), torch.tensor([0.5 / 0.2, -0.4 / 0.25, 0.1]))
    clipped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def test_centre_crop_by_hand():
    x = torch.arange(36.0).view(1, 1, 6, 6)
    assert images.centre_crop(x, (2, 4)).flatten().tolist() == [13, 14, 15, 16, 19, 20, 21, 22]


def test_image_sets_are_equal_after_saving(tmp_path):
    x = torch.randn(4, 3, 5, 5)
    images.save_images(tmp_path / "set.safetensors", x, {"method": "dgh"})
    loaded, about = images.load_images(tmp_path / "set.safetensors")
    assert torch.equal(loaded, x)
    assert about == {"method": "dgh"}


def test_image_sets_are_converted_to_the_wanted_space(tmp_path, caplog):
    pixels = torch.rand(4, 3, 5, 5)
    path, made_for, wanted = tmp_path / "set.safetensors", ((0.5,) * 3, (0.25,) * 3), ((0.0,) * 3, (1 / 255,) * 3)
    images.save_images(path, (pixels - 0.5) / 0.25, {}, made_for)
    assert torch.equal(images.load_images(path, made_for)[0], (pixels - 0.5) / 0.25)
    assert torch.equal(images.load_images(path)[0], (pixels - 0.5) / 0.25)
    assert not caplog.text
    torch.testing.assert_close(images.load_images(path, wanted)[0], 255 * pixels)
    assert "was made for a mean of [0.5, 0.5, 0.5]" in caplog.text
    images.save_images(path, pixels, {})  # as earlier versions wrote it
    assert torch.equal(images.load_images(path, wanted)[0], pixels)
    images.save_images(path, pixels[:, :1], {}, ((0.5,), (0.25,)))
    assert images.load_images(path, wanted)[0].shape == (4, 1, 5, 5), "the quantizer says which channels it wants"


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        (torch.zeros(2, 3, 4, 4).index_fill(0, torch.tensor(1), torch.nan), "1 of its 2 images hold NaN"),
        (torch.zeros(2, 3, 4, 4).half(), r"it holds torch\.float16 of shape \(2, 3, 4, 4\)"),
        (torch.zeros(24), r"it holds torch\.float32 of shape \(24,\), not images"),
        (torch.zeros(0, 3, 4, 4), r"of shape \(0, 3, 4, 4\), not images \(N, C, H, W\), float32 or uint8"),
    ],
)
def test_a_file_of_other_tensors_is_not_an_image_set(held, problem, tmp_path):
    images.save_images(tmp_path / "set.safetensors", held, {})
    with pytest.raises(ValueError, match=rf"set\.safetensors is not an image set .*{problem}"):
        images.load_images(tmp_path / "set.safetensors")


def test_a_damaged_or_missing_image_set_is_reported(tmp_path):
    (tmp_path / "bad").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="is not an image set"):
        images.load_images(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="no image set"):
        images.load_images(tmp_path / "absent")
