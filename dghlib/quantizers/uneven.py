"""Grids with unevenly spaced points, for tensors of transformers for which no uniform grid is suitable.

The outputs of softmax are mostly near 0, and the few values near 1 matter most; the outputs of GELU have a long side
above 0 and a short side below 0. A *logarithmic* grid has steps in proportion to the value. A *twin* grid has 2 uniform
ranges, and a bit of the code selects the range, so that products are still those of integers, up to a shift.

All grids have the interface of `grid.UniformQuantizer`: float in, float out, a single grid for the whole tensor, at
most 2**bits values, codes in between.

Source: Z. Li, J. Xiao, L. Yang, Q. Gu, "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers", ICCV 2023 (logarithmic, base sqrt(2)); Z. Yuan, C. Xue, Y. Chen, Q. Wu, G. Sun, "PTQ4ViT: Post-Training
Quantization for Vision Transformers with Twin Uniform Quantization", ECCV 2022 (twin).

Differences:
1. The last code of a logarithmic grid is 0. RepQ-ViT's released code has 0 in addition to 2**bits other values, which
   do not fit into this number of bits.
2. A value is rounded to the nearer point of both ranges of a twin grid. In the paper its sign or size selects the
   range, which is the same except for values between the ends of both. PTQ4ViT's released code adds the results of both
   ranges, so that above their border a value is too large by the border.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dghlib.quantizers.grid import CODED_BITS, UniformQuantizer

OCTAVE = 2  # points of a logarithmic grid from a value to its half: base sqrt(2)
TINY = 1e-30  # its logarithm represents that of 0


class LogQuantizer(nn.Module):
    """Fake quantization to scale * 2**(-code / OCTAVE), where the last code is 0; for tensors without negative values.

    Args:
        scale: the largest point, shape (), positive.
        bits: width of a code: 2 to 8, or 16.
    """

    scale: Tensor
    signed = False

    def __init__(self, scale: Tensor, *, bits: int):
        super().__init__()
        _check_bits(bits)
        self.register_buffer("scale", scale.detach().float().clone())
        self.bits = bits
        self.check()

    def check(self) -> None:
        """Raise ValueError unless the scale is a single positive and finite number."""
        _check_step("scale", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.from_codes(self.to_codes(x))

    def to_codes(self, x: Tensor) -> Tensor:
        """Return the codes of `x`, int32, 0 to 2**bits - 1."""
        logarithms = (x / self.scale).clamp(min=TINY).log() * STEPS_OF_LOGARITHM
        return logarithms.round().clamp(0, 2**self.bits - 1).to(torch.int32)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Return the values that `codes` stand for."""
        return self.points()[codes.long()]

    def points(self) -> Tensor:
        """Return the value of every code, (2**bits,)."""
        codes = torch.arange(2**self.bits, device=self.scale.device)
        return torch.where(codes < 2**self.bits - 1, self.scale * torch.exp2(-codes / OCTAVE), 0.0)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, {OCTAVE} points an octave"


STEPS_OF_LOGARITHM = -OCTAVE / math.log(2)  # codes for each unit of the natural logarithm


class TwinQuantizer(nn.Module):
    """Fake quantization to a fine range and a coarse range, each with half of the codes; to the nearer point of both.

    If signed, the fine range covers values below 0: -h * fine to 0, and the coarse range covers 0 to (h - 1) * coarse,
    with h = 2**(bits - 1); otherwise both begin at 0: (0 to h - 1) times a step size.

    Args:
        fine, coarse: step sizes, shape (), positive; the coarse one is the fine one times a power of two.
        bits: width of a code: 2 to 8, or 16.
        signed: see above.
    """

    fine: Tensor
    coarse: Tensor

    def __init__(self, fine: Tensor, coarse: Tensor, *, bits: int, signed: bool):
        super().__init__()
        _check_bits(bits)
        self.register_buffer("fine", fine.detach().float().clone())
        self.register_buffer("coarse", coarse.detach().float().clone())
        self.bits, self.signed = bits, signed
        self.each = 2 ** (bits - 1)  # codes of each range
        self.fine_codes = (-self.each, 0) if signed else (0, self.each - 1)
        self.check()

    def check(self) -> None:
        """Raise ValueError unless both step sizes are positive and finite, and differ by a power of two."""
        _check_step("fine", self.fine)
        _check_step("coarse", self.coarse)
        shifts = (self.coarse.double() / self.fine.double()).log2().item()
        if abs(shifts - round(shifts)) > 1e-5:
            raise ValueError(f"steps must differ by a power of two, got {self.fine.item()} and {self.coarse.item()}")

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self._rounded(x)
        fine, coarse = fine * self.fine, coarse * self.coarse
        return torch.where((x - fine).abs() <= (x - coarse).abs(), fine, coarse)

    def to_codes(self, x: Tensor) -> Tensor:
        """Return the codes of `x`, int32: those of the fine range below those of the coarse one."""
        fine, coarse = self._rounded(x)
        nearer = (x - fine * self.fine).abs() <= (x - coarse * self.coarse).abs()
        first = 0 if self.signed else self.each  # of the coarse range; a signed grid's 0 belongs to this range
        return torch.where(nearer & ((fine != 0) | (not self.signed)), fine, coarse + first).to(torch.int32)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Return the values that `codes` stand for."""
        first = 0 if self.signed else self.each
        return torch.where(codes < first, codes * self.fine, (codes - first) * self.coarse)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = (x / self.fine).round().clamp(*self.fine_codes)
        return fine, (x / self.coarse).round().clamp(0, self.each - 1)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}, steps {self.fine.item():.3g} and {self.coarse.item():.3g}"


Quantizer = UniformQuantizer | LogQuantizer | TwinQuantizer
KINDS: Mapping[str, type[nn.Module]] = {"uniform": UniformQuantizer, "log": LogQuantizer, "twin": TwinQuantizer}


def kind_of_grid(quantizer: nn.Module) -> str:
    """Return the name, in `KINDS`, of a quantizer's class."""
    return next(name for name, kind in KINDS.items() if isinstance(quantizer, kind))


def unset(kind: str, bits: int, signed: bool) -> Quantizer:
    """Return a quantizer of a tensor whose step sizes are still to be loaded."""
    one = torch.ones(())
    if kind == "log":
        return LogQuantizer(one, bits=bits)
    if kind == "twin":
        return TwinQuantizer(one, one, bits=bits, signed=signed)
    return UniformQuantizer(one, torch.zeros(()), bits=bits, signed=signed)


def _check_bits(bits: int) -> None:
    if bits not in CODED_BITS:
        raise ValueError(f"a quantizer has 2 to 8 or 16 bits, got {bits}")


def _check_step(name: str, step: Tensor) -> None:
    if step.ndim or not (step.isfinite() & (step > 0)).all():
        raise ValueError(f"{name} must be one positive and finite number, got {step.flatten()[:8].tolist()}")
