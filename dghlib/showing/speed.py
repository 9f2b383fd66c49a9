"""The speed of the methods, from the records of `benchmarks/`: tables and figures."""

import json
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dghlib.experiments.run import PUBLISHED
from dghlib.showing.figures import WIDTH, saved
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES

_SPREAD = ("lowest", "median", "highest")


def benchmark(name: str) -> dict[str, Any]:
    """Return the record of a benchmark.

    Raises:
        FileNotFoundError: there is no record.
    """
    path = PUBLISHED / "benchmarks" / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `python -m benchmarks.{name} --save` writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def rates(record: dict[str, Any]) -> pd.DataFrame:
    """Return the images times steps per second of all variants, and their ratios: medians, with the range of rounds."""
    columns = {
        "per_processor_second": "images x steps / CPU s",
        "per_wall_second": "images x steps / s",
        "of_bare": "of its bound",
        "times_mct": "times MCT",
        "times_mct_wall": "times MCT, wall",
        "times_frozen_mct": "times MCT, frozen weights",
    }
    rows = [
        {"network": speed["network"], "pixels": speed["image_size"], "way": speed["way"]}
        | {title: _range(speed[name]) for name, title in columns.items()}
        for speed in record["outputs"]
    ]
    return pd.DataFrame(rows).set_index(["network", "pixels", "way"])


def times_mct(record: dict[str, Any]) -> pd.Series:
    """Return the speed of a step of DGH relative to MCT, processor time, medians: one per network and size."""
    found = [speed for speed in record["outputs"] if speed["way"] == "ours" and speed["times_mct"]]
    return pd.Series([speed["times_mct"]["median"] for speed in found], dtype=float)


