"""What is run: networks that are quantized and tested, or that look at images. Both are data, and have a record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dghlib.experiments.profiles import PROFILES
from dghlib.generators import GENERATORS
from dghlib.quantizers import QUANTIZERS
from dghlib.storage.records import completed, plain

REAL = "real"
NO_IMAGES = "none"
FLOAT = "float"


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Calibration with a random part of the training set."""

    num_images: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of one source.

    Attributes:
        source: "real" or the name of a generator; `config` is its Config.
        student: a network that DeepInversion's images compete with, None for none.
    """

    source: str
    config: Any
    student: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One network, calibrated with one set of images, quantized one way and tested; or tested as it is.

    Attributes:
        profile, model: names in `PROFILES` and of one of its networks.
        source: where the images come from, "real" or the name of a generator, None for no images; `source_config` is
            its Config.
        quantizer: a quantizer's name, or "float" for none; `quantizer_config` is its Config.
        test_images: size of the test set, None for all.
        images_of: the network that the images are made from, None for the one that is quantized.
    """

    profile: str
    model: str
    source: str | None = None
    source_config: Any = None
    quantizer: str = FLOAT
    quantizer_config: Any = None
    test_images: int | None = None
    images_of: str | None = None

    @property
    def maker(self) -> str:
        """Name the network that the images are made from."""
        return self.images_of or self.model

    @property
    def images(self) -> ImageSet:
        """Return the images that the network is calibrated with."""
        return ImageSet(source=self.source or "", config=self.source_config)

    @property
    def title(self) -> str:
        """Name the experiment in a few words, for progress bars and errors."""
        if self.quantizer == FLOAT:
            return f"{self.model} float"
        config, images = self.quantizer_config, self.source_config
        changed = changed_settings(self.quantizer, plain(config)) | changed_settings(self.source or "", plain(images))
        settings = "".join(f", {name} = {value}" for name, value in changed.items())
        if not self.source:
            return f"{self.model} {self.quantizer} {width_of(config)} {config.bits}, no images{settings}"
        of_another = f" of {self.images_of}" if self.images_of else ""
        return (
            f"{self.model} {self.quantizer} {width_of(config)} {config.bits}, "
            f"{images.num_images} {self.source}{of_another}{settings}, seed {images.seed}"
        )

    @property
    def seed(self) -> int:
        """Say which repetition it belongs to."""
        return self.source_config.seed if self.source else 0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a network shows of sets of images that are made from it, or what copies are like that they calibrate.

    Attributes:
        profile, model: names in `PROFILES` and of one of its networks.
        look: what is measured, a name in `looks.LOOKS`, or of copies, in `quantized_looks.LOOKS`.
        sets: (title, images), in order.
        seed: which repetition it is; the images have seeds of their own.
        settings: (name, value) of the look's own, in order.
        quantizer: makes a copy with each set; "float" for no copies. `quantizer_config` is its Config.
    """

    profile: str
    model: str
    look: str
    sets: tuple[tuple[str, ImageSet], ...]
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    quantizer: str = FLOAT
    quantizer_config: Any = None

    @property
    def title(self) -> str:
        """Name the observation in a few words, for progress bars and errors."""
        width = "" if self.quantizer == FLOAT else f" {self.quantizer} {width_of(self.quantizer_config)}"
        return f"{self.model}{width} {self.look} of {len(self.sets)} sets of images seed {self.seed}"


Run = Experiment | Observation  # what has a record


def width_of(config: Any) -> str:
    """Name the width that the Config of a quantizer asks for, such as "W4A8"."""
    return f"W{config.weight_bits}A{config.activation_bits}"


# What a budget, a width and a repetition set; other settings make a run one of an ablation.
_SET_BY_BUDGET = {"num_images", "batch_size", "steps", "seed", "scaled_schedule"}
_SET_BY_WIDTH = {"weight_bits", "activation_bits", "bits", "seed", "batch_size"}
_SHORTENED = {"steps", "iterations", "step_iterations", "rounding_rate", "scale_rate", "step_rate"}
# Presets of these names are what authors have for a network or its data, not for an ablation.
_OF_DATA = {name for profile in PROFILES.values() for name in (profile.name, *profile.models)}


def published(source: str, config: Mapping[str, Any]) -> Any:
    """Return the Config that a generator's authors have for a network or its data if this is one, else the usual."""
    presets = GENERATORS[source].PRESETS
    named = (presets[name] for name in presets if name in _OF_DATA and not _differing(presets[name], config))
    return next(named, presets["default"])


def changed_settings(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a generator or quantizer that differ from its published ones: of real images, none.

    Those of a generator differ from the preset that they are nearest to, which is named unless it is the default. What
    authors have for a network or its data is as good as the default.
    """
    if method in GENERATORS:
        others = {name: preset for name, preset in GENERATORS[method].PRESETS.items() if name not in _OF_DATA}
        return _changed_preset(others | {"default": published(method, config)}, config)
    if method in QUANTIZERS:
        default, usual = plain(QUANTIZERS[method].Config()), _SET_BY_WIDTH | _SHORTENED
    else:
        return {}
    return {name: value for name, value in config.items() if name not in usual and default.get(name) != value}


def _changed_preset(presets: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    every = {name: _differing(preset, config) for name, preset in presets.items()}
    nearest = min(every, key=lambda name: len(every[name]))
    return every[nearest] if nearest == "default" else {"preset": nearest, **every[nearest]}


def _differing(preset: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are others in a recorded `config` than in a preset."""
    usual, found = (completed(type(preset), each) for each in (plain(preset), config))
    return {name: value for name, value in found.items() if name not in _SET_BY_BUDGET and usual.get(name) != value}
