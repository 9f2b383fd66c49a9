"""Tables of records, with the paper's numbers: as data frames, CSV files and foot lines."""

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd
from IPython.display import HTML
from pandas.io.formats.style import Styler
from torch import Tensor

from dghlib.experiments.experiment import FLOAT, NO_IMAGES, REAL, changed_settings
from dghlib.experiments.profiles import PROFILES
from dghlib.experiments.quantized_looks import noise_rows, unit_rows
from dghlib.experiments.run import Record
from dghlib.models import FloatModel
from dghlib.quantizers import QuantizedModel
from dghlib.storage.records import fingerprint, write_atomically

PROVENANCE = '<p class="provenance">'  # start of a foot line
pd.options.styler.format.escape = "html"  # records can hold any text

# Titles of the sources, in the order of the rows.
TITLES = {
    NO_IMAGES: "No images",
    "noise": "Gaussian noise",
    "zeroq": "ZeroQ",
    "deep_inversion": "DeepInversion",
    "qimera": "Qimera",
    "intraq": "IntraQ",
    "genie_d": "GENIE",
    "dgh": "DGH",
    "genq": "GenQ",
    "psaq_vit": "PSAQ-ViT",
    "mimiq": "MimiQ",
    "dgh_vit": "DGH, layer norms",
    REAL: "Real data",
    FLOAT: "Float",
}
QUANTIZER_TITLES = {
    "hptq": "HPTQ",
    "adaround": "AdaRound",
    "brecq": "BRECQ",
    "qdrop": "QDrop",
    "genie_m": "GENIE-M",
    "lsq": "LSQ",
    "genq_qat": "GenQ, fine-tuned",
    "intraq_qat": "IntraQ, fine-tuned",
    "ait": "AIT",
    "synq": "SynQ",
    "gdfq": "GDFQ",
    "qimera_qat": "Qimera, fine-tuned",
    "adadfq": "AdaDFQ",
    "squant": "SQuant",
    "dfq": "DFQ",
    "ocs": "OCS",
    "compensated": "Compensated",
    "ptq4vit": "PTQ4ViT",
    "repq_vit": "RepQ-ViT",
    "erq": "ERQ",
    FLOAT: "Float",
}
# The quantized tensors (see `quantizers.placement`), always with the logits; HPTQ has no choice.
EVERY_TENSOR = "every_tensor"
PLACEMENT_TITLES = {
    EVERY_TENSOR: "every tensor",
    "brecq": "all but image, addends, averages",
    "genie": "inputs of layers, except the image",
    "relu_only": "outputs of ReLUs",
    "factors": "factors of products",
}
FEET = ("quantized", "seeds")  # rows below those of numbers
SPARED = ", ends spared"  # of the academic setting: first and last layer at 8 bits, logits in float
PAPER = "paper: "
WIDEST = 9  # columns of numbers that fit on a page
MEASURES = {"top1": "top-1 in %", "map": "mAP in %", "map50": "mAP50 in %"}
# The columns of each table that `worst` shows, in order.
_WORST = {"noise": ["kind", "name", "bits", "own", "accumulated"], "units": ["unit", "learned", "before", "after"]}
# Rows of the paper's tables with other names here.
PAPER_ROWS = {
    "Float": FLOAT,
    "ZeroQ": "zeroq",
    "IntraQ": "intraq",
    "GENIE": "genie_d",
    "DGH (Ours)": "dgh",
    "GenQ": "genq",
    "Real Data": REAL,
}


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per record: its settings, and its outputs."""
    return pd.DataFrame([_row(record) for record in records])


def _row(record: Record) -> dict[str, Any]:
    inputs = record["inputs"]
    row = {
        "profile": inputs["profile"],
        "model": inputs["model"]["name"],
        "test_images": inputs["test_images"],
    }
    if inputs["quantizer"]["method"] == FLOAT:
        row |= {"source": FLOAT, "quantizer": FLOAT, "bits": FLOAT, "seed": 0}
    else:
        config = inputs["quantizer"]["config"]
        none = {"source": NO_IMAGES, "config": {"seed": config.get("seed", 0), "num_images": 0}}
        images = inputs.get("images", none)
        row |= {
            "source": images["source"],
            "quantizer": inputs["quantizer"]["method"],
            "bits": f"W{config['weight_bits']}A{config['activation_bits']}",
            "policy": config["bits"],
            "placement": config.get("placement", EVERY_TENSOR),
            "quantized": quantized_title(config),
            "seed": images["config"]["seed"],
            "num_images": images["config"]["num_images"],
        }
    return row | record["outputs"]


def quantized_title(config: Mapping[str, Any]) -> str:
    """Return in words which tensors a quantizer quantizes with these settings."""
    spared = SPARED if config["bits"] == "academic" else ""
    return PLACEMENT_TITLES[config.get("placement", EVERY_TENSOR)] + spared


def with_feet(
    table: pd.DataFrame, rows: pd.DataFrame, row: str, columns: Sequence[str] = ("model", "bits")
) -> pd.DataFrame:
    """Return a table with 2 additional rows: the quantized tensors of each column, and the seeds of its cells.

    Args:
        table: its columns have names of 2 or 3 parts.
        rows: of `frame`; networks with their names in the table.
        row: the column of `rows` with the names of the table's rows.
        columns: the columns of `rows` with the names of the table's columns.
    """
    said = {
        key: ["; ".join(dict.fromkeys(group.quantized)), counts(group.groupby(row).seed.nunique())]
        for key, group in rows[rows.bits != FLOAT].groupby(list(columns))
    }
    levels = table.index.nlevels
    names = [(name, *[""] * (levels - 1)) if levels > 1 else name for name in FEET]
    index = pd.MultiIndex.from_tuples(names) if levels > 1 else pd.Index(names)
    feet = pd.DataFrame({column: said.get(column, ["", ""]) for column in table.columns}, index=index)
    feet.columns = table.columns
    return pd.concat([table, feet]).rename_axis(index=table.index.names)


def counts(numbers: pd.Series) -> str:
    """Return the range of numbers of seeds: "3", or "1 to 3"."""
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low} to {high}"


def seeds_of(rows: pd.DataFrame) -> str:
    """Return the number of seeds of quantized networks' settings, from rows of `frame`: "3", or "1 to 3"."""
    setting = ["model", "source", "quantizer", "quantized", "bits", "num_images"]
    return counts(rows[rows.bits != FLOAT].groupby(setting).seed.nunique())


