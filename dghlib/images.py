"""Image tensors: normalisation, smoothing, flips, crops and clipping; image sets on disk.

Images are (N, C, H, W). *Pixels* are uint8, or floats in [0, 1]. *Normalised* images are the input of a network:
(pixel - mean) / std per channel. Generated images are normalised throughout.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dghlib.storage.reading import reading
from dghlib.storage.records import set_aside, write_atomically

log = logging.getLogger(__name__)

Space = tuple[Sequence[float], Sequence[float]]  # mean and std of every channel, of pixels from 0 to 1


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """Return one value per channel as a tensor (1, C, 1, 1) on the device of `like`."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 pixels (N, C, H, W) as float32 normalised images."""
    return (pixels.float() / 255 - per_channel(mean, pixels)) / per_channel(std, pixels)


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalised images as uint8 pixels: clamped to [0, 1], rounded to 8 bits."""
    pixels = images * per_channel(std, images) + per_channel(mean, images)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def clip_straight_through(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalised images clipped to the range of 8-bit pixels; gradients pass as if nothing were clipped."""
    low, high = -per_channel(mean, images), 1 - per_channel(mean, images)
    scale = per_channel(std, images)
    return _Clip.apply(images, low / scale, high / scale)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return images.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def renormalised(images: Tensor, source: Space, target: Space) -> Tensor:
    """Return images, normalised with the mean and std of `source`, normalised with those of `target` instead."""
    (mean, std), (to_mean, to_std) = source, target
    pixels = images * per_channel(std, images) + per_channel(mean, images)
    return (pixels - per_channel(to_mean, images)) / per_channel(to_std, images)


def smooth(images: Tensor, sigma: float) -> Tensor:
    """Return images filtered by a normalised 3x3 Gaussian of `sigma` pixels, with zeros outside the border.

    The filter is computed as shifted additions per axis, several times cheaper than a grouped convolution.
    """
    return _Smooth.apply(images, sigma)


class _Smooth(torch.autograd.Function):
    """The filter is symmetric, so the backward pass applies the same filter to the gradients."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, sigma: float) -> Tensor:
        ctx.sigma = sigma
        side = math.exp(-0.5 / sigma**2)
        centre, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
        for dim in (2, 3):
            rest = images.shape[dim] - 1
            smoothed = images * centre
            smoothed.narrow(dim, 1, rest).add_(images.narrow(dim, 0, rest), alpha=side)
            smoothed.narrow(dim, 0, rest).add_(images.narrow(dim, 1, rest), alpha=side)
            images = smoothed
        return images

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Smooth.apply(gradient, ctx.sigma), None


def low_pass(images: Tensor, radius: float) -> Tensor:
    """Return images (N, C, H, W) whose frequencies r, in periods, are damped by exp(-r^2 / 2 radius^2)."""
    height, width = images.shape[2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=images.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=images.device)
    gain = torch.exp(-(rows[:, None].square() + columns.square()) / (2 * radius**2))
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=(height, width))


class _Gather(torch.autograd.Function):
    """Pick pixels by distinct indices; the backward pass returns each gradient to the place of its pixel.

    torch's own gather has to add, because its indices may repeat; distinct indices allow a plain scatter.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = flat.shape
        return flat.gather(2, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size).scatter_(2, index, gradient), None


