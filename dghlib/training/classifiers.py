"""Train the networks that ship with the package: `python -m dghlib.training.classifiers`.

Every image is flipped and cropped individually, in training and when the batch-norm statistics are measured at the end,
because DGH assumes that these statistics are those of flipped and cropped images. The same seed, number of threads and
version of torch give the same weights. A killed run continues from its last epoch.
"""

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dghlib.datasets import shapes
from dghlib.datasets.labelled import LabelledImages, batches
from dghlib.evaluation import top1
from dghlib.images import flip_and_crop, normalise
from dghlib.models import FloatModel, embedded
from dghlib.seeds import derived_seed, stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import fingerprint, write_atomically, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a training run: the learning rate rises linearly and falls along a cosine.

    `optimizer` is "sgd", with Nesterov momentum, or "adamw", which transformers need.
    """

    model: str
    num_images: int = 19_968  # a multiple of the batch size and of the 48 classes
    epochs: int = 14
    batch_size: int = 128
    optimizer: str = "sgd"
    peak_learning_rate: float = 0.2
    warm_up: float = 0.2  # share of all steps
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_margin: int = 3  # pixels on each side
    seed: int = 0
    threads: int = 1  # 2 runs with 1 thread each use 2 cores better than 1 run with 2 threads
    test_images: int = 4_096


CONFIGS = {name: Config(model=name) for name in embedded.NETS} | {
    "shapes_transformer": Config(
        model="shapes_transformer",
        optimizer="adamw",
        peak_learning_rate=2e-3,
        weight_decay=0.05,
        epochs=20,
        warm_up=0.1,
    )
}


def train(config: Config, data: LabelledImages, checkpoint: Path | None = None) -> tuple[FloatModel, float]:
    """Return a trained network and the seconds of its training, including those before an interruption.

    Args:
        config: the network and its settings.
        data: the training images; all full batches of them are used.
        checkpoint: file from which to continue, and to which every epoch is saved.
    """
    net = _untrained(config)
    optimizer = _optimizer(config, net)
    model = embedded.as_model(config.model, net)
    saved = Checkpoint(checkpoint, fingerprint(config))
    seconds = train_epochs(net, optimizer, partial(_train_epoch, model, optimizer, data, config), config.epochs, saved)
    start = time.perf_counter()
    measure_batch_norm(model, (images for images, _ in augmented(model, data, config, epoch=config.epochs)))
    return model, seconds + time.perf_counter() - start


def _optimizer(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        net.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=True
    )


def _untrained(config: Config) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "initial weights", config.model))
        net = embedded.NETS[config.model]()
    return net.to(memory_format=torch.channels_last)


def train_epochs(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_epoch: Callable[[int], None],
    epochs: int,
    saved: Checkpoint,
) -> float:
    """Train a network epoch by epoch, from the last epoch of a killed run; return the seconds of all epochs."""
    state = saved.load() or {"epoch": 0, "seconds": 0.0}
    if state["epoch"]:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        log.info("continuing after epoch %d", state["epoch"])
    seconds = state["seconds"]
    for epoch in range(state["epoch"], epochs):
        start = time.perf_counter()
        train_epoch(epoch)
        seconds += time.perf_counter() - start
        parts = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
        saved.save({**parts, "epoch": epoch + 1, "seconds": seconds})
    return seconds


def _train_epoch(
    model: FloatModel, optimizer: torch.optim.Optimizer, data: LabelledImages, config: Config, epoch: int
) -> None:
    model.net.train()
    steps = len(data) // config.batch_size
    bar = tqdm(total=steps, desc=f"{model.name} epoch {epoch + 1}/{config.epochs}", unit="batch")
    with bar:
        for step, (images, labels) in enumerate(augmented(model, data, config, epoch)):
            progress = (epoch * steps + step) / (config.epochs * steps)
            optimizer.param_groups[0]["lr"] = learning_rate(progress, config.peak_learning_rate, config.warm_up)
            loss = F.cross_entropy(model.net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.net.eval()


def learning_rate(progress: float, peak: float, warm_up: float) -> float:
    """Return the learning rate after a share of all steps: 0 at both ends, the peak after the warm-up."""
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def augmented(model: FloatModel, data: LabelledImages, config: Config, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the full batches of an epoch, shuffled, each image flipped and cropped individually."""
    rng = stream(config.seed, "epoch", epoch)
    margin = config.crop_margin
    for chosen in torch.randperm(len(data), generator=rng).split(config.batch_size):
        if len(chosen) < config.batch_size:
            return
        images = normalise(data.images[chosen], model.mean, model.std)
        images = F.pad(images, (margin,) * 4, mode="replicate")
        flips = torch.rand(len(chosen), generator=rng) < 0.5
        tops, lefts = torch.randint(2 * margin + 1, (2, len(chosen)), generator=rng)
        images = flip_and_crop(images, flips, tops, lefts, model.image_shape[1:])
        yield images.contiguous(memory_format=torch.channels_last), data.labels[chosen]


