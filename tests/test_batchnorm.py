"""Batch-norm statistics compared with torch, and the bank compared with moments of the whole set."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from dghlib.running.batchnorm import (
    MeasuringNorm,
    MomentBank,
    NoBatchNorm,
    check_finite,
    moments,
    run_and_measure,
    stored_statistics,
    variance_of,
    working_copy,
)


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 7), (8, 5, 4, 3)])
def test_moments_equal_the_statistics_of_batch_norm_in_train_mode(shape):
    x = torch.randn(shape) * 3 + 1
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](5, momentum=1.0)
    norm(x)
    assert isinstance(norm.running_mean, Tensor)
    measured = moments(x)[0]
    count = x.numel() / 5
    torch.testing.assert_close(measured[0], norm.running_mean)
    torch.testing.assert_close(variance_of(measured) * count / (count - 1), norm.running_var)


def test_moments_by_hand_and_by_group():
    x = torch.tensor([1.0, 3.0, 5.0, 5.0]).view(2, 1, 2)
    assert moments(x, groups=2).flatten(1).tolist() == [[2, 5], [5, 25]]
    assert moments(x).flatten().tolist() == [3.5, 15]


def test_gradients_of_moments_are_right():
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def plain(x: Tensor) -> Tensor:
        values = x.unflatten(0, (2, 2)).transpose(1, 2).flatten(2)  # (groups, C, M)
        return torch.stack([values.mean(2), values.square().mean(2)], dim=1)

    weights = torch.randn(2, 2, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad((plain(x) * weights).sum(), x)
    (gradient,) = torch.autograd.grad((moments(x, groups=2) * weights.float()).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_variances_stay_nonnegative_despite_rounding():
    constant = torch.tensor([1000.1, 33.3, 0.1]).expand(4, 3)[:, :, None, None].expand(4, 3, 5, 5)
    measured = moments(constant) * torch.tensor([1.0, 1 - 1e-6]).view(1, 2, 1)  # as rounding can make it
    assert (variance_of(measured) == 0).all()


def test_half_precision_does_not_overflow():
    x = torch.full((2, 1, 2, 2), 300.0, dtype=torch.float16)
    assert moments(x).flatten().tolist() == [300, 90000]


@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (8, 24, 16, 16), (5, 16, 7, 7), (4, 600, 1, 1)])
def test_moments_of_many_layouts_equal_the_plain_formula(shape):
    """Rows are put side by side where channels are few."""
    x = torch.randn(shape) * 2 - 3
    plain = torch.stack([x.double().mean((0, 2, 3)), x.double().square().mean((0, 2, 3))])
    torch.testing.assert_close(moments(x)[0].double(), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fast", [False, True])
def test_a_layer_called_twice_pools_its_calls_by_size(fast):
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x).sum() + self.norm(x[:, :, :2, :2]).sum()

    plain = Head().eval().requires_grad_(False)
    net = working_copy(plain, "cpu", (3, 4, 4)) if fast else plain
    x = torch.randn(2, 3, 4, 4)
    both = torch.cat([x.flatten(2), x[:, :, :2, :2].flatten(2)], dim=2)
    torch.testing.assert_close(run_and_measure(net, x, {"norm": 1})[1]["norm"], moments(both))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_measuring_norms_leave_outputs_and_gradients_unchanged(groups, tiny_model):
    """Hooks on the plain network give the expected output, moments, and gradients to the images."""
    plain = tiny_model.net.eval().requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    fast = working_copy(plain, "cpu", tiny_model.image_shape)
    names = stored_statistics(plain, tiny_model.image_shape).names
    assert all(isinstance(fast.get_submodule(name), MeasuringNorm) for name in names)
    images = torch.randn(6, 3, 8, 8)
    weights = torch.randn(groups, 2, 1)

    def run(net: nn.Module) -> tuple[Tensor, ...]:
        leaf = images.clone().requires_grad_()
        output, measured = run_and_measure(net, leaf, dict.fromkeys(names, groups))
        loss = output.square().sum() + sum((values * weights).square().sum() for values in measured.values())
        return output, *measured.values(), torch.autograd.grad(loss, leaf)[0]

    for ours, expected in zip(run(fast), run(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_measuring_norms_are_removed_after_the_run(tiny_model):
    fast = working_copy(tiny_model.net, "cpu", tiny_model.image_shape)
    names = stored_statistics(fast, tiny_model.image_shape).names
    with pytest.raises(RuntimeError):
        run_and_measure(fast, torch.zeros(1, 5, 8, 8), dict.fromkeys(names, 1))
    for name in names:
        norm = fast.get_submodule(name)
        assert norm.groups is None
        assert norm.measured == []
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fast(images), tiny_model.net.eval()(images))


@pytest.mark.parametrize("batch_sizes", [[4, 4, 4], [5, 5, 2], [12]])
def test_the_bank_equals_moments_of_the_whole_set(batch_sizes):
    x = torch.randn(12, 7, 4, 4) * torch.logspace(-2, 2, 7).view(7, 1, 1)
    bank = MomentBank(batch_sizes, num_channels=7)
    parts = [moments(part)[0] for part in x.split(batch_sizes)]
    for _ in range(3):  # storing a batch again replaces its moments
        for index, part in enumerate(parts):
            bank.store(index, part)
    whole = moments(x)[0]
    for index, part in enumerate(parts):
        torch.testing.assert_close(bank.blend(index, part), whole, rtol=1e-5, atol=1e-5)


def test_the_running_total_accumulates_no_rounding_errors():
    bank = MomentBank([1, 1], num_channels=3)
    bank.store(0, torch.ones(2, 3))
    bank.store(1, torch.ones(2, 3))
    for _ in range(20_000):
        bank.store(0, torch.randn(2, 3) * 1e3)
    bank.store(0, torch.ones(2, 3))
    torch.testing.assert_close(bank.blend(1, torch.ones(2, 3)), torch.ones(2, 3), rtol=0, atol=1e-6)


def test_only_the_current_batch_gets_gradients():
    bank = MomentBank([3, 1], num_channels=2)
    bank.store(0, torch.ones(2, 2))
    fresh = torch.zeros(2, 2, requires_grad=True)
    bank.store(1, fresh)
    assert not bank.total.requires_grad
    (gradient,) = torch.autograd.grad(bank.blend(1, fresh).sum(), fresh)
    assert torch.equal(gradient, torch.full((2, 2), 0.25))


def test_an_incomplete_bank_is_an_error():
    bank = MomentBank([1, 1, 1], num_channels=2)
    bank.store(0, torch.zeros(2, 2))
    with pytest.raises(RuntimeError, match=r"batches \[2\] were never stored"):
        bank.blend(1, torch.zeros(2, 2))


class Varied(nn.Module):
    """Batch norms of several kinds: reached, reached late, frozen, not reached, without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.BatchNorm1d(4)
        self.unused = nn.BatchNorm2d(9)
        self.conv = nn.Conv2d(3, 4, 1)
        self.frozen = FrozenBatchNorm2d(4)
        self.forgetful = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.forgetful(self.frozen(self.conv(x))).mean((2, 3)))