def _range(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    lowest, median, highest = (f"{spread[name]:.3g}" for name in _SPREAD)
    return f"{median} ({lowest} to {highest})"


def rates_figure(record: dict[str, Any], *, save: str | None = None) -> Figure:
    """Return bars of the images times steps per processor second relative to the bare network, a group per cell."""
    speeds = pd.DataFrame(record["outputs"])
    speeds["cell"] = speeds.network + ", " + speeds.image_size.astype(str) + " px"
    for name in _SPREAD:
        speeds[name] = [spread[name] for spread in speeds.per_processor_second]
    bare = speeds[speeds.way == "bare"].set_index("cell")["median"]
    cells, ways = list(speeds.cell.unique()), list(speeds.way.unique())
    figure, axis = plt.subplots(figsize=(WIDTH, 1 + 1.6 * len(cells)), layout="constrained")
    for row, way in enumerate(ways):
        bars = speeds[speeds.way == way].set_index("cell").loc[cells, list(_SPREAD)].div(bare.loc[cells], axis=0)
        places = [place + 0.13 * row for place in range(len(cells))]
        errors = [bars["median"] - bars.lowest, bars.highest - bars["median"]]
        axis.barh(places, bars["median"], 0.12, xerr=errors, label=way)
    axis.set(yticks=[place + 0.33 for place in range(len(cells))], yticklabels=cells)
    axis.set(xlabel="images x steps per processor second, bare network = 1")
    axis.axvline(1, color="grey", linewidth=0.8, zorder=0)
    axis.invert_yaxis()
    figure.legend(fontsize="small", loc="outside right upper")
    return saved(figure, speeds[["network", "image_size", "way", *_SPREAD]], save)


def methods_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the images times steps per processor second of every method, also relative to the bare networks."""
    rows = pd.concat({network: pd.DataFrame(found) for network, found in record["outputs"].items()}, names=["network"])
    rows["method"] = rows.method.map(TITLES)
    table = rows.reset_index("network").set_index(["network", "method"])
    titles = {
        "per_second": "images x steps / CPU s",
        "of_bare": "of bare networks",
        "of_trained": "of bare networks with gradients of the generator's weights",
    }
    cells = table.rename(columns=titles)[list(titles.values())].map("{:.2f}".format)
    return cells.replace("nan", "")  # a method without a generator has no gradients of its weights


def loop_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the processor seconds of 1 000 iterations of the reconstruction loop, and of the block's bare passes."""
    rows = pd.DataFrame(record["outputs"])
    rows["method"] = rows.method.map(QUANTIZER_TITLES)
    rows["of bare"] = rows.ratio.map(_range)
    columns = {"bare": "bare, s per 1 000", "loop": "loop, s per 1 000"}
    rows[list(columns)] = rows[list(columns)].round().astype(int)
    table = rows.set_index(["method", "learned", "block"]).rename(columns=columns)
    return table[[*columns.values(), "of bare"]]


def fine_tuning_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the processor seconds of 1 000 steps of fine-tuning, and of the bare passes of student and teacher."""
    rows = pd.DataFrame(record["outputs"])
    cells = {title: rows[name].map("{:.0f}".format) for name, title in {"bare": "bare, s", "step": "step, s"}.items()}
    return pd.DataFrame(cells | {"of bare": rows.ratio.map(_range)}).set_index(rows.method.map(QUANTIZER_TITLES))


def hptq_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the processor seconds of HPTQ, ours and MCT's, for each network and kind of weight thresholds."""
    rows = pd.DataFrame(record["outputs"])
    columns = {
        "bare_processor": "bare passes, s",
        "ours_processor": "ours, s",
        "of_bare": "of bare passes",
        "mct_processor": "MCT, s",
        "faster_processor": "times MCT",
    }
    table = pd.DataFrame({title: rows[name].map(_range) for name, title in columns.items()})
    table.insert(0, "thresholds of weights", rows.weight_thresholds.str.replace("_", " "))
    return table.set_index([rows.network, "thresholds of weights"])


def files_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the processor milliseconds of ONNX files per image, in integers and in float."""
    rows = pd.DataFrame(record["outputs"])
    columns = {"float_ms": "float, ms", "integer_ms": "integers, ms", "of_float": "of float"}
    table = pd.DataFrame({title: rows[name].map(_range) for name, title in columns.items()})
    kinds = pd.DataFrame(rows.integers.tolist())
    table["convolutions in integers"] = [
        f"{whole} of {whole + left}" for whole, left in zip(kinds.QLinearConv, rows.floats, strict=True)
    ]
    return table.set_index([rows.network, rows.weights])


def transformers_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the processor minutes of methods on full-size transformers, also relative to forward passes."""
    rows = pd.DataFrame(record["outputs"])
    cells = {"minutes": (rows.seconds / 60).map("{:.1f}".format), "times forward passes": rows.of_forward.map(_range)}
    return pd.DataFrame(cells).set_index([rows.network, rows.method.map(QUANTIZER_TITLES)])


def scale_figure(record: dict[str, Any], *, save: str | None = None) -> Figure:
    """Return the time of a step against the number of batches, and the memory against images; CSV of the former."""
    steps, memory = pd.DataFrame(record["outputs"]["steps"]), pd.DataFrame(record["outputs"]["memory"])
    for name in _SPREAD:
        steps[name] = [spread[name] for spread in steps.milliseconds]
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained")
    left.errorbar(
        steps.batches, steps["median"], [steps["median"] - steps.lowest, steps.highest - steps["median"]], marker="o"
    )
    left.set(xscale="log", xlabel="batches in the set", ylabel="ms of processor time a step")
    left.set_ylim(0, 1.3 * steps.highest.max())
    right.plot(memory.images, memory.peak_mb, marker="o", label="the process, at most")
    right.plot(memory.images, memory.values_mb, marker="o", label="images, their averages and the result")
    right.set(xlabel="images", ylabel="MB")
    right.set_ylim(0)
    right.legend(fontsize="small")
    return saved(figure, steps[["batches", *_SPREAD]], save)


def memory_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the largest memory of a process for each number of images, in MB."""
    table = pd.DataFrame(record["outputs"]["memory"]).set_index("images")
    table["beside them"] = table.peak_mb - table.values_mb
    return table.round().astype(int).rename(columns={"peak_mb": "at most", "values_mb": "images and averages"})


def quality_table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the generated sets, with the seconds and the quality of each."""
    rows = _sets(record["outputs"]["sets"])
    columns = ["by", "steps", "processor s", "wall s", "distance", "top-1 in %"]
    return rows[columns].round({"processor s": 1, "wall s": 1, "distance": 4, "top-1 in %": 2}).set_index("by")


def _sets(sets: Sequence[dict[str, Any]]) -> pd.DataFrame:
    rows = pd.DataFrame(sets).rename(columns={"top1": "top-1 in %"})
    rows["processor s"] = [seconds["processor"] for seconds in rows.seconds]
    rows["wall s"] = [seconds["wall"] for seconds in rows.seconds]
    return rows.drop(columns="seconds")


def quality_figure(record: dict[str, Any], *, save: str | None = None) -> Figure:
    """Return distance and accuracy over the processor seconds that images took."""
    rows = _sets(record["outputs"]["sets"])
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained")
    for axis, quality in zip(axes, ("distance", "top-1 in %"), strict=True):
        for maker, made in rows.groupby("by", sort=False):
            axis.plot(made["processor s"], made[quality], marker="o", label=maker)
        axis.set(xlabel="processor seconds", ylabel=quality, xscale="log")
    axes[0].legend(fontsize="small")
    return saved(figure, rows, save)


def circumstances(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the machines and versions of benchmarks."""
    rows = {
        record["inputs"]["benchmark"]: {
            "commit": record["provenance"]["commit"][:10],
            "machine": record["provenance"]["machine"],
            "torch": record["provenance"]["versions"]["torch"],
            "MCT": record["inputs"].get("mct", {}).get("model-compression-toolkit", ""),
            "seconds": record["provenance"]["seconds"],
        }
        for record in records
    }
    return pd.DataFrame(rows).T
