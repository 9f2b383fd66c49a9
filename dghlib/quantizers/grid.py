"""Uniform grids: the codes, and rounding to them.

A grid of `bits` bits has 2**bits codes, quant_min to quant_max; code c stands for (c - zero_point) * scale.
Signed grids have codes -2**(bits-1) .. 2**(bits-1) - 1, unsigned ones 0 .. 2**bits - 1. A *threshold* t describes
a grid without zero point by its range: signed [-t, t - scale], unsigned [0, t - scale].

Quantization is simulated: float in, float out, on the grid. `ranges` chooses grids.
"""

from typing import Any

import torch
from torch import Tensor, nn

CODED_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
FLOAT_BITS = 32  # means float: no quantizer is made


def check_bits(bits: int, what: str) -> None:
    """Raise ValueError, naming `what`, unless `bits` is 2 to 8, 16, or 32 (which means float)."""
    if bits not in (*CODED_BITS, FLOAT_BITS):
        raise ValueError(f"{what} must be 2 to 8, 16, or 32 for float; got {bits}")


def code_limits(bits: int, signed: bool) -> tuple[int, int]:
    """Return the smallest and the largest code of a grid."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _FakeQuantize(torch.autograd.Function):
    """A single node in the autograd graph, with float arithmetic only: masks are 10 times as slow on processors.

    With y the output, the gradient of the scale is the sum of g (code - zero_point) where x is clamped, and of
    g (y - x) / scale where it is not; so it is (sum of g y - sum of g_x x) / scale, where g_x is the gradient of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int], kept: Tensor | None
    ) -> Tensor:
        ctx.low, ctx.high = (_number(limit - zero_point) for limit in limits)
        quantized = x.div(scale).round_().clamp_(ctx.low, ctx.high).mul_(scale)
        if kept is not None:
            quantized = torch.lerp(quantized, x, kept)
        ctx.save_for_backward(x, scale, quantized, kept)
        return quantized

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, quantized, kept = ctx.saved_tensors
        grad_x = _gradient_of_clamp(grad, x, _number(scale * (ctx.low - 0.5)), _number(scale * (ctx.high + 0.5)))
        if kept is not None:
            grad_x = torch.lerp(grad_x, grad, kept)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_scale = ((grad * quantized).sub_(grad_x * x)).sum_to_size(scale.shape) / scale
        return grad_x, grad_scale, None, None, None


def _number(value: Tensor) -> Any:
    """Return a single value on the CPU as a plain number, with which elementwise operations are 3 times as fast."""
    return value.item() if value.ndim == 0 and value.device.type == "cpu" else value


def _gradient_of_clamp(grad: Tensor, x: Tensor, low: Any, high: Any) -> Tensor:
    if isinstance(low, Tensor):
        return grad * ((x > low) & (x < high))
    return torch.ops.aten.hardtanh_backward(grad, x, low, high)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, kept: Tensor | None = None
) -> Tensor:
    """Return `x` rounded to the nearest point of a grid and clamped to its ends.

    `scale` and `zero_point` broadcast against `x`. Where `kept`, of the shape of `x`, is 1 instead of 0, `x` does not
    change. Differentiable in `x` and `scale`: gradients pass the rounding unchanged, and clamping stops the gradients
    of `x`.
    """
    return _FakeQuantize.apply(x, scale, zero_point, (quant_min, quant_max), kept)


class UniformQuantizer(nn.Module):
    """Fake quantization on a fixed grid: float in, float out, at most 2**bits values.

    Args:
        scale: step size of the grid, shape () or broadcastable to the input, e.g. (C, 1, 1, 1).
        zero_point: code of the real value 0, an integer tensor of the shape of `scale`.
        bits: width of a code: 2 to 8, or 16.
        signed: whether codes start at -2**(bits-1), or at 0.

    Raises:
        ValueError: see `check`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, *, bits: int, signed: bool):
        super().__init__()
        if bits not in CODED_BITS:
            raise ValueError(f"a quantizer has 2 to 8 or 16 bits, got {bits}")
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().to(torch.int32))
        self.bits = bits
        self.signed = signed
        self.quant_min, self.quant_max = code_limits(bits, signed)
        self.check()

    def check(self) -> None:
        """Raise ValueError unless the scale is positive and finite, and the zero point is a code, with the same shape.

        Values from a file replace both after construction.
        """
        if not (self.scale.isfinite() & (self.scale > 0)).all():
            raise ValueError(f"scale must be positive and finite, got {self.scale.flatten()[:8].tolist()}")
        if self.zero_point.shape != self.scale.shape:
            raise ValueError(f"zero_point {tuple(self.zero_point.shape)} and scale {tuple(self.scale.shape)} differ")
        if not ((self.zero_point >= self.quant_min) & (self.zero_point <= self.quant_max)).all():
            codes = f"codes of {self.bits} bits are {self.quant_min} to {self.quant_max}"
            raise ValueError(f"{codes}, zero_point has {self.zero_point.flatten()[:8].tolist()}")

    @classmethod
    def from_threshold(cls, threshold: Tensor, *, bits: int, signed: bool) -> "UniformQuantizer":
        """Return the grid without zero point whose range ends at `threshold` (any shape, positive)."""
        scale = threshold / 2 ** (bits - 1 if signed else bits)
        return cls(scale, torch.zeros_like(scale, dtype=torch.int32), bits=bits, signed=signed)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def to_codes(self, x: Tensor) -> Tensor:
        """Return the integer codes of `x`, int32, quant_min to quant_max."""
        codes = (x / self.scale).round() + self.zero_point
        return codes.clamp(self.quant_min, self.quant_max).to(torch.int32)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Return the real values that `codes` stand for; `from_codes(to_codes(x))` is `forward(x)`."""
        return (codes - self.zero_point) * self.scale

    def extra_repr(self) -> str:
        grids = "one grid" if self.scale.ndim == 0 else f"{self.scale.numel()} grids"
        return f"bits={self.bits}, signed={self.signed}, {grids}"
