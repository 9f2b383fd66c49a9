"""Reconstruction: what is learned, in which order and from what; a killed run continues to the same result."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dghlib.models import FloatModel
from dghlib.quantizers import adaround, brecq, genie_m, qdrop, reconstruction
from dghlib.quantizers.reconstruction import Settings, Sweep, beta, sweeps_of
from dghlib.quantizers.starting import nearest
from dghlib.quantizers.unit_data import UnitData, drawn_rows, output_importance, unit_error

METHODS = {"adaround": adaround, "brecq": brecq, "qdrop": qdrop, "genie_m": genie_m}


def images(count: int = 48, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, 8, mode="bilinear")


def short(method: Any, **changes: Any) -> Any:
    """Return a method's Config with few steps, and rates that are large for it."""
    wanted = {"weight_bits": 3, "iterations": 60, "rounding_rate": 0.05, "batch_size": 16} | changes
    config = method.Config(**wanted)
    return dataclasses.replace(config, step_iterations=20) if config.step_iterations else config


def logits(net: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return net(inputs)


@pytest.mark.parametrize("name", METHODS)
def test_reconstruction_beats_rounding_to_the_nearest(name: str, tiny_model: FloatModel) -> None:
    config = short(METHODS[name])
    learned = METHODS[name].quantize(tiny_model, images(), config)
    plain = nearest(tiny_model, images(), config, {})
    unseen = images(64, seed=1)
    expected = logits(tiny_model.net, unseen)
    error, plain_error = ((logits(net, unseen) - expected).square().mean() for net in (learned, plain))
    assert error < 0.8 * plain_error
    units = [entry for entry in learned.about["units"] if "weights" in entry["learned"]]
    assert all(entry["after"] < entry["before"] for entry in units)


@pytest.mark.parametrize("name", METHODS)
def test_eight_bits_are_close_to_float(name: str, tiny_model: FloatModel) -> None:
    config = short(METHODS[name], weight_bits=8, activation_bits=8, iterations=5)
    quantized = METHODS[name].quantize(tiny_model, images(), config)
    expected = logits(tiny_model.net, images())
    assert (logits(quantized, images()) - expected).square().mean() < 1e-3 * expected.square().mean()


def test_a_gradient_far_below_epsilon_decides_no_rounding(tiny_model: FloatModel) -> None:
    config = short(adaround, activation_bits=32, penalty=0.0)
    plain = logits(nearest(tiny_model, images(), config, {}), images())
    for epsilon, same in ((1e6, True), (1e-8, False)):
        learned = adaround.quantize(tiny_model, images(), dataclasses.replace(config, rounding_epsilon=epsilon))
        assert torch.allclose(logits(learned, images()), plain, atol=1e-3) is same


def test_steps_of_eight_bit_weights_change_slowly(tiny_model: FloatModel) -> None:
    """Their rate is absolute, and can be 10 times such a step."""
    config = short(genie_m, weight_bits=8, activation_bits=8, scale_rate=0.05)
    quantized = genie_m.quantize(tiny_model, images(), config)
    expected = logits(tiny_model.net, images())
    assert (logits(quantized, images()) - expected).square().mean() < 2e-3 * expected.square().mean()


@pytest.mark.parametrize("name", ["brecq", "qdrop"])
def test_a_killed_run_continues_to_the_same_result(
    name: str, tiny_model: FloatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config = METHODS[name], short(METHODS[name], iterations=8)
    whole = method.quantize(tiny_model, images(), config)
    learn, calls, killed_at = reconstruction.learn, 0, 3 if name == "brecq" else 2

    def counted(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise KeyboardInterrupt
        learn(*args)

    checkpoint = tmp_path / "run.checkpoint"
    monkeypatch.setattr(reconstruction, "learn", counted)
    with pytest.raises(KeyboardInterrupt):
        method.quantize(tiny_model, images(), config, checkpoint=checkpoint)
    resumed = method.quantize(tiny_model, images(), config, checkpoint=checkpoint)

    assert calls - 1 == len(whole.about["units"])  # only the unit of the killed run was learned twice
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert resumed.about == whole.about
    assert checkpoint.exists(), "the checkpoint is needed until the caller has saved the result"


def test_a_checkpoint_of_other_images_is_not_used(tiny_model: FloatModel, tmp_path: Path) -> None:
    config, checkpoint = short(qdrop, iterations=3), tmp_path / "run.checkpoint"
    checkpoint.write_bytes(b"not a checkpoint")
    resumed = qdrop.quantize(tiny_model, images(), config, checkpoint=checkpoint)
    assert torch.equal(logits(resumed, images()), logits(qdrop.quantize(tiny_model, images(), config), images()))


def test_values_kept_on_disk_give_the_same_result(tiny_model: FloatModel) -> None:
    results = [
        logits(qdrop.quantize(tiny_model, images(), short(qdrop, iterations=5, store=store)), images())
        for store in ("device", "cpu", "disk")
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_result_depends_on_the_seed(tiny_model: FloatModel) -> None:
    one, again, other = (
        logits(qdrop.quantize(tiny_model, images(), short(qdrop, iterations=10, seed=seed)), images())
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("count", [1, 5, 33])
def test_any_number_of_images_is_accepted(count: int, tiny_model: FloatModel) -> None:
    assert logits(genie_m.quantize(tiny_model, images(count), short(genie_m, iterations=3)), images()).isfinite().all()


def test_rows_are_drawn_equally_often() -> None:
    rows = drawn_rows(7, 3, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(rows) for _ in range(7)])
    assert drawn.bincount().tolist() == [3] * 7
    assert len(next(drawn_rows(2, 32, torch.Generator()))) == 2


def test_sweeps_of_the_methods() -> None:
    assert sweeps_of(adaround.Config()) == [
        Sweep(weights=True, steps=False, iterations=20_000, inputs="quantized"),
    ]
    assert sweeps_of(brecq.Config()) == [
        Sweep(weights=True, steps=False, iterations=20_000, inputs="quantized"),
        Sweep(weights=False, steps=True, iterations=5_000, inputs="float", power=2.4),
    ]
    for method in (qdrop, genie_m):
        assert sweeps_of(method.Config()) == [Sweep(weights=True, steps=True, iterations=20_000, inputs="mixed")]


def test_beta_falls_from_20_to_2_after_the_warm_up() -> None:
    for cosine in (True, False):
        assert beta(20, 100, cosine) == pytest.approx(20)
        assert beta(60, 100, cosine) == pytest.approx(11)
        assert beta(100, 100, cosine) == pytest.approx(2)
    assert beta(40, 100, cosine=True) > beta(40, 100, cosine=False)


def test_the_error_sums_channels_and_averages_the_rest() -> None:
    output, target = torch.full((2, 3, 4, 4), 2.0), torch.zeros(2, 3, 4, 4)
    assert unit_error(output, target).item() == 12
    assert unit_error(output, target, importance=torch.full_like(output, 0.5)).item() == 6
    assert unit_error(output, target, 2.4).item() == pytest.approx(3 * 2**2.4)


def test_importance_is_the_squared_gradient_of_the_divergence(tiny_model: FloatModel) -> None:
    """For logits, the gradient of KL(float || output) is softmax(output) - softmax(float)."""
    inputs, targets = torch.randn(4, 5), torch.randn(4, 5)
    data = UnitData(inputs, None, targets, 0.0, torch.Generator(), torch.Generator(), torch.device("cpu"), 4)
    same = torch.fx.symbolic_trace(torch.nn.Identity())
    found = output_importance(same, same, data)
    expected = (inputs.softmax(1) - targets.softmax(1)).square()
    torch.testing.assert_close(found, expected / expected.mean())
    assert brecq.quantize(tiny_model, images(), short(brecq, fisher=True, iterations=5)) is not None


def test_academic_bits_and_float_layers_are_used(tiny_model: FloatModel) -> None:
    quantized = brecq.quantize(tiny_model, images(), short(brecq, bits="academic", iterations=3, weight_bits=2))
    assert {path: grid.bits for path, grid in quantized.weight_quantizers().items()} == {
        "conv1": 8,
        "conv2": 2,
        "linear": 8,
    }
    in_float = adaround.quantize(tiny_model, images(), short(adaround, weight_bits=32, activation_bits=32))
    torch.testing.assert_close(logits(in_float, images()), logits(tiny_model.net, images()))


def test_activations_are_measured_again_after_weights_were_learned_alone(tiny_model: FloatModel) -> None:
    """Coarse weights change the output of a layer, and so the best grid."""
    config = short(adaround, weight_bits=2, iterations=2)
    before = nearest(tiny_model, images(), config, {}).activation_quantizers()["relu_1"]
    after = adaround.quantize(tiny_model, images(), config).activation_quantizers()["relu_1"]
    assert after.scale != before.scale


def test_a_reconstructed_model_is_saved_and_loaded(tiny_model: FloatModel, tmp_path: Path) -> None:
    quantized = genie_m.quantize(tiny_model, images(), short(genie_m, iterations=5))
    quantized.save(tmp_path / "model.safetensors")
    loaded = type(quantized).load(tmp_path / "model.safetensors", tiny_model)
    assert torch.equal(logits(loaded, images()), logits(quantized, images()))
    assert loaded.about["units"] == quantized.about["units"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"weight_bits": 9}, "weight_bits must be 2 to 8"),
        ({"unit": "network"}, "unit must be one of 'layer', 'block', got 'network'"),
        ({"placement": "relu"}, "placement must be one of"),
        ({"keep_float": 2.0}, "keep_float is a probability, 0 to 1, got 2.0"),
        ({"penalty": -1.0}, "penalty must be zero or positive, got -1.0"),
        ({"fisher": True, "unit": "layer"}, "fisher needs unit='block'"),
        ({"weight_search": "symmetric_100"}, "weight_search must be one of"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


class Strange(nn.Module):
    """A shared convolution, additions in place, a batch norm that cannot fold, a dead channel, 1x1 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.narrow = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 6)
        self.norm, self.linear = nn.BatchNorm2d(8), nn.Linear(3, 2)
        self.stem.state_dict()["weight"][0] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        y = self.shared(x)
        y.add_(x).relu_()
        y = self.norm(torch.cat([self.shared(y), y], dim=1))
        return self.linear(self.narrow(y).flatten(1))


@pytest.mark.parametrize("name", METHODS)
def test_unusual_networks_are_reconstructed(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 8, 8)
    model = FloatModel(name="strange", net=Strange().eval(), image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    config = short(METHODS[name], weight_bits=8, activation_bits=8, iterations=3, placement="every_tensor")
    quantized = METHODS[name].quantize(model, images(), config)
    expected = logits(model.net, images())
    assert (logits(quantized, images()) - expected).square().mean() < 0.01 * expected.square().mean()


def test_images_that_the_network_maps_to_nan_are_refused(tiny_model: FloatModel) -> None:
    bad = images()
    bad[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 48 calibration images hold NaN"):
        qdrop.quantize(tiny_model, bad, short(qdrop))
