"""Labelled images by name: the embedded `shapes`, public data sets, or your own files.

Nothing here downloads: a public set is read from the data directory, see `dghlib.storage.assets`.
"""

from collections.abc import Callable
from pathlib import Path

from dghlib.choices import look_up
from dghlib.datasets import coco_lite, files, scenes, shapes
from dghlib.datasets.annotated import AnnotatedImages
from dghlib.datasets.cifar import cifar10
from dghlib.datasets.coco import coco
from dghlib.datasets.imagenet import imagenet
from dghlib.datasets.imagenet_lite import imagenet_lite
from dghlib.datasets.labelled import LabelledImages, batches, choose, sample
from dghlib.datasets.tiny_imagenet import tiny_imagenet

__all__ = [
    "ANNOTATED",
    "DATASETS",
    "PREPARED",
    "AnnotatedImages",
    "LabelledImages",
    "batches",
    "draw",
    "load",
    "load_annotated",
    "sample",
]

SHAPES_IMAGES = 100 * len(shapes.CLASSES)  # the default number
SCENES = 1_000


def _shapes(split: str, num_images: int | None) -> LabelledImages:
    return shapes.classification(split, SHAPES_IMAGES if num_images is None else num_images)


DATASETS: dict[str, Callable[..., LabelledImages]] = {
    "shapes": _shapes,
    "cifar10": cifar10,
    "tiny_imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "imagenet_lite": imagenet_lite,
}
PHOTOGRAPHS = ("imagenet", "imagenet_lite")  # have many sizes, and are scaled to that of a network


def _scenes(split: str, num_images: int | None) -> AnnotatedImages:
    return scenes.detection(split, SCENES if num_images is None else num_images)


ANNOTATED: dict[str, Callable[[str, int | None], AnnotatedImages]] = {
    "shapes_detection": _scenes,
    "coco": coco,
    "coco_lite": coco_lite.coco_lite,
}
PREPARED = {"coco_lite": coco_lite.prepare}  # by profile: functions that make a data set from published files


def load_annotated(name: str, split: str = "test", num_images: int | None = None) -> AnnotatedImages:
    """Return a data set for detection by its name, a key of ANNOTATED; `split` and `num_images` as in `load`.

    Raises:
        UnknownName: no data set for detection has this name.
        FileNotFoundError: its files are missing; the message names the command that gets them.
    """
    return look_up(ANNOTATED, name, "data set for detection")(split, num_images)


def load(
    name_or_path: str | Path,
    split: str = "test",
    num_images: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Return a data set by its name, or from an `.npz` file or an image folder.

    Args:
        name_or_path: a name of DATASETS or a path; "./cifar10" is a folder in any case.
        split: "test" or "train"; ignored for files and folders, which have no splits.
        num_images: how many; the choice is fixed and covers all classes; None for all.
        image_shape: (C, H, W) that the images must have, with C 1 or 3; images of a folder and of PHOTOGRAPHS are
            converted to it.
        seed: for the choice of images from a file or folder; only the chosen images are decoded.

    Raises:
        UnknownName: neither a known name nor a path (a path has a folder or ends in `.npz`).
        FileNotFoundError: nothing is there; for public data sets the message names the command that gets it.
        ValueError: images have another shape than `image_shape`, or the reader raises an error.
    """
    if str(name_or_path) not in DATASETS and _is_path(Path(name_or_path)):
        data = _read(Path(name_or_path), num_images, image_shape, seed)
    else:
        how = {"image_size": image_shape[1:]} if image_shape and str(name_or_path) in PHOTOGRAPHS else {}
        data = look_up(DATASETS, str(name_or_path), "data set")(split, num_images, **how)
    return _of_shape(data, name_or_path, image_shape)


def _of_shape(
    data: LabelledImages, name_or_path: str | Path, image_shape: tuple[int, int, int] | None
) -> LabelledImages:
    found = tuple(data.images.shape[1:])
    if image_shape is not None and found != tuple(image_shape):
        raise ValueError(
            f"images of {name_or_path} have {found[0]} channels, height and width {found[1:]}; wanted {image_shape}"
        )
    return data


def draw(
    name_or_path: str | Path,
    split: str,
    num_images: int,
    seed: int,
    available: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> LabelledImages:
    """Return `num_images` drawn from a data set without replacement, the same ones for the same seed.

    For a file or a folder this is `load` with a seed. A named data set is loaded (its first `available` images, if
    given), and images are drawn from it; of `shapes`, only those are made. Raises as `load` does, and ValueError if
    there are fewer images.
    """
    if str(name_or_path) not in DATASETS and _is_path(Path(name_or_path)):
        return load(name_or_path, split, num_images, image_shape, seed)
    if name_or_path == "shapes":
        numbers = choose(SHAPES_IMAGES if available is None else available, num_images, seed)
        return _of_shape(shapes.chosen(split, numbers.tolist()), name_or_path, image_shape)
    return sample(load(name_or_path, split, available, image_shape), num_images, seed)


def _is_path(path: Path) -> bool:
    return path.exists() or path.suffix == ".npz" or len(path.parts) > 1


def _read(path: Path, num_images: int | None, image_shape: tuple[int, int, int] | None, seed: int) -> LabelledImages:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        return files.image_folder(path, num_images, image_shape, seed)
    return files.npz(path, num_images, seed)
