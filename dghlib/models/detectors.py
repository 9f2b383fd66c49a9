"""Detectors: torchvision's own classes, anchors and heads, as networks that take images and return tensors.

Backbone, neck and head are quantized, and images are made from them: they take normalised images and return the tensors
of the head (class logits, box regressions). Torchvision's decoding of these tensors (decode boxes, drop duplicates) is
not part of the network and stays in float; `detector_of` combines it with any such network, quantized or not. For any
other detector the network itself decodes its tensors, by a method `boxes_of` (see `Decoding`).

`NETS` are small versions of the detectors of the DGH paper, on the backbones of the classifiers of `embedded`:
SSDLite on inverted residuals, FCOS and RetinaNet with a feature pyramid on residual blocks and bottlenecks.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dghlib.models import embedded
from dghlib.models.classifiers import MobileNetV2, ResidualNet
from dghlib.models.float_model import FloatModel

SIZE = 64  # pixels, height and width
NUM_LABELS = 7  # 6 categories and, where an architecture has one, the background
MEAN, STD = (0.42,) * 3, (0.26,) * 3
CLASSIFIERS = {
    "shapes_ssdlite": "shapes_inverted",
    "shapes_fcos": "shapes_residual",
    "shapes_retinanet": "shapes_bottleneck",
}


class DetectorNet(nn.Module):
    """The network part of a detector: normalised images (N, 3, H, W) -> the head's tensors, by name.

    Args:
        detector: a detector of torchvision with a backbone and a head; its transforms are not used.
    """

    any_size = True  # torchvision's transforms, which precede the network, scale images to many sizes

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.detector.backbone(images)  # type: ignore[operator]
        return self.detector.head(list(features.values()))  # type: ignore[operator]


class _InPlaceOfBackbone(nn.Module):
    """Runs a whole network, keeps its outputs for those of the head, and returns maps with only their sizes."""

    def __init__(self, net: nn.Module, backbone: nn.Module):
        super().__init__()
        self.net = net
        self._sizes: dict[torch.Size, list[torch.Size]] = {}
        self._backbone = [backbone]  # in a list, so that it is not part of this network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.outputs = self.net(images)
        shape = images.shape[1:]
        if shape not in self._sizes:
            maps = self._backbone[0](torch.zeros(1, *shape))
            self._sizes[shape] = [features.shape[2:] for features in maps.values()]
        empty = images.new_zeros(1)
        return OrderedDict((str(k), empty.expand(len(images), 1, *size)) for k, size in enumerate(self._sizes[shape]))


class _InPlaceOfHead(nn.Module):
    def __init__(self, before: _InPlaceOfBackbone):
        super().__init__()
        self._before = [before]

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        return self._before[0].outputs


@runtime_checkable
class Decoding(Protocol):
    """A network that takes images of a single shape and decodes its outputs."""

    def boxes_of(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Return, for every image of this (height, width) before it was scaled, the result of `detector_of`.

        `outputs` are the outputs of `forward` for the images, or those of a quantized copy or of a file.
        """


class _OfOneShape(nn.Module):
    """Scales images of any shape to the input shape of a network, and decodes its outputs."""

    def __init__(self, model: FloatModel, net: nn.Module):
        super().__init__()
        self.net, self.image_shape, self.decode = net, model.image_shape, model.net.boxes_of
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(model, name))[:, None, None], persistent=False)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        pixels = [(image * 255).round().to(torch.uint8)[None] for image in images]
        batch = torch.cat([scaled(each, self.image_shape[1:]) for each in pixels]).float() / 255
        return self.decode(self.net((batch - self.mean) / self.std), [tuple(image.shape[1:]) for image in images])  # type: ignore[operator]


def scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return uint8 pixels (N, C, H, W) scaled bilinearly to (height, width), for any shape.

    They are rounded to integers, as in the training of the networks; with fractions FastestDet finds less.
    """
    if pixels.shape[2:] == size:
        return pixels
    return F.interpolate(pixels.float(), size, mode="bilinear", antialias=True).round().to(torch.uint8)


def detector_of(model: FloatModel, net: nn.Module) -> nn.Module:
    """Return a detector of images from 0 to 1, a list of (3, H, W), that uses `net` instead of `model.net`.

    For every image it returns, as torchvision's detectors do, `boxes` (n, 4) as x1, y1, x2, y2 in pixels, `labels`
    and `scores`.

    Raises:
        TypeError: the model is not a detector, or its outputs cannot be decoded.
    """
    if model.task != "detection":
        raise TypeError(f"{model.name} is for {model.task}; only a detector finds boxes")
    if isinstance(model.net, Decoding):
        return _OfOneShape(model, net).eval()
    if not isinstance(model.net, DetectorNet):
        raise TypeError(
            f"the outputs of {model.name} cannot be decoded into boxes: give {type(model.net).__name__} a method "
            "boxes_of(outputs, sizes), see dghlib.models.detectors.Decoding; or wrap a detector of torchvision in "
            "DetectorNet"
        )
    detector = copy.copy(model.net.detector)
    detector._modules = dict(detector._modules)
    stand_in = _InPlaceOfBackbone(net, detector._modules["backbone"])  # type: ignore[arg-type]
    detector._modules |= {"backbone": stand_in, "head": _InPlaceOfHead(stand_in)}
    return detector.eval()


class _SingleShotBackbone(nn.Module):
    """The maps that SSDLite reads: every 8th, 16th and 32nd pixel."""

    def __init__(self, net: MobileNetV2):
        super().__init__()
        self.stem, self.blocks = net.stem, net.blocks
        self.extra = nn.ModuleList([_extra(64, 96), _extra(96, 96)])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.blocks(self.stem(images))]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(k), features) for k, features in enumerate(maps))


def _extra(in_channels: int, channels: int) -> nn.Sequential:
    conv = partial(Conv2dNormActivation, activation_layer=nn.ReLU6)
    return nn.Sequential(
        conv(in_channels, channels // 2, kernel_size=1),
        conv(channels // 2, channels // 2, stride=2, groups=channels // 2),
        conv(channels // 2, channels, kernel_size=1),
    )


def _pyramid(net: ResidualNet, channels: int) -> BackboneWithFPN:
    """Return a classifier's body with a feature pyramid: every 8th, 16th and 32nd pixel."""
    stages = OrderedDict((f"stage{k}", stage) for k, stage in enumerate(net.stages))
    body = nn.Sequential(OrderedDict(stem=nn.Sequential(net.conv1, net.bn1, net.relu, net.pool), **stages))
    widths = [stage[-1].conv2.out_channels * stage[-1].expansion for stage in net.stages]  # type: ignore[index]
    return BackboneWithFPN(body, {"stage2": "0", "stage3": "1"}, widths[2:], channels, LastLevelMaxPool())


def ssdlite(classifier: MobileNetV2) -> SSD:
    """Return an SSDLite with an untrained head on a classifier's inverted residuals."""
    boxes = DefaultBoxGenerator([[2]] * 3, scales=[0.2, 0.35, 0.6, 0.9], steps=[8, 16, 32])
    head = SSDLiteHead([64, 96, 96], boxes.num_anchors_per_location(), NUM_LABELS, nn.BatchNorm2d)
    return SSD(
        _SingleShotBackbone(classifier), boxes, (SIZE, SIZE), NUM_LABELS, list(MEAN), list(STD), head,
        score_thresh=0.01, nms_thresh=0.5, detections_per_img=50,
    )  # fmt: skip


def fcos(classifier: ResidualNet) -> FCOS:
    """Return an FCOS with an untrained pyramid and head on a classifier's residual blocks."""
    anchors = AnchorGenerator(((4,), (8,), (16,)), ((1.0,),) * 3)
    return FCOS(
        _pyramid(classifier, 64), NUM_LABELS, SIZE, SIZE, list(MEAN), list(STD), anchors,
        FCOSHead(64, 1, NUM_LABELS, num_convs=2), center_sampling_radius=2.0, score_thresh=0.02,
        nms_thresh=0.5, detections_per_img=50,
    )  # fmt: skip


def retinanet(classifier: ResidualNet) -> RetinaNet:
    """Return a RetinaNet with an untrained pyramid and head on a classifier's bottlenecks."""
    sizes = ((12, 15, 19), (24, 30, 38), (48, 60, 76))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    head = RetinaNetHead(48, 9, NUM_LABELS, partial(nn.GroupNorm, 16))
    return RetinaNet(
        _pyramid(classifier, 48), NUM_LABELS, SIZE, SIZE, list(MEAN), list(STD), anchors, head,
        score_thresh=0.02, nms_thresh=0.5, detections_per_img=50,
    )  # fmt: skip


NETS: dict[str, Callable[[Any], nn.Module]] = {
    "shapes_ssdlite": ssdlite,
    "shapes_fcos": fcos,
    "shapes_retinanet": retinanet,
}


def untrained(name: str) -> nn.Module:
    """Return a detector by its key in NETS, on an untrained backbone."""
    return NETS[name](embedded.NETS[CLASSIFIERS[name]]())


def load(name: str) -> FloatModel:
    """Return a trained detector, by its key in NETS."""
    model = as_model(name, untrained(name))
    model.net.load_state_dict(load_file(embedded.checkpoint(name)))
    return model


def as_model(name: str, detector: nn.Module) -> FloatModel:
    """Return one of these detectors with the space of its images, in eval mode."""
    net = DetectorNet(detector.eval())
    return FloatModel(name=name, net=net, image_shape=(3, SIZE, SIZE), mean=MEAN, std=STD, task="detection")
