"""Train the diffusion model that ships with the package: `python -m dghlib.experiments.diffusion`.

It draws images of a given class of the benchmark `shapes`: what GenQ needs, small. Like the large ones it works on
*latents*. An autoencoder learns to write an image as 4 x 8 x 8 numbers and to read it back; then a denoiser learns,
for latents z of an image of class y and Gaussian noise e mixed as

    z_t = a_t z + s_t e,    a_t^2 + s_t^2 = 1,    t = 0 (image) ... 999 (noise),

to tell v = a_t e - s_t z from z_t, t and y, by least squares. A sampler walks from noise to latents along that; classes
are withheld now and then in training, so that guidance can compare with and without.

The result is a folder of the library diffusers, loaded by `DiffusionPipeline.from_pretrained`: a DiTPipeline, which
takes class numbers, with a U-Net in the place of its transformer. Both have the same interface, and convolutions learn
drawings from far fewer images. Weights are kept in half precision.

Every random number comes from the seed and the number of the step: a killed run continues to the same weights.
"""

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dghlib import models
from dghlib.checkpoints import Checkpoint
from dghlib.datasets import shapes
from dghlib.datasets.labelled import LabelledImages, batches
from dghlib.evaluation import top1
from dghlib.experiments.checkpoints import learning_rate
from dghlib.models import embedded
from dghlib.records import fingerprint, write_json
from dghlib.seeds import derived_seed, stream

log = logging.getLogger(__name__)

NAME = "shapes"  # of the folder
LATENT_SHAPE = (4, 8, 8)
NO_CLASS = 1000  # stands for "any class" in a DiTPipeline, however many classes there are
TIMES = 1000
SECONDS_BETWEEN_SAVES = 60


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Settings of the training of one network: Adam, learning rate up a line and down a cosine."""

    steps: int
    peak_learning_rate: float
    batch_size: int = 64
    warm_up: float = 0.1  # fraction of all steps
    average: float = 0.998  # share of the running average of the weights that a step leaves


@dataclass(frozen=True, kw_only=True)
class AutoencoderStage(Stage):
    """Settings of the training of the autoencoder."""

    edge_weight: float = 0.5  # of differences between neighbouring pixels beside pixels
    divergence_weight: float = 3e-3  # of the latents from a standard normal


@dataclass(frozen=True, kw_only=True)
class DenoiserStage(Stage):
    """Settings of the training of the denoiser."""

    withheld: float = 0.1  # share of the images whose class it is not told


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training run, and of the sampling that it is judged by."""

    num_images: int = 24_576  # a multiple of the 48 classes
    autoencoder: AutoencoderStage = AutoencoderStage(steps=450, peak_learning_rate=2e-3)
    denoiser: DenoiserStage = DenoiserStage(steps=2400, peak_learning_rate=1e-3)
    seed: int = 0
    threads: int = 1
    test_images: int = 480
    sampling_steps: int = 20
    guidance: float = 2.0