def observed(records: Sequence[Record], name: str) -> pd.DataFrame:
    """Return a table of observations, with the network and the repetition in each row; empty without observations."""
    if not records:
        return pd.DataFrame()
    parts = [
        pd.DataFrame(record["outputs"]["tables"][name]).assign(
            model=short_name(record["inputs"]["model"]["name"]), seed=record["inputs"]["seed"]
        )
        for record in records
    ]
    return pd.concat(parts, ignore_index=True)


def worst(records: Sequence[Record], name: str, count: int = 8) -> pd.DataFrame:
    """Return the first rows of a table of observations that begins with the worst: "noise" or "units"."""
    if not records:
        return nothing()
    rows = observed(records, name)[_WORST[name]].head(count)
    return rows.map(lambda value: f"{value:.3g}" if isinstance(value, float) else value)


def summary(records: Sequence[Record], measure: str = "top1") -> pd.DataFrame:
    """Return mean, standard deviation over seeds and number of seeds of a measure, by network, bits and source."""
    groups = frame(records).groupby(["model", "bits", "source"], sort=False)[measure]
    return groups.agg(mean="mean", spread="std", seeds="count").reset_index()


def accuracy(
    records: Sequence[Record], paper: str | None = None, bits: Sequence[str] | None = None, measure: str = "top1"
) -> pd.DataFrame:
    """Return a measure, a key of MEASURES, mean ± standard deviation over seeds: sources by (network, bits).

    The float networks are the last row. With `paper`, the name of one of the paper's tables ("dgh_table2"), its numbers
    follow in columns of their own, under the paper's names of networks. `bits` selects widths.
    """
    if all(record["inputs"]["quantizer"]["method"] == FLOAT for record in records):
        return nothing()
    numbers = summary(records, measure)
    widths = [width for width in numbers.bits.unique() if width != FLOAT and (bits is None or width in bits)]
    cells = {
        (short_name(row.model), row.bits, row.source): cell(row.mean, row.spread)
        for row in numbers[numbers.bits.isin(widths)].itertuples(index=False)
    }
    for row in numbers[numbers.bits == FLOAT].itertuples(index=False):
        cells |= {(short_name(row.model), width, FLOAT): cell(row.mean, None) for width in widths}
    if paper:
        cells |= _paper_cells(paper)
    rows = [source for source in TITLES if any(source == cell[2] for cell in cells)]
    columns = in_order([(model, width) for model, width, _ in cells])
    table = pd.DataFrame([[cells.get((*column, source), "") for column in columns] for source in rows])
    table.index = pd.Index([TITLES[source] for source in rows], name="calibrated with")
    table.columns = pd.MultiIndex.from_tuples(columns, names=[MEASURES[measure], ""])
    rows_of_runs = frame(records)
    return with_feet(table, rows_of_runs.assign(model=rows_of_runs.model.map(short_name)), "source")


