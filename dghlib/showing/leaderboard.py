"""All records together: the current ones, the best methods, their leads with the same seeds, and their costs."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.stats import t

from dghlib import models
from dghlib.experiments import looks
from dghlib.experiments.experiment import FLOAT, REAL, changed_settings
from dghlib.experiments.recorded import only_recorded
from dghlib.experiments.run import OBSERVATIONS, PUBLISHED, Record, results_dir
from dghlib.generators import GENERATORS
from dghlib.quantizers import QUANTIZERS
from dghlib.showing import interactive, tables
from dghlib.showing.figures import saved
from dghlib.showing.tables import QUANTIZER_TITLES, TITLES
from dghlib.storage.records import always_recorded, fingerprint, read_record

CELL = ["profile", "model", "quantizer", "quantized", "bits", "num_images", "test_images"]
CONFIDENCE = 0.95
MARGIN = 1.0  # points of top-1 within which 2 sources are equally good


def all_records() -> list[Record]:
    """Return every record except benchmarks: those of the repository's `results/`, and others of this machine."""
    return _found("*/*.json")


def all_observations() -> list[Record]:
    """Return the record of every observation, from the same folders as `all_records`."""
    return _found(f"*/{OBSERVATIONS}/*.json")


def _found(pattern: str) -> list[Record]:
    """Return the records of files in the order of their names, each once; published ones first."""
    folders = [PUBLISHED] if only_recorded() else [PUBLISHED, results_dir()]
    paths = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob(pattern))}
    kept = [paths[name] for name in sorted(paths) if paths[name].parent.name != "benchmarks"]
    return [record for path in kept if (record := read_record(path))]


def is_current(record: Record) -> bool:
    """Return whether today's code would compute a record again under the same name: same versions, same weights."""
    inputs = record["inputs"]
    sets = tables.image_sets(inputs)
    networks = [inputs["model"], *(images[role] for images in sets for role in ("model", "student") if role in images)]
    if any(not _weights_of_today(network) for network in networks):
        return False
    if inputs.get("look", {}).get("version", looks.VERSION) != looks.VERSION:
        return False
    made_by = [(GENERATORS.get(images["source"]), images) for images in sets if images["source"] != REAL]
    if inputs.get("quantizer", {}).get("method", FLOAT) != FLOAT:
        made_by.append((QUANTIZERS.get(inputs["quantizer"]["method"]), inputs["quantizer"]))
    return all(
        method and made["version"] == method.VERSION and _settings_of_today(method.Config, made["config"])
        for method, made in made_by
    )


def _weights_of_today(network: Mapping[str, str]) -> bool:
    name = network["name"]
    return name in models.MODELS and network["weights"] == models.weights_sha256(name)


def _settings_of_today(config: type[Any], recorded: Mapping[str, Any]) -> bool:
    """Return whether a record has all settings that a run has now, except those added later, and no others."""
    return always_recorded(config) <= recorded.keys() <= {setting.name for setting in dataclasses.fields(config)}


def overview(records: list[Record]) -> pd.DataFrame:
    """Return a row per record: its description, its file, the date of its code, whether it is current."""
    rows = tables.frame(records)
    rows["method"] = rows.quantizer.map(QUANTIZER_TITLES)
    rows["calibrated with"] = rows.source.map(TITLES)
    rows["commit"] = [record["provenance"]["commit"][:10] for record in records]
    rows["seconds"] = [record["provenance"]["seconds"] for record in records]
    rows["state"] = ["current" if is_current(record) else "stale" for record in records]
    rows["images"] = rows.num_images.astype("Int64")
    rows["file"] = [_file_of(record) for record in records]
    rows["top-1 or mAP in %"] = rows.top1.fillna(rows["map"]) if "map" in rows else rows.top1
    columns = [
        "profile",
        "model",
        "calibrated with",
        "images",
        "method",
        "bits",
        "quantized",
        "seed",
        "top-1 or mAP in %",
        "seconds",
    ]
    return rows[[*columns, "commit", "state", "file"]].astype(object).fillna("")


