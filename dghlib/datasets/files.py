"""The user's own images: an `.npz` file, or a folder with a sub-folder for each class.

All errors name the file and the remedy.
"""

from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from dghlib.choices import check_choice
from dghlib.datasets.labelled import LabelledImages, choose
from dghlib.storage.reading import reading

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"})


def npz(path: Path, num_images: int | None = None, seed: int = 0) -> LabelledImages:
    """Read images from the arrays of an `.npz` file; `seed` chooses them if not all are read.

    `images` is uint8, (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; `labels` holds N integers from 0;
    `classes` is optional and has the names of the classes.

    Raises:
        ValueError: not an `.npz` file, or an array is missing, has another shape or, for pixels, another dtype.
    """
    with (
        reading(path, "an .npz file of plain arrays", "numpy.savez writes such files"),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        found = {name: arrays[name] for name in ("images", "labels", "classes") if name in arrays}
    if missing := {"images", "labels"} - found.keys():
        raise ValueError(f"{path} has no array {' and no array '.join(sorted(missing))}")
    images, labels = _channels_first(path, found["images"]), _integers(path, found["labels"])
    if "classes" in found:
        classes = tuple(str(name) for name in found["classes"])
    else:
        classes = tuple(str(label) for label in range(labels.max(initial=0) + 1))
    if not len(images):
        raise ValueError(f"{path} holds no image: its array images has shape {found['images'].shape}")
    which = choose(len(images), num_images, seed)
    try:
        return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels), classes)[which]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _channels_first(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise ValueError(
            f"{path}: images must be uint8, 0 to 255, got {images.dtype}; "
            "save pixels that lie in [0, 1] as (255 * images).round().astype('uint8')"
        )
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise ValueError(f"{path}: images must have shape (N, H, W, C) or (N, C, H, W), C being 1 or 3; got {images.shape}")


def _integers(path: Path, labels: np.ndarray) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: labels must be integers, got {labels.dtype}")
    return labels.astype(np.int64)


def image_folder(
    path: Path, num_images: int | None = None, image_shape: tuple[int, int, int] | None = None, seed: int = 0
) -> LabelledImages:
    """Read a folder with a sub-folder of images for each class, in alphabetic order of the classes.

    A folder that has only images is a single class. Images of another size than `image_shape` (C, H, W) are scaled
    until they cover it, and cropped about their centre; they are converted to RGB, or to grey if C is 1. Only the
    `num_images` that `seed` chooses are opened.

    Raises:
        ValueError: no image, a sub-folder without images, a file that is not an image, or images of several sizes
            without an `image_shape`.
    """
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir()) or [path]
    files = [(file, label) for label, folder in enumerate(folders) for file in image_files(folder)]
    chosen = [files[k] for k in choose(len(files), num_images, seed)]
    channels, size = (3, None) if image_shape is None else (image_shape[0], image_shape[1:])
    images: list[np.ndarray] = []
    for file, _ in tqdm(chosen, desc=f"read {path.name}", unit="image", delay=3, leave=False):
        images.append(read_image(file, str(file), size, channels))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{file} has height and width {images[-1].shape[1:]}, but {chosen[0][0]} has "
                f"{images[0].shape[1:]}; give an image_shape to bring all to one"
            )
    labels = torch.tensor([label for _, label in chosen])
    return LabelledImages(torch.from_numpy(np.stack(images)), labels, tuple(folder.name for folder in folders))


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted, or raise ValueError if it has none."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no image; known are {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def read_image(
    file: IO[bytes] | Path, name: str, image_size: tuple[int, int] | None = None, channels: int = 3
) -> np.ndarray:
    """Return an image file as pixels, uint8 (C, H, W), grey if `channels` is 1, else RGB; `name` is for the error.

    Raises:
        ValueError: Pillow cannot read the image, or `channels` is neither 1 nor 3.
    """
    check_choice("the number of channels", channels, (1, 3))
    image = open_image(file, name, "L" if channels == 1 else "RGB")
    if image_size is not None:
        height, width = image_size
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def evaluation_crop(
    file: IO[bytes] | Path, name: str, size: tuple[int, int], resampling: Image.Resampling
) -> np.ndarray:
    """Return the centre of an image, uint8 (3, H, W), as in tests of networks for ImageNet.

    The image is scaled to cover 8/7 of `size` (H, W), 256 pixels for 224, before its centre is cut out; `name` is for
    the error.

    Raises:
        ValueError: Pillow cannot read the image.
    """
    image = open_image(file, name)
    (height, width), found = size, image.size
    scale = max(round(side * 8 / 7) / length for side, length in zip((width, height), found, strict=True))
    image = image.resize((round(found[0] * scale), round(found[1] * scale)), resampling)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height))).transpose(2, 0, 1)


def open_image(file: IO[bytes] | Path, name: str, mode: str = "RGB") -> Image.Image:
    """Return an image file in a mode of Pillow; raises as `read_image` does."""
    with reading(name, "a readable image", "replace it, or take it out of the folder"), Image.open(file) as opened:
        return opened.convert(mode)
