"""Bad networks that users have written or could write: `planted_words.py` names them on the command line."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dghlib.models import FloatModel


class Net(nn.Module):
    """2 convolutions with batch norm and a linear layer, and an operation on the logits: (N, 3, 8, 8) -> (N, 5)."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 5)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        x = self.bn1(self.conv1(x)).relu()
        return self.answer(self.linear(self.bn2(self.conv2(x)).relu().mean((2, 3))))


def _model(net: Any, **changed: Any) -> FloatModel:
    about = {"name": "own", "image_shape": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.25,) * 3} | changed
    return FloatModel(net=net, **about)


def _changed(change: Callable[[Net], object]) -> FloatModel:
    net = Net().eval()
    with torch.no_grad():
        change(net)
    return _model(net)


def _fail(*arguments: Any) -> None:
    raise RuntimeError("the camera is off")


def _nothing_known(*arguments: Any) -> None:
    raise KeyError("weights")


# Networks that return something other than logits.
def answers_a_dict() -> FloatModel:
    return _model(Net(lambda logits: {"logits": logits}).eval())


def answers_a_tuple() -> FloatModel:
    return _model(Net(lambda logits: (logits, logits)).eval())


def answers_a_list() -> FloatModel:
    return _model(Net(lambda logits: [logits]).eval())


def answers_nothing() -> FloatModel:
    return _model(Net(lambda logits: None).eval())


def answers_text() -> FloatModel:
    return _model(Net(lambda logits: "a cat").eval())


def answers_a_number() -> FloatModel:
    return _model(Net(lambda logits: logits.sum()).eval())


def answers_whole_numbers() -> FloatModel:
    return _model(Net(lambda logits: logits.argmax(1)).eval())


def answers_infinity() -> FloatModel:
    return _model(Net(lambda logits: logits / 0).eval())


# Networks that fail.
def fails() -> FloatModel:
    return _model(Net(_fail).eval())


def fails_by_a_key() -> FloatModel:
    return _model(Net(_nothing_known).eval())


def fails_in_a_hook() -> FloatModel:
    net = Net().eval()
    net.conv1.register_forward_hook(_fail)
    return _model(net)


def fails_to_be_made() -> FloatModel:
    raise KeyError("weights")


def wants_words(word: str) -> FloatModel:
    return _model(Net().eval(), name=word)


def is_nothing() -> None:
    return None


def is_a_module() -> nn.Module:
    return Net()


def is_no_module() -> FloatModel:
    return _model(lambda images: images)


# Networks with impossible weights.
def holds_nan() -> FloatModel:
    return _changed(lambda net: net.conv1.weight.fill_(torch.nan))


def holds_infinity() -> FloatModel:
    return _changed(lambda net: net.linear.bias.fill_(torch.inf))


def has_seen_nan() -> FloatModel:
    return _changed(lambda net: net.bn1.running_mean.fill_(torch.nan))  # type: ignore[union-attr]


def varies_below_zero() -> FloatModel:
    return _changed(lambda net: net.bn1.running_var.fill_(-1.0))  # type: ignore[union-attr]


def has_seen_nothing() -> FloatModel:
    net = Net().eval()
    net.bn1 = nn.BatchNorm2d(6, track_running_stats=False)
    return _model(net)


def is_complex() -> FloatModel:
    return _model(Net().eval().to(torch.complex64))


def is_on_no_device() -> FloatModel:
    return _model(Net().eval().to("meta"))


# Networks with other inputs.
def takes_larger_images() -> FloatModel:
    return _model(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 14 * 14, 5)).eval())


def takes_other_channels() -> FloatModel:
    return _model(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 5)).eval())


class _Two(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x + y)


def takes_two_images() -> FloatModel:
    return _model(_Two().eval())


# Networks that cannot be traced.
class _Chooses(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.sum() > 0 else -x)


class _Draws(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x + torch.randn_like(x))


def chooses_by_values() -> FloatModel:
    return _model(_Chooses().eval())


def draws_by_chance() -> FloatModel:
    return _model(_Draws().eval())


def has_no_layers() -> FloatModel:
    return _model(nn.Identity().eval())


def is_scripted() -> FloatModel:
    warnings.simplefilter("ignore", FutureWarning)
    return _model(torch.jit.script(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))).eval())


# Networks with wrong facts about their images.
def says_two_numbers() -> FloatModel:
    return _model(Net().eval(), image_shape=(8, 8))


def says_no_size() -> FloatModel:
    return _model(Net().eval(), image_shape=(3, 0, 8))


def says_text() -> FloatModel:
    return _model(Net().eval(), image_shape=("3", "8", "8"))


def says_a_mean_that_is_none() -> FloatModel:
    return _model(Net().eval(), mean=(torch.nan,) * 3)


def says_no_spread() -> FloatModel:
    return _model(Net().eval(), std=(0.0,) * 3)


def says_a_spread_of_255() -> FloatModel:
    return _model(Net().eval(), std=(58.0,) * 3)


def says_one_mean() -> FloatModel:
    return _model(Net().eval(), mean=(0.5,))
