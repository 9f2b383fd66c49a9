"""The first convolution of many networks (large, strided, 3 channels) with a faster gradient to the images.

Libraries for CPUs are slow at this gradient: for the stem of a ResNet it takes a tenth of a whole generation step. The
gradient is a transposed strided convolution. Sorted by the position of an image's pixel within a stride, it becomes a
single convolution without strides that computes all positions of a stride at once; its results are then distributed to
the pixels. The same products are added in another order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 4  # of an image at most; with more channels, the usual gradient is as fast


class Stem(nn.Conv2d):
    """A frozen convolution on images, whose gradient with respect to them comes from `_Stem`."""

    backwards: Tensor  # see `_kernel_backwards`

    @staticmethod
    def replace(module: nn.Module) -> None:
        """Give a module this class if this is faster: frozen, on the CPU, with a kernel wider than 2 strides."""
        if type(module) is not nn.Conv2d or module.weight.requires_grad or module.weight.device.type != "cpu":
            return
        square = all(len(set(pair)) == 1 for pair in (module.kernel_size, module.stride, module.padding))
        plain = square and module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
        size, stride = module.kernel_size[0], module.stride[0]
        if plain and module.in_channels <= CHANNELS and 1 < stride < size / 2 and int(module.padding[0]) < size:
            module.backwards = _kernel_backwards(module)
            module.__class__ = Stem

    def forward(self, input: Tensor) -> Tensor:
        return _Stem.apply(input, self) if input.requires_grad else super().forward(input)


class _Stem(torch.autograd.Function):
    """A convolution, and its gradient to the input by a convolution without strides."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, stem: Stem) -> Tensor:
        ctx.stem, ctx.size = stem, images.shape[2:]
        return F.conv2d(images, stem.weight, stem.bias, stem.stride, stem.padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        stem, stride, before = ctx.stem, ctx.stem.stride[0], _before(ctx.stem)
        counts = [-(-length // stride) for length in ctx.size]  # strides in the image
        after = stem.backwards.shape[2] - 1 - before
        lacking = [after + count - have for count, have in zip(counts, gradient.shape[2:], strict=True)]
        padding = max(before, *lacking)
        places = F.conv2d(gradient, stem.backwards, padding=padding)
        for dimension, count in zip((2, 3), counts, strict=True):
            places = places.narrow(dimension, padding - before, count)
        height, width = ctx.size
        return F.pixel_shuffle(places, stride)[:, :, :height, :width], None


def _kernel_backwards(layer: nn.Conv2d) -> Tensor:
    """Return the kernel that computes, from gradients of outputs, the gradients of all pixels of a stride.

    The pixel at `place` of stride i receives, from row k of the layer's kernel, the gradient of output
    i + (place + padding - k) / stride.

    Returns:
        (C stride^2, O, reach, reach), its channels as `pixel_shuffle` takes them, its first row for output i - before.
    """
    stride, padding, weight = layer.stride[0], int(layer.padding[0]), layer.weight
    taps = [
        (place, k, (place + padding - k) // stride + _before(layer))
        for place in range(stride)
        for k in range(weight.shape[2])
        if (place + padding - k) % stride == 0
    ]
    reach = 1 + max(row for _, _, row in taps)
    kernel = weight.new_zeros(weight.shape[1], stride, stride, weight.shape[0], reach, reach)
    for down, k, row in taps:
        for right, m, column in taps:
            kernel[:, down, right, :, row, column] = weight[:, :, k, m].T
    return kernel.flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _before(layer: nn.Conv2d) -> int:
    """Return the number of outputs before i that the pixels of stride i affect."""
    return (layer.kernel_size[0] - 1 - int(layer.padding[0])) // layer.stride[0]
