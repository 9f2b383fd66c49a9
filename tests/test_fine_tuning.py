"""Fine-tuning: the student learns, its start is as stated, killed runs continue, and errors are reported."""

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny_model, tell_classes_apart
from torch import Tensor, nn

from dghlib.export import export_onnx, open_session
from dghlib.images import low_pass
from dghlib.models import FloatModel
from dghlib.quantizers import (
    QUANTIZERS,
    adadfq,
    ait,
    fine_tuning,
    gdfq,
    genie_m,
    genq_qat,
    hptq,
    intraq_qat,
    learning_rates,
    lsq,
    qimera_qat,
    reconstruction,
    synq,
)
from dghlib.quantizers.distillation import activation_map, distillation, easy_cross_entropy, feature_distance
from dghlib.quantizers.fine_tuning import SCHEDULES, Settings, rows_of
from dghlib.quantizers.grid import UniformQuantizer
from dghlib.quantizers.inundation import multiplier
from dghlib.quantizers.layers import QuantizedLayer
from dghlib.quantizers.reconstruction import shortened
from dghlib.quantizers.trainable import FixedRange, MinMaxWeight
from dghlib.storage.checkpoints import Checkpoint, remove

OF_IMAGES = {"lsq": lsq, "genq_qat": genq_qat, "intraq_qat": intraq_qat, "ait": ait, "synq": synq}
JOINT = {"gdfq": gdfq, "qimera_qat": qimera_qat, "adadfq": adadfq}  # take images for ranges alone
METHODS = OF_IMAGES | JOINT


def images(count: int = 48, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, 8, mode="bilinear")


@pytest.fixture
def tiny_model() -> FloatModel:
    """A network that finds several classes in the images."""
    model = make_tiny_model()
    tell_classes_apart(model, images())
    return model


def short(method: ModuleType, **changes: Any) -> Any:
    """Return a method's Config with few steps, at a rate that is large for it, since the logits are small."""
    few: dict[str, Any] = {"iterations": 5} if method is genq_qat else {}
    if method is synq:
        few = {"features": 0.5, "maps": 0.005}
    if method in JOINT.values():
        few = {"batch_size": 32, "distillation": 1.0, "cross_entropy": 0.01}
    return method.Config(**{"weight_bits": 3, "activation_bits": 3, "steps": 40, "rate": 0.05, **few, **changes})


