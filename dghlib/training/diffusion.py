"""Train the diffusion model that ships with the package: `python -m dghlib.training.diffusion`.

It draws images of a given class of the benchmark `shapes`, as GenQ needs. For an image x of class y and Gaussian noise
e, mixed as

    x_t = a_t x + s_t e,    a_t^2 + s_t^2 = 1,    t = 0 (image) ... 999 (noise),

a network learns to predict v = a_t e - s_t x from x_t, t and y, by least squares. A sampler moves from noise to an
image along v. In training, classes are sometimes withheld, so that sampling can compare the predictions with and
without the class, and extrapolate (guidance). The training images are plain drawings, as the training images of large
models are tidier than photographs.

The result is a folder of the library diffusers, loaded by `DiffusionPipeline.from_pretrained`: a DiTPipeline, which
takes class indices, with a U-Net instead of its transformer. The interface is the same, and convolutions learn drawings
from far fewer images. The autoencoder, which a pipeline must have, passes pixels unchanged. Weights are kept in half
precision.

The learning rate is constant after a warm-up, and the network is the running average of the weights: training can end
at any step, and can be prolonged by raising `steps`. All random numbers come from the seed and the number of the step:
a killed run continues to the same weights.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiffusionPipeline, DiTPipeline, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dghlib import models
from dghlib.datasets import shapes
from dghlib.datasets.labelled import LabelledImages, batches
from dghlib.evaluation import top1
from dghlib.models import embedded
from dghlib.seeds import derived_seed, stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import fingerprint, provenance, write_json

log = logging.getLogger(__name__)

NAME = "shapes"  # of the folder
NO_CLASS = 1000  # means "any class" in a DiTPipeline, whatever its number of classes
TIMES = 1000
GAIN = 16.0  # pixels pass at a fraction of their size, where the autoencoder's bounds are linear


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a training run, and of the sampling by which it is judged."""

    num_images: int = 24_576  # a multiple of the 48 classes
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warm_up: int = 100  # steps
    withheld: float = 0.1  # share of the images whose class is withheld from the network
    average: float = 0.995  # share of the running average of the weights that remains after a step
    seed: int = 0
    threads: int = 1
    test_images: int = 480
    sampling_steps: int = 20
    guidance: float = 2.0


def untrained() -> Any:
    """Return the network that predicts v from noisy images, the time, and the class."""
    return UNet2DModel(
        sample_size=shapes.SIZE,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        norm_num_groups=8,
        attention_head_dim=24,
        num_class_embeds=NO_CLASS + 1,
    )


