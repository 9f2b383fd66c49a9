"""Run the experiments and observations that have no record yet, and keep their results.

Everything is found by the fingerprint of its inputs: records in `results/<profile>/<fingerprint>.json`, those of
observations in `results/<profile>/observations`, images in a cache beside them. All are written atomically under a
lock, so processes that share the folders divide the work between them. A killed run loses only its current experiment,
whose generation continues from its checkpoint.
"""

import logging
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dghlib import models
from dghlib.experiments import looks, quantized_looks
from dghlib.experiments.experiment import FLOAT, REAL, Experiment, ImageSet, Observation, Run
from dghlib.experiments.recorded import NotRecorded, anew, only_recorded, show_missing
from dghlib.experiments.scoring import quality, real_images
from dghlib.generators import GENERATORS, genq
from dghlib.generators.identity import images_fingerprint
from dghlib.images import load_timed_images, renormalised, save_images
from dghlib.models import FloatModel
from dghlib.quantizers import QUANTIZERS, QuantizedModel
from dghlib.quantizers.starting import LearningSettings
from dghlib.storage import checkpoints
from dghlib.storage.locks import Busy, claim
from dghlib.storage.records import code_version, fingerprint, plain, provenance, read_record, write_json

log = logging.getLogger(__name__)

Record = dict[str, Any]

RESULTS_VARIABLE = "DGHLIB_RESULTS"
OBSERVATIONS = "observations"  # folder of their records, among those of a profile
PUBLISHED = Path(__file__).parents[2] / "results"


def results_dir() -> Path:
    """Return the folder of records: the environment variable DGHLIB_RESULTS, or `_build/results` here."""
    return Path(os.environ.get(RESULTS_VARIABLE, "_build/results"))


