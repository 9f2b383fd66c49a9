"""The embedded diffusion model: its training, by hand and resumed, and the embedded folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'dghlib[diffusion]'")

from dghlib.datasets import shapes
from dghlib.models import embedded
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.training import diffusion
from dghlib.training.diffusion import Config, loss_of_batch

TINY = Config(num_images=48, steps=4, batch_size=4, test_images=2, sampling_steps=2)


def test_the_autoencoder_returns_its_pixels() -> None:
    net: Any = diffusion.hand_through()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    latents = net.config.scaling_factor * net.encode(images).latents
    torch.testing.assert_close(latents, images)
    torch.testing.assert_close(net.decode(latents / net.config.scaling_factor).sample, images, atol=5e-4, rtol=0)


def test_the_loss_is_zero_for_a_network_that_knows_the_image() -> None:
    """With a single image x, v follows from the network's input: (a x_t - x) / s."""
    data = shapes.plain_drawings(1)
    image = data.images.float() / 127.5 - 1

    class Knowing:
        def __call__(self, mixed: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> "Knowing":
            sampler: Any = diffusion.sampler()
            signal = sampler.alphas_cumprod[times].view(-1, 1, 1, 1)
            self.sample = (signal.sqrt() * mixed - image) / (1 - signal).sqrt()
            self.labels = labels
            return self

    net = Knowing()
    config = replace(TINY, batch_size=400)
    assert loss_of_batch(net, data, config, stream(0)).item() == pytest.approx(0, abs=1e-6)
    assert set(net.labels.tolist()) == {0, diffusion.NO_CLASS}
    assert (net.labels == diffusion.NO_CLASS).float().mean().item() == pytest.approx(0.1, abs=0.05)


def test_a_stopped_or_extended_run_gives_the_same_weights(tmp_path: Path) -> None:
    data = shapes.plain_drawings(TINY.num_images)
    whole, _ = diffusion.train(data, TINY, Checkpoint(None, ""))
    saved = Checkpoint(tmp_path / "run.pt", "same")
    diffusion.train(data, replace(TINY, steps=2), saved)
    prolonged, facts = diffusion.train(data, TINY, saved)
    assert facts["step"] == 4
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, prolonged.state_dict()[name]), name


def test_the_embedded_folder_is_small_and_matches_its_facts() -> None:
    folder = embedded.PIPELINES / diffusion.NAME
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 6e6
    facts = json.loads(folder.with_suffix(".json").read_text())
    index = json.loads((folder / "model_index.json").read_text())
    assert [index["id2label"][str(number)] for number in range(48)] == list(shapes.CLASSES)
    assert facts["top1_of_samples"] > 5 * 100 / 48, "five times as often as by chance"


def test_the_embedded_model_makes_images_by_seed() -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(embedded.PIPELINES / diffusion.NAME)
    labels = torch.tensor([0, 1])
    first = diffusion.sample(pipeline, labels, TINY)
    assert (first.shape, first.dtype) == ((2, 3, 32, 32), torch.uint8)
    assert torch.equal(first, diffusion.sample(pipeline, labels, TINY))
    assert not torch.equal(first, diffusion.sample(pipeline, labels, replace(TINY, seed=1)))
