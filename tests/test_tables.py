"""Published numbers, for records made by hand: 3 seeds whose mean is not their median, with deviations by n - 1."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dghlib.experiments.experiment import Experiment, RealImages
from dghlib.experiments.run import Record, inputs_of
from dghlib.generators import dgh
from dghlib.quantizers import hptq
from dghlib.showing import detections, leaderboard, paper_tables, quantizer_tables, readings, sources, tables

TOP1 = (60.0, 61.0, 65.0)  # mean 62; deviations -2, -1, 3: a sum of squares of 14, over 2
CELL = f"62.00 ± {math.sqrt(7):.2f}"
REAL_TOP1 = (62.0, 65.0, 64.0)  # 2, 4 and -1 points above
SECONDS = (10.0, 20.0, 60.0)


def made(source: str, top1: float, seed: int, seconds: float = 3.0) -> Record:
    images = RealImages(num_images=8, seed=seed) if source == "real" else dgh.Config(num_images=8, steps=4, seed=seed)
    experiment = Experiment(
        profile="shapes",
        model="shapes_residual",
        source=source,
        source_config=images,
        quantizer="hptq",
        quantizer_config=hptq.Config(weight_bits=4, activation_bits=4),
        test_images=96,
    )
    outputs = {"top1": top1, "map": top1, "generation_seconds": seconds, "quantization_seconds": seconds}
    provenance = {"commit": "0" * 40, "modified": False, "seconds": seconds, "machine": "m", "versions": {"torch": "2"}}
    return {"inputs": inputs_of(experiment), "outputs": outputs, "provenance": provenance}


def float_record() -> Record:
    inputs = inputs_of(Experiment(profile="shapes", model="shapes_residual", test_images=96))
    return made("dgh", 0.0, 0) | {"inputs": inputs, "outputs": {"top1": 70.0, "map": 70.0}}


def placed(record: Record) -> Record:
    quantizer = record["inputs"]["quantizer"]
    changed = quantizer | {"config": quantizer["config"] | {"placement": "brecq"}}
    return record | {"inputs": record["inputs"] | {"quantizer": changed}}


DGH = [made("dgh", top1, seed, SECONDS[seed]) for seed, top1 in enumerate(TOP1)]
RECORDS = [float_record(), *DGH, *(made("real", top1, seed) for seed, top1 in enumerate(REAL_TOP1))]

SHOWN: dict[str, Callable[[], pd.DataFrame]] = {
    "accuracy": lambda: tables.accuracy(RECORDS),
    "quantizers": lambda: quantizer_tables.quantizers(RECORDS),
    "ways": lambda: quantizer_tables.ways(RECORDS),
    "placements": lambda: quantizer_tables.placements([placed(record) for record in RECORDS[1:]]),
    "settings": lambda: tables.settings(RECORDS),
    "by_row": lambda: paper_tables.by_row(RECORDS, lambda record: record["inputs"]["images"]["source"], title="x"),
    "by_amount": lambda: paper_tables.by_amount(RECORDS),
    "transfers": lambda: paper_tables.transfers(DGH),
    "by_quantizer": lambda: detections.by_quantizer(RECORDS),
}


@pytest.mark.parametrize("name", SHOWN)
def test_every_table_shows_the_mean_and_the_sample_deviation(name: str) -> None:
    cells = SHOWN[name]().astype(str).to_numpy().ravel().tolist()
    assert cells.count(CELL) == 1, cells


def test_total_seconds_are_shown_beside_the_mean() -> None:
    cells = paper_tables.methods_by_amount(DGH).to_numpy().ravel().tolist()
    assert cells == [f"{CELL} (60 s)"]  # 10, 20 and 60, each twice: a mean of 60 per seed


def test_one_seed_has_no_deviation() -> None:
    assert tables.accuracy(RECORDS[:2]).loc["DGH", ("residual", "W4A4")] == "60.00"


def test_the_summary_counts_the_seeds() -> None:
    (row,) = tables.summary(DGH).to_dict("records")
    assert (row["mean"], row["seeds"]) == (62.0, 3)
    assert row["spread"] == pytest.approx(math.sqrt(7))


def test_files_beside_tables_contain_unrounded_numbers(tmp_path: Path) -> None:
    tables.save_csv(RECORDS, str(tmp_path / "t.csv"))
    row = pd.read_csv(tmp_path / "t.csv").set_index("source").loc["dgh"]
    assert (row["mean"], row["seeds"]) == (62.0, 3)
    assert row["spread"] == pytest.approx(math.sqrt(7), rel=1e-12)


def test_costs_are_medians() -> None:
    assert quantizer_tables.costs(DGH).loc["HPTQ", "residual"] == "20"
    assert sources.spent(DGH)["residual"].tolist() == ["20 s"]


def test_the_cost_of_an_image_is_a_mean_over_repetitions() -> None:
    records = [
        {
            "inputs": {"sets": {"dgh": {"config": {"steps": 4, "num_images": 8}}}},
            "outputs": {
                "tables": {"distances": {"images": ["dgh"], "distance": [distance]}},
                "generation_seconds": {"dgh": seconds},
            },
        }
        for distance, seconds in ((0.1, 8.0), (0.2, 16.0), (0.6, 48.0))
    ]
    assert sources.cost(records).loc["DGH"].tolist() == ["4", "3.000", "0.3"]


def test_distances_pair_runs_by_their_seed() -> None:
    table = readings.distances({"Shapes": RECORDS})
    assert table.loc["DGH"].tolist() == [f"{-5 / 3:+.1f}"]


def test_ranges_span_the_means_of_networks() -> None:
    other = [record | {"inputs": record["inputs"] | {"model": {"name": "shapes_inverted"}}} for record in RECORDS]
    other[1] = other[1] | {"outputs": other[1]["outputs"] | {"top1": 66.0}}  # by 6 points, over 3 seeds
    assert readings.distances({"Shapes": RECORDS + other}).loc["DGH"].tolist() == ["-1.7 to +0.3"]


def test_the_leaderboard_agrees_with_the_tables() -> None:
    half = 4.302652729911275 * math.sqrt(7) / math.sqrt(3)  # Student's t at 2 degrees of freedom
    assert leaderboard.standings(leaderboard.runs(DGH))["DGH"].tolist() == [f"62.0 ± {half:.1f} (3)"]


def test_losses_are_relative_to_the_float_network() -> None:
    assert leaderboard.lost(RECORDS).to_numpy().tolist() == [["8.0 (1 min, 1)"]]


def test_the_foot_line_adds_up_the_seconds() -> None:
    line = str(tables.provenance(DGH).data)
    assert "records: 3" in line
    assert "computed in: 90 s" in line
    assert "commit: 0000000000 ·" in line


def test_a_record_that_is_there_twice_counts_once() -> None:
    assert tables.provenance([*DGH, DGH[0]]).data == tables.provenance(DGH).data
    assert tables.provenance(DGH).data != tables.provenance(DGH[:2]).data


def test_the_machine_of_a_record_is_escaped_in_html() -> None:
    strange: dict[str, Any] = DGH[0] | {"provenance": DGH[0]["provenance"] | {"machine": "<script>"}}
    assert "<script>" not in str(tables.provenance([strange]).data)


def test_numbers_in_a_cell_are_rounded_to_two_digits() -> None:
    assert tables.cell(62.345, 1.005, 1) == "62.3 ± 1.0"
    assert tables.cell(62.0, math.nan) == "62.00"
    assert tables.cell(62.0, None) == "62.00"


@pytest.mark.parametrize("show", [tables.unmerged, tables.stacked, lambda table: tables.captioned(table, "a table")])
def test_texts_of_records_are_escaped_in_html(show: Callable[[pd.DataFrame], Any]) -> None:
    shown = show(pd.DataFrame({"<script>": ["<script>"]}, index=["<script>"])).data
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 3


def test_groups_of_columns_are_rows_if_there_are_too_many() -> None:
    columns = pd.MultiIndex.from_product(
        [["one", "two"], ["W8A8", "W4A8", "W4A4", "W3A3", "W2A4"]], names=["top-1", ""]
    )
    table = pd.DataFrame([[""] * 5 + list("abcde"), list("fghij") * 2], index=["ZeroQ", "DGH"], columns=columns)
    fitted = tables.fitting(table)
    assert list(fitted.index) == [("one", "DGH"), ("two", "ZeroQ"), ("two", "DGH")]
    assert "".join(fitted.loc[("two", "ZeroQ")]) == "abcde"
    assert fitted.columns.name == "top-1"
    assert tables.fitting(table.iloc[:, :9]).equals(table.iloc[:, :9])
