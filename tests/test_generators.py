"""The contract of every generator, over the whole table, and resumption after kill -9."""

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from conftest import make_tiny_model, make_tiny_transformer, until
from torch import nn

from dghlib.generators import FOR_TRANSFORMERS, GENERATORS, pipelines
from dghlib.generators.identity import images_fingerprint
from dghlib.models import FloatModel
from dghlib.running.batchnorm import NoBatchNorm
from dghlib.storage.checkpoints import Checkpoint

BUDGET = {"num_images": 6, "batch_size": 4, "steps": 3, "denoising_steps": 2}
ITERATIVE = [name for name, method in GENERATORS.items() if hasattr(method.PRESETS["default"], "steps")]
MATCHING = [name for name in ITERATIVE if name not in FOR_TRANSFORMERS]


@pytest.fixture(scope="module")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "classes"
    tiny_pipelines.save_class_conditional(folder, "ABCDE")
    return folder


@pytest.fixture
def model(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FloatModel:
    """A tiny model of the kind that the method needs; for GenQ, a pipeline makes images of its 5 classes."""
    if name == "genq":
        monkeypatch.setitem(pipelines.EMBEDDED, "shapes", request.getfixturevalue("tiny_pipeline"))
    return make_tiny_transformer() if name in FOR_TRANSFORMERS else make_tiny_model()


def _config(name: str, **settings: Any) -> Any:
    config = GENERATORS[name].PRESETS["default"]
    budget = {key: value for key, value in BUDGET.items() if hasattr(config, key)}
    return replace(config, **budget | settings)


def _generate(name: str, model: FloatModel, **settings: Any) -> torch.Tensor:
    checkpoint = settings.pop("checkpoint", None)
    return GENERATORS[name].generate(model, _config(name, **settings), progress=False, checkpoint=checkpoint)


@pytest.mark.parametrize("name", GENERATORS)
def test_images_have_the_promised_form(name, model):
    images = _generate(name, model)
    assert images.shape == (6, 3, 8, 8)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert not images.requires_grad


@pytest.mark.parametrize("name", GENERATORS)
def test_images_depend_only_on_the_seed(name, model):
    first = _generate(name, model, seed=1)
    torch.manual_seed(123)  # the caller's random state has no effect
    assert torch.equal(first, _generate(name, model, seed=1))
    assert not torch.equal(first, _generate(name, model, seed=2))


@pytest.mark.parametrize("name", GENERATORS)
def test_the_model_and_the_callers_random_state_are_unchanged(name, model):
    net = model.net.train()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    _generate(name, model)
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", MATCHING)
def test_a_network_without_batch_norm_is_refused(name):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model = FloatModel(name="plain", net=net, image_shape=(3, 2, 2), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(NoBatchNorm, match=r"no batch norm.*psaq_vit"):
        _generate(name, model)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_of_images_below_one_are_refused(name, value):
    with pytest.raises(ValueError, match=f"num_images must be at least 1, got {value}"):
        _config(name, num_images=value)
    with pytest.raises(TypeError, match=r"num_images must be a whole number, got 2\.5"):
        _config(name, num_images=2.5)


@pytest.mark.parametrize("name", ["dgh", "zeroq", "genie_d", "intraq", "deep_inversion", "qimera"])
def test_rates_below_zero_are_refused(name):
    with pytest.raises(ValueError, match=r"learning_rate must be from 0 to inf, got -1\.0"):
        _config(name, learning_rate=-1.0)


def test_images_are_known_by_their_network_method_and_settings(tiny_model: FloatModel) -> None:
    config = GENERATORS["zeroq"].PRESETS["default"]
    name = images_fingerprint(tiny_model, "zeroq", 1, config)
    others = {
        images_fingerprint(replace(tiny_model, mean=(0.4, 0.5, 0.5)), "zeroq", 1, config),
        images_fingerprint(replace(tiny_model, std=(0.2, 0.25, 0.25)), "zeroq", 1, config),
        images_fingerprint(replace(tiny_model, image_shape=(3, 16, 16)), "zeroq", 1, config),
        images_fingerprint(make_tiny_model(seed=1), "zeroq", 1, config),
        images_fingerprint(tiny_model, "intraq", 1, config),
        images_fingerprint(tiny_model, "zeroq", 2, config),
        images_fingerprint(tiny_model, "zeroq", 1, replace(config, seed=1)),
    }
    assert len(others - {name}) == 7
    assert images_fingerprint(replace(tiny_model, name="other"), "zeroq", 1, config) == name


RUN = """
import signal, sys
from pathlib import Path
from conftest import make_tiny_model
from dataclasses import replace
from dghlib.storage import checkpoints
from dghlib.generators import GENERATORS

def save(self, state):
    self.save(state())
    signal.pause()  # until it is killed


checkpoints.Checkpoint.save_when_due = save
name, steps = sys.argv[1], int(sys.argv[2])
config = replace(GENERATORS[name].PRESETS["default"], num_images=6, batch_size=4, steps=steps)
GENERATORS[name].generate(make_tiny_model(), config, progress=False, checkpoint=Path(sys.argv[3]))
"""


@pytest.mark.parametrize("name", ["dgh", "zeroq"])  # the 2 loops of the generators
def test_a_killed_and_repeated_run_gives_the_same_images(name, tmp_path, tiny_model):
    checkpoint, steps = tmp_path / "run.checkpoint", 20
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, name, str(steps), str(checkpoint)],
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__), "OMP_NUM_THREADS": "1"},
    )
    until(checkpoint.exists, lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(checkpoint, weights_only=True)["states"][0]["step"] == 1
    resumed = _generate(name, tiny_model, steps=steps, checkpoint=checkpoint)
    assert torch.equal(resumed, _generate(name, tiny_model, steps=steps))


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("steps_before", [2, 5])
def test_a_run_that_was_stopped_continues_to_the_same_images(name, steps_before, tmp_path, model, monkeypatch):
    """With 4 steps per batch, most methods are stopped in the first and in the second batch."""
    checkpoint = tmp_path / "run.checkpoint"
    steps = 8 if name in ("dgh", "dgh_vit") else 4  # these methods move all batches in one step
    calls = 0

    def save_and_stop(self: Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
        nonlocal calls
        calls += 1
        if calls == steps_before:
            self.save(state())
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_when_due", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            _generate(name, model, steps=steps, checkpoint=checkpoint)
        resumed = _generate(name, model, steps=steps, checkpoint=checkpoint)
    assert calls == 8, "steps were done again"
    assert torch.equal(resumed, _generate(name, model, steps=steps))
