"""FastestDet: a small detector of COCO's 80 categories (0.24 M parameters), which 2 cores quantize in minutes.

It has a ShuffleNetV2 body, whose 3 scales are concatenated at every 16th pixel, a pyramid of depthwise 5x5
convolutions, and a head. For each of the 22 x 22 cells of an image of 352 x 352 pixels it predicts whether an object is
there, its box, and its category.

Source: github.com/dog-qiuqiu/FastestDet, whose public weights are read; the code here is ours.

Differences from the source:
1. The original network ends with a sigmoid (objectness) and a softmax (categories), concatenated to a tensor. Here it
   ends before them, with 3 tensors, which are quantized and stretched by DGH, each with its own range, as with
   torchvision's detectors; `boxes_of` computes the rest in float.
2. The images of the original have their channels in the order B, G, R. Those of the first convolution are reversed when
   weights are loaded, so that the network takes R, G, B as all others here.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.ops import Conv2dNormActivation, batched_nms, box_convert

from dghlib.models.float_model import FloatModel
from dghlib.models.imagenet import with_weights
from dghlib.storage import assets

NAME = "coco_fastestdet"
FOLDED_HEAD = f"{NAME}_folded_head"
SIZE = 352  # pixels, height and width
NUM_CATEGORIES = 80
# COCO's ids run from 1 to 90; no object with one of these was annotated.
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in _UNUSED_IDS)
OBJECTNESS_SHARE = 0.6  # of a score; the rest is the category's
LOWEST_SCORE, OVERLAP = 0.01, 0.45  # boxes below this score are left out; of overlapping boxes the best is kept

_convolution = partial(Conv2dNormActivation, activation_layer=nn.ReLU)
_linear = partial(Conv2dNormActivation, activation_layer=None)


class FastestDet(nn.Module):
    """Images (N, 3, H, W), pixels from 0 to 1 -> `objectness`, `boxes`, `categories`: (N, 1 or 4 or 80, H/16, W/16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 24, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fine, self.middle, self.coarse = _stage(48, 4), _stage(96, 8), _stage(192, 4)
        self.shrink = nn.AvgPool2d(3, stride=2, padding=1)
        self.enlarge = nn.UpsamplingNearest2d(scale_factor=2)
        self.pyramid = _Pyramid(48 + 96 + 192, 96)
        self.head = _Head(96)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.fine(self.pool(self.stem(images)))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        return self.head(self.pyramid(torch.cat([self.shrink(fine), middle, self.enlarge(coarse)], dim=1)))

    def boxes_of(self, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Return the objects found in each image, from this network's outputs or from those of a quantized copy.

        Args:
            outputs: the outputs of `forward`.
            sizes: (height, width) of every image before it was scaled.

        Returns:
            For each image `boxes` (n, 4) as x1, y1, x2, y2 in its pixels, `labels` (n,) as COCO's ids, and `scores`.

        Raises:
            ValueError: the outputs are not those of this network.
        """
        _check_outputs(outputs)
        likely, categories = outputs["categories"].softmax(1).flatten(2).max(1)
        objectness = outputs["objectness"].sigmoid().flatten(1)
        scores = objectness**OBJECTNESS_SHARE * likely ** (1 - OBJECTNESS_SHARE)
        boxes, ids = _corners(outputs["boxes"]), torch.tensor(CATEGORY_IDS, device=categories.device)
        return [_best(*each) for each in zip(boxes, scores, ids[categories], sizes, strict=True)]


def _check_outputs(outputs: Mapping[str, Tensor]) -> None:
    wanted = {"objectness": 1, "boxes": 4, "categories": NUM_CATEGORIES}
    named = isinstance(outputs, Mapping)
    found = {name: tuple(value.shape) for name, value in outputs.items()} if named else type(outputs).__name__
    if not named or {name: shape[1] for name, shape in found.items() if len(shape) == 4} != wanted:  # type: ignore[union-attr]
        raise ValueError(f"FastestDet returns tensors (N, C, h, w), of C as in {wanted}; got {found}")


def _corners(offsets: Tensor) -> Tensor:
    """Return boxes (N, h * w, 4) as x1, y1, x2, y2, in fractions of the image, from the head's output per cell."""
    height, width = offsets.shape[2:]
    rows, columns = (torch.arange(count, device=offsets.device) for count in (height, width))
    x, y, w, h = offsets.unbind(1)
    x, y = (x.tanh() + columns) / width, (y.tanh() + rows[:, None]) / height
    return box_convert(torch.stack([x, y, w.sigmoid(), h.sigmoid()], dim=-1).flatten(1, 2), "cxcywh", "xyxy")


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    likely = scores > LOWEST_SCORE
    boxes, scores, labels = boxes[likely], scores[likely], labels[likely]
    kept = batched_nms(boxes, scores, labels, OVERLAP)
    height, width = size
    pixels = boxes.new_tensor([width, height, width, height])
    return {"boxes": boxes[kept] * pixels, "labels": labels[kept], "scores": scores[kept]}


def _stage(channels: int, blocks: int) -> nn.Sequential:
    """Return blocks of which the first halves the resolution and doubles the channels."""
    width = channels // 2
    return nn.Sequential(_HalvingBlock(width), *(_ShuffleBlock(width) for _ in range(blocks - 1)))


def _branch(width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(width, width, 1),
        _linear(width, width, 3, stride=stride, groups=width),
        _convolution(width, width, 1),
    )


class _HalvingBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.main = _branch(width, stride=2)
        self.side = nn.Sequential(_linear(width, width, 3, stride=2, groups=width), _convolution(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.side(x), self.main(x)], dim=1)


class _ShuffleBlock(nn.Module):
    """Even channels do not change, odd ones pass a branch."""

    def __init__(self, width: int):
        super().__init__()
        self.main = _branch(width, stride=1)
        self.even_first = nn.ChannelShuffle(
            width
        )  # with as many groups as there are pairs: all even channels, all odd ones

    def forward(self, x: Tensor) -> Tensor:
        even, odd = self.even_first(x).chunk(2, dim=1)
        return torch.cat([even, self.main(odd)], dim=1)


class _Pyramid(nn.Module):
    """1, 2 and 3 depthwise 5x5 convolutions in parallel: they see 5, 9 and 13 cells."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.reduce = _convolution(in_channels, channels, 1)
        self.looks = nn.ModuleList(
            nn.Sequential(*(_convolution(channels, channels, 5, groups=channels) for _ in range(count)))
            for count in (1, 2, 3)
        )
        self.join = _linear(3 * channels, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.relu(x + self.join(torch.cat([look(x) for look in self.looks], dim=1)))


class _Head(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.shared = _convolution(channels, channels, 1)
        self.objectness, self.boxes, self.categories = (
            nn.Sequential(_convolution(channels, channels, 5, groups=channels), _linear(channels, count, 1))
            for count in (1, 4, NUM_CATEGORIES)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(x)
        return {"objectness": self.objectness(x), "boxes": self.boxes(x), "categories": self.categories(x)}


def load(name: str = NAME) -> FloatModel:
    """Return FastestDet with its public weights, in eval mode.

    `FOLDED_HEAD` is the same function with the batch norms of its head folded into their convolutions, so that no
    statistics of the head are known, as in the detectors of DGH's Table 3.

    Raises:
        MissingAsset, WrongChecksum: as `assets.locate`.
        ValueError: the checkpoint holds another network.
    """
    state = torch.load(assets.locate(NAME), map_location="cpu", weights_only=True)
    with_weights(net := FastestDet(), state, NAME)
    first = net.get_submodule("stem.0")
    first.weight = nn.Parameter(first.weight.flip(1))  # type: ignore[operator]
    return as_model(net if name == NAME else with_folded_head(net), name)


def with_folded_head(net: FastestDet) -> FastestDet:
    """Return the network with the batch norms of its head folded into the convolutions before them, in eval mode."""
    blocks = [module for module in net.eval().head.modules() if isinstance(module, Conv2dNormActivation)]
    for block in blocks:
        block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    return net


def as_model(net: nn.Module, name: str = NAME) -> FloatModel:
    """Return such a network, with any weights, with the space of its images, in eval mode."""
    return FloatModel(
        name=name, net=net.eval(), image_shape=(3, SIZE, SIZE), mean=(0.0,) * 3, std=(1.0,) * 3, task="detection"
    )
