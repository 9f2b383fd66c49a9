"""The detectors of the DGH paper, for COCO: torchvision's architectures with torchvision's weights.

mAP on val2017, as published: SSDLite on MobileNetV3 21.3, FCOS on ResNet-50 39.2, RetinaNet (v2) on ResNet-50 41.5.

Generated images have the size to which SSDLite scales all photographs, and for the other detectors the size of a
photograph of 640 x 480 pixels after their scaling and padding.
"""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn_v2, ssdlite320_mobilenet_v3_large
from torchvision.ops import FrozenBatchNorm2d

from dghlib.models.detectors import DetectorNet
from dghlib.models.float_model import FloatModel
from dghlib.models.public import published

IMAGE_SHAPES = {
    "coco_ssdlite": (3, 320, 320),
    "coco_fcos": (3, 800, 1088),
    "coco_retinanet": (3, 800, 1088),
}


def fcos_with_frozen_norms() -> nn.Module:
    """Return an untrained FCOS whose backbone has frozen batch norms, as in the published weights."""
    detector = fcos_resnet50_fpn(weights=None, weights_backbone=None)
    for name, module in list(detector.backbone.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            detector.backbone.set_submodule(name, FrozenBatchNorm2d(module.num_features, module.eps))
    return detector


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "coco_ssdlite": partial(ssdlite320_mobilenet_v3_large, weights=None, weights_backbone=None),
    "coco_fcos": fcos_with_frozen_norms,
    "coco_retinanet": partial(retinanet_resnet50_fpn_v2, weights=None, weights_backbone=None),
}


def load(name: str) -> FloatModel:
    """Return a detector of BUILDERS with its public weights, in eval mode.

    Raises:
        MissingAsset, WrongChecksum: as `assets.locate`.
    """
    detector = BUILDERS[name]()
    with published(name) as checkpoint:
        detector.load_state_dict(checkpoint)
    return as_model(name, detector)


def as_model(name: str, detector: nn.Module) -> FloatModel:
    """Return one of these detectors, with any weights, with the space of its images, in eval mode."""
    transform = detector.transform
    return FloatModel(
        name=name,
        net=DetectorNet(detector.eval()),
        image_shape=IMAGE_SHAPES[name],
        mean=tuple(transform.image_mean),  # type: ignore[union-attr, arg-type]
        std=tuple(transform.image_std),  # type: ignore[union-attr, arg-type]
        task="detection",
    )