def logits(net: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return net(inputs)


@pytest.mark.parametrize("name", METHODS)
def test_the_error_of_a_student_falls(name: str, tiny_model: FloatModel) -> None:
    quantized = METHODS[name].quantize(tiny_model, images(), short(METHODS[name]))
    found = quantized.about["distillation"]
    assert found["after"] < 0.8 * found["before"]
    unseen = images(64, seed=1)
    begun = METHODS[name].quantize(tiny_model, images(), short(METHODS[name], rate=0.0))
    error, error_before = (
        distillation(logits(net, unseen), logits(tiny_model.net, unseen), 20.0) for net in (quantized, begun)
    )
    assert error < error_before


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_channel_has_at_most_two_to_the_bits_values(name: str, tiny_model: FloatModel) -> None:
    """Grids for each kernel would give a channel more values than its bits allow."""
    config = QUANTIZERS[name].Config(weight_bits=3, activation_bits=3, bits="full")
    if getattr(config, "placement", "") == "factors":  # in this placement, the image has 8 bits
        config = replace(config, placement="every_tensor")
    for count in ("steps", "iterations", "step_iterations"):
        if getattr(config, count, 0):
            config = replace(config, **{count: 2})
    quantized = QUANTIZERS[name].quantize(tiny_model, images(), config)
    layers = [module for module in quantized.modules() if isinstance(module, QuantizedLayer)]
    assert len(layers) == 3
    for layer in layers:
        assert max(len(row.unique()) for row in layer.quantized_weight().flatten(1)) <= 8
    values: list[Tensor] = []
    for grid in quantized.activation_quantizers().values():
        grid.register_forward_hook(lambda module, inputs, output: values.append(output))
    logits(quantized, images())
    assert values
    assert all(len(value.unique()) <= 8 for value in values)
    assert all(type(grid) is UniformQuantizer for grid in quantized.activation_quantizers().values())


@pytest.mark.parametrize("method", ["genie_m", "brecq"])
def test_genq_starts_at_the_reconstructed_network_bit_for_bit(method: str, tiny_model: FloatModel) -> None:
    config = short(genq_qat, rate=0.0, start=method, integer_biases=False)
    start = QUANTIZERS[method].quantize(tiny_model, images(), config.of_start())
    begun = genq_qat.quantize(tiny_model, images(), config)
    assert torch.equal(logits(begun, images(seed=1)), logits(start, images(seed=1)))
    given = genq_qat.quantize(tiny_model, images(), config, start=start)
    assert torch.equal(logits(given, images(seed=1)), logits(start, images(seed=1)))
    assert start.about["method"] == method


def test_the_start_of_genq_is_a_shorter_genie_m() -> None:
    config = genq_qat.Config(weight_bits=3, activation_bits=3, iterations=50, seed=7)
    usual = genie_m.Config(
        weight_bits=3, activation_bits=3, seed=7, integer_biases=False
    )  # they are rounded at the end
    assert config.of_start() == shortened(usual, 50)


def test_a_start_with_float_weights_starts_at_its_codes(tiny_model: FloatModel) -> None:
    start = hptq.quantize(tiny_model, images(), hptq.Config(weight_bits=3, activation_bits=8))
    begun = genq_qat.quantize(tiny_model, images(), short(genq_qat, rate=0.0), start=start)
    assert torch.equal(logits(begun, images(seed=1)), logits(start, images(seed=1)))
    moved = genq_qat.quantize(tiny_model, images(), short(genq_qat), start=start)
    assert moved.about["distillation"]["after"] < moved.about["distillation"]["before"]


@pytest.mark.parametrize(("method", "expected"), [(genq_qat, 0.01), (lsq, 0.03)])
def test_the_rate_of_a_fitted_start_comes_from_divergence_alone(
    method: ModuleType, expected: float, tiny_model: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On images to which a start was fitted, every rate but zero looks worse than the fit."""
    losses = {0.1: 3.0, 0.03: 1.0}

    def short_run(self: Any) -> float:
        if self.rate not in losses:
            raise FloatingPointError
        return losses[self.rate]

    monkeypatch.setattr(learning_rates, "RATES", (1.0, *losses))
    monkeypatch.setattr(fine_tuning._FineTuning, "_short_run", short_run)
    student = method.quantize(tiny_model, images(), short(method, rate=None, steps=2))
    assert student.about["rate"] == pytest.approx(expected)


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run end before this step, once, and save after all steps."""
    learn, killed = fine_tuning._FineTuning._learn, list[int]()

    def counted(self: Any, number: int, done: float) -> None:
        if number == step and done == step / self.settings.steps and not killed:  # not in a short run
            killed.append(number)
            raise KeyboardInterrupt
        learn(self, number, done)

    monkeypatch.setattr(fine_tuning._FineTuning, "_learn", counted)
    monkeypatch.setattr(fine_tuning, "Checkpoint", partial(Checkpoint, seconds=0))


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_continues_to_the_same_result(
    name: str, tiny_model: FloatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config = METHODS[name], short(METHODS[name], steps=9)
    whole = method.quantize(tiny_model, images(), config)
    kill_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        method.quantize(tiny_model, images(), config, checkpoint=tmp_path / "run.checkpoint")
    resumed = method.quantize(tiny_model, images(), config, checkpoint=tmp_path / "run.checkpoint")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert resumed.about == whole.about
    remove(tmp_path / "run.checkpoint")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lsq", "gdfq"])
def test_a_killed_run_keeps_the_rate_that_it_found(
    name: str, tiny_model: FloatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config = METHODS[name], short(METHODS[name], steps=30, rate=None)
    whole = method.quantize(tiny_model, images(), config)
    kill_at(25, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        method.quantize(tiny_model, images(), config, checkpoint=tmp_path / "run.checkpoint")
    monkeypatch.setattr(fine_tuning._FineTuning, "found_rate", None)
    resumed = method.quantize(tiny_model, images(), config, checkpoint=tmp_path / "run.checkpoint")
    assert resumed.about == whole.about
    assert torch.equal(logits(resumed, images()), logits(whole, images()))


@pytest.mark.parametrize("name", ["lsq", "adadfq"])
def test_a_found_rate_at_which_the_whole_run_diverges_is_lowered(
    name: str, tiny_model: FloatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short runs may end before they diverge; the run begins again, also its generator, and continues when killed."""
    method = METHODS[name]
    calm = method.quantize(tiny_model, images(), short(method, rate=0.05))
    monkeypatch.setattr(fine_tuning, "RATES", (1e4, 1e3, 0.05, 0.01))
    monkeypatch.setattr(fine_tuning._FineTuning, "found_rate", lambda self: 1e4)
    lowered = method.quantize(tiny_model, images(), short(method, rate=None))
    assert lowered.about["rate"] == 0.05
    assert torch.equal(logits(lowered, images()), logits(calm, images()))
    kill_at(30, monkeypatch)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            resumed = method.quantize(tiny_model, images(), short(method, rate=None), checkpoint=tmp_path / "a")
    assert torch.equal(logits(resumed, images()), logits(calm, images()))


def test_the_rate_follows_the_scale_of_the_logits() -> None:
    """Logits of 10 times the size have gradients of 100 times the size, with which a constant rate would diverge."""
    rates = {}
    for scale in (0.1, 1.0, 10.0):
        model = make_tiny_model()
        tell_classes_apart(model, images())
        with torch.no_grad():
            for parameter in model.net.get_submodule("linear").parameters():
                parameter.mul_(scale)
        student = lsq.quantize(model, images(), short(lsq, rate=None))
        before, after = (student.about["distillation"][key] for key in ("before", "after"))
        assert after < 0.7 * before
        rates[scale] = student.about["rate"]
    assert rates[10.0] <= 0.1 * rates[1.0]


def test_a_network_on_which_all_rates_diverge_is_named(tiny_model: FloatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_rates, "RATES", (1e4, 1e3))
    with pytest.raises(FloatingPointError, match=r"diverges at all learning rates from 1e\+04 to 1e\+03"):
        lsq.quantize(tiny_model, images(), short(lsq, rate=None))


def test_other_settings_start_again_with_the_saved_reconstruction(
    tiny_model: FloatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of reconstruction are not lost to a rate that was too high."""
    checkpoint, config = tmp_path / "run.checkpoint", short(genq_qat, steps=6)
    whole = genq_qat.quantize(tiny_model, images(), config)
    kill_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        genq_qat.quantize(tiny_model, images(), short(genq_qat, steps=6, rate=0.1), checkpoint=checkpoint)
    monkeypatch.setattr(reconstruction, "learn", None)
    again = genq_qat.quantize(tiny_model, images(), config, checkpoint=checkpoint)
    assert torch.equal(logits(again, images()), logits(whole, images()))
    remove(checkpoint)
    (waiting,) = tmp_path.iterdir()
    assert waiting.name.startswith("run.checkpoint."), "the state of the other settings is kept for them"


def test_a_student_that_diverges_is_stopped(tiny_model: FloatModel) -> None:
    with pytest.raises(FloatingPointError, match=r"diverges: at step \d+ .* Take a smaller rate"):
        intraq_qat.quantize(tiny_model, images(), short(intraq_qat, rate=1e4))


def test_images_of_one_class_are_refused(tiny_model: FloatModel) -> None:
    with pytest.raises(ValueError, match="takes all 20 images for class"):
        lsq.quantize(tiny_model, images(1).repeat(20, 1, 1, 1), short(lsq))


def test_a_loss_without_gradient_is_refused(tiny_model: FloatModel) -> None:
    with pytest.raises(ValueError, match="its gradient is zero everywhere"):
        lsq.quantize(tiny_model, images(), short(lsq, distillation=0.0))


@pytest.mark.parametrize("net", [nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(192, 1))])
def test_networks_without_logits_are_refused(net: nn.Module) -> None:
    model = FloatModel(name="net", net=net.eval(), image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(ValueError, match=r"learns from logits \(N, classes\)"):
        lsq.quantize(model, images(), short(lsq))


def test_a_start_must_be_a_quantized_copy_of_the_network(tiny_model: FloatModel) -> None:
    with pytest.raises(TypeError, match="starts from the QuantizedModel of a quantizer, got TinyNet"):
        genq_qat.quantize(tiny_model, images(), short(genq_qat), start=tiny_model.net)  # type: ignore[arg-type]
    start = hptq.quantize(tiny_model, images(), hptq.Config())
    start.about["model"] = "another"
    with pytest.raises(ValueError, match="the start is 'another' quantized, it should be 'tiny'"):
        genq_qat.quantize(tiny_model, images(), short(genq_qat), start=start)


def test_the_result_depends_on_the_seed(tiny_model: FloatModel) -> None:
    one, again, other = (
        logits(synq.quantize(tiny_model, images(), short(synq, steps=3, seed=seed)), images()) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_32_bits_equal_float(tiny_model: FloatModel) -> None:
    quantized = ait.quantize(tiny_model, images(), short(ait, weight_bits=32, activation_bits=32, steps=3))
    torch.testing.assert_close(logits(quantized, images()), logits(tiny_model.net, images()))


def test_a_fine_tuned_network_is_saved_and_exported(tiny_model: FloatModel, tmp_path: Path) -> None:
    quantized = lsq.quantize(tiny_model, images(), short(lsq, steps=5, placement="every_tensor"))
    quantized.save(tmp_path / "model.safetensors")
    loaded = type(quantized).load(tmp_path / "model.safetensors", tiny_model)
    assert torch.equal(logits(loaded, images()), logits(quantized, images()))
    assert loaded.about == quantized.about
    export_onnx(tmp_path / "net.onnx", tiny_model, quantized)
    (found,) = open_session(tmp_path / "net.onnx", optimized=False).run(None, {"images": images().numpy()})
    steps = (
        np.abs(found - logits(quantized, images()).numpy()) / quantized.activation_quantizers()["linear"].scale.item()
    )
    assert (steps < 1e-3).mean() > 0.98  # others are between 2 codes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rate": -1.0}, "rate must be from 0 to inf, got -1"),
        ({"schedule": "line"}, "schedule must be one of 'cosine', 'quarters', got 'line'"),
        ({"smallest_crop": 0.0}, "smallest_crop must be from 0.01 to 1"),
        ({"weight_search": "shrink_80"}, "set learn_steps=True, or weight_search='min_max'"),
        ({"learn_steps": True, "inundation": 0.1}, "set learn_steps=False"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_published_settings_are_presets() -> None:
    for method in (intraq_qat, ait, synq):
        assert method.PRESETS["published"].steps > 10_000
    published = intraq_qat.PRESETS["published"]
    assert published.rate is not None
    assert published.distillation * published.rate == pytest.approx(2e-3)


# Parts


def test_every_image_is_used_once_before_any_is_repeated() -> None:
    drawn = torch.cat([rows_of(step, count=7, batch_size=3, seed=0) for step in range(7)])
    assert drawn.bincount().tolist() == [3] * 7
    assert all(sorted(part.tolist()) == list(range(7)) for part in drawn.split(7))
    assert len(rows_of(0, count=2, batch_size=32, seed=0)) == 2


def test_schedules_by_hand() -> None:
    assert [SCHEDULES["cosine"](done) for done in (0, 0.5)] == pytest.approx([1, 0.5])
    assert [SCHEDULES["quarters"](done) for done in (0, 0.24, 0.25, 0.99)] == pytest.approx([1, 1, 0.1, 1e-3])


def test_hot_distillation_is_half_the_squared_difference_of_centred_logits() -> None:
    answer, wanted = (torch.randn(8, 10, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    difference = answer - wanted
    expected = (difference - difference.mean(1, keepdim=True)).square().mean() / 2
    torch.testing.assert_close(distillation(answer, wanted, 1000.0), expected, rtol=1e-2, atol=0)
    assert distillation(answer + 3, answer, 20.0).abs() < 1e-4


def test_hard_images_have_no_label() -> None:
    wanted = torch.tensor([[9.0, 0.0], [0.1, 0.0]])
    answer = torch.zeros(2, 2)
    assert easy_cross_entropy(answer, wanted, 1.0).item() == pytest.approx(np.log(2))
    assert easy_cross_entropy(answer, wanted, 0.3).item() == pytest.approx(np.log(2) / 2)


def test_the_error_of_features_does_not_depend_on_their_scale() -> None:
    features = torch.rand(4, 6, 3, 3) + 0.1
    assert feature_distance(2 * features, features) < 1e-9
    assert feature_distance(features.flip(1), features) > 1e-4


def test_an_activation_map_is_large_where_the_class_is_seen() -> None:
    features = torch.zeros(1, 2, 2, 2)
    features[0, 0, 0, 1], features[0, 1, 1, 0] = 4.0, 8.0
    features.requires_grad_()
    sums = features.sum((2, 3))
    answer = torch.stack([5 * sums[:, 0] + sums[:, 1], -sums[:, 0]], 1)
    torch.testing.assert_close(activation_map(features, answer)[0], torch.tensor([[0, 1.0], [0.4, 0]]))


def test_the_filter_keeps_constant_and_removes_alternating_maps() -> None:
    even = torch.full((1, 1, 8, 8), 0.7)
    alternating = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    torch.testing.assert_close(low_pass(even, 2.0), even)
    torch.testing.assert_close(low_pass(alternating, 2.0), alternating * np.exp(-2.0))  # 4 periods: r = 2 radii


def test_ranges_of_weights_follow_the_weights_and_gradients_pass() -> None:
    layer = nn.Linear(3, 2)
    quantizer = MinMaxWeight(layer, bits=2)
    weight = torch.tensor([[-0.4, 0.05, 0.2], [0.25, 0.45, 0.6]], requires_grad=True)
    torch.testing.assert_close(quantizer(weight), torch.tensor([[-0.4, 0.0, 0.2], [0.2, 0.4, 0.6]]))
    torch.testing.assert_close(quantizer(2 * weight), 2 * quantizer(weight))
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.unique().tolist() == [1.0]
    grid = quantizer.grid_of(weight.detach())
    assert torch.equal(grid(weight.detach()), quantizer(weight.detach()))
    transposed = nn.ConvTranspose2d(4, 5, 3)
    assert MinMaxWeight(transposed, bits=4).grid_of(transposed.weight.detach()).scale.shape == (1, 5, 1, 1)


def test_gradients_pass_a_fixed_range_beyond_its_ends() -> None:
    grid = UniformQuantizer(torch.tensor(0.5), torch.tensor(0), bits=2, signed=False)
    x = torch.tensor([-3.0, 0.6, 9.0], requires_grad=True)
    rounded = FixedRange(grid)(x)
    assert rounded.tolist() == [0, 0.5, 1.5]
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1]


def test_a_step_is_lengthened_until_enough_codes_change() -> None:
    weight, move = torch.zeros(8), torch.tensor([0.3, 0.2, 0.1, 0.05, 0, 0, 0, 0.0])
    for enough, expected in ((1, 0.5 / 0.3), (3, 5.0), (4, 10.0)):
        found = multiplier(weight, move, torch.round, enough)
        assert expected <= found <= 1.05 * expected
    assert multiplier(weight, 4 * move, torch.round, 1) == 1
    assert multiplier(weight, torch.zeros(8), torch.round, 1) == 1  # otherwise the search would never end
    assert multiplier(weight, 1e-9 * move, torch.round, 1) == 128
    assert multiplier(weight, move * torch.nan, torch.round, 1) == 1


def test_inundation_changes_codes_that_the_rate_alone_would_not(tiny_model: FloatModel) -> None:
    small = {"steps": 1, "rate": 1e-3}
    plain, pushed = (ait.quantize(tiny_model, images(), short(ait, **small, inundation=share)) for share in (0.0, 0.05))
    before = ait.quantize(tiny_model, images(), short(ait, steps=1, rate=0.0))
    codes = [
        [grid.to_codes(net.graph.get_submodule(path).layer.weight) for path, grid in net.weight_quantizers().items()]  # type: ignore[union-attr, arg-type]
        for net in (before, plain, pushed)
    ]
    changed = [sum(int((a != b).sum()) for a, b in zip(codes[0], other, strict=True)) for other in codes[1:]]
    assert changed[0] == 0
    assert changed[1] >= 3
