"""GenQ: images of a diffusion model, of which the network keeps those most similar to its training data.

A text-to-image pipeline is given prompts with class names, a class-conditional pipeline the classes themselves. Neither
knows the network that will be quantized. Therefore twice as many images are made as are needed, and 2 filters, which
use the network, keep half of them (`dghlib.generators.filters`). With a few real images, a token can be learned from
them that stands for their style in the prompts (`dghlib.generators.textual_inversion`).

Source: Li et al., "GenQ: Quantization in Low Data Regimes with Generative Synthetic Data" (2024), Sections 4.1 and
4.2. The authors' code is no longer public, and the appendix with their details was not available.

Differences from the paper:
 1. Steps, scheduler, precision and size of images are not stated; the preset "paper" has 50 steps, the pipeline's own
    scheduler and size, and half precision. The list of adjectives is in the appendix; here it is that of CLIP.
 2. Images are scaled to the network's size as a whole, and rounded to 8 bits like real images.
 3. The paper does not state how the discarded images are divided between the 2 filters: `energy_share`. See also
    `dghlib.generators.filters`.
 4. Images that the pipeline's safety checker blackens are not candidates.
 5. The default is a small class-conditional pipeline that ships with the package, for the networks of `shapes`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from string import Formatter

import torch
from torch import Tensor
from tqdm import tqdm

from dghlib.choices import check_at_least, check_between, check_choice, check_types
from dghlib.generators.filters import SECOND_STAGES, SecondStage, select
from dghlib.generators.identity import images_fingerprint
from dghlib.generators.pipelines import (
    Offload,
    Pipeline,
    Precision,
    checked_names,
    class_ids,
    content_sha256,
    fit,
    folder_of,
    load_pipeline,
    make_images,
    takes_prompts,
)
from dghlib.generators.textual_inversion import PLACEHOLDER, insert_token, load_token
from dghlib.images import load_timed_images, normalise, save_images
from dghlib.models import FloatModel
from dghlib.running.batchnorm import working_copy
from dghlib.seeds import derived_seed, stream
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import fingerprint
from dghlib.synthesis.classes import number_of_classes, random_labels

VERSION = 1

# Adjectives of CLIP's prompts for ImageNet, for a photo or for its object.
ADJECTIVES = (
    *("bad", "good", "black and white", "blurry", "bright", "close-up", "cropped", "dark", "jpeg corrupted"),
    *("low resolution", "pixelated", "clean", "cool", "dirty", "hard to see", "large", "nice", "small", "weird"),
)
PROMPT = "A photo of a {adjective} {name}"  # Eq. 4


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run; the defaults are for the embedded pipeline; those of the preset "paper" are the authors'."""

    num_images: int = 1024  # images to make
    batch_size: int = 32  # images that the pipeline makes at once
    seed: int = 0  # of all random numbers

    pipeline: str = "shapes"  # the embedded pipeline, a folder, or a name on the hub
    revision: str | None = None  # of a pipeline on the hub
    denoising_steps: int = 20  # of the pipeline, for each image
    guidance: float = 2.0  # 1 means no guidance
    scheduler: str | None = None  # a scheduler class of diffusers; None: the pipeline's own
    size: int | None = None  # pixels of the images of a text-to-image pipeline; None: the pipeline's own
    precision: Precision = "float32"  # of the pipeline; float16 needs a GPU
    offload: Offload = "none"  # keep on the GPU only the part of the pipeline that runs

    class_names: tuple[str, ...] | None = None  # of the network, in order; the embedded pipeline knows them
    prompt: str = PROMPT  # of a text-to-image pipeline; {name} is the class, {adjective} a random one
    token: str | None = None  # file written by textual_inversion, for {token} in the prompt

    oversampling: float = 2.0  # images made for each image that is kept
    energy_share: float = 0.5  # share of the discarded images that the first filter discards
    second_stage: SecondStage = "auto"  # "batch_norm", "patch_similarity", "none", or "auto" to choose by the network
    temperature: float = 1.0  # of the energy

    weights: str = field(init=False)  # a hash of the pipeline's folder and of the token's file

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_images", "batch_size", "denoising_steps"):
            check_at_least(1, name, getattr(self, name))
        check_between(0, math.inf, "guidance", self.guidance)
        check_choice("precision", self.precision, ("float32", "float16", "bfloat16"))
        check_choice("offload", self.offload, ("none", "model", "sequential"))
        self._check_prompt()
        check_between(1, math.inf, "oversampling", self.oversampling)
        check_between(0, 1, "energy_share", self.energy_share)
        check_choice("second_stage", self.second_stage, SECOND_STAGES)
        token = Path(self.token) if self.token else None
        weights = content_sha256(folder_of(self.pipeline), token)
        object.__setattr__(self, "weights", weights)  # so that other weights are another configuration

    def _check_prompt(self) -> None:
        parts = {part for _, part, _, _ in Formatter().parse(self.prompt)}
        for part in parts:
            check_choice("what stands in braces in the prompt", part, ("name", "adjective", "token", None))
        if "name" not in parts:
            raise ValueError(f"the prompt must have {{name}}, which is the class, got {self.prompt!r}")
        if ("token" in parts) != (self.token is not None):
            raise ValueError(
                f"a prompt with {{token}} needs a learned token and the other way round, got the prompt "
                f"{self.prompt!r} and the token {self.token!r}"
            )


PRESETS = {
    "default": Config(),
    "paper": Config(
        pipeline="stable-diffusion-v1-5/stable-diffusion-v1-5",
        batch_size=8,
        denoising_steps=50,
        guidance=3.5,
        precision="float16",
    ),
    "dit": Config(
        pipeline="facebook/DiT-XL-2-256", batch_size=8, denoising_steps=50, guidance=4.0, precision="float16"
    ),
}


