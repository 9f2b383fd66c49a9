"""Architectures of the classifiers: residual, bottleneck and inverted-residual networks.

All map images (N, 3, H, W) to logits (N, num_classes), trace with `torch.fx` and are built of blocks that are
sub-modules, so that a quantizer can find the blocks by their path.

Source: ResNet (arXiv:1512.03385), with projection shortcuts or, for CIFAR-10, with shortcut option A (its
section 4.2); MobileNetV2 (arXiv:1801.04381).
Differences from the paper: images are small, so the stem of a residual network is a 3x3 convolution.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


def _conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, stride, bias=False)


class PaddedShortcut(nn.Module):
    """Shortcut option A: every `stride`-th pixel, and zeros for the new channels."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.padding = (channels - in_channels) // 2  # before the first channel, and after the last

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    return nn.Sequential(_conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, the last 4 times as wide, with a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu(residual + self.shortcut(x))


class ResidualNet(nn.Module):
    """A residual network for small images: a 3x3 stem, stages of blocks, mean over space, linear layer.

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks of every stage. widths: their width, before the block's expansion.
        stem_channels: channels after the stem.
        stem_pool: halve the resolution after the stem, as ResNets for ImageNet do.
        padded_shortcuts: shortcut option A instead of projections.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        num_classes: int,
        stem_channels: int,
        stem_pool: bool = False,
        padded_shortcuts: bool = False,
    ):
        super().__init__()
        self.conv1 = _conv3x3(3, stem_channels)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else nn.Sequential()
        shortcut = PaddedShortcut if padded_shortcuts else _projection
        stages, channels = [], stem_channels
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stride = 1 if index == 0 else 2
            stages.append(_stage(block, channels, width, depth, stride, shortcut))
            channels = width * block.expansion
        self.stages = nn.Sequential(*stages)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.stages(x)
        return self.linear(self.mean(x).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    depth: int,
    stride: int,
    shortcut: Callable[[int, int, int], nn.Module],
) -> nn.Sequential:
    """Return `depth` blocks, of which the first changes the resolution and the number of channels."""
    channels = width * block.expansion
    changes = stride > 1 or in_channels != channels
    # An empty Sequential returns its input and, unlike Identity, leaves no node in a traced graph.
    first = shortcut(in_channels, channels, stride) if changes else nn.Sequential()
    blocks = [block(in_channels, width, stride, first)]
    blocks += [block(channels, width, 1, nn.Sequential()) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _conv_bn_relu6(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution (left out for expansion 1), filter each channel, project to fewer channels."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int):
        super().__init__()
        width = in_channels * expansion
        widen = _conv_bn_relu6(in_channels, width, 1) if expansion > 1 else []
        filtering = _conv_bn_relu6(width, width, 3, stride, groups=width)
        self.conv = nn.Sequential(*widen, *filtering, _conv1x1(width, channels), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class InvertedResidualWithShortcut(InvertedResidual):
    """An inverted residual that keeps the shape, and adds its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, 1x1 head, mean over space, linear layer.

    Args:
        plan: a row (expansion, channels, blocks, stride of the first block) for every stage.
        num_classes, stem_channels, stem_stride, head_channels: as their names say.
    """

    def __init__(
        self,
        plan: Sequence[tuple[int, int, int, int]],
        *,
        num_classes: int,
        stem_channels: int,
        stem_stride: int,
        head_channels: int,
    ):
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn_relu6(3, stem_channels, 3, stem_stride))
        blocks, channels = [], stem_channels
        for expansion, out_channels, depth, first_stride in plan:
            for stride in (first_stride, *[1] * (depth - 1)):
                keeps_shape = stride == 1 and channels == out_channels
                block = InvertedResidualWithShortcut if keeps_shape else InvertedResidual
                blocks.append(block(channels, out_channels, stride, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv_bn_relu6(channels, head_channels, 1))
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(head_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(self.mean(x).flatten(1))