def filterable(rows: pd.DataFrame, first: int = 50) -> HTML:
    """Return a list as HTML that shows its first rows and, in a browser, the rows that a filter finds, in any order.

    The page has all rows as JSON; without scripts, and in print, it shows the first rows.
    """
    lines = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row] for row in rows.to_numpy()]
    table = pd.DataFrame(lines[:first], columns=rows.columns).to_html(index=False, classes="long", border=0)
    everything = json.dumps(lines, separators=(",", ":")).replace("<", "\\u003c")
    return HTML(
        f'<div class="filtered" data-rows="{first}"><p><label>Show rows with <input type="search" '
        f'placeholder="words, such as dgh W4A4"></label> <output>{min(first, len(lines))} of {len(lines)} shown'
        f'</output></p>{table}<script type="application/json">{everything}</script></div>'
    )


def overview_of_observations(records: list[Record]) -> pd.DataFrame:
    """Return a row per record of observations of images and of quantized copies."""
    rows = [
        {
            "profile": record["inputs"]["profile"],
            "model": record["inputs"]["model"]["name"],
            "look": record["inputs"]["look"]["name"],
            "images": ", ".join(record["inputs"]["sets"]),
            "seed": record["inputs"]["seed"],
            "seconds": record["provenance"]["seconds"],
            "commit": record["provenance"]["commit"][:10],
            "state": "current" if is_current(record) else "stale",
            "file": _file_of(record),
        }
        for record in records
    ]
    return pd.DataFrame(rows) if rows else tables.nothing()


def _file_of(record: Record) -> str:
    """Return the name of a record's file, without its ending; marked if the file is not in `results/`."""
    name, inputs = fingerprint(record["inputs"]), record["inputs"]
    folder = PUBLISHED / inputs["profile"] / (OBSERVATIONS if "look" in inputs else "")
    return name if (folder / f"{name}.json").is_file() else f"{name} (this machine)"


def compared(records: list[Record]) -> list[Record]:
    """Return the records of the rows of `runs`, and those of the float networks."""
    whole = [record for record in records if record["inputs"]["quantizer"]["method"] == FLOAT]
    return [records[place] for place in runs(records).index] + whole


def runs(records: list[Record]) -> pd.DataFrame:
    """Return a row per current record of a quantized network with default settings, without ablations.

    The quantized tensors may differ from the default, because no table mixes them. For a network, only the size of
    image sets that most of its runs have is used. The index is the position of a row's record.
    """
    kept = {place: record for place, record in enumerate(records) if _counts(record)}
    if not kept:
        return pd.DataFrame()
    rows = tables.frame(list(kept.values())).fillna({"test_images": -1})  # -1 for all, so that groups do not lose them
    rows.index = pd.Index(list(kept))
    usual = rows.groupby("model").num_images.transform(lambda numbers: numbers.mode().max())
    return rows[rows.num_images == usual]


def _counts(record: Record) -> bool:
    return "top1" in record["outputs"] and is_current(record) and _by_default(record)


def _by_default(record: Record) -> bool:
    quantizer, images = record["inputs"]["quantizer"], record["inputs"].get("images")
    if quantizer["method"] == FLOAT or images is None or "model" in images:  # images of another network
        return False
    changed = changed_settings(quantizer["method"], quantizer["config"]).keys() - {"placement"}
    return not changed and not changed_settings(images["source"], images["config"])


