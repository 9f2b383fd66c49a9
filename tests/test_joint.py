"""Generators that are trained with the student: what they learn from, the ranges, and how runs continue."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_model
from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel, adadfq, gdfq, joint, qimera_qat
from dghlib.quantizers.distillation import easy_cross_entropy
from dghlib.quantizers.joint import Settings, adaptive_terms
from dghlib.running.batchnorm import NoBatchNorm
from dghlib.storage.checkpoints import Checkpoint
from dghlib.synthesis.classes import NotAClassifier
from dghlib.synthesis.networks import GdfqNetwork
from dghlib.synthesis.space import COLOUR_MEAN, COLOUR_STD

METHODS = {"gdfq": gdfq, "qimera_qat": qimera_qat, "adadfq": adadfq}


def short(method: ModuleType, **changes: Any) -> Any:
    """Return a method's Config with few steps, the first quarter of them without the student."""
    few = {"weight_bits": 3, "activation_bits": 3, "steps": 40, "batch_size": 32, "warm_up": 0.25, "rate": 1e-3}
    return method.Config(**{**few, "calibration_images": 64, **changes})


def maker_of(model: FloatModel, settings: Settings) -> joint._Maker:
    return joint._Maker("test", model, settings, torch.device("cpu"))


def weights(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.state_dict().values()]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


# The generator network


def test_the_network_of_gdfq_has_the_published_size_and_input() -> None:
    network = GdfqNetwork((3, 32, 32), torch.randn(10, 100))
    assert sum(value.numel() for value in network.parameters()) == 1_052_139  # as in the authors' code
    seen: list[Tensor] = []
    network.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    classes, noise = torch.tensor([[3], [7]]), torch.randn(2, 1, 100)
    network(classes, torch.ones(2, 1), noise)
    torch.testing.assert_close(seen[0], network.embeddings[[3, 7]] * noise[:, 0])
    conditional = GdfqNetwork((3, 32, 32), torch.randn(10, 100), conditional=True)
    conditional.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    conditional(classes, torch.ones(2, 1), noise)
    torch.testing.assert_close(seen[1], noise[:, 0])


@pytest.mark.parametrize("name", METHODS)
def test_the_generator_network_alone_learns_its_classes_and_statistics(name: str, tiny_model: FloatModel) -> None:
    maker = maker_of(tiny_model, short(METHODS[name], steps=400, superposed=0.0))

    def seen() -> tuple[float, float]:
        with torch.no_grad():
            images, targets = maker.maker.batch(256, torch.Generator().manual_seed(0))
            output, distance = maker.maker.judged(images)
        return F.cross_entropy(output, targets).item(), distance.item()

    before = seen()
    for step in range(60):
        maker._learn(step, None)
    after = seen()
    assert after[0] < 0.9 * before[0]
    assert after[1] < before[1]


def test_a_step_follows_the_gradient_at_the_rate_of_its_quarter(tiny_model: FloatModel) -> None:
    settings = short(gdfq, classes=2.0, statistics=0.3, maker_rate=0.01, schedule="quarters")
    maker, again = maker_of(tiny_model, settings), maker_of(tiny_model, settings)
    maker._learn(20, None)
    optimizer = torch.optim.Adam(again.maker.generator.parameters(), 0.01 / 100, betas=(0.5, 0.999))
    images, targets = again.maker.batch(32, joint.stream(settings.seed, "joint", "batch", 20))
    output, distance = again.maker.judged(images)
    (2 * F.cross_entropy(output, targets) + 0.3 * distance).backward()
    optimizer.step()
    for value, expected in zip(weights(maker.maker.generator), weights(again.maker.generator), strict=True):
        torch.testing.assert_close(value, expected)


def test_the_share_of_mixtures_is_that_of_the_settings(tiny_model: FloatModel) -> None:
    for probability, share in ((0.0, 0.0), (1.0, 1.0)):
        maker = maker_of(tiny_model, short(qimera_qat, superposed=probability))
        _, targets = maker._learn(0, None)
        assert ((targets > 0).sum(1) > 1).float().mean().round() == share
        assert maker.maker.generator.latent_size == 6  # the width of the last layer


# AdaDFQ's terms