def test_layers_are_in_the_order_of_the_forward_pass():
    net = Varied().eval()
    found = stored_statistics(net, (3, 4, 4))
    assert found.names == ("frozen", "late")
    assert found.sizes == (4, 4)
    assert found.mean.shape == found.variance.shape == (8,)


def test_a_network_without_batch_norm_is_refused_with_a_remedy():
    with pytest.raises(NoBatchNorm, match=r"Sequential has no batch norm.*Calibrate with real images"):
        stored_statistics(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 4, 4))


def test_a_network_that_reaches_no_batch_norm_is_refused():
    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(NoBatchNorm, match="reaches none of aside"):
        stored_statistics(Bypassed(), (3, 4, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["bn1.running_var", "conv2.weight"])
def test_values_that_are_not_finite_are_named(tiny_model, name, value):
    tiny_model.net.state_dict()[name].flatten()[0] = value
    with pytest.raises(ValueError, match=f"1 of .* values of '{name}'"):
        stored_statistics(tiny_model.net, tiny_model.image_shape)
    with pytest.raises(ValueError, match=name):
        check_finite(tiny_model.net)


def test_a_negative_variance_is_named(tiny_model):
    tiny_model.net.bn2.running_var[1] = -0.5
    with pytest.raises(ValueError, match="running variance of 'bn2' is negative"):
        stored_statistics(tiny_model.net, tiny_model.image_shape)


def test_a_working_copy_leaves_the_network_unchanged(tiny_model):
    net = tiny_model.net.train()
    clone = working_copy(net, "cpu", tiny_model.image_shape)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not clone.training
    assert not any(parameter.requires_grad for parameter in clone.parameters())


def test_networks_that_view_their_feature_maps_work():
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return x.view(len(x), -1)

    images = torch.randn(2, 3, 6, 6)
    net = Views().eval()
    torch.testing.assert_close(working_copy(net, "cpu", (3, 6, 6))(images), net(images))


def test_batch_norms_of_other_classes_are_found_by_their_statistics() -> None:
    class Frozen(nn.Module):
        weight: Tensor
        bias: Tensor
        running_mean: Tensor
        running_var: Tensor

        def __init__(self, norm: nn.BatchNorm2d):
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, norm.state_dict()[name].clone())

        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight * (self.running_var + 1e-5).rsqrt()
            return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)

    norm = nn.BatchNorm2d(8)
    norm.state_dict()["running_mean"].normal_()
    found = [
        stored_statistics(nn.Sequential(nn.Conv2d(3, 8, 3), each).eval(), (3, 8, 8)) for each in (norm, Frozen(norm))
    ]
    assert found[0].names == found[1].names == ("1",)
    assert torch.equal(found[0].mean, found[1].mean)
