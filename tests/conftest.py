"""Shared by all tests: one thread, networks small enough to run at once, and waiting for other processes."""

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from dghlib.models import FloatModel
from dghlib.running.allocator import keep_freed_memory


def until(happened: Callable[[], object], alive: Callable[[], object]) -> None:
    """Wait for an event, however busy the machine is; fail if the process that should cause it has ended."""
    while not happened():
        if not alive():
            assert happened(), "the process that should have done it has ended"
        time.sleep(0.02)


def tell_classes_apart(model: FloatModel, images: Tensor) -> None:
    """Move the biases of TinyNet's classes so that no class is the most probable one for all images."""
    with torch.no_grad():
        logits = copy.deepcopy(model.net).eval()(images)
        linear = model.net.get_submodule("linear")
        assert isinstance(linear, nn.Linear)
        linear.bias.sub_(logits.mean(0))


class TinyNet(nn.Module):
    """2 convolutions with batch norm, a shortcut, a linear layer: (N, 3, 8, 8) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def make_tiny_model(seed: int = 0) -> FloatModel:
    """Return TinyNet with random weights, its batch norms trained on smooth coloured noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyNet()
        coarse = torch.randn(512, 3, 2, 2) * torch.tensor([1.2, 0.8, 0.5]).view(3, 1, 1)
        images = nn.functional.interpolate(coarse, 8, mode="bilinear") + 0.2 * torch.randn(512, 3, 8, 8)
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            net(images)
    return FloatModel(name="tiny", net=net.eval(), image_shape=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def make_tiny_transformer(seed: int = 0, image_size: int = 8) -> FloatModel:
    """Return a vision transformer with random weights: patches of 2 pixels, 2 heads, 2 layers, 5 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = VisionTransformer(
            image_size=image_size, patch_size=2, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24, num_classes=5
        )
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    shape = (3, image_size, image_size)
    return FloatModel(name="tiny", net=net.eval(), image_shape=shape, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(autouse=True, scope="session")
def one_thread_that_keeps_its_memory() -> None:
    """Let torch use 1 thread: several wait for each other when programs run side by side."""
    torch.set_num_threads(1)
    keep_freed_memory()


@pytest.fixture
def tiny_model() -> FloatModel:
    """Return a new tiny model, which a test may change."""
    return make_tiny_model()