def test_adaptive_terms_by_hand() -> None:
    settings = Settings(bounds=2.0, disagreement=3.0, agreement=5.0, lower=0.25, upper=0.75)
    wanted = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    answer = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.0]])  # differences 2, 0 and 1/2
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    terms = adaptive_terms(wanted, answer, targets, settings)

    def entropy(apart: float) -> float:
        p = 1 / (1 + math.exp(-apart))
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    share = (entropy(0.5) - entropy(2)) / (math.log(2) - entropy(2))  # it is 0 and 1 for the others
    assert share > 0.75
    assert terms["bounds"].item() == pytest.approx(2 * (0.25 + (1 - 0.75) + (share - 0.75)) / 3, rel=1e-5)
    apart = [math.log(1 + math.exp(-d)) for d in (2, 0, 0.5)]
    together = [math.log(1 + math.exp(-d)) for d in (2, 0, 1.5)]
    assert terms["disagreement"].item() == pytest.approx(3 * sum(apart) / 3, rel=1e-5)
    assert terms["agreement"].item() == pytest.approx(5 * sum(together) / 3, rel=1e-5)


def test_equal_answers_have_finite_gradients() -> None:
    wanted = torch.randn(4, 5, requires_grad=True)
    settings = adadfq.Config()
    sum(adaptive_terms(wanted, wanted, F.one_hot(torch.arange(4), 5).float(), settings).values()).backward()  # type: ignore[union-attr]
    assert wanted.grad is not None
    assert wanted.grad.isfinite().all()


# The student


