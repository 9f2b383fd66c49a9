"""Textual inversion: a token, learned from a few real images, that stands for their style in prompts (GenQ).

Only the token's embedding is trained: a text-to-image pipeline has to denoise real images, 1 or more per class, given
their class and the style. GenQ's prompts then end in that style:

    token = learn_token(images, labels, class_names, Config(pipeline="stable-diffusion-v1-5/stable-diffusion-v1-5"))
    save_token(Path("style.safetensors"), token)
    genq.Config(pipeline=..., class_names=class_names, prompt=STYLE_PROMPT, token="style.safetensors")

`datasets.load(folder)` provides the images, labels and class names of a folder.

Source: Li et al., "GenQ: Quantization in Low Data Regimes with Generative Synthetic Data" (2024), Section 4.2; the
idea is that of Gal et al., "An Image is Worth One Word" (2022).

Differences from the paper:
 1. Optimizer, learning rate and batch size are not stated; here they are AdamW with common values.
 2. lambda(t) of Eq. 11 is 1 for every t, as in the training of these pipelines.
 3. The initial embedding, that of "ImageNet", is the mean over the pieces into which the tokenizer splits the word.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dghlib.choices import check_at_least, check_between, check_choice, check_types
from dghlib.generators.pipelines import Pipeline, content_sha256, fit, folder_of, load_pipeline
from dghlib.generators.tasks import run_tasks, values_of
from dghlib.seeds import stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.reading import reading
from dghlib.storage.records import fingerprint, write_atomically

VERSION = 1
PLACEHOLDER = "<learned-style>"  # replaces {token} of a prompt for the tokenizer
STYLE_PROMPT = "A photo of a {name} in the style of {token}"  # Eq. 10
ENCODED_AT_ONCE = 8  # images per pass


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run; steps and initial word are those of the paper."""

    pipeline: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # a folder, or a name on the hub
    revision: str | None = None  # of a pipeline on the hub
    steps: int = 50_000
    batch_size: int = 4
    learning_rate: float = 2e-3
    initial: str = "ImageNet"  # the word whose embedding is the initial value
    prompt: str = STYLE_PROMPT
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "batch_size"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, float("inf"), "learning_rate", self.learning_rate)
        for _, part, _, _ in Formatter().parse(self.prompt):
            check_choice("what stands in braces in the prompt", part, ("name", "token", None))


def learn_token(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    config: Config,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
) -> Tensor:
    """Return the embedding (D,) of a token learned from real images, uint8 (N, 3, H, W), float32 on the CPU.

    `labels` (N,) give the index in `class_names` for each image. Images are scaled to the pipeline's size. With
    `checkpoint`, a killed run continues from that file to the same token.

    Raises:
        MissingExtra, NotAPipeline: see `dghlib.generators.pipelines.load_pipeline`.
        ValueError: images, labels and names do not fit each other, or the pipeline does not have 1 text encoder.
        FloatingPointError: the loss became NaN; the step is named.
        torch.OutOfMemoryError: a batch does not fit on the device.
    """
    _check_data(images, labels, class_names)
    pipeline = load_pipeline(config.pipeline, revision=config.revision, device=device)
    prompts = [config.prompt.format(name=class_names[label], token=PLACEHOLDER) for label in labels.tolist()]
    inputs = {
        "method": "textual_inversion",
        "version": VERSION,
        "config": config,
        "images": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "prompts": prompts,
        "weights": content_sha256(folder_of(config.pipeline)),
    }
    denoising = Denoising(pipeline, images, prompts, config.initial)
    return run_tasks(
        lambda index, finished: _Task(denoising, config),
        count=1,
        steps=config.steps,
        saved=Checkpoint(checkpoint, fingerprint(inputs)),
        title="textual inversion",
        progress=progress,
    )[0]