@torch.no_grad()
def measure_batch_norm(model: FloatModel, batches: Iterable[Tensor]) -> None:
    """Set the batch-norm statistics to the average over normalised images (n, C, H, W), with fixed weights.

    The statistics after training lag behind: they are a moving average while the weights still change.
    """
    layers = [module for module in model.net.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average of all batches
    model.net.train()
    for images in batches:
        model.net(images)
    model.net.eval()


def make(config: Config, out: Path) -> dict[str, Any]:
    """Train a network, write its weights and a JSON file with the facts of the run, and return the facts."""
    torch.set_num_threads(config.threads)
    data = shapes.classification("train", config.num_images)
    model, seconds = train(config, data, unfinished(out, config.model))
    test_set = shapes.classification("test", config.test_images)
    percent = top1(model.net, batches(test_set, model.mean, model.std, 256), progress=True)
    return write(model, {**asdict(config), "seconds": round(seconds), "top1": round(percent, 2)}, out)


def unfinished(out: Path, name: str) -> Path:
    """Return the file from which a killed training run of a network continues."""
    return out / f".{name}.pt"


def write(model: FloatModel, facts: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write a trained network's weights and, as JSON, the facts of its training; return these, with torch's version."""
    weights = {name: tensor.contiguous() for name, tensor in model.net.state_dict().items()}
    write_atomically(out / f"{model.name}.safetensors", lambda temporary: save_file(weights, temporary))
    facts = {**facts, "torch": torch.__version__}
    write_json(out / f"{model.name}.json", facts)
    unfinished(out, model.name).unlink()
    return facts


def train_from_command_line(
    arguments: Sequence[str] | None,
    program: str,
    about: str,
    names: Iterable[str],
    train_one: Callable[[str, Path], str],
) -> None:
    """Parse a command line, and train the networks `names`, or the requested one; log the result of each.

    Args:
        arguments: the words of the command line; None for those of this process.
        program: the command, for `--help`.
        about: the description and the duration, for `--help`.
        names: names of the networks.
        train_one: trains the network of a name into a folder, and returns its quality in a few words.
    """
    parser = argparse.ArgumentParser(prog=program, description=f"{about} A killed run continues from its last epoch.")
    parser.add_argument("--only", metavar="NAME", choices=list(names), help="one of: %(choices)s")
    parser.add_argument("--out", metavar="DIR", type=Path, default=embedded.CHECKPOINTS, help="default: the package")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in [options.only] if options.only else names:
        log.info("%s: %s", name, train_one(name, options.out))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""

    def train_one(name: str, out: Path) -> str:
        facts = make(CONFIGS[name], out)
        return f"{facts['top1']:.2f} % of {facts['test_images']} test images"

    train_from_command_line(
        arguments,
        "python -m dghlib.training.classifiers",
        "Train the networks for the benchmark shapes; each takes 5 to 15 minutes on 2 cores.",
        embedded.NETS,
        train_one,
    )


if __name__ == "__main__":
    main()