def flip_and_crop(images: Tensor, flips: Tensor, tops: Tensor, lefts: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a window of `size` (H, W) of each image, mirrored where `flips` is true.

    Args:
        images: (N, C, H', W') with H' >= H and W' >= W.
        flips: (N,) bool; the whole image is mirrored, then cropped.
        tops: (N,) first row of each window, 0 .. H' - H.
        lefts: (N,) first column of each window, 0 .. W' - W.
        size: (H, W) of the windows.
    """
    num_images, channels, _, width = images.shape
    flips, tops, lefts = (values.to(images.device) for values in (flips, tops, lefts))
    rows = tops[:, None] + torch.arange(size[0], device=images.device)
    columns = lefts[:, None] + torch.arange(size[1], device=images.device)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    index = index[:, None, :].expand(num_images, channels, -1)
    return _Gather.apply(images.flatten(2), index).view(num_images, channels, *size)


class Windows(NamedTuple):
    """One window (N,) in each of N images: its first row and column, its height and width, in pixels."""

    tops: Tensor
    lefts: Tensor
    heights: Tensor
    widths: Tensor


def random_windows(count: int, size: Sequence[int], smallest: float, draws: torch.Generator) -> Windows:
    """Return a random window in each of `count` images of `size` (H, W).

    A window has from `smallest` to 1 of the image's area, and an aspect ratio from 3/4 to 4/3. A window that does not
    fit is drawn again, up to 10 times, and is then cut to the image.
    """
    height, width = size
    area = height * width * (smallest + (1 - smallest) * torch.rand(10, count, generator=draws))
    ratio = ((2 * torch.rand(10, count, generator=draws) - 1) * math.log(4 / 3)).exp()
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (heights <= height) & (widths <= width)
    first = fits.int().argmax(0, keepdim=True)
    heights = heights.gather(0, first)[0].clamp(1, height)
    widths = widths.gather(0, first)[0].clamp(1, width)
    tops = (torch.rand(count, generator=draws) * (height - heights + 1)).floor()
    lefts = (torch.rand(count, generator=draws) * (width - widths + 1)).floor()
    return Windows(tops, lefts, heights, widths)


def resize_windows(images: Tensor, windows: Windows, flips: Tensor) -> Tensor:
    """Return a window of each image (N, C, H, W), enlarged bilinearly to (H, W) and mirrored where `flips` is true.

    The result is computed as 2 products with matrices of pixel weights, whose gradients add up in a fixed order.
    """
    rows = _bilinear_weights(windows.tops, windows.heights, images.shape[2])
    columns = _bilinear_weights(windows.lefts, windows.widths, images.shape[3])
    columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    return rows[:, None] @ images @ columns[:, None].mT


def _bilinear_weights(starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return the weights (N, size, size), of input by output pixels, that enlarge an interval to `size` pixels."""
    pixels = torch.arange(size)
    within = (pixels + 0.5) * lengths[:, None] / size - 0.5
    source = starts[:, None] + torch.minimum(within.clamp_min(0), lengths[:, None] - 1)
    return (1 - (source[:, :, None] - pixels).abs()).clamp_min(0)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Return images (N, C, H, W) rotated about their centres by `degrees` (N,), counterclockwise.

    The interpolation is bilinear, with zeros outside the image.
    """
    height, width = images.shape[2:]
    cosine, sine = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    zero = torch.zeros_like(sine)
    # Coordinates run from -1 to 1 on both axes, independent of their lengths.
    to_source = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], 1).view(
        -1, 2, 3
    )
    grid = F.affine_grid(to_source.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def centre_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the central (H, W) window of every image."""
    top = (images.shape[2] - size[0]) // 2
    left = (images.shape[3] - size[1]) // 2
    return images[:, :, top : top + size[0], left : left + size[1]]


def save_images(path: Path | str, images: Tensor, about: dict[str, str], space: Space | None = None) -> None:
    """Write a set of images as a safetensors file, atomically, with string facts `about` it, and its mean and std."""
    tensors = {"images": images.contiguous()}
    if space is not None:
        about = about | {"space": json.dumps(space)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=about))


def load_images(path: Path | str, space: Space | None = None) -> tuple[Tensor, dict[str, str]]:
    """Return the images of `save_images` and the facts about them.

    With a `space`, images that were made for another mean and std are converted to it, with a warning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or is not an image set.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no image set at {path}")
    with (
        reading(path, "an image set written by dghlib", "`dgh generate` makes one"),
        safe_open(path, framework="pt") as file,
    ):
        images, about = file.get_tensor("images"), file.metadata() or {}
        made_for = json.loads(about.get("space", "null"))
        _check_set(images)
    if space is None or made_for in (None, json.loads(json.dumps(space))) or len(space[0]) != images.shape[1]:
        return images, about
    message = "%s was made for a mean of %s and std of %s: its images are normalised anew, with %s and %s"
    log.warning(message, path, *made_for, *space)
    return renormalised(images, made_for, space), about


def _check_set(images: Tensor) -> None:
    """Raise ValueError unless these are images as `save_images` writes them: float32 and finite, or uint8."""
    if images.ndim != 4 or 0 in images.shape or images.dtype not in (torch.float32, torch.uint8):
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"it holds {found}, not images (N, C, H, W), float32 or uint8")
    if broken := sum(not image.isfinite().all() for image in images):
        raise ValueError(f"{broken} of its {len(images)} images hold NaN or infinity")


def load_timed_images(path: Path) -> tuple[Tensor, float] | None:
    """Return the images at `path`, and the seconds of their generation, which `save_images` stored as "seconds".

    Return None if there are no images. Damaged images are set aside, to be made again, and None is returned.
    """
    try:
        images, about = load_images(path)
        return images, float(about["seconds"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        set_aside(path, str(error))
        return None