def run(
    experiments: Sequence[Run],
    *,
    results: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[Record]:
    """Return the records of `experiments`, in their order; compute the missing ones (see `Workshop.known`).

    If nothing should be computed (`dghlib.experiments.recorded`), this is the result of `published`. Experiments that
    another process is computing come last; by then their records exist. Ctrl-C and kill -9 lose only the current
    experiment, except for the part in its checkpoint.
    """
    if only_recorded():
        return published(experiments)
    workshop = Workshop(results or results_dir(), device, progress)
    found = {experiment: workshop.known(experiment) for experiment in experiments}
    missing = [experiment for experiment, record in found.items() if record is None]
    with tqdm(total=len(missing), desc="experiments", disable=not progress or not missing) as bar:
        busy = []
        for experiment in missing:
            bar.set_postfix_str(experiment.title)
            try:
                found[experiment] = workshop.compute(experiment, wait=False)
            except Busy:
                busy.append(experiment)
                continue
            bar.update()
        for experiment in busy:
            bar.set_postfix_str(f"{experiment.title}, waiting for another process")
            found[experiment] = workshop.compute(experiment, wait=True)
            bar.update()
    return [record for experiment in experiments if (record := found[experiment])]


def published(experiments: Sequence[Run], computed: Sequence[Record] = ()) -> list[Record]:
    """Return those records of `experiments` that are in the repository's own `results/`; nothing is computed.

    A run without one has its record among `computed`, if it is there. The page of a notebook names the runs without
    either. Float networks do not count: without a quantized network, nothing is returned.
    """
    made = {fingerprint(record["inputs"]): record for record in computed}
    found = {
        experiment: Workshop(PUBLISHED).find(experiment) or made.get(fingerprint(inputs_of(experiment)))
        for experiment in experiments
    }
    show_missing([experiment.title for experiment, record in found.items() if record is None], len(found))
    if all(isinstance(each, Experiment) and each.quantizer == FLOAT for each, record in found.items() if record):
        return []
    return [record for experiment in experiments if (record := found[experiment])]


def published_twin(record: Record) -> Record | None:
    """Return the published record of the same run as this record, or None."""
    return read_record(_path(PUBLISHED, record["inputs"]))


class Workshop:
    """Computes experiments, and keeps networks, data and images between them.

    Args:
        results: the folder of records.
        device: the device for generating images and running networks.
        progress: show bars.
    """

    def __init__(self, results: Path, device: torch.device | str = "cpu", progress: bool = False):
        code_version()  # the code as it is loaded now, not when a record is written
        self.results, self.device, self.progress = results, device, progress
        self.cache = results.parent / "images"
        self._images: tuple[str, Tensor, float] | None = None

    def find(self, experiment: Run) -> Record | None:
        """Return an experiment's record, or None."""
        return read_record(self.record_path(experiment))

    def known(self, experiment: Run) -> Record | None:
        """Return an experiment's record, made here or, unless all runs are computed anew, published."""
        return self.find(experiment) or (None if anew() else Workshop(PUBLISHED).find(experiment))

    def compute(self, experiment: Run, *, wait: bool) -> Record:
        """Return an experiment's record; if it is still missing under the lock, make it.

        Raises:
            Busy: another process computes it, and `wait` is False.
        """
        path = self.record_path(experiment)
        with claim(path, wait=wait):
            if record := read_record(path):
                return record
            start = time.perf_counter()
            outputs = self._outputs(experiment, wait)
            record = plain(
                {
                    "inputs": inputs_of(experiment),
                    "outputs": outputs,
                    "provenance": provenance(time.perf_counter() - start),
                }
            )
            self.keep(experiment, record)
            for checkpoint in self._checkpoints(experiment):
                checkpoints.remove(checkpoint)
            return record

    def keep(self, experiment: Run, record: Record) -> None:
        """Write an experiment's record."""
        write_json(self.record_path(experiment), record)

    def images(self, experiment: Experiment, *, wait: bool = True) -> tuple[Tensor, float]:
        """Return an experiment's calibration images, see `image_set`."""
        return self.image_set(experiment.profile, experiment.maker, experiment.images, wait=wait)

    def image_set(self, profile: str, maker: str, wanted: ImageSet, *, wait: bool = True) -> tuple[Tensor, float]:
        """Return images (N, C, H, W), normalised for the network `maker`, and the seconds of their generation.

        They are made from that network; real images are drawn from the training images of the profile.
        """
        if wanted.source == REAL:
            return real_images(profile, load_model(maker), wanted.config.num_images, wanted.config.seed), 0.0
        name = _images_name(maker, wanted)
        if self._images is None or self._images[0] != name:
            path = self.cache / f"{name}.safetensors"
            with claim(path, wait=wait):
                self._images = (name, *(load_timed_images(path) or self._generate(maker, wanted, path)))
        return self._images[1], self._images[2]

    def lay_out(self, experiment: Experiment, images: Tensor, seconds: float) -> None:
        """Use the given images for an experiment: they were made elsewhere, in the given seconds."""
        self._images = (_images_name(experiment.maker, experiment.images), images, seconds)

    def _generate(self, maker: str, wanted: ImageSet, path: Path) -> tuple[Tensor, float]:
        how: dict[str, Any] = {"student": load_model(wanted.student)} if wanted.student else {}
        candidates = genq.Candidates(self.cache / "candidates")
        if wanted.source == "genq":
            how["candidates"] = candidates
        checkpoint = path.with_suffix(".checkpoint")
        start = time.perf_counter() - checkpoints.elapsed(checkpoint)
        images = GENERATORS[wanted.source].generate(
            load_model(maker), wanted.config, device=self.device, progress=self.progress, checkpoint=checkpoint, **how
        )
        seconds = time.perf_counter() - start + candidates.seconds
        save_images(path, images, {"seconds": f"{seconds:.3f}", "title": f"{maker} {wanted.source}"})
        checkpoints.remove(checkpoint)
        return images, seconds

    def _outputs(self, experiment: Run, wait: bool) -> dict[str, Any]:
        return self._seen(experiment, wait) if isinstance(experiment, Observation) else self._tested(experiment, wait)

    def _seen(self, observation: Observation, wait: bool) -> dict[str, Any]:
        """Return the results of an observation, and the seconds of the generation of each of its sets."""
        found = {
            title: self.image_set(observation.profile, observation.model, wanted, wait=wait)
            for title, wanted in observation.sets
        }
        images = {title: images for title, (images, _) in found.items()}
        model, settings = load_model(observation.model), dict(observation.settings)
        if observation.quantizer == FLOAT:
            tables = looks.LOOKS[observation.look](model, images, **settings)
        else:
            copies = {
                title: self._quantize(observation, model, each, f"-{number}").to("cpu")
                for number, (title, each) in enumerate(images.items())
            }
            tables = quantized_looks.LOOKS[observation.look](model, copies, images, **settings)
        seconds = {title: round(seconds, 3) for title, (_, seconds) in found.items()}
        return {"generation_seconds": seconds, "tables": tables}

    def _tested(self, experiment: Experiment, wait: bool) -> dict[str, Any]:
        """Return the accuracy of a network, quantized or in float, and the seconds of its images and quantization."""
        model = load_model(experiment.model)
        if experiment.quantizer == FLOAT:
            return self._quality(experiment, model, model.on(self.device).net)
        images, generation_seconds = self._calibration_images(experiment, model, wait)
        start = time.perf_counter() - checkpoints.elapsed(self._checkpoint(experiment))
        quantized = self._quantize(experiment, model, images)
        quantization_seconds = time.perf_counter() - start
        return {
            **self._quality(experiment, model, quantized),
            "generation_seconds": round(generation_seconds, 2),
            "quantization_seconds": round(quantization_seconds, 2),
        }

    def _calibration_images(self, experiment: Experiment, model: FloatModel, wait: bool) -> tuple[Tensor | None, float]:
        """Return the images for the network, None for none, and the seconds of their generation."""
        if not experiment.source:
            return None, 0.0
        images, seconds = self.images(experiment, wait=wait)
        return _in_space_of(model, images, load_model(experiment.maker)), seconds

    def _quantize(self, experiment: Run, model: FloatModel, images: Tensor | None, which: str = "") -> QuantizedModel:
        method, config = QUANTIZERS[experiment.quantizer], experiment.quantizer_config
        model = model.on(self.device)
        if not isinstance(config, LearningSettings):
            return method.quantize(model, images, config)
        return method.quantize(model, images, config, checkpoint=self._checkpoint(experiment, which))

    def _checkpoints(self, experiment: Run) -> list[Path]:
        count = len(experiment.sets) if isinstance(experiment, Observation) else 0
        return [self._checkpoint(experiment, which) for which in ("", *(f"-{number}" for number in range(count)))]

    def _checkpoint(self, experiment: Run, which: str = "") -> Path:
        """Return the file of a quantizer's checkpoint; an observation has one for each of its sets of images."""
        return self.cache / f"{self.record_path(experiment).stem}{which}.checkpoint"

    def _quality(self, experiment: Experiment, model: FloatModel, net: nn.Module) -> dict[str, float]:
        profile, test_images = experiment.profile, experiment.test_images
        return quality(profile, test_images, model, net, device=self.device, progress=self.progress)

    def record_path(self, experiment: Run) -> Path:
        """Return the file of an experiment's record, which need not exist."""
        return _path(self.results, inputs_of(experiment))


def _path(results: Path, inputs: dict[str, Any]) -> Path:
    """Return the file of the record with these inputs in a folder of records."""
    folder = results / inputs["profile"]
    return (folder / OBSERVATIONS if "look" in inputs else folder) / f"{fingerprint(inputs)}.json"


def inputs_of(experiment: Run) -> dict[str, Any]:
    """Return all inputs on which an experiment's result depends: settings, weights, versions of the methods.

    Nothing is loaded for this, so records of networks that are not on this machine are found as well.
    """
    inputs: dict[str, Any] = {"profile": experiment.profile, "model": _weights(experiment.model)}
    if isinstance(experiment, Observation):
        inputs["look"] = {"name": experiment.look, "version": looks.VERSION, "settings": dict(experiment.settings)}
        inputs["seed"] = experiment.seed
        inputs["sets"] = {title: _inputs_of_images(wanted) for title, wanted in experiment.sets}
        if experiment.quantizer != FLOAT:
            inputs["quantizer"] = _inputs_of_quantizer(experiment)
        return plain(inputs)
    inputs |= {"test_images": experiment.test_images, "quantizer": _inputs_of_quantizer(experiment)}
    if experiment.source:
        inputs["images"] = _inputs_of_images(experiment.images)
        if experiment.images_of:
            inputs["images"]["model"] = _weights(experiment.images_of)
    return plain(inputs)


def _weights(model: str) -> dict[str, str]:
    return {"name": model, "weights": models.weights_sha256(model)}


def _inputs_of_quantizer(experiment: Run) -> dict[str, Any]:
    method = experiment.quantizer
    if method == FLOAT:
        return {"method": method}
    return {"method": method, "version": QUANTIZERS[method].VERSION, "config": experiment.quantizer_config}


def _inputs_of_images(wanted: ImageSet) -> dict[str, Any]:
    method = GENERATORS.get(wanted.source)
    inputs = {"source": wanted.source, "version": method.VERSION if method else 1, "config": wanted.config}
    return inputs | ({"student": _weights(wanted.student)} if wanted.student else {})


def _in_space_of(model: FloatModel, images: Tensor, maker: FloatModel) -> Tensor:
    """Return images in the normalised space of `maker`, normalised for `model`.

    Raises:
        ValueError: the networks take images of different shapes.
    """
    if model.image_shape != maker.image_shape:
        raise ValueError(f"{model.name} wants images {model.image_shape}, {maker.name} makes {maker.image_shape}")
    spaces = (maker.mean, maker.std), (model.mean, model.std)
    return images if spaces[0] == spaces[1] else renormalised(images, *spaces)


def _images_name(maker: str, wanted: ImageSet) -> str:
    """Return the fingerprint of generated images."""
    version = GENERATORS[wanted.source].VERSION
    networks = [maker, *([wanted.student] if wanted.student else [])]
    names = [images_fingerprint(load_model(name), wanted.source, version, wanted.config) for name in networks]
    return fingerprint(names) if wanted.student else names[0]


def load_model(name: str) -> FloatModel:
    """Return a network by name; it is loaded once per process.

    Raises:
        NotRecorded: nothing should be computed, so no network is needed.
    """
    if only_recorded():
        raise NotRecorded(f"{name} is not loaded: records alone are to be shown")
    return _loaded(name)


@cache
def _loaded(name: str) -> FloatModel:
    return models.load(name)
