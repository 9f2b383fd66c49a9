"""Runs: networks that are quantized and tested, and observations of images. Both are data, and have a record."""

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
    """The images of a source.

    Attributes:
        source: "real" or the name of a generator; `config` is its Config.
        student: the network with which DeepInversion's images compete; None for none.
    """

    source: str
    config: Any
    student: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A network that is calibrated with a set of images, quantized and tested; or tested in float.

    Attributes:
        profile, model: a name in `PROFILES`, and the name of one of its networks.
        source: the source of the images, "real" or the name of a generator, None for no images; `source_config` is
            its Config.
        quantizer: a quantizer's name, or "float" for none; `quantizer_config` is its Config.
        test_images: size of the test set, None for all.
        images_of: the network from which the images are made, None for the one that is quantized.
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
        """Return the name of the network from which the images are made."""
        return self.images_of or self.model

    @property
    def images(self) -> ImageSet:
        """Return the images with which the network is calibrated."""
        return ImageSet(source=self.source or "", config=self.source_config)

    @property
    def title(self) -> str:
        """Return the name of the experiment in a few words, for progress bars and errors."""
        if self.quantizer == FLOAT:
            return f"{self.model} float"
        config, images = self.quantizer_config, self.source_config
        changed = changed_settings(self.quantizer, plain(config)) | changed_settings(self.source or "", plain(images))
        settings = "".join(f", {name} = {value}" for name, value in changed.items())
        if not self.source:
            repetition = f", seed {self.seed}" if hasattr(config, "seed") else ""
            return f"{self.model} {self.quantizer} {width_of(config)} {config.bits}, no images{settings}{repetition}"
        of_another = f" of {self.images_of}" if self.images_of else ""
        return (
            f"{self.model} {self.quantizer} {width_of(config)} {config.bits}, "
            f"{images.num_images} {self.source}{of_another}{settings}, seed {images.seed}"
        )

    @property
    def seed(self) -> int:
        """Return the repetition of this experiment; without images it is the seed of the quantizer, if it has one."""
        return self.source_config.seed if self.source else getattr(self.quantizer_config, "seed", 0)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A measurement of a network on sets of images that are made from it, or of copies that they calibrate.

    Attributes:
        profile, model: a name in `PROFILES`, and the name of one of its networks.
        look: the measurement, a name in `looks.LOOKS`, or for copies in `quantized_looks.LOOKS`.
        sets: (title, images), in order.
        seed: the repetition; the images have seeds of their own.
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
        """Return the name of the observation in a few words, for progress bars and errors."""
        width = "" if self.quantizer == FLOAT else f" {self.quantizer} {width_of(self.quantizer_config)}"
        return f"{self.model}{width} {self.look} of {len(self.sets)} sets of images seed {self.seed}"


Run = Experiment | Observation  # everything that has a record


def width_of(config: Any) -> str:
    """Return the width in the Config of a quantizer, such as "W4A8"."""
    return f"W{config.weight_bits}A{config.activation_bits}"


# Settings that depend on budget, width and repetition; other settings make a run part of an ablation.
_SET_BY_BUDGET = {"num_images", "batch_size", "steps", "seed", "scaled_schedule"}
_SET_BY_WIDTH = {"weight_bits", "activation_bits", "bits", "seed", "batch_size"}
_SHORTENED = {"steps", "iterations", "step_iterations", "rounding_rate", "scale_rate", "step_rate"}
# Presets with these names are the authors' for a network or its data, not for an ablation.
_OF_DATA = {name for profile in PROFILES.values() for name in (profile.name, *profile.models)}


def published(source: str, config: Mapping[str, Any]) -> Any:
    """Return the Config of a generator's authors for a network or its data if this is one, otherwise the default."""
    presets = GENERATORS[source].PRESETS
    named = (presets[name] for name in presets if name in _OF_DATA and not _differing(presets[name], config))
    return next(named, presets["default"])


def changed_settings(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a generator or quantizer that differ from its published ones; none for real images.

    Those of a generator are compared with the nearest preset, which is named unless it is the default. The authors'
    settings for a network or its data count as defaults.
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
    """Return the settings that differ between a recorded `config` and a preset."""
    usual, found = (completed(type(preset), each) for each in (plain(preset), config))
    return {name: value for name, value in found.items() if name not in _SET_BY_BUDGET and usual.get(name) != value}
