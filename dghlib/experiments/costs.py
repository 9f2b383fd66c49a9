"""The cost of a plan, predicted from the costs of its parts in the records: seconds of a single core.

The cost of making images is proportional to images and steps, that of learning a rounding to iterations, and that of
HPTQ to images. Each factor is the smallest in the records of the same network; larger ones come from machines with
other work.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from dghlib.experiments.experiment import FLOAT, REAL, ImageSet, Observation, Run
from dghlib.experiments.run import Record
from dghlib.generators import GENERATORS
from dghlib.storage.records import fingerprint, plain

Unit = tuple[str, str]  # network, method


def unit_costs(records: Sequence[Record]) -> dict[Unit, float]:
    """Return the seconds for a unit of work of each method on each network: see `_units`."""
    found: dict[Unit, list[float]] = {}
    for record in records:
        inputs, outputs = record["inputs"], record["outputs"]
        if "quantization_seconds" not in outputs:
            continue
        model, quantizer, images = inputs["model"]["name"], inputs["quantizer"], inputs.get("images")
        if work := _quantization_units(quantizer["config"], images["config"] if images else {}):
            found.setdefault((model, quantizer["method"]), []).append(outputs["quantization_seconds"] / work)
        if images and images["source"] != REAL:
            made = outputs["generation_seconds"] / _generation_units(images["config"])
            maker = images.get("model", inputs["model"])["name"]
            found.setdefault((maker, images["source"]), []).append(made)
    return {unit: min(seconds) for unit, seconds in found.items()}


def _generation_units(config: dict[str, Any]) -> int:
    """Return images times steps; methods without steps make each image once."""
    return config["num_images"] * config.get("steps", 1)


def _quantization_units(config: dict[str, Any], images: dict[str, Any]) -> int:
    """Return the steps of a method that learns (per unit, if it learns by units), otherwise the number of images.

    It is 0 for a method without either, which takes seconds.
    """
    return config.get("steps") or config.get("iterations") or images.get("num_images", 0)


def estimate(experiments: Sequence[Run], units: dict[Unit, float]) -> pd.DataFrame:
    """Return the hours of a single core that a plan takes by method: runs, hours, and runs without a known cost.

    Images that several runs share are made once. The time of tests is not included. Hours are NaN if no record has the
    cost.
    """
    rows = pd.DataFrame(_parts(experiments, set()), columns=["method", "unit", "work"])
    rows["hours"] = [units.get(unit, math.nan) * work / 3600 for unit, work in zip(rows.unit, rows.work, strict=True)]
    groups = rows.groupby("method", sort=False).hours
    table = groups.agg(runs="size", hours=lambda hours: hours.sum(min_count=1), unknown=lambda s: int(s.isna().sum()))
    table.loc["all"] = table.sum()
    return table.astype({"runs": int, "unknown": int}).rename_axis(index=None)


def estimates(plans: Mapping[str, Sequence[Run]], units: dict[Unit, float]) -> pd.DataFrame:
    """Return the hours of a single core for each plan, and for all together, which share parts: see `estimate`.

    Columns are the runs, the hours to make images and to quantize, and the parts without a known cost.
    """
    together = [experiment for experiments in plans.values() for experiment in experiments]
    return pd.DataFrame(
        {name: _hours_of(experiments, units) for name, experiments in {**plans, "all together": together}.items()}
    ).T.astype({"runs": int, "unknown": int})


def _hours_of(experiments: Sequence[Run], units: dict[Unit, float]) -> dict[str, float]:
    methods = estimate(experiments, units).drop(index="all")
    making = methods.index.isin(list(GENERATORS))
    return {
        "runs": len(set(experiments)),
        "hours to make images": methods.hours[making].sum(min_count=min(1, making.sum())),
        "hours to quantize": methods.hours[~making].sum(min_count=min(1, (~making).sum())),
        "unknown": methods.unknown.sum(),
    }


def seconds_in_turn(plans: Mapping[str, Sequence[Run]], units: dict[Unit, float]) -> dict[str, float]:
    """Return the seconds of plans that run one after the other: shared parts belong to the first plan.

    If no record of a network has the cost of a part, the average over other networks is used.
    """
    run: set[Run] = set()
    made: set[str] = set()
    seconds = {}
    for name, experiments in plans.items():
        new = [experiment for experiment in experiments if experiment not in run]
        run.update(new)
        seconds[name] = sum(_cost(unit, units) * work for _, unit, work in _parts(new, made))
    return seconds


def _cost(unit: Unit, units: dict[Unit, float]) -> float:
    if unit in units:
        return units[unit]
    others = [seconds for (_, method), seconds in units.items() if method == unit[1]]
    return sum(others) / len(others) if others else 0.0


def unit_table(units: dict[Unit, float], save: str | None = None) -> pd.DataFrame:
    """Return the seconds per unit of work: methods by network; with `save`, a name, written to NAME.csv."""
    table = pd.Series(units).unstack(0)
    if save:
        table.to_csv(f"{save}.csv")
    return table.map("{:.2g}".format).replace("nan", "")


def _parts(experiments: Sequence[Run], made: set[str]) -> Iterator[tuple[str, Unit, int]]:
    """Yield (method, unit, work) of every quantization, and of every set of images that is not in `made`."""
    for experiment in dict.fromkeys(experiments):
        if isinstance(experiment, Observation):
            sets, maker = [wanted for _, wanted in experiment.sets], experiment.model
        else:
            sets, maker = [experiment.images] if experiment.source else [], experiment.maker
        for wanted in sets:
            yield from _making(maker, wanted, made)
        for images in [asdict(wanted.config) for wanted in sets] or [{}]:
            if experiment.quantizer == FLOAT:
                continue
            if work := _quantization_units(asdict(experiment.quantizer_config), images):
                yield experiment.quantizer, (experiment.model, experiment.quantizer), work


def _making(maker: str, wanted: ImageSet, made: set[str]) -> Iterator[tuple[str, Unit, int]]:
    """Yield (method, unit, work) of making images, unless they are real or in `made`."""
    name = fingerprint([maker, plain(wanted)])
    if wanted.source != REAL and name not in made:
        made.add(name)
        yield wanted.source, (maker, wanted.source), _generation_units(asdict(wanted.config))