def untrained_autoencoder() -> AutoencoderKL:
    """Return the network that writes images (N, 3, 32, 32) in [-1, 1] as latents (N, 4, 8, 8) and reads them."""
    return AutoencoderKL(
        sample_size=shapes.SIZE,
        latent_channels=LATENT_SHAPE[0],
        block_out_channels=(16, 24, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def untrained_denoiser() -> UNet2DModel:
    """Return the network that tells v from noisy latents, the time, and the class: two levels, 8x8 and 4x4."""
    return UNet2DModel(
        sample_size=LATENT_SHAPE[1],
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        block_out_channels=(64, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=28,
        num_class_embeds=NO_CLASS + 1,
    )


def sampler() -> DDIMScheduler:
    """Return the walk from noise to latents, which adds no noise on its way; the mixture follows a squared cosine."""
    return DDIMScheduler(
        num_train_timesteps=TIMES,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def train(
    name: str,
    build: Callable[[], Any],
    loss_of: Callable[[nn.Module, torch.Generator], Tensor],
    stage: Stage,
    seed: int,
    saved: Checkpoint,
) -> tuple[Any, dict[str, float]]:
    """Return a trained network, the running average of its weights, and facts: seconds, and the loss at the end.

    Args:
        name: of the network, for its random streams.
        build: makes the network, with random weights.
        loss_of: (network, the random stream of this step) -> the loss of a batch.
        stage: how to train.
        seed: of the whole run.
        saved: from which a killed run continues.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "initial weights", name))
        net = build().eval()  # neither network has layers that behave otherwise in training
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(stage.average))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)
    parts = {"net": net, "average": average, "optimizer": optimizer}
    facts = _restore(saved, parts)
    with tqdm(total=stage.steps, initial=facts["step"], desc=name, unit="batch") as bar:
        for step in range(facts["step"], stage.steps):
            start = time.perf_counter()
            rate = learning_rate(step / stage.steps, stage.peak_learning_rate, stage.warm_up)
            loss = _step(loss_of(net, stream(seed, name, step)), optimizer, rate)
            average.update_parameters(net)
            facts["step"] = step + 1
            facts["loss"] += (loss - facts["loss"]) / min(step + 1, 100)
            facts["seconds"] += time.perf_counter() - start
            bar.update()
            bar.set_postfix(loss=f"{facts['loss']:.4f}", refresh=False)
            saved.save_when_due(lambda: facts | _states(parts))
    saved.save(facts | _states(parts))
    return average.module.eval(), {"seconds": round(facts["seconds"]), "loss": round(facts["loss"], 5)}


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float) -> float:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _states(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def _restore(saved: Checkpoint, parts: dict[str, Any]) -> dict[str, Any]:
    """Load the last saved state, if there is one, and return the number of steps and seconds done, and the loss."""
    state = saved.load()
    if state is None:
        return {"step": 0, "seconds": 0.0, "loss": 0.0}
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    log.info("continuing after step %d", state["step"])
    return state


def autoencoder_loss(net: Any, images: Tensor, stage: AutoencoderStage, draws: torch.Generator) -> Tensor:
    """Return how far images (N, 3, 32, 32) in [-1, 1] and their edges are from what is read back.

    The encoder states a mean and a variance of the latents; the divergence of these from a standard normal keeps
    latents small and some noise on them, so that the decoder bears the errors of a denoiser.
    """
    latents = net.encode(images).latent_dist
    noise = torch.randn(latents.mean.shape, generator=draws)
    read = net.decode(latents.mean + latents.std * noise).sample
    edges = sum(F.mse_loss(read.diff(dim=dim), images.diff(dim=dim)) for dim in (2, 3))
    divergence = latents.kl().mean() / latents.mean[0].numel()
    return F.mse_loss(read, images) + stage.edge_weight * edges + stage.divergence_weight * divergence


def denoiser_loss(net: Any, latents: Tensor, labels: Tensor, stage: DenoiserStage, draws: torch.Generator) -> Tensor:
    """Return the squared error of v, averaged, for latents (N, 4, 8, 8) at random times; some labels are withheld."""
    times = torch.randint(TIMES, (len(latents),), generator=draws)
    noise = torch.randn(latents.shape, generator=draws)
    withheld = torch.rand(len(latents), generator=draws) < stage.withheld
    mixture: Any = sampler()
    signal = mixture.alphas_cumprod[times].view(-1, 1, 1, 1)
    a, s = signal.sqrt(), (1 - signal).sqrt()
    told = net(a * latents + s * noise, times, labels.where(~withheld, NO_CLASS)).sample
    return F.mse_loss(told, a * noise - s * latents)


@torch.no_grad()
def latents_of(autoencoder: Any, images: Tensor) -> Tensor:
    """Return the latents (N, 4, 8, 8) of images (N, 3, 32, 32) uint8."""
    chunks = tqdm(images.split(256), desc="latents", unit="batch", leave=False)
    return torch.cat([autoencoder.encode(in_range(chunk)).latent_dist.mean for chunk in chunks])


def in_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as diffusers has them: from -1 to 1."""
    return pixels.float() / 127.5 - 1


def train_autoencoder(data: LabelledImages, config: Config, saved: Checkpoint) -> tuple[Any, dict[str, float]]:
    """Return an autoencoder whose latents, times its scaling factor, have variance 1; and facts, see `train`."""
    stage = config.autoencoder

    def loss(net: nn.Module, draws: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data), (stage.batch_size,), generator=draws)
        return autoencoder_loss(net, in_range(data.images[chosen]), stage, draws)

    net, facts = train("autoencoder", untrained_autoencoder, loss, stage, config.seed, saved)
    net.register_to_config(scaling_factor=1 / latents_of(net, data.images[:4096]).std().item())
    return net, facts


def train_denoiser(latents: Tensor, labels: Tensor, config: Config, saved: Checkpoint) -> tuple[Any, dict[str, float]]:
    """Return a denoiser of scaled latents (N, 4, 8, 8) of given labels (N,); and facts, see `train`."""
    stage = config.denoiser

    def loss(net: nn.Module, draws: torch.Generator) -> Tensor:
        chosen = torch.randint(len(latents), (stage.batch_size,), generator=draws)
        return denoiser_loss(net, latents[chosen], labels[chosen], stage, draws)

    return train("denoiser", untrained_denoiser, loss, stage, config.seed, saved)


def make(config: Config, out: Path) -> dict[str, Any]:
    """Train both networks, write the folder `out`/shapes and the facts `out`/shapes.json, and return the latter."""
    torch.set_num_threads(config.threads)
    first_key = {"stage": config.autoencoder, "num_images": config.num_images, "seed": config.seed}
    first = Checkpoint(out / f".{NAME}_autoencoder.pt", fingerprint(first_key), SECONDS_BETWEEN_SAVES)
    second_key = {**first_key, "denoiser": config.denoiser}
    second = Checkpoint(out / f".{NAME}_denoiser.pt", fingerprint(second_key), SECONDS_BETWEEN_SAVES)
    data = shapes.classification("train", config.num_images)
    autoencoder, autoencoder_facts = train_autoencoder(data, config, first)
    latents = latents_of(autoencoder, data.images) * autoencoder.config.scaling_factor
    denoiser, denoiser_facts = train_denoiser(latents, data.labels, config, second)
    save(autoencoder, denoiser, data.classes, out / NAME)
    facts = {
        **asdict(config),
        "trained": {"autoencoder": autoencoder_facts, "denoiser": denoiser_facts},
        "top1_of_samples": round(judge(out / NAME, config), 2),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    write_json(out / f"{NAME}.json", facts)
    first.remove()
    second.remove()
    return facts


def save(autoencoder: AutoencoderKL, denoiser: UNet2DModel, classes: Sequence[str], folder: Path) -> None:
    """Write a folder for `DiffusionPipeline.from_pretrained`, weights in half precision."""
    pipeline: Any = DiTPipeline(transformer=denoiser, vae=autoencoder, scheduler=sampler())
    pipeline.register_to_config(id2label=dict(enumerate(classes)))  # else it would be forgotten
    pipeline.to(torch.float16).save_pretrained(folder)


def sample(pipeline: Any, labels: Tensor, config: Config) -> Tensor:
    """Return one image (3, 32, 32) uint8 for each of the labels (N,)."""
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for number, chunk in enumerate(tqdm(labels.split(96), desc="samples", unit="batch")):
        images.append(
            pipeline(
                chunk.tolist(),
                guidance_scale=config.guidance,
                num_inference_steps=config.sampling_steps,
                generator=stream(config.seed, "samples", number),
                output_type="pt",
            ).images
        )
    return (torch.cat(images) * 255).round().to(torch.uint8)


def judge(folder: Path, config: Config) -> float:
    """Return the share, in percent, of sampled images that a trained network takes for their class."""
    labels = torch.arange(config.test_images) % len(shapes.CLASSES)
    images = sample(DiffusionPipeline.from_pretrained(folder), labels, config)
    network = models.load("shapes_residual")
    drawn = LabelledImages(images, labels, shapes.CLASSES)
    return top1(network.net, batches(drawn, network.mean, network.std, 96))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m dghlib.experiments.diffusion",
        description="Train the diffusion model for the benchmark shapes; half an hour on one core. "
        "A killed run continues where it was.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=embedded.PIPELINES, help="default: the package")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    facts = make(Config(), options.out)
    log.info("%.2f %% of %d sampled images show their class", facts["top1_of_samples"], facts["test_images"])


if __name__ == "__main__":
    main()
