"""3x3 convolutions of a frozen network on the CPU, by Winograd's algorithm: with 1/4 to 1/2 of the products.

A tile of m x m outputs of a channel depends on (m + 2)^2 inputs. If these are treated as polynomials, the 9 m^2
products of inputs and weights reduce to (m + 2)^2 products at points where both polynomials are evaluated. The
evaluation of the inputs and the interpolation of the outputs are small sums; between them there is a matrix product for
each point. The weights are evaluated once, because they never change. The gradient to the inputs is a convolution of
the same kind.

Source: Lavin, Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sections 4.1 and 4.3; m = 2 with the
points 0, 1, -1 and infinity, m = 4 with 2 and -2 in addition. Differences: tiles are summed by products of matrices of
the whole two-dimensional transform, and a layer uses the scheme with the fewest products for its maps, or none. The
result is that of the direct sum up to rounding, which for m = 4 is 1e-5 of the largest output. The evaluated weights
for both directions take up to 8 times the memory of the weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 64  # minimum in and out: with fewer, the evaluation costs more than it saves
_WORKING_SET = 2**18  # values that a thread computes for a group of images, which fit into a processor's own cache
_ROWS = 32  # minimum rows of a matrix product: fewer do not use it fully


class _Scheme(NamedTuple):
    """F(m x m, 3 x 3): the evaluation of tiles and the interpolation of outputs; points are the first dimension."""

    m: int
    inputs: Tensor  # (points, (m + 2)^2)
    weights: Tensor  # (points, 9)
    outputs: Tensor  # (m^2, points)

    @classmethod
    def of(cls, inputs: list[list[float]], weights: list[list[float]], outputs: list[list[float]]) -> "_Scheme":
        """Make a scheme of 2D images from a scheme of rows."""
        lines = (torch.tensor(rows, dtype=torch.float32) for rows in (inputs, weights, outputs))
        return cls(len(outputs), *(torch.kron(each, each) for each in lines))

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of tiles that cover a map."""
        return -(-height // self.m), -(-width // self.m)

    def products(self, height: int, width: int) -> int:
        """Return the number of products for an input and an output channel of a map."""
        down, across = self.tiles(height, width)
        return down * across * (self.m + 2) ** 2


_SCHEMES = (
    _Scheme.of(
        inputs=[[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        weights=[[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        outputs=[[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    _Scheme.of(
        inputs=[
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        weights=[
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        outputs=[[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
)


class Winograd(nn.Conv2d):
    """A frozen 3x3 convolution without stride, whose outputs are as large as its inputs."""

    _evaluated: dict[tuple[int, bool], Tensor]  # weights by scheme and direction

    @staticmethod
    def replace(module: nn.Module) -> None:
        """Give a module this class if this is faster: frozen, on the CPU, with many channels."""
        if type(module) is not nn.Conv2d or module.weight.requires_grad or module.weight.device.type != "cpu":
            return
        form = (module.kernel_size, module.stride, module.padding, module.dilation)
        plain = form == ((3, 3), (1, 1), (1, 1), (1, 1)) and module.groups == 1 and module.padding_mode == "zeros"
        if plain and module.weight.dtype == torch.float32 and min(module.weight.shape[:2]) >= CHANNELS:
            module.__class__ = Winograd
            assert isinstance(module, Winograd)
            module._evaluated = {}

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # it would split the graph at every layer
            return super().forward(input)
        return _Winograd.apply(input, self)

    def convolve(self, maps: Tensor, *, backwards: bool = False) -> Tensor:
        """Return the convolution of maps (N, C, H, W), without its bias: (N, O, H, W), channels_last.

        Backwards, maps are the gradient (N, O, H, W) of outputs, and the result is that of inputs, (N, C, H, W).
        """
        height, width = maps.shape[2:]
        scheme = min(_SCHEMES, key=lambda each: each.products(height, width))
        if scheme.products(height, width) >= 9 * height * width:
            direct: Callable[..., Tensor] = F.conv_transpose2d if backwards else F.conv2d
            return direct(maps, self.weight, padding=1)
        weights = self._weights(scheme, backwards)
        down, across = scheme.tiles(height, width)
        rows = maps.permute(0, 2, 3, 1)
        result = rows.new_empty(len(rows), down * scheme.m, across * scheme.m, weights.shape[2])
        values = down * across * max(weights.shape[1:]) * len(weights)  # per image
        group = max(torch.get_num_threads() * _WORKING_SET // values, -(-_ROWS // (down * across)), 1)
        for some, places in zip(rows.split(group), result.split(group), strict=True):
            _convolve(some, weights, scheme, places)
        return result[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _weights(self, scheme: _Scheme, backwards: bool) -> Tensor:
        """Return the weights at all points, (points, in, out), of the convolution or of its gradient."""
        key = (scheme.m, backwards)
        if key not in self._evaluated:
            weight = self.weight.flip(2, 3).transpose(0, 1) if backwards else self.weight
            points = scheme.weights @ weight.permute(2, 3, 1, 0).flatten(0, 1).flatten(1)
            self._evaluated[key] = points.view(-1, weight.shape[1], weight.shape[0])
        return self._evaluated[key]


class _Winograd(torch.autograd.Function):
    """A convolution and its gradient to the input."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, layer: Winograd) -> Tensor:
        ctx.layer = layer
        result = layer.convolve(maps)
        return result if layer.bias is None else result + layer.bias.view(-1, 1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.convolve(gradient, backwards=True), None


def _convolve(rows: Tensor, weights: Tensor, scheme: _Scheme, result: Tensor) -> None:
    """Convolve rows (n, H, W, C) with evaluated weights (points, C, O) into a result (n, down m, across m, O)."""
    count, height, width, channels = rows.shape
    m, (down, across) = scheme.m, scheme.tiles(height, width)
    bordered = F.pad(rows, (0, 0, 1, across * m + 1 - width, 1, down * m + 1 - height))
    image, line, pixel, _ = bordered.stride()
    shape = (m + 2, m + 2, count, down, across, channels)
    tiles = bordered.as_strided(shape, (line, pixel, image, line * m, pixel * m, 1))
    points = scheme.inputs @ tiles.reshape((m + 2) ** 2, -1)
    points = torch.bmm(points.view(len(weights), -1, channels), weights)
    outputs = scheme.outputs @ points.view(len(weights), -1)
    places = result.view(count, down, m, across, m, -1)
    places.copy_(outputs.view(m, m, count, down, across, -1).permute(2, 3, 0, 4, 1, 5))