def standings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean top-1 with its confidence interval, by network, width and quantizer: the sources in columns."""
    return _by_source(rows.groupby([*CELL, "source"], sort=False).top1, sign="")


def lost(records: list[Record], source: str = "dgh") -> pd.DataFrame:
    """Return the points of top-1 that networks lose by quantization with images of `source`, and the minutes it takes.

    Rows are widths and quantized tensors, columns the quantizers, so that all cells of a row quantize the same tensors.
    A cell is the median over networks and gives their number: those that most quantizers of the row have.
    """
    networks = _losses(records, source)
    if networks.empty:
        return tables.nothing()
    methods = networks.groupby(["bits", "quantized", "model"]).lost.transform("size")
    networks = networks[methods == methods.groupby(["bits", "quantized"]).transform("max")]
    medians = networks.groupby(["bits", "quantized", "quantizer"]).agg(
        lost=("lost", "median"), minutes=("minutes", "median"), networks=("lost", "size")
    )
    cells = medians.apply(lambda row: f"{row.lost:.1f} ({row.minutes:.0f} min, {row.networks:.0f})", axis=1)
    table = cells.unstack("quantizer", fill_value="")
    table = table[[name for name in QUANTIZER_TITLES if name in table.columns]].rename(columns=QUANTIZER_TITLES)
    table = table.sort_index(ascending=[False, False])
    return table.rename_axis(index=["points lost (minutes, networks)", "quantized"], columns=None)


def _losses(records: list[Record], source: str) -> pd.DataFrame:
    """Return the lost points and the minutes, means over seeds: by width, quantized tensors, method, network."""
    rows = runs(records)
    if rows.empty or not (rows.source == source).any():
        return pd.DataFrame()
    everything = tables.frame(records).fillna({"test_images": -1})
    whole = everything[everything.source == FLOAT].groupby(["model", "test_images"]).top1.mean().rename("float")
    rows = rows[rows.source == source].join(whole, on=["model", "test_images"])
    rows = rows.assign(lost=rows.float - rows.top1, minutes=(rows.generation_seconds + rows.quantization_seconds) / 60)
    return rows.groupby(["bits", "quantized", "quantizer", "model"])[["lost", "minutes"]].mean()


def paired_differences(rows: pd.DataFrame, baseline: str = "dgh") -> pd.DataFrame:
    """Return the distance of each source above or below `baseline`, in points of top-1, seed by seed.

    A pair has the same network, quantizer, width, number of images and seed.
    """
    return _by_source(_pairs(rows, baseline).groupby([*CELL, "source"], sort=False).difference, sign="+")


def differences(rows: pd.DataFrame, baseline: str = "dgh", *, save: str | None = None) -> Figure:
    """Return a figure of `paired_differences`: a dot for each setting, a part for each width of weights.

    With `save`, a name, the figure is written to NAME.svg and the numbers to NAME.csv.
    """
    settings = _pairs(rows, baseline).groupby([*CELL, "source"], sort=False).difference.mean().reset_index()
    settings["weights"] = settings.bits.str.extract(r"W(\d+)", expand=False).astype(int)
    settings["images"], settings["method"] = settings.source.map(TITLES), settings.quantizer.map(QUANTIZER_TITLES)
    hues = _named(QUANTIZER_TITLES, settings.method)
    grid = sns.catplot(
        settings,
        x="difference",
        y="images",
        col="weights",
        col_wrap=2,
        hue="method",
        kind="strip",
        order=_named(TITLES, settings.images),
        hue_order=hues,
        alpha=0.6,
        height=2.6,
        aspect=1.25,
    )
    grid.refline(x=0, color="grey", linewidth=0.8, zorder=0)
    grid.set_titles("{col_name}-bit weights").set_axis_labels("points of top-1", "")
    chart = interactive.differences(settings, _named(TITLES, settings.images), hues)
    return interactive.explorable(saved(grid.figure, settings, save), chart)


def wins(rows: pd.DataFrame, baseline: str = "dgh", margin: float = MARGIN) -> pd.DataFrame:
    """Return in how many settings each source is alike, better or worse than `baseline`, or undecided.

    Settings with the same number of seeds are grouped, since few seeds show little: the last column is the median over
    settings of half the width of the interval. *Alike* is shown by 2 one-sided tests: the 90 % confidence interval of
    the difference (Student's t) lies within `margin` on both sides. *Better* and *worse* are those of the others whose
    95 % interval excludes zero and a difference of 1 test image. The rest is *undecided*.
    """
    cells = _pairs(rows, baseline).groupby([*CELL, "source"]).difference.agg(["mean", "std", "count"]).reset_index()
    cells = cells[cells["count"] > 1]
    if cells.empty:
        return tables.nothing()
    image = 100 / cells.test_images.where(cells.test_images > 0, math.inf)
    cells["half"] = [_half_width(*each) for each in zip(cells["std"], cells["count"], strict=True)]
    cells["verdict"] = [
        _verdict(*each, margin) for each in zip(cells["mean"], cells["std"], cells["count"], image, strict=True)
    ]
    keys = ["source", "count"]
    table = cells.groupby([*keys, "verdict"]).size().unstack(fill_value=0).reindex(columns=VERDICTS, fill_value=0)
    table["median ±"] = cells.groupby(keys).half.median().map("{:.1f}".format)
    table = table.loc[[source for source in TITLES if source in table.index.get_level_values(0)]]
    return table.rename(index=TITLES, level=0).rename_axis(index=[f"than {TITLES[baseline]}", "seeds"], columns=None)


VERDICTS = ["better", "alike", "worse", "undecided"]


def _verdict(mean: float, spread: float, count: int, image: float, margin: float) -> str:
    """Return what a mean difference of `count` seeds shows; `image` is the share of 1 test image."""
    if abs(mean) + _half_width(spread, count, 2 * CONFIDENCE - 1) <= margin:
        return "alike"
    if abs(mean) <= max(_half_width(spread, count), image):
        return "undecided"
    return "better" if mean > 0 else "worse"


def _pairs(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return the rows of the other sources, each with its `difference` to the baseline's run of the same seed."""
    key = [*CELL, "seed"]
    of_baseline = rows[rows.source == baseline].set_index(key).top1.rename("baseline")
    pairs = rows[rows.source != baseline].join(of_baseline, on=key, how="inner")
    return pairs.assign(difference=pairs.top1 - pairs.baseline)


def _by_source(groups: Any, sign: str) -> pd.DataFrame:
    """Return means of groups of [*CELL, source], such as "2.0 ± 1.1 (3)": sources in columns, fullest first."""
    numbers = groups.agg(["mean", "std", "count"])
    cells = [
        f"{mean:{sign}.1f}" + (f" ± {_half_width(spread, count):.1f} ({count})" if count > 1 else "")
        for mean, spread, count in numbers.itertuples(index=False)
    ]
    table = pd.Series(cells, index=numbers.index).unstack("source", fill_value="")
    named = [source for source in TITLES if source in table.columns]
    fullest = sorted(named, key=lambda source: (table[source] == "").sum())
    table = table[fullest].rename(columns=TITLES).reset_index()
    table["quantizer"] = table.quantizer.map(QUANTIZER_TITLES)
    table = table.drop(columns=["profile", "num_images", "test_images"])
    return table.set_index(["model", "bits", "quantized", "quantizer"]).rename_axis(columns=None).sort_index()


def _named(titles: Mapping[str, str], found: pd.Series) -> list[str]:
    """Return those of the titles that occur, in their order."""
    return [title for title in titles.values() if title in set(found)]


def _half_width(spread: float, count: int, confidence: float = CONFIDENCE) -> float:
    """Return half the width of the confidence interval of a mean of `count` values with a standard deviation."""
    return float(t.ppf((1 + confidence) / 2, count - 1) * spread / math.sqrt(count))


def cost_and_accuracy(rows: pd.DataFrame, *, bits: str, policy: str, save: str | None = None) -> Figure:
    """Return a figure of top-1 over the total seconds of images and quantization, for each network.

    No measured combination is both cheaper and better than those on the line. With `save`, a name, the figure is
    written to NAME.svg and the numbers to NAME.csv. Real images cost nothing here: they are either available or not.
    """
    chosen = rows[(rows.bits == bits) & (rows.policy == policy)]
    chosen = chosen.assign(seconds=chosen.generation_seconds + chosen.quantization_seconds)
    points = chosen.groupby(["model", "quantizer", "source"], sort=False)[["seconds", "top1"]].mean().reset_index()
    points["calibrated with"], points["method"] = points.source.map(TITLES), points.quantizer.map(QUANTIZER_TITLES)
    hues = _named(TITLES, points["calibrated with"])
    grid = sns.relplot(
        points,
        x="seconds",
        y="top1",
        col="model",
        col_wrap=2,
        hue="calibrated with",
        hue_order=hues,
        style="method",
        style_order=_named(QUANTIZER_TITLES, points.method),
        height=2.6,
        aspect=1.2,
        facet_kws={"sharex": False, "sharey": False},
    )
    in_order = points.sort_values("seconds")
    front = in_order[
        in_order.top1 > in_order.groupby("model").top1.transform(lambda top1: top1.cummax().shift(fill_value=-1))
    ]
    for name, axis in grid.axes_dict.items():
        here = front[front.model == name]
        axis.step(here.seconds, here.top1, where="post", color="grey", linewidth=0.8, zorder=0)
    grid.set(xscale="log").set_titles("{col_name}").set_axis_labels("seconds", "top-1 in %")
    for axis in grid.axes.flat:
        axis.xaxis.set_minor_formatter(NullFormatter())  # it would write numbers over each other
    return interactive.explorable(saved(grid.figure, points, save), interactive.costs(points, front, hues))