def test_the_generator_learns_from_the_student_without_changing_it(
    tiny_model: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the generator network changes no weights and no gradients of the student."""
    seen: list[bool] = []
    minibatch = joint._Maker.minibatch

    def watched(self: joint._Maker, step: int, student: QuantizedModel) -> tuple[Tensor, Tensor]:
        before = weights(student)
        gradients = [None if value.grad is None else value.grad.clone() for value in student.parameters()]
        images, targets = minibatch(self, step, student)
        assert equal(before, weights(student))
        for value, gradient in zip(student.parameters(), gradients, strict=True):
            assert (value.grad is None) == (gradient is None)
            assert gradient is None or value.grad is None or torch.equal(value.grad, gradient)
        seen.append(images.requires_grad)
        return images, targets

    monkeypatch.setattr(joint._Maker, "minibatch", watched)
    adadfq.quantize(tiny_model, None, short(adadfq))
    assert seen == [False] * 30
    alone, watching = (maker_of(tiny_model, short(adadfq)) for _ in range(2))
    alone._learn(0, None)
    watching._learn(0, lambda images: 3 * tiny_model.net(images).roll(1, 1))  # type: ignore[arg-type]
    assert not equal(weights(alone.maker.generator), weights(watching.maker.generator))


def test_ranges_are_of_images_made_after_the_warm_up(tiny_model: FloatModel) -> None:
    config = short(gdfq, rate=0.0)
    maker = maker_of(tiny_model, config)
    for step in range(10):
        maker._learn(step, None)
    images = maker.calibration_images()
    assert images.shape == (64, 3, 8, 8)
    made, given = (gdfq.quantize(tiny_model, each, config) for each in (None, images))
    other = gdfq.quantize(tiny_model, images / 2, config)
    scales = [[grid.scale.item() for grid in net.activation_quantizers().values()] for net in (made, given, other)]
    assert scales[0] == scales[1]
    assert scales[0] != scales[2]


def test_the_student_learns_the_classes_of_the_images() -> None:
    answer = torch.tensor([[0.0, 0.0, 4.0]])
    wanted = torch.tensor([[9.0, 0.0, 0.0]])
    of_teacher, of_target = (
        easy_cross_entropy(answer, wanted, 1.0, targets) for targets in (None, torch.tensor([[0.0, 0.5, 0.5]]))
    )
    logs = answer.log_softmax(1)[0]
    assert of_teacher.item() == pytest.approx(-logs[0].item())
    assert of_target.item() == pytest.approx(-(logs[1] + logs[2]).item() / 2)


def test_the_result_depends_on_the_seed_and_images_are_new_in_every_step(
    tiny_model: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    minibatch = joint._Maker.minibatch

    def noted(self: joint._Maker, step: int, student: QuantizedModel) -> tuple[Tensor, Tensor]:
        made = minibatch(self, step, student)
        drawn.append(made[0])
        return made

    monkeypatch.setattr(joint._Maker, "minibatch", noted)
    runs = []
    for seed in (0, 0, 1):
        drawn.clear()
        gdfq.quantize(tiny_model, None, short(gdfq, seed=seed, steps=4))
        runs.append(list(drawn))
    assert equal(runs[0], runs[1])
    assert not torch.equal(runs[0][0], runs[2][0])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_images_are_in_the_space_of_the_network() -> None:
    """A network that takes pixels from 0 to 255 learns the same as one that takes normalised images."""
    model = replace(make_tiny_model(), mean=COLOUR_MEAN, std=COLOUR_STD)

    class OfPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model.net

        def forward(self, x: Tensor) -> Tensor:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (COLOUR_MEAN, COLOUR_STD))
            return self.net((x / 255 - mean) / std)

    pixels = replace(model, net=OfPixels().eval(), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    for method in METHODS.values():
        config = short(method, steps=2, warm_up=0.5)
        makers = [maker_of(each, config) for each in (model, pixels)]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (COLOUR_MEAN, COLOUR_STD))
        for make in (joint._Maker.calibration_images, lambda maker: maker._learn(0, None)[0]):
            usual, brought = (make(maker) for maker in makers)
            torch.testing.assert_close(brought / 255, usual * std + mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_killed_in_the_warm_up_continues_to_the_same_result(
    name: str, tiny_model: FloatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config = METHODS[name], short(METHODS[name], steps=12)
    whole = method.quantize(tiny_model, None, config)
    learn, steps = joint._Maker._learn, list[int]()

    def counted(self: joint._Maker, step: int, student: QuantizedModel | None) -> tuple[Tensor, Tensor]:
        steps.append(step)
        if steps == [0, 1]:
            raise KeyboardInterrupt
        return learn(self, step, student)

    monkeypatch.setattr(joint._Maker, "_learn", counted)
    monkeypatch.setattr(joint, "Checkpoint", partial(Checkpoint, seconds=0))
    with pytest.raises(KeyboardInterrupt):
        method.quantize(tiny_model, None, config, checkpoint=tmp_path / "run.checkpoint")
    resumed = method.quantize(tiny_model, None, config, checkpoint=tmp_path / "run.checkpoint")
    assert steps == [0, 1, *range(1, 12)]
    assert equal(weights(whole), weights(resumed))
    assert whole.about == resumed.about


# Refusals


def test_networks_without_classes_or_batch_norms_are_refused(tiny_model: FloatModel) -> None:
    plain = replace(tiny_model, net=nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval())
    with pytest.raises(NoBatchNorm, match="no batch norm with running statistics"):
        gdfq.quantize(plain, None, short(gdfq))
    with pytest.raises(NotAClassifier, match="adadfq asks images for a class"):
        adadfq.quantize(replace(tiny_model, task="detection"), None, short(adadfq))
    with pytest.raises(ValueError, match="calibrated with images"):
        gdfq.quantize(tiny_model, torch.zeros(4, 3, 9, 9), short(gdfq))


def test_a_generator_network_that_diverges_is_stopped(tiny_model: FloatModel) -> None:
    with pytest.raises(FloatingPointError, match=r"generator network is nan at step \d+: lower maker_rate"):
        gdfq.quantize(tiny_model, None, short(gdfq, maker_rate=1e30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_up": 1.0}, r"warm_up must be from 0 to 0\.99, got 1"),
        ({"mixed_classes": 0}, "mixed_classes must be at least 1, got 0"),
        ({"upper": 1.5}, "upper must be from 0 to 1, got 1"),
        ({"statistics": -1.0}, "statistics must be from 0 to inf"),
        ({"network": "genie"}, "network must be one of 'gdfq', 'qimera', got 'genie'"),
        ({"embeddings": "classifier"}, "set network='qimera'"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_published_settings_are_those_of_the_authors_code() -> None:
    for method, distilled, labelled in ((gdfq, 0.1, 1.0), (qimera_qat, 0.1, 1.0), (adadfq, 1.0, 0.0)):
        published = method.PRESETS["published"]
        assert (published.distillation, published.cross_entropy) == (distilled, labelled)
        assert (published.rate, published.steps, published.warm_up) == (1e-4, 80_000, 0.01)
        assert (published.schedule, published.maker_rate) == ("quarters", 1e-3)
    assert adadfq.PRESETS["published"].batch_size == 16
