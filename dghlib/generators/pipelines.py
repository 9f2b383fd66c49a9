"""Diffusion pipelines of the package `diffusers`: load a pipeline, and make a batch of images with it.

There are 2 kinds, distinguished by their arguments: a text-to-image pipeline (such as Stable Diffusion) takes prompts,
and a class-conditional pipeline (`DiTPipeline`) takes class indices. `diffusers` is an extra, which is imported only
when a pipeline is loaded.
"""

import contextlib
import hashlib
import importlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from dghlib.choices import look_up
from dghlib.images import centre_crop
from dghlib.storage.assets import file_sha256

Pipeline = Any  # a diffusers.DiffusionPipeline, which is missing without the extra
Precision = Literal["float32", "float16", "bfloat16"]
Offload = Literal["none", "model", "sequential"]

EMBEDDED = {"shapes": Path(__file__).parents[1] / "models" / "pipelines" / "shapes"}
INDEX = "model_index.json"  # lists the content of a pipeline's folder
NO_CLASS = 1000  # diffusers' DiTPipeline is guided away from this class, whatever its number of classes


class MissingExtra(ValueError):
    """The package `diffusers` is not installed."""


class NotAPipeline(ValueError):
    """`diffusers` cannot load it, or it is a pipeline that makes no images from prompts or classes."""


def folder_of(source: str) -> Path | None:
    """Return the folder of a pipeline, named by a key of EMBEDDED or by its path; None for a name on the hub."""
    path = EMBEDDED.get(source, Path(source).expanduser())
    return path if path.is_dir() or source in EMBEDDED else None


def content_sha256(*paths: Path | None) -> str:
    """Return a hash of the given files and of all files in the given folders, except hidden ones; "" for none."""
    files = {str(path.name): path for path in paths if path and path.is_file()}
    for folder in paths:
        if folder and (folder / INDEX).is_file():
            inside = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
            files |= {name: path for name, path in inside.items() if not name.startswith(".") and "/." not in name}
    if not files:
        return ""
    lines = (f"{name} {file_sha256(path)}\n" for name, path in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_pipeline(
    source: str,
    *,
    revision: str | None = None,
    precision: Precision = "float32",
    scheduler: str | None = None,
    offload: Offload = "none",
    device: torch.device | str = "cpu",
) -> Pipeline:
    """Return a pipeline by a key of EMBEDDED, a folder, or a name on the hub, from which diffusers downloads it.

    `scheduler` names a scheduler class of diffusers that replaces the pipeline's own. `offload` keeps only the part
    that runs on the device: "model" keeps a single model, and "sequential" a single layer.

    Raises:
        MissingExtra: diffusers is not installed.
        NotAPipeline: there is no such pipeline, or it is of neither kind.
        UnknownName: there is no such scheduler.
        ValueError: the CPU is asked for functions of a GPU: float16, or offloading.
    """
    if torch.device(device).type == "cpu":
        if offload != "none":
            raise ValueError(f"offload={offload} keeps parts of a pipeline off a GPU; the device is the CPU")
        if precision == "float16":
            raise ValueError("precision=float16 needs a GPU; on the CPU take float32 or bfloat16")
    folder = folder_of(source)
    if folder and not (folder / INDEX).is_file():
        raise NotAPipeline(f"{folder} is not the folder of a diffusers pipeline: it has no {INDEX}")
    diffusers = _diffusers()
    with _quietly(diffusers), torch.random.fork_rng(devices=[]):
        try:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                str(folder or source), revision=revision, dtype=getattr(torch, precision)
            )
        except (OSError, ValueError, KeyError, AttributeError) as error:
            where = "a folder, nor a pipeline that could be had from the hub" if folder is None else "a whole pipeline"
            raise NotAPipeline(f"{source!r} is not {where}: {error}") from error
    takes_prompts(pipeline)
    if scheduler is not None:
        names = {name: name for name in dir(diffusers) if name.endswith("Scheduler")}
        kind = getattr(diffusers, look_up(names, scheduler, "scheduler"))
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if offload == "none":
        return pipeline.to(device)
    enable = pipeline.enable_model_cpu_offload if offload == "model" else pipeline.enable_sequential_cpu_offload
    enable(device=device)
    return pipeline


def _diffusers() -> ModuleType:
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is missing: pip install 'dghlib[diffusion]'") from error


