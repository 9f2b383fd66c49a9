"""Profiles (a data set with its networks) and budgets (the amount of computation of a plan)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from dghlib.choices import check_at_least, look_up


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A data set and the networks that are trained on it.

    Attributes:
        name: also the data set's name, unless `data` is another.
        models: our network -> the paper's network of the same family, or None if it has no equivalent.
        about: a line for people.
        most: upper limits of a budget for it, by the names of `Budget`'s numbers, if images are expensive or few.
        data: the data set's name, if several profiles share it.
    """

    name: str
    models: dict[str, str | None]
    about: str
    most: Mapping[str, int] = field(default_factory=dict)
    data: str = ""

    @property
    def data_set(self) -> str:
        """Return the data set's name."""
        return self.data or self.name


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The amount of computation of a plan.

    Attributes:
        num_images: calibration images per set.
        steps: generation steps (sweeps over the set) for every iterative method, so that all cost about the same;
            with a `share`, those of DGH.
        seeds: repetitions with other random numbers.
        test_images: size of the test set; None takes all images.
        batch_size: images that a generator optimizes together.
        iterations: steps per unit of a quantizer that learns.
        share: share of each method's published steps, with the authors' settings for the network or its data, their
            batch sizes, and proportional schedules. None: the same number of steps and the same batch size for all,
            default settings, and schedules that do not shrink.
    """

    num_images: int
    steps: int
    seeds: int
    test_images: int | None
    batch_size: int
    iterations: int
    share: float | None = None

    def for_images(self, count: int) -> "Budget":
        """Return the part of the budget for `count` images."""
        return dataclasses.replace(self, num_images=count, batch_size=min(count, self.batch_size))


# As in the paper 32 calibration images; tests of boxes take long.
_DETECTION = {"num_images": 32, "test_images": 256}
# Papers calibrate transformers with 32 images, in a single batch.
_TRANSFORMERS = {"num_images": 32, "batch_size": 32}

PROFILES = {
    "shapes": Profile(
        name="shapes",
        models={"shapes_residual": "ResNet-18", "shapes_bottleneck": "ResNet-50", "shapes_inverted": "MBV2"},
        about="48 classes of drawn shapes, 3x32x32; data and networks are part of the package",
    ),
    "cifar10": Profile(
        name="cifar10",
        models={"cifar10_resnet20": None, "cifar10_resnet56": None, "cifar10_mobilenetv2": "MBV2"},
        about="CIFAR-10 with public checkpoints; `make data PROFILE=cifar10` fetches them",
    ),
    "shapes_transformers": Profile(
        name="shapes_transformers",
        models={"shapes_transformer": None},
        about="48 classes of drawn shapes, 3x32x32, with a vision transformer; both are part of the package",
        most=_TRANSFORMERS,
        data="shapes",
    ),
    "cifar10_transformers": Profile(
        name="cifar10_transformers",
        models={"cifar10_transformer": None},
        about="CIFAR-10 with a public vision transformer; `make data PROFILE=cifar10_transformers` fetches that",
        most=_TRANSFORMERS,
        data="cifar10",
    ),
    "tiny_imagenet": Profile(
        name="tiny_imagenet",
        models={"tiny_imagenet_mobilenetv2": "MBV2"},
        about="Tiny-ImageNet, 200 classes, 3x64x64; `make data PROFILE=tiny_imagenet` fetches it",
    ),
    "imagenet": Profile(
        name="imagenet",
        models={
            "imagenet_resnet18": "ResNet-18",
            "imagenet_resnet50": "ResNet-50",
            "imagenet_mobilenetv2": "MBV2",
            "imagenet_efficientnet_lite0": None,
        },
        about="ImageNet, 1000 classes, 3x224x224; `make data PROFILE=imagenet` fetches the networks, the images are "
        "placed by the user in imagenet/train and imagenet/val of the data directory; needs a GPU",
    ),
    # At 224 pixels 2 cores would take 3 times as long, and a set of images by GENIE or DGH more than an hour.
    "imagenet_lite": Profile(
        name="imagenet_lite",
        models={f"imagenet_efficientnet_lite{number}_128": None for number in range(3)},
        about="1300 public validation images of ImageNet and 1000 samples, 1000 classes, 3x128x128, for machines with "
        "two cores; `make data PROFILE=imagenet_lite` fetches them, the networks are the extra imagenet-lite",
        most={"num_images": 128, "test_images": 1000, "batch_size": 32},
    ),
    "shapes_detection": Profile(
        name="shapes_detection",
        models={
            "shapes_ssdlite": "SSDLite MBV3 Large",
            "shapes_fcos": "FCOS ResNet50 FPN V1",
            "shapes_retinanet": "RetinaNet ResNet50 FPN V2",
        },
        about="scenes of drawn shapes with boxes of 6 categories, 3x64x64; data and detectors are part of the package",
        most=_DETECTION,
    ),
    "coco": Profile(
        name="coco",
        models={
            "coco_ssdlite": "SSDLite MBV3 Large",
            "coco_fcos": "FCOS ResNet50 FPN V1",
            "coco_retinanet": "RetinaNet ResNet50 FPN V2",
        },
        about="COCO val2017, boxes of 80 categories; `make data PROFILE=coco` fetches it; needs a GPU",
        most=_DETECTION,
    ),
    "coco_lite": Profile(
        name="coco_lite",
        models={"coco_fastestdet": None, "coco_fastestdet_folded_head": None},
        about="287 photographs of COCO val2017, scaled, for two cores; `make data PROFILE=coco_lite` fetches them",
        most=_DETECTION | {"test_images": 287},  # all images of the set
    ),
}

EMBEDDED = ("shapes", "shapes_transformers", "shapes_detection")  # whose data and networks are part of the package

BUDGETS = {
    "smoke": Budget(num_images=16, steps=3, seeds=2, test_images=96, batch_size=16, iterations=3),
    "quick": Budget(num_images=128, steps=80, seeds=3, test_images=1536, batch_size=128, iterations=100),
    "standard": Budget(num_images=256, steps=150, seeds=3, test_images=2000, batch_size=128, iterations=200),
    "paper": Budget(
        num_images=1024, steps=1000, seeds=5, test_images=None, batch_size=128, iterations=20_000, share=1.0
    ),
}


def budget_of(profile: str, name: str) -> Budget:
    """Return a budget by name, with no number above the `most` of a profile; None, all test images, is unchanged.

    Raises:
        UnknownName: there is no such profile, or no such budget.
    """
    spend, most = look_up(BUDGETS, name, "budget"), look_up(PROFILES, profile, "profile").most
    less = {key: min(value, limit) for key, limit in most.items() if (value := getattr(spend, key)) is not None}
    return dataclasses.replace(spend, **less)


def first_models(profile: str, count: int) -> list[str]:
    """Return the names of the first `count` networks of a profile, or of all if it is 0 or too large."""
    check_at_least(0, "networks", count)
    return list(look_up(PROFILES, profile, "profile").models)[: count or None]