def unmerged(table: pd.DataFrame) -> HTML:
    """Return a table with the full name of every row: equal names below each other are not merged into one cell."""
    return HTML(_styled(table).to_html(sparse_index=False))


def _styled(table: pd.DataFrame) -> Styler:
    escaped = table.style.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    return escaped.set_table_attributes('class="dataframe"')


def stacked(table: pd.DataFrame, *, merged: bool = True) -> HTML:
    """Return a table as HTML: the paper's columns, if there are any, follow below as a table of their own.

    With `merged`, equal names of rows below each other are one cell.
    """
    of_paper = [str(column[0] if isinstance(column, tuple) else column).startswith(PAPER) for column in table.columns]
    parts = {"This book": table.loc[:, [not paper for paper in of_paper]], "The paper": table.loc[:, of_paper]}
    shown = {title: part[(part != "").any(axis=1)] for title, part in parts.items()}
    tables = [
        captioned(part, title, merged=merged).data for title, part in shown.items() if part.size and any(of_paper)
    ]
    return HTML("".join(tables) or table.to_html())


def fitting(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with groups of columns below each other if there are too many columns for a page."""
    if table.shape[1] <= WIDEST:
        return table
    groups = dict.fromkeys(table.columns.get_level_values(0))
    together = pd.concat({group: table[group] for group in groups}).fillna("")
    together.index.names, together.columns.name = ["", *table.index.names], table.columns.names[0] or ""
    return together[(together != "").any(axis=1)]


def captioned(table: pd.DataFrame, title: str, *, merged: bool = True) -> HTML:
    """Return a table as HTML, with a caption; with `merged`, equal names of rows below each other are one cell."""
    return HTML(_styled(table).set_caption(title).to_html(sparse_index=merged))


def nothing() -> pd.DataFrame:
    """Return the table of a page without records of the current versions of the methods."""
    return pd.DataFrame({"no records": ["of these settings and versions"]}, index=[""])


def in_order(columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return columns (network, width), each once: ours before the paper's, and the widths of a network together.

    Networks and widths keep the order of their first occurrence, also if some of a network's widths are missing.
    """
    networks, widths = ([column[place] for column in columns] for place in (0, 1))
    return sorted(
        dict.fromkeys(columns),
        key=lambda column: (column[0].startswith(PAPER), networks.index(column[0]), widths.index(column[1])),
    )


def cell(mean: float, spread: float | None, digits: int = 2) -> str:
    one_value = spread is None or pd.isna(spread)
    return f"{mean:.{digits}f}" if one_value else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def short_name(model: str) -> str:
    """Return a network's name without the name of its profile."""
    for profile in PROFILES:
        model = model.removeprefix(f"{profile}_")
    return model


def paper_table(name: str, *, as_text: bool = False) -> pd.DataFrame:
    """Return a table of the papers: method, network, setting, mean, spread, source (table and row).

    With `as_text` numbers stay as they are printed, and missing ones are empty.
    """
    path = resources.files("dghlib.showing") / "paper" / f"{name}.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False) if as_text else pd.read_csv(path)


def _paper_cells(name: str) -> dict[tuple[str, str, str], str]:
    """Return the cells of a paper's table for the sources that we have, under its settings."""
    printed = paper_table(name)
    settings = [setting for setting in dict.fromkeys(printed.setting) if setting != FLOAT]
    cells = {}
    for row in printed.itertuples(index=False):
        if source := PAPER_ROWS.get(str(row.method)):
            for setting in settings if row.setting == FLOAT else [row.setting]:
                cells[PAPER + str(row.network), setting, source] = cell(row.mean, row.spread)
    return cells


def noise(model: FloatModel, quantized: QuantizedModel, images: Tensor) -> pd.DataFrame:
    """Return the noise of a quantized network's weights and tensors, the worst first; see `quantizers.report`."""
    return pd.DataFrame(noise_rows(model, quantized, images))


def units(quantized: QuantizedModel) -> pd.DataFrame:
    """Return the errors of a network's learned units, the worst first; see `quantizers.report`."""
    return pd.DataFrame(unit_rows(quantized))


def settings(records: Sequence[Record]) -> pd.DataFrame:
    """Return top-1 in percent, mean ± standard deviation over seeds, of one method's variants: settings by network.

    The name of a row is the settings that differ from the method's default; real images are the last row.
    """
    if not records:
        return nothing()
    rows = frame(records).assign(settings=[settings_title(record) for record in records])
    rows = rows[rows.bits != FLOAT]
    groups = rows.groupby(["bits", "model", "settings"], sort=False).top1.agg(["mean", "std"])
    cells = groups.apply(lambda row: cell(row["mean"], row["std"]), axis=1)
    table = cells.unstack([0, 1])
    order = sorted(dict.fromkeys(rows.settings), key=TITLES[REAL].__eq__)  # real images last
    table = table.loc[order].fillna("")
    table = with_feet(table, rows, "settings", ("bits", "model"))
    table.columns = pd.MultiIndex.from_tuples([(bits, short_name(model)) for bits, model in table.columns])
    return fitting(table.rename_axis("settings").sort_index(axis=1, ascending=False))


def settings_title(record: Record) -> str:
    """Return the settings of a record's images that differ from their method's default, except size and seed."""
    images = record["inputs"].get("images")
    if images is None or images["source"] == REAL:
        return TITLES[REAL]
    changed = changed_settings(images["source"], images["config"])
    return ", ".join(f"{name} = {value}" for name, value in changed.items()) or "default"


def source_title(record: Record) -> str:
    """Return the source of a record's images, with the settings that differ from its default: see `settings_title`."""
    source = TITLES[record["inputs"]["images"]["source"]]
    changed = settings_title(record)
    return source if changed in ("default", source) else f"{source}, {changed}"


def write_csv(path: str, table: pd.DataFrame, *, index: bool = False) -> None:
    """Write a table to a CSV file, atomically; raises OSError, which names the file, if it cannot be written."""
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=index))


