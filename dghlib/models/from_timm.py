"""Networks of the library timm by their names, with the size and normalisation with which each was trained.

Weights are never downloaded unasked: they are those of `timm/NAME.safetensors` in the data directory, or those that
timm has downloaded for this user before.
"""

from pathlib import Path
from typing import Any

from dghlib.choices import UnknownName, nearest
from dghlib.models.float_model import FloatModel
from dghlib.storage import assets

PREFIX = "timm:"


def load(name: str) -> FloatModel:
    """Return a network by its name with the prefix, as `timm:mobilenetv3_small_100`, in eval mode.

    Raises:
        ValueError: timm is not installed.
        UnknownName: timm has no such network.
        MissingAsset: its weights are not on this machine; the message says how to get them.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError("networks of timm need the package timm: pip install timm") from error
    architecture = name.removeprefix(PREFIX)
    known = timm.list_models()
    if not timm.is_model(architecture.partition(".")[0]):
        raise UnknownName(f"timm {timm.__version__} has no network {architecture!r}{nearest(architecture, known)}")
    config = timm.get_pretrained_cfg(architecture)
    weights = _weights(architecture, config)
    net = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay={"file": str(weights)})
    data = timm.data.resolve_data_config({}, model=net)
    return FloatModel(
        name=name, net=net.eval(), image_shape=data["input_size"], mean=tuple(data["mean"]), std=tuple(data["std"])
    )


def _weights(architecture: str, config: Any) -> Path:
    """Return the file of weights on this machine."""
    placed = assets.data_dir() / "timm" / f"{architecture}.safetensors"
    if placed.is_file():
        return placed
    if config is not None and config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        for file in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(config.hf_hub_id, file) if file else None
            if isinstance(found, str):
                return Path(found)
    raise assets.MissingAsset(
        f"the weights of {architecture} are not on this machine. Let timm fetch them once, "
        f"`python -c \"import timm; timm.create_model('{architecture}', pretrained=True)\"`, or put them at {placed}"
    )
