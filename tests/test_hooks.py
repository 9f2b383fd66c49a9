"""Recorded inputs: all calls in order, and no remaining hooks."""

import pytest
import torch
from torch import Tensor, nn

from dghlib.running.hooks import recorded_inputs


class CallsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Identity()
        self.late = nn.Identity()
        self.shared = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.shared(x) + self.shared(2 * x))


def test_every_call_is_recorded_in_order_of_first_call():
    net, x = CallsTwice(), torch.ones(1)
    with recorded_inputs(net, ["never", "late", "shared", ""]) as inputs:
        net(x)
    assert list(inputs) == ["", "shared", "late"]
    assert [call.item() for call in inputs["shared"]] == [1, 2]
    assert inputs["late"][0].item() == 3


def test_hooks_are_removed_even_after_an_error():
    net = CallsTwice()
    with pytest.raises(RuntimeError, match="stop"), recorded_inputs(net, ["late"]):
        raise RuntimeError("stop")
    assert not net.late._forward_pre_hooks