def save_csv(records: Sequence[Record], path: str, measure: str = "top1") -> None:
    """Write the numbers of tables, unrounded, a line per setting: mean, standard deviation, number of seeds."""
    if not records:
        write_csv(path, nothing())
        return
    rows = frame(records).assign(
        maker=[record["inputs"].get("images", {}).get("model", {}).get("name") for record in records],
        settings=[_all_changed_settings(record) for record in records],
    )
    named = ["profile", "model", "quantizer", "bits", "policy", "source", "maker", "num_images", "settings"]
    keys = [name for name in named if name in rows and rows[name].notna().any()]
    groups = rows.groupby(keys, sort=False, dropna=False)[measure]
    write_csv(path, groups.agg(mean="mean", spread="std", seeds="count").reset_index())


def _all_changed_settings(record: Record) -> str:
    """Return the settings that differ from the defaults of the images' method and quantizer, except size and seed."""
    inputs = record["inputs"]
    changed = changed_settings(inputs["quantizer"]["method"], inputs["quantizer"].get("config", {}))
    if "images" in inputs:
        changed |= changed_settings(inputs["images"]["source"], inputs["images"]["config"])
    return ", ".join(f"{name} = {value}" for name, value in changed.items())


def provenance(records: Sequence[Record], budget: str | None = None) -> HTML:
    """Return the foot line of a page: the origin of its numbers, and the time they took.

    A record that is there several times counts once.
    """
    if not records:
        return HTML(f"{PROVENANCE}records: none</p>")
    records = list({fingerprint([record["inputs"], record["provenance"]]): record for record in records}.values())
    made, inputs = [record["provenance"] for record in records], [record["inputs"] for record in records]
    images = sorted({images["config"]["num_images"] for each in inputs for images in image_sets(each)})
    steps = sorted(
        {images["config"]["steps"] for each in inputs for images in image_sets(each) if "steps" in images["config"]}
    )
    tests = sorted({str(each["test_images"] or "all") for each in inputs if "test_images" in each})
    parts = {
        "records": str(len(records)),
        "profile": ", ".join(sorted({each["profile"] for each in inputs})),
        "budget": budget,
        "calibration images": ", ".join(map(str, images)),
        "steps to make them": ", ".join(map(str, steps)),
        "test images": ", ".join(tests),
    }
    return HTML(foot_line(parts, made))


def image_sets(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sets of images that a record depends on."""
    return [*inputs.get("sets", {}).values(), *([inputs["images"]] if "images" in inputs else [])]


def foot_line(parts: Mapping[str, str | None], made: Sequence[Mapping[str, Any]]) -> str:
    """Return, as HTML, a foot line: some parts, then the provenance of all records of a page."""
    commits = sorted({f"{each['commit'][:10]}{' (modified)' if each['modified'] else ''}" for each in made})
    versions = sorted({", ".join(f"{k} {v}" for k, v in sorted(each["versions"].items())) for each in made})
    how = {
        "commit": ", ".join(commits),
        "versions": "; ".join(versions),
        "machine": "; ".join(sorted({each["machine"] for each in made})),
        "computed in": f"{sum(each['seconds'] for each in made):.0f} s",
    }
    # Records come from other machines, too: their content is text.
    line = " · ".join(f"{name}: {html.escape(value)}" for name, value in {**parts, **how}.items() if value)
    return f"{PROVENANCE}{line}</p>"
