"""The quality of a network on a profile's data, top-1 of a classifier or mAP of a detector; and its real images."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from dghlib import datasets
from dghlib.datasets import LabelledImages
from dghlib.datasets.annotated import AnnotatedImages
from dghlib.datasets.labelled import choose
from dghlib.evaluation import top1
from dghlib.evaluation.detection import found_boxes, mean_average_precision, save_results
from dghlib.experiments.profiles import PROFILES
from dghlib.images import normalise
from dghlib.models import FloatModel
from dghlib.models.detectors import detector_of, scaled

TEST_BATCH = 32  # on a CPU larger batches take up to 3 times as long
# Real calibration images are drawn from this many training images of a data set that is drawn on demand.
DRAWN_TRAINING_IMAGES = {"shapes": 4096, "shapes_detection": 1024}


def quality(
    profile: str,
    num_images: int | None,
    model: FloatModel,
    net: nn.Module,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
    boxes: Path | None = None,
) -> dict[str, float]:
    """Return the quality of `net`, `model.net` or a quantized copy, on `num_images` of the test set, in percent.

    For a classifier it is `top1`; for a detector `map` and the others of `mean_average_precision`, and its boxes are
    written to the file `boxes`, if given, in COCO's results format.
    """
    if model.task == "detection":
        scenes = _annotated_images(profile, "test", num_images)
        detector = detector_of(model, net.to(device)).to(device)
        found = found_boxes(
            lambda images: detector([image.to(device) for image in images]),
            scenes.images,
            scenes.image_ids,
            progress=progress,
        )
        if boxes is not None:
            save_results(boxes, found)
        return mean_average_precision(scenes.annotations, found)
    data = _labelled_images(profile, "test", num_images, model.image_shape)
    pairs = datasets.batches(data, model.mean, model.std, TEST_BATCH)
    return {"top1": top1(net.to(device), pairs, total=-(-len(data) // TEST_BATCH), progress=progress)}


def real_images(profile: str, model: FloatModel, num_images: int, seed: int) -> Tensor:
    """Return random training images of a profile, (N, C, H, W) normalised; for a detector scaled to its size.

    Instead of a profile, classifiers also take the path of an `.npz` file or a folder of images.
    """
    if model.task != "detection":
        return normalise(_drawn(data_of(profile), num_images, seed, model.image_shape).images, model.mean, model.std)
    images = _annotated_images(profile, "train", DRAWN_TRAINING_IMAGES.get(data_of(profile))).images
    chosen = [images[k][None] for k in choose(len(images), num_images, seed).tolist()]
    return torch.cat([normalise(scaled(image, model.image_shape[1:]), model.mean, model.std) for image in chosen])


def data_of(profile: str) -> str:
    """Return the name of a profile's data set; also accepts the name of a data set."""
    return PROFILES[profile].data_set if profile in PROFILES else profile


@cache
def _drawn(data: str, num_images: int, seed: int, shape: tuple[int, int, int]) -> LabelledImages:
    return datasets.draw(data, "train", num_images, seed, DRAWN_TRAINING_IMAGES.get(data), shape)


@cache
def _labelled_images(profile: str, split: str, num_images: int | None, shape: tuple[int, int, int]) -> LabelledImages:
    return datasets.load(data_of(profile), split, num_images, shape)


@cache
def _annotated_images(profile: str, split: str, num_images: int | None) -> AnnotatedImages:
    return datasets.load_annotated(profile, split, num_images)