@torch.no_grad()
def hand_through() -> AutoencoderTiny:
    """Return an autoencoder whose latents, scaled, are the pixels: every convolution is a multiple of the identity."""
    net: Any = AutoencoderTiny(
        latent_channels=3,
        encoder_block_out_channels=(3,),
        decoder_block_out_channels=(3,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        scaling_factor=GAIN,
    )
    layers: Any = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    # Both halves see pixels from 0 to 1. The decoder has a ReLU in the middle, which values raised by 1 pass.
    scales = [(2.0, -1.0), (1 / GAIN, 0.0), (1.0, 1.0), (GAIN / 2, (1 - GAIN) / 2)]
    for layer, (factor, offset) in zip(layers, scales, strict=True):
        nn.init.dirac_(layer.weight).mul_(factor)
        nn.init.constant_(layer.bias, offset)
    return net


def sampler() -> DDIMScheduler:
    """Return the path from noise to images, which adds no noise on its way; the mixture follows a squared cosine."""
    return DDIMScheduler(
        num_train_timesteps=TIMES,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def train(data: LabelledImages, config: Config, saved: Checkpoint) -> tuple[Any, dict[str, float]]:
    """Return a trained network, and facts: completed steps and seconds, and the loss, averaged over the last 100 steps.

    Args:
        data: the training images.
        config: the settings of the training.
        saved: the checkpoint from which a killed or prolonged run continues.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "diffusion", "initial weights"))
        net = untrained().to(memory_format=torch.channels_last).eval()  # no layer behaves differently in training
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)
    parts = {"net": net, "average": average, "optimizer": optimizer}
    facts = _restore(saved, parts)
    with tqdm(total=config.steps, initial=facts["step"], desc="diffusion", unit="batch") as bar:
        for step in range(facts["step"], config.steps):
            start = time.perf_counter()
            optimizer.param_groups[0]["lr"] = config.learning_rate * min(1.0, (step + 1) / config.warm_up)
            loss = loss_of_batch(net, data, config, stream(config.seed, "diffusion", step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(net)
            facts["step"] = step + 1
            facts["seconds"] += time.perf_counter() - start
            facts["loss"] += (loss.item() - facts["loss"]) / min(step + 1, 100)
            bar.update()
            bar.set_postfix(loss=f"{facts['loss']:.4f}", refresh=False)
            saved.save_when_due(lambda: facts | {name: part.state_dict() for name, part in parts.items()})
    saved.save(facts | {name: part.state_dict() for name, part in parts.items()})
    return average.module, facts


def _restore(saved: Checkpoint, parts: dict[str, Any]) -> dict[str, Any]:
    """Load the last saved state, if there is one, and return the completed steps and seconds, and the loss."""
    state = saved.load()
    if state is None:
        return {"step": 0, "seconds": 0.0, "loss": 0.0}
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    log.info("continuing after step %d", state["step"])
    return state


def loss_of_batch(net: Any, data: LabelledImages, config: Config, draws: torch.Generator) -> Tensor:
    """Return the squared error of v, averaged over random images at random times; some classes are withheld."""
    chosen = torch.randint(len(data), (config.batch_size,), generator=draws)
    images = (data.images[chosen].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    times = torch.randint(TIMES, (config.batch_size,), generator=draws)
    noise = torch.randn(images.shape, generator=draws)
    withheld = torch.rand(config.batch_size, generator=draws) < config.withheld
    labels = data.labels[chosen].masked_fill(withheld, NO_CLASS)
    mixture: Any = sampler()
    signal = mixture.alphas_cumprod[times].view(-1, 1, 1, 1)
    a, s = signal.sqrt(), (1 - signal).sqrt()
    return F.mse_loss(net(a * images + s * noise, times, labels).sample, a * noise - s * images)


def make(config: Config, out: Path) -> dict[str, Any]:
    """Train, write the folder `out`/shapes and the facts `out`/shapes.json, and return the latter.

    The checkpoint is kept, so that training can be prolonged.
    """
    torch.set_num_threads(config.threads)
    key = fingerprint(replace(config, steps=1))  # a prolonged run is the same run
    saved = Checkpoint(out / f".{NAME}.pt", key, seconds=60)
    data = shapes.plain_drawings(config.num_images)
    net, trained = train(data, config, saved)
    save(net, data.classes, out / NAME)
    facts = {
        **asdict(config),
        "loss": round(trained["loss"], 4),
        "top1_of_samples": round(judge(out / NAME, config), 2),
        **provenance(trained["seconds"]),
    }
    write_json(out / f"{NAME}.json", facts)
    return facts


def save(net: UNet2DModel, classes: Sequence[str], folder: Path) -> None:
    """Write a folder for `DiffusionPipeline.from_pretrained`, weights in half precision."""
    pipeline: Any = DiTPipeline(transformer=net, vae=hand_through(), scheduler=sampler())
    pipeline.register_to_config(id2label=dict(enumerate(classes)))  # else it would be forgotten
    pipeline.to(torch.float16).save_pretrained(folder)


def sample(pipeline: Any, labels: Tensor, config: Config) -> Tensor:
    """Return an image (3, 32, 32) uint8 for each of the labels (N,)."""
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
    """Return the share, in percent, of sampled images to which a trained network assigns their class."""
    labels = torch.arange(config.test_images) % len(shapes.CLASSES)
    images = sample(DiffusionPipeline.from_pretrained(folder), labels, config)
    network = models.load("shapes_residual")
    drawn = LabelledImages(images, labels, shapes.CLASSES)
    return top1(network.net, batches(drawn, network.mean, network.std, 96))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m dghlib.training.diffusion",
        description="Train the diffusion model for the benchmark shapes; half an hour on 1 core. "
        "A killed run continues where it was.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=embedded.PIPELINES, help="default: the package")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    facts = make(Config(), options.out)
    log.info("%.2f %% of %d sampled images show their class", facts["top1_of_samples"], facts["test_images"])


if __name__ == "__main__":
    main()
