"""Settings of wrong types are refused by name, in every Config."""

import dataclasses
from typing import Any, Literal

import pytest
import torch
from conftest import make_tiny_model
from torch import nn

from dghlib.choices import check_at_least, check_types
from dghlib.generators import GENERATORS
from dghlib.quantizers import QUANTIZERS
from dghlib.quantizers.calibration import check_images
from dghlib.running.copies import output_for

CONFIGS = {name: method.Config for name, method in (GENERATORS | QUANTIZERS).items()}


@dataclasses.dataclass
class Settings:
    flag: bool = True
    count: int = 1
    rate: float = 1.0
    limit: float | None = None
    name: str = "x"
    way: Literal[1, 2] = 1


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"flag": "no"}, TypeError, "flag must be True or False, got 'no' of type str"),
        ({"flag": 1}, TypeError, "flag must be"),
        ({"count": 1.9}, TypeError, "count must be a whole number, got 1.9"),
        ({"count": True}, TypeError, "count must be"),
        ({"rate": "1"}, TypeError, "rate must be a number"),
        ({"rate": float("inf")}, ValueError, "rate must be finite, got inf"),
        ({"limit": float("nan")}, ValueError, "limit must be finite"),
        ({"limit": True}, TypeError, "limit must be a number"),
    ],
)
def test_wrong_types_are_refused(setting: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_types(Settings(**setting))
    check_types(Settings(rate=2, limit=None))


def test_absurdly_large_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at most 2147483647, got 2147483648"):
        check_at_least(1, "steps", 2**31)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_checks_its_types(name: str) -> None:
    for field in dataclasses.fields(CONFIGS[name]):
        if field.init and type(field.default) in (bool, int, float):
            with pytest.raises((TypeError, ValueError), match=field.name):
                CONFIGS[name](**{field.name: "no"})


class _Fails(nn.Module):
    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError, "allocate memory"),
        (torch.OutOfMemoryError("CUDA"), torch.OutOfMemoryError, "CUDA"),
        (
            RuntimeError("a hook of mine"),
            ValueError,
            r"_Fails fails on images of the shape \(3, 8, 8\): a hook of mine",
        ),
        (KeyError("a key of mine"), ValueError, r"_Fails fails on .*: KeyError: 'a key of mine'"),
    ],
)
def test_a_failing_network_is_reported_with_its_own_error(
    error: Exception, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        output_for(_Fails(error), torch.zeros(1, 3, 8, 8))


def test_images_that_look_like_pixels_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = make_tiny_model()
    check_images(torch.randn(4, 3, 8, 8), model)
    assert not caplog.text
    check_images(torch.rand(4, 3, 8, 8), model)
    assert "no value of the calibration images is below 0, and normalised pixels of tiny begin at -2" in caplog.text
    check_images(torch.zeros(4, 3, 8, 8), model)
    assert "all values of the calibration images are 0" in caplog.text
    with pytest.raises(ValueError, match="must be finite"):
        dataclasses.replace(model, mean=(float("nan"),) * 3)