class Candidates:
    """Batches of a pipeline, kept in a folder, so that other networks and other filters can select from them.

    Args:
        folder: the folder of their files.

    Attributes:
        seconds: the generation time of the batches that were found in the folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.seconds = folder, 0.0

    def batch(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """Return the batch of this name, uint8 (N, C, H, W); make it and keep it if it does not exist."""
        path = self.folder / f"{key}.safetensors"
        if found := load_timed_images(path):
            self.seconds += found[1]
            return found[0]
        start = time.perf_counter()
        images = make()
        save_images(path, images, {"seconds": f"{time.perf_counter() - start:.3f}"})
        return images


def generate(
    model: FloatModel,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
    candidates: Candidates | None = None,
) -> Tensor:
    """Return images (num_images, C, H, W), float32 in the normalised space of `model`, on the CPU.

    The model is not changed. With `checkpoint`, a killed run continues from that file to the same images and loses at
    most a batch, or the work of the last 20 seconds. With `candidates`, the images of the pipeline are kept there, and
    existing ones are not made again; the result is the same.

    Raises:
        MissingExtra, NotAPipeline: see `dghlib.generators.pipelines.load_pipeline`.
        NotAClassifier: the network is not a classifier.
        NoBatchNorm, NoPatches: the second filter cannot be used, see `dghlib.generators.filters.select`.
        ValueError: the classes of network and pipeline do not fit, names are missing, or channels differ.
        torch.OutOfMemoryError: a batch does not fit on the device; the message says what to change.
    """
    num_classes = number_of_classes(model, working_copy(model.net, "cpu", model.image_shape), "GenQ")
    blank = torch.zeros(2, *model.image_shape)
    select(model, blank, 1, energy_share=0, second_stage=config.second_stage)  # raise now, not after hours
    saved = Checkpoint(checkpoint, images_fingerprint(model, "genq", VERSION, config))
    made = _make_candidates(model, config, num_classes, device, saved, candidates, progress)
    images = normalise(made, model.mean, model.std)
    kept = select(
        model,
        images,
        config.num_images,
        energy_share=config.energy_share,
        second_stage=config.second_stage,
        temperature=config.temperature,
        device=device,
    )
    return images[kept]


def _make_candidates(
    model: FloatModel,
    config: Config,
    num_classes: int,
    device: torch.device | str,
    saved: Checkpoint,
    candidates: Candidates | None,
    progress: bool,
) -> Tensor:
    """Return the images of the pipeline, uint8 (M, C, H, W)."""
    pipeline = load_pipeline(
        config.pipeline,
        revision=config.revision,
        precision=config.precision,
        scheduler=config.scheduler,
        offload=config.offload,
        device=device,
    )
    if config.token is not None:
        insert_token(pipeline, load_token(Path(config.token)))
    subjects = subjects_of(config, pipeline, num_classes)
    starts = range(0, len(subjects), config.batch_size)
    made: list[Tensor] = (saved.load() or {"batches": []})["batches"]
    with tqdm(total=len(starts), initial=len(made), desc=f"GenQ {model.name}", disable=not progress) as bar:
        for start in starts[len(made) :]:
            wanted = subjects[start : start + config.batch_size]
            seed = derived_seed(config.seed, "genq", "batch", start)
            make = partial(_batch, pipeline, wanted, config, seed, model)
            made.append(candidates.batch(_batch_name(config, wanted, seed, model), make) if candidates else make())
            bar.update()
            saved.save_when_due(lambda: {"batches": made})
    return torch.cat(made)


def _batch(
    pipeline: Pipeline, subjects: Sequence[str] | Sequence[int], config: Config, seed: int, model: FloatModel
) -> Tensor:
    """Return the pipeline's images of these subjects, uint8, of the network's size."""
    steps, guidance = config.denoising_steps, config.guidance
    images = make_images(pipeline, subjects, steps=steps, guidance=guidance, seed=seed, size=config.size)
    if images.shape[1] != model.image_shape[0]:
        raise ValueError(
            f"images of the pipeline have {images.shape[1]} channels, {model.name} takes {model.image_shape[0]}"
        )
    return fit(images, model.image_shape[1:])


# Settings that belong neither to a batch's subjects and seed nor to the filters.
_OF_A_BATCH = ("pipeline", "revision", "weights", "denoising_steps", "guidance", "scheduler", "size", "precision")


def _batch_name(config: Config, subjects: Sequence[str] | Sequence[int], seed: int, model: FloatModel) -> str:
    settings = {name: getattr(config, name) for name in _OF_A_BATCH}
    return fingerprint([VERSION, settings, list(subjects), seed, model.image_shape])


def subjects_of(config: Config, pipeline: Pipeline, num_classes: int) -> list[str] | list[int]:
    """Return the subject of each image for a pipeline: a prompt (Eq. 4), or a class index of the pipeline.

    Classes and adjectives are random, with equal probabilities.
    """
    count = math.ceil(config.num_images * config.oversampling)
    labels = random_labels(count, num_classes, stream(config.seed, "genq", "labels")).tolist()
    if not takes_prompts(pipeline):
        ids = class_ids(pipeline, num_classes, config.class_names)
        return [ids[label] for label in labels]
    names = checked_names(config.class_names, num_classes)
    adjectives = torch.randint(len(ADJECTIVES), (count,), generator=stream(config.seed, "genq", "adjectives")).tolist()
    return [
        config.prompt.format(name=names[label], adjective=ADJECTIVES[adjective], token=PLACEHOLDER)
        for label, adjective in zip(labels, adjectives, strict=True)
    ]