def _check_data(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or len(images) == 0:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels.shape != (len(images),):
        raise ValueError(f"there are {len(images)} images, but labels have the shape {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"labels must be from 0 to {len(class_names) - 1}, for which there are names, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )


class Denoising:
    """The loss of Eq. 11: how well a pipeline predicts the noise in real images from their prompts.

    Args:
        pipeline: its networks are frozen, and its tokenizer learns the word PLACEHOLDER.
        images: uint8 (N, 3, H, W).
        prompts: of each image.
        initial: the word whose embedding is `first`, (D,).
    """

    def __init__(self, pipeline: Pipeline, images: Tensor, prompts: Sequence[str], initial: str):
        self.text_encoder, self.unet = _parts(pipeline)
        for part in (self.text_encoder, self.unet, pipeline.vae):
            part.requires_grad_(False)
        self.device = self.unet.device
        self.first = _embedding_of(pipeline, initial)
        self.token = insert_token(pipeline, self.first)
        self.scheduler = _training_scheduler(pipeline)
        tokens = pipeline.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        self.ids = tokens.input_ids.to(self.device)
        self.latents = _latents(pipeline, images)

    def __call__(self, embedding: Tensor, batch_size: int, draws: torch.Generator) -> Tensor:
        """Return the loss of a token's embedding (D,) on a random batch, with its graph."""
        config = self.scheduler.config
        rows = torch.randint(len(self.ids), (batch_size,), generator=draws)
        times = torch.randint(config.num_train_timesteps, (batch_size,), generator=draws).to(self.device)
        mean, std = self.latents[:, rows]
        clean, noise = (torch.randn(mean.shape, generator=draws).to(self.device) for _ in range(2))
        clean = mean + std * clean
        handle = self._with(embedding)
        try:
            text = self.text_encoder(self.ids[rows])[0]
        finally:
            handle.remove()
        noisy = self.scheduler.add_noise(clean, noise, times)
        predicted = self.unet(noisy, times, encoder_hidden_states=text).sample
        target = self.scheduler.get_velocity(clean, noise, times) if config.prediction_type == "v_prediction" else noise
        return torch.nn.functional.mse_loss(predicted, target)

    def _with(self, embedding: Tensor) -> RemovableHandle:
        """Let the text encoder use `embedding` for the token, such that gradients pass through it."""

        def replace(_: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            return torch.where((args[0] == self.token)[..., None], embedding, output)

        return self.text_encoder.get_input_embeddings().register_forward_hook(replace)


class _Task:
    """The token during its training, see `dghlib.generators.tasks.Task`."""

    parts: dict[str, Any]

    def __init__(self, denoising: Denoising, config: Config):
        self.denoising, self.batch_size = denoising, config.batch_size
        self.embedding = denoising.first.clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.embedding], config.learning_rate)
        self.draws = stream(config.seed, "textual inversion")
        self.parts = {"embedding": self.embedding, "optimizer": self.optimizer, "draws": self.draws}

    def step(self) -> dict[str, float]:
        """Update the embedding by 1 step."""
        loss = self.denoising(self.embedding, self.batch_size, self.draws)
        (self.embedding.grad,) = torch.autograd.grad(loss, self.embedding)
        self.optimizer.step()
        return values_of({"denoising": loss})

    def images(self) -> Tensor:
        """Return the current embedding, (1, D)."""
        return self.embedding.detach()[None]


def insert_token(pipeline: Pipeline, embedding: Tensor) -> int:
    """Add the word PLACEHOLDER with an embedding (D,) to a pipeline; return its token id.

    Raises:
        ValueError: the pipeline does not have 1 text encoder, or has embeddings of another width.
    """
    encoder, _ = _parts(pipeline)
    width = encoder.get_input_embeddings().weight.shape[1]
    if embedding.shape != (width,):
        raise ValueError(f"the pipeline's tokens have {width} values, the learned one has {tuple(embedding.shape)}")
    pipeline.tokenizer.add_tokens(PLACEHOLDER)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)
        token = pipeline.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        encoder.get_input_embeddings().weight[token] = embedding
    return token


def save_token(path: Path, embedding: Tensor) -> None:
    """Write a learned token as a safetensors file, in a format that diffusers also reads; atomically."""
    tensors = {PLACEHOLDER: embedding.contiguous()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_token(path: Path) -> Tensor:
    """Return the embedding (D,) of `save_token`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no learned token.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no learned token at {path}")
    with reading(path, "a learned token written by dghlib", "`learn_token` makes one"):
        return load_file(path)[PLACEHOLDER]


def _parts(pipeline: Pipeline) -> tuple[Any, Any]:
    """Return the text encoder and the U-Net of a pipeline of Stable Diffusion's kind."""
    if not hasattr(pipeline, "unet") or not hasattr(pipeline, "text_encoder") or hasattr(pipeline, "text_encoder_2"):
        raise ValueError(
            f"a token is learned with a pipeline of one text encoder and a U-Net, such as Stable Diffusion 1 or 2; "
            f"this is a {type(pipeline).__name__}"
        )
    return pipeline.text_encoder, pipeline.unet


def _embedding_of(pipeline: Pipeline, word: str) -> Tensor:
    """Return the embedding (D,) of a word: the mean over its pieces."""
    encoder, _ = _parts(pipeline)
    pieces = pipeline.tokenizer(word, add_special_tokens=False, return_tensors="pt").input_ids[0]
    return encoder.get_input_embeddings().weight[pieces.to(encoder.device)].mean(0).detach().clone()


def _training_scheduler(pipeline: Pipeline) -> Any:
    import diffusers

    return diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)


def _latents(pipeline: Pipeline, images: Tensor) -> Tensor:
    """Return mean and standard deviation of the latents of images, (2, N, c, h, w), in the scale of U-Nets."""
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    encoded = []
    for part in images.split(ENCODED_AT_ONCE):
        pixels = fit(part / 255, (size, size)).to(pipeline.device)
        latents = pipeline.vae.encode(pixels / 127.5 - 1).latent_dist
        encoded.append(torch.stack([latents.mean, latents.std]))
    return torch.cat(encoded, dim=1) * pipeline.vae.config.scaling_factor
