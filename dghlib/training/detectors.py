"""Train the detectors that ship with the package: `python -m dghlib.training.detectors`.

The backbones start from the trained classifiers, whose stem and first stage stay fixed (as torchvision's detectors
start from ImageNet's). Scenes are flipped. The same seed, number of threads and version of torch give the same weights.
A killed run continues from its last epoch.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dghlib.datasets import scenes
from dghlib.datasets.annotated import AnnotatedImages
from dghlib.evaluation.detection import found_boxes, mean_average_precision
from dghlib.images import normalise
from dghlib.models import FloatModel, detectors, embedded
from dghlib.seeds import derived_seed, stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import fingerprint
from dghlib.training import classifiers


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a training run: AdamW, with a learning rate that rises linearly and falls along a cosine."""

    model: str
    num_images: int = 3_072
    epochs: int = 8
    batch_size: int = 16
    peak_learning_rate: float = 2e-3
    warm_up: float = 0.1  # share of all steps
    weight_decay: float = 1e-3
    seed: int = 0
    threads: int = 1
    test_images: int = 512


def train(config: Config, data: AnnotatedImages, checkpoint: Path | None = None) -> tuple[FloatModel, float]:
    """Return a trained detector and the seconds of its training; arguments as for `classifiers.train`."""
    detector = _untrained(config)
    learned = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.0, weight_decay=config.weight_decay)
    train_epoch = partial(_train_epoch, detector, optimizer, data, config)
    saved = Checkpoint(checkpoint, fingerprint(config))
    seconds = classifiers.train_epochs(detector, optimizer, train_epoch, config.epochs, saved)
    model = detectors.as_model(config.model, detector)
    start = time.perf_counter()
    flipped = flipped_scenes(data, config, epoch=config.epochs)
    classifiers.measure_batch_norm(model, (normalise(images, model.mean, model.std) for images, _ in flipped))
    return model, seconds + time.perf_counter() - start


def _untrained(config: Config) -> nn.Module:
    """Return a detector on the body of a trained classifier, whose stem and first stage are fixed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "initial weights", config.model))
        classifier = embedded.load(detectors.CLASSIFIERS[config.model]).net
        detector = detectors.NETS[config.model](classifier)
    frozen = [child for name, child in classifier.named_children() if name in ("conv1", "bn1", "stem")]
    stages = classifier.get_submodule("stages" if hasattr(classifier, "stages") else "blocks")
    for module in (*frozen, next(stages.children())):
        module.requires_grad_(False)
    return detector.to(memory_format=torch.channels_last)


def _train_epoch(
    detector: nn.Module, optimizer: torch.optim.Optimizer, data: AnnotatedImages, config: Config, epoch: int
) -> None:
    detector.train()
    steps = len(data) // config.batch_size
    with tqdm(total=steps, desc=f"{config.model} epoch {epoch + 1}/{config.epochs}", unit="batch") as bar:
        for step, (images, targets) in enumerate(flipped_scenes(data, config, epoch)):
            progress = (epoch * steps + step) / (config.epochs * steps)
            rate = classifiers.learning_rate(progress, config.peak_learning_rate, config.warm_up)
            optimizer.param_groups[0]["lr"] = rate
            losses = detector(list(images.float() / 255), targets)
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            bar.set_postfix({name: f"{value.item():.3f}" for name, value in losses.items()}, refresh=False)


def flipped_scenes(data: AnnotatedImages, config: Config, epoch: int) -> Iterator[tuple[Tensor, list[dict]]]:
    """Yield the full batches of an epoch, shuffled, every other image flipped: uint8 (n, 3, H, W), and targets."""
    rng = stream(config.seed, "epoch", epoch)
    width = detectors.SIZE
    for chosen in torch.randperm(len(data), generator=rng).split(config.batch_size):
        if len(chosen) < config.batch_size:
            return
        images, targets = torch.stack([data.images[k] for k in chosen.tolist()]), []
        flips = torch.rand(len(chosen), generator=rng) < 0.5
        images[flips] = images[flips].flip(3)
        for k, flip in zip(chosen.tolist(), flips.tolist(), strict=True):
            target = data.target(k)
            if flip:
                target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
            targets.append(target)
        yield images, targets


def make(config: Config, out: Path) -> dict[str, Any]:
    """Train a detector, write its weights and a JSON file with the facts of the run, and return the facts."""
    torch.set_num_threads(config.threads)
    data = scenes.detection("train", config.num_images)
    model, seconds = train(config, data, classifiers.unfinished(out, config.model))
    test_set = scenes.detection("test", config.test_images)
    boxes = found_boxes(detectors.detector_of(model, model.net), test_set.images, test_set.image_ids, progress=True)
    precision = mean_average_precision(test_set.annotations, boxes)
    rounded = {name: round(percent, 2) for name, percent in precision.items()}
    return classifiers.write(model, {**asdict(config), "seconds": round(seconds), **rounded}, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""

    def train_one(name: str, out: Path) -> str:
        facts = make(Config(model=name), out)
        return f"mAP {facts['map']:.2f} of {facts['test_images']} test images"

    classifiers.train_from_command_line(
        arguments,
        "python -m dghlib.training.detectors",
        "Train the detectors for the benchmark shapes; each takes about 5 minutes on 1 core.",
        detectors.NETS,
        train_one,
    )


if __name__ == "__main__":
    main()