@contextlib.contextmanager
def _quietly(diffusers: ModuleType) -> Iterator[None]:
    """Load without diffusers' own progress bars and remarks; errors are still raised."""
    logging = diffusers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def takes_prompts(pipeline: Pipeline) -> bool:
    """Return whether a pipeline takes prompts, rather than class indices.

    Raises:
        NotAPipeline: it takes neither.
    """
    parameters = _parameters(pipeline)
    if "class_labels" in parameters:
        return False
    if "prompt" not in parameters:
        raise NotAPipeline(f"{type(pipeline).__name__} makes images neither from prompts nor from classes")
    return True


def _parameters(pipeline: Pipeline) -> set[str]:
    return set(inspect.signature(type(pipeline).__call__).parameters)


def class_ids(pipeline: Pipeline, num_classes: int, class_names: Sequence[str] | None) -> list[int]:
    """Return the index of each class of a network in a class-conditional pipeline.

    Without names, network and pipeline must have the same classes in the same order.

    Raises:
        UnknownName: the pipeline has no class with this name.
        ValueError: the number of names is not the number of classes; or there are no names, and the numbers differ.
    """
    known: dict[str, int] = pipeline.labels
    if class_names is not None:
        names = checked_names(class_names, num_classes)
        return [look_up(known, name, "class of the pipeline") for name in names]
    count = max(known.values()) + 1 if known else pipeline.transformer.config.get("num_embeds_ada_norm", 0)
    if count != num_classes:
        raise ValueError(
            f"the pipeline makes images of {count} classes, the network tells {num_classes} apart: "
            "name the network's classes with class_names, or use a pipeline for them"
        )
    return list(range(num_classes))


def checked_names(class_names: Sequence[str] | None, num_classes: int) -> Sequence[str]:
    """Return the names, one for every class of a network; raise ValueError if their number is wrong."""
    if class_names is None or len(class_names) != num_classes:
        given = "none" if class_names is None else len(class_names)
        raise ValueError(f"class_names must name each of the network's {num_classes} classes, got {given}")
    return class_names


def make_images(
    pipeline: Pipeline,
    subjects: Sequence[str] | Sequence[int],
    *,
    steps: int,
    guidance: float,
    seed: int,
    size: int | None = None,
) -> Tensor:
    """Return images (n, C, H, W), float32 pixels from 0 to 1 on the CPU, of subjects: prompts, or class indices.

    Images that the pipeline's own safety checker has blacked out are left out, so n may be smaller than the number of
    subjects. `size`, in pixels, is for pipelines that can make images of several sizes; None is the pipeline's own.

    Raises:
        ValueError: a class-conditional pipeline cannot be guided, see `NO_CLASS`.
        torch.OutOfMemoryError: the images do not fit on the device; the message says what to change.
    """
    with_prompts = takes_prompts(pipeline)
    if not with_prompts and guidance > 1:
        _check_guidable(pipeline)
    draws = torch.Generator().manual_seed(seed)
    wanted = {
        "prompt" if with_prompts else "class_labels": list(subjects),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": draws,
        "output_type": "np",
        **({"height": size, "width": size} if size is not None else {}),
    }
    known = _parameters(pipeline)
    try:
        with _seeded(pipeline.device, seed):
            output = pipeline(**{name: value for name, value in wanted.items() if name in known})
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{len(subjects)} images at once do not fit: lower batch_size, or set precision=float16 or offload=model "
            f"({error})"
        ) from error
    images = torch.from_numpy(output.images).permute(0, 3, 1, 2).float()
    blackened = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
    return images[~torch.tensor(blackened)]


def _check_guidable(pipeline: Pipeline) -> None:
    config = pipeline.transformer.config  # of a transformer, or of a U-Net in its place
    if config.get("num_embeds_ada_norm") != NO_CLASS and config.get("num_class_embeds", 0) <= NO_CLASS:
        raise ValueError(
            f"diffusers guides away from class {NO_CLASS}, which this pipeline does not have as an empty class: "
            "it works without guidance, guidance=1"
        )


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's own generators for a while, because some schedulers draw from them in any case."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def fit(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pixels (N, C, H, W) from 0 to 1 as uint8 of `size` (H, W): scaled to cover the size, and cut to it."""
    scale = max(wanted / given for wanted, given in zip(size, images.shape[2:], strict=True))
    if scale != 1:
        scaled = [max(wanted, round(scale * given)) for wanted, given in zip(size, images.shape[2:], strict=True)]
        images = torch.nn.functional.interpolate(images, scaled, mode="bilinear", antialias=True, align_corners=False)
    return (centre_crop(images, size).clamp(0, 1) * 255).round().to(torch.uint8)
