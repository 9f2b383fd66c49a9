"""Grids: by hand on 7 numbers, compared with torch's fake quantization, and their gradients."""

import pytest
import torch

from dghlib.quantizers.grid import UniformQuantizer, check_bits, code_limits, fake_quantize

SEVEN = torch.tensor([-9.0, -1.2, -0.5, 0.0, 0.5, 0.74, 9.0])


def threshold_grid(threshold: float, bits: int, signed: bool) -> UniformQuantizer:
    return UniformQuantizer.from_threshold(torch.tensor(threshold), bits=bits, signed=signed)


def test_signed_two_bits_by_hand() -> None:
    """Threshold 2, 2 bits: step 1, values -2, -1, 0, 1; ties go to the even code."""
    expected = torch.tensor([-2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    assert torch.equal(threshold_grid(2.0, 2, signed=True)(SEVEN), expected)


def test_unsigned_two_bits_by_hand() -> None:
    """Threshold 2, 2 bits: step 0.5, values 0, 0.5, 1, 1.5."""
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 1.5])
    assert torch.equal(threshold_grid(2.0, 2, signed=False)(SEVEN), expected)


def test_zero_point_moves_the_grid_and_keeps_zero() -> None:
    quantizer = UniformQuantizer(torch.tensor(0.5), torch.tensor(1), bits=2, signed=False)
    assert torch.equal(quantizer(SEVEN), torch.tensor([-0.5, -0.5, -0.5, 0.0, 0.5, 0.5, 1.0]))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize(("signed", "zero_point"), [(True, 0), (False, 0), (False, 1)])
def test_grids_per_tensor_equal_those_of_torch(bits: int, signed: bool, zero_point: int) -> None:
    x = 3 * torch.randn(2000, generator=torch.Generator().manual_seed(bits))
    scale = 2.0 ** (1 - bits)
    quantizer = UniformQuantizer(torch.tensor(scale), torch.tensor(zero_point), bits=bits, signed=signed)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *code_limits(bits, signed))
    torch.testing.assert_close(quantizer(x), expected, rtol=0, atol=1e-6)


def test_grids_per_channel_equal_those_of_torch() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    thresholds = torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0, 4.0])
    quantizer = UniformQuantizer.from_threshold(thresholds.view(6, 1, 1, 1), bits=4, signed=True)
    expected = torch.fake_quantize_per_channel_affine(
        weight, thresholds / 8, torch.zeros(6, dtype=torch.int32), 0, -8, 7
    )
    torch.testing.assert_close(quantizer(weight), expected)


def test_gradients_equal_the_formula_with_straight_through_rounding() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scale = torch.rand(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    zero_point = torch.tensor([[0], [1], [2], [3], [4]], dtype=torch.int32)
    weights = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    steps = x / scale
    rounded = steps.round().detach() + (steps - steps.detach())
    plain = ((rounded + zero_point).clamp(0, 7) - zero_point) * scale
    fused = fake_quantize(x, scale, zero_point, 0, 7)

    assert torch.equal(fused, plain)
    expected = torch.autograd.grad((plain * weights).sum(), (x, scale))
    got = torch.autograd.grad((fused * weights).sum(), (x, scale))
    torch.testing.assert_close(got, expected)


def test_quantizing_twice_changes_nothing() -> None:
    quantizer = UniformQuantizer(torch.tensor(0.3), torch.tensor(2), bits=4, signed=False)
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))


@pytest.mark.parametrize("signed", [True, False])
def test_codes_represent_the_quantized_values(signed: bool) -> None:
    quantizer = threshold_grid(1.0, 3, signed)
    codes = quantizer.to_codes(SEVEN)
    assert codes.dtype == torch.int32
    assert (int(codes.min()), int(codes.max())) == code_limits(3, signed)
    assert torch.equal(quantizer.from_codes(codes), quantizer(SEVEN))
    shifted = UniformQuantizer(torch.tensor(0.5), torch.tensor(3), bits=3, signed=False)
    assert torch.equal(shifted.from_codes(shifted.to_codes(SEVEN)), shifted(SEVEN))


def test_input_is_not_modified() -> None:
    x = SEVEN.clone()
    threshold_grid(2.0, 2, signed=True)(x)
    assert torch.equal(x, SEVEN)


@pytest.mark.parametrize("bits", [0, 1, 9, 12, 33, -4])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"weight_bits must be 2 to 8, 16, or 32 for float; got {bits}"):
        check_bits(bits, "weight_bits")


def test_a_grid_of_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="got 32"):
        threshold_grid(1.0, 32, signed=True)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        UniformQuantizer(torch.tensor(scale), torch.tensor(0), bits=4, signed=True)
