"""The learned token: it lowers the denoising loss, nothing else changes, and a run can be resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import Tensor

from dghlib.generators import genq, pipelines, textual_inversion
from dghlib.generators.textual_inversion import PLACEHOLDER, Config, Denoising, learn_token
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint

NAMES = ("cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipelines") / "prompts"
    tiny_pipelines.save_text_to_image(folder, [*NAMES, "photo", "style"])
    return str(folder)


def real_images() -> tuple[Tensor, Tensor]:
    """4 images with halves of different colours, of 2 classes."""
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for image, channel in zip(images, (0, 1, 2, 0), strict=True):
        image[channel, :, :4] = 200
    return images, torch.tensor([0, 1, 0, 1])


def small(folder: str, **settings: Any) -> Config:
    return Config(pipeline=folder, **{"steps": 3, "batch_size": 2} | settings)


def learn(config: Config, checkpoint: Path | None = None) -> Tensor:
    images, labels = real_images()
    return learn_token(images, labels, NAMES, config, progress=False, checkpoint=checkpoint)


def denoising_of(folder: str) -> Denoising:
    prompts = [f"A photo of a {NAMES[label]} in the style of {PLACEHOLDER}" for label in (0, 1, 0, 1)]
    return Denoising(pipelines.load_pipeline(folder), real_images()[0], prompts, "ImageNet")


def test_learning_lowers_the_denoising_loss(folder):
    token = learn(small(folder, steps=60, batch_size=8, learning_rate=0.1))
    denoising = denoising_of(folder)
    with torch.no_grad():
        before, after = (denoising(value, 256, stream(5, "test")).item() for value in (denoising.first, token))
    assert after < 0.97 * before


def test_only_the_token_has_a_gradient(folder):
    denoising = denoising_of(folder)
    embedding = denoising.first.clone().requires_grad_()
    loss = denoising(embedding, 4, stream(0))
    loss.backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() > 0
    for part in (denoising.text_encoder, denoising.unet):
        assert all(weight.grad is None for weight in part.parameters())
    assert not denoising.text_encoder.get_input_embeddings()._forward_hooks


def test_the_token_starts_at_the_mean_of_its_words_tokens(folder):
    pipeline = pipelines.load_pipeline(folder)
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
    pieces = pipeline.tokenizer.convert_tokens_to_ids(["i", "m", "a", "g", "e", "n", "e", "t</w>"])
    torch.testing.assert_close(denoising_of(folder).first, table[pieces].mean(0))


def test_the_loss_equals_that_of_the_pipelines_networks(folder):
    """With the embedding put into the pipeline, its networks predict the same noise."""
    denoising = denoising_of(folder)
    embedding = torch.randn(16, generator=torch.Generator().manual_seed(1))
    draws = stream(3, "test")
    loss = denoising(embedding, 3, draws)

    pipeline = pipelines.load_pipeline(folder)
    textual_inversion.insert_token(pipeline, embedding)
    draws = stream(3, "test")
    rows = torch.randint(4, (3,), generator=draws)
    times = torch.randint(1000, (3,), generator=draws)
    pixels = real_images()[0][rows] / 127.5 - 1
    latents = pipeline.vae.encode(pixels).latent_dist
    clean = latents.mean + latents.std * torch.randn(latents.mean.shape, generator=draws)
    clean = clean * pipeline.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=draws)
    share = pipeline.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    words = [f"A photo of a {NAMES[row % 2]} in the style of {PLACEHOLDER}" for row in rows.tolist()]
    ids = pipeline.tokenizer(words, padding="max_length", return_tensors="pt").input_ids
    text = pipeline.text_encoder(ids)[0]
    told = pipeline.unet(share.sqrt() * clean + (1 - share).sqrt() * noise, times, encoder_hidden_states=text).sample
    torch.testing.assert_close(loss, (told - noise).square().mean(), rtol=1e-3, atol=1e-4)


def test_the_token_depends_only_on_the_seed(folder):
    first = learn(small(folder))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(learn(small(folder)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(learn(small(folder, seed=1)), first)


def test_a_run_that_was_stopped_continues_to_the_same_token(folder, tmp_path, monkeypatch):
    whole = learn(small(folder))
    calls = 0

    def save_and_stop(self: Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            self.save(state())
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save_when_due", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        learn(small(folder), tmp_path / "run.checkpoint")
    assert torch.equal(learn(small(folder), tmp_path / "run.checkpoint"), whole)
    assert calls == 3, "a step was repeated"


def test_images_in_the_learned_style(folder, tmp_path, tiny_model):
    """GenQ reads the file, the fingerprint of its images depends on it, and the images change."""
    path = tmp_path / "style.safetensors"
    settings: dict[str, Any] = {"num_images": 3, "batch_size": 3, "denoising_steps": 2, "oversampling": 1}
    settings |= {"pipeline": folder, "class_names": ("cat", "dog", "owl", "elk", "ant"), "token": str(path)}
    images, weights = [], []
    for seed in range(2):
        textual_inversion.save_token(path, torch.randn(16, generator=torch.Generator().manual_seed(seed)))
        config = genq.Config(prompt=textual_inversion.STYLE_PROMPT, **settings)
        images.append(genq.generate(tiny_model, config, progress=False))
        weights.append(config.weights)
    assert not torch.equal(*images)
    assert weights[0] != weights[1]


def test_tokens_are_saved_and_loaded(tmp_path, folder):
    path = tmp_path / "style.safetensors"
    token = torch.randn(16, generator=torch.Generator().manual_seed(0))
    textual_inversion.save_token(path, token)
    assert torch.equal(textual_inversion.load_token(path), token)
    with pytest.raises(FileNotFoundError, match="there is no learned token at"):
        textual_inversion.load_token(tmp_path / "nothing")
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"style.safetensors is not a learned token"):
        textual_inversion.load_token(path)


def test_a_token_of_another_pipeline_is_refused(folder):
    with pytest.raises(ValueError, match=r"the pipeline's tokens have 16 values, the learned one has \(768,\)"):
        textual_inversion.insert_token(pipelines.load_pipeline(folder), torch.zeros(768))


def test_a_pipeline_without_words_is_refused(tmp_path):
    tiny_pipelines.save_class_conditional(tmp_path, NAMES)
    with pytest.raises(ValueError, match=r"one text encoder and a U-Net.*this is a DiTPipeline"):
        learn(small(str(tmp_path)))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), [0, 1], r"images must be uint8 \(N, 3, H, W\), got torch.float32 \(2, 3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), [], r"images must be uint8 .* \(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0], r"there are 2 images, but labels have the shape \(1,\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 2], "labels must be from 0 to 1, .*, got 0 to 2"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [-1, 0], "got -1 to 0"),
    ],
)
def test_wrong_images_or_labels_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        learn_token(images, torch.tensor(labels, dtype=torch.int64), NAMES, Config())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Config(steps=0)
    with pytest.raises(ValueError, match=r"what stands in braces in the prompt must be one of .* got 'adjective'"):
        Config(prompt="a {adjective} {name} {token}")
