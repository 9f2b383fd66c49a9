"""What generators share: the loop over tasks, and finding classes and features."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR

from dghlib.generators import deep_inversion, genie_d, intraq, qimera, zeroq
from dghlib.generators.schedules import in_proportion
from dghlib.generators.tasks import ImageTask, run_tasks
from dghlib.models import FloatModel
from dghlib.storage.checkpoints import Checkpoint
from dghlib.synthesis.classes import NoFeatures, NotAClassifier, find_head

NOWHERE = Checkpoint(None, "")


def _falling(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return StepLR(optimizer, step_size=1, gamma=0.1)


def _task(loss: Any, schedule: Any = _falling, **settings: Any) -> ImageTask:
    images = torch.tensor([[[[1.0, -2.0]]]])
    return ImageTask(images, loss, lambda leaves: torch.optim.SGD(leaves, 0.5), schedule, **settings)


def test_an_image_task_moves_down_the_sum_of_its_terms():
    task = _task(lambda images: {"square": images.square().sum(), "line": images.sum()})
    assert task.step() == {"square": 5.0, "line": -1.0}
    # gradient 2x + 1: 3 and -3, at rate 1/2
    assert task.images().flatten().tolist() == [-0.5, -0.5]
    task.step()  # gradient 0
    assert task.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_schedule_gets_the_loss_of_each_step():
    task = _task(lambda images: {"line": images.sum()}, lambda optimizer: ReduceLROnPlateau(optimizer, patience=0))
    rates = []
    for _ in range(3):
        task.step()
        rates.append(task.optimizer.param_groups[0]["lr"])
    assert rates == [0.5] * 3  # the loss falls
    task.loss = lambda images: {"line": 100 + images.sum()}
    task.step()
    assert task.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_an_overflow_is_reported_as_too_high_a_learning_rate():
    task = _task(lambda images: {"line": images.sum()})
    task.optimizer = torch.optim.Adam([task.leaf], 1e38)
    with pytest.raises(FloatingPointError, match=r"test overflows after 0 steps; lower the learning rate"):
        run_tasks(lambda *_: task, count=1, steps=1, saved=NOWHERE, title="test", progress=False)


def test_keep_valid_is_applied_after_each_step():
    task = _task(lambda images: {"line": images.sum()}, keep_valid=lambda images: images.clamp(0, 1))
    task.step()
    assert task.images().flatten().tolist() == [0.5, 0.0]


def test_tasks_get_the_images_of_earlier_tasks():
    seen = []

    def start(index: int, finished: list[torch.Tensor]) -> ImageTask:
        seen.append((index, [images.sum().item() for images in finished]))
        return _task(lambda images: {"nothing": 0 * images.sum()})

    images = run_tasks(start, count=3, steps=2, saved=NOWHERE, title="test", progress=False)
    assert images.shape == (3, 1, 1, 2)
    assert seen == [(0, []), (1, [-1.0]), (2, [-1.0, -1.0])]


def test_a_loss_that_is_nan_stops_the_run():
    task = _task(lambda images: {"good": images.sum(), "bad": images.log().sum()})
    with pytest.raises(FloatingPointError, match=r"the loss of test is .*'bad': nan.* after 0 steps"):
        run_tasks(lambda *_: task, count=1, steps=2, saved=NOWHERE, title="test", progress=False)


def test_running_out_of_memory_names_the_setting_to_lower():
    def loss(images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("tried to allocate 8 GiB")

    with pytest.raises(torch.OutOfMemoryError, match=r"test ran out of memory: lower batch_size \(tried"):
        run_tasks(lambda *_: _task(loss), count=1, steps=1, saved=NOWHERE, title="test", progress=False)


def _model(net: nn.Module, task: str = "classification") -> FloatModel:
    return FloatModel(name="mine", net=net, image_shape=(3, 4, 4), mean=(0,) * 3, std=(1,) * 3, task=task)


def _body(*head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), *head).eval()


def test_the_head_is_the_last_of_several_linear_layers():
    net = _body(nn.Flatten(), nn.Linear(28, 11), nn.ReLU(), nn.Linear(11, 6))
    head = find_head(_model(net), net, "test")
    assert (head.layer, head.width, head.num_classes) == ("5", 11, 6)


@pytest.mark.parametrize(
    "net",
    [
        _body(nn.AdaptiveAvgPool2d(1), nn.Conv2d(7, 6, 1), nn.Flatten()),
        _body(nn.Flatten(), nn.Linear(28, 6), nn.Softmax(1)),
        _body(nn.Flatten(), nn.Linear(28, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.ReLU6()),
    ],
)
@pytest.mark.parametrize("method", [intraq, qimera])
def test_a_network_without_features_is_refused(net, method):
    with pytest.raises(NoFeatures, match="mine does not end in a linear layer"):
        method.generate(_model(net), method.Config(num_images=2), progress=False)


@pytest.mark.parametrize("method", [intraq, qimera, deep_inversion])
def test_a_network_without_classes_is_refused(method):
    net = _body()
    with pytest.raises(NotAClassifier, match="mine is for detection, where an image has no single class"):
        method.generate(_model(net, task="detection"), method.Config(num_images=2), progress=False)
    with pytest.raises(NotAClassifier, match=r"mine returns \(2, 7, 2, 2\)"):
        method.generate(_model(net), method.Config(num_images=2), progress=False)


@pytest.mark.parametrize("method", [zeroq, intraq, genie_d])
@pytest.mark.parametrize(("share", "scaled", "expected"), [(0.5, True, 0.5), (0.5, False, 1.0), (1.0, True, 1.0)])
def test_schedules_shrink_with_the_steps(method, share, scaled, expected, tiny_model, monkeypatch):
    waits = []

    class Watched(ReduceLROnPlateau):
        def __init__(self, optimizer, *, patience, min_lr):
            waits.append(patience)
            super().__init__(optimizer, patience=patience, min_lr=min_lr)

    monkeypatch.setattr(method, "ReduceLROnPlateau", Watched)
    monkeypatch.setattr(method, "run_tasks", lambda start, **_: start(0, []).images())
    steps = round(share * method.STEPS)
    config = replace(method.Config(), num_images=2, batch_size=2, steps=steps, scaled_schedule=scaled)
    method.generate(tiny_model, config, progress=False)
    assert waits == [expected * method.PATIENCE]


def test_stages_of_a_short_schedule_have_at_least_one_step():
    assert in_proportion(50, 80, 1000) == 4
    assert in_proportion(100, 3, 4000) == 1
