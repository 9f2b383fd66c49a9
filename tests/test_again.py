"""Runs that were computed again: their distance from the published records of the same runs."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from dghlib.experiments import run
from dghlib.experiments.experiment import REAL, Observation, Run
from dghlib.plans import methods, observations, papers
from dghlib.showing import again

ONE: dict[str, Any] = {"seeds": 1, "models": ["shapes_residual"]}
FLOAT, DGH, ON_REAL = methods.table2("shapes", "smoke", sources=["dgh", REAL], bits=["W8A8"], **ONE)


@pytest.fixture(autouse=True)
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Workshop:
    """Return an empty folder of published records."""
    monkeypatch.setattr(run, "PUBLISHED", tmp_path)
    return run.Workshop(tmp_path)


def record(experiment: Run, machine: str, **outputs: Any) -> run.Record:
    return {"inputs": run.inputs_of(experiment), "outputs": outputs, "provenance": {"machine": machine}}


def rows_of(table: Any) -> list[list[str]]:
    """Return the texts of a table's cells, by row; equal names below each other are one cell of the first row."""
    rows = re.findall(r"<tr>(.*?)</tr>", table.data, flags=re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_accuracies_are_compared_with_the_same_run(published: run.Workshop) -> None:
    published.keep(DGH, record(DGH, "theirs", top1=61.5))
    published.keep(FLOAT, record(FLOAT, "theirs", top1=70.0))
    made = [record(each, "ours", top1=60.25) for each in (FLOAT, DGH, ON_REAL)]
    table = again.compared(made)
    assert rows_of(table)[-2:] == [
        ["residual", "HPTQ", "W8A8", "DGH", "60.25", "61.50", "-1.25"],
        ["Real data", "60.25", "", ""],
    ]
    assert "top-1 in %" in table.data
    assert "seed" not in table.data


def test_a_difference_is_that_of_the_numbers_shown(published: run.Workshop) -> None:
    for theirs, difference in ((84.7656, "-1.44"), (83.333, "+0.00")):
        published.keep(DGH, record(DGH, "theirs", top1=theirs))
        assert rows_of(again.compared([record(DGH, "ours", top1=83.331)]))[-1][-1] == difference


def test_the_measure_of_detectors_is_map(published: run.Workshop) -> None:
    published.keep(DGH, record(DGH, "theirs", map=30.0, map50=50.0))
    assert "mAP in %" in again.compared([record(DGH, "ours", map=30.5, map50=51.0)]).data
    assert "+0.50" in again.compared([record(DGH, "ours", map=30.5, map50=51.0)]).data


def test_published_records_are_no_computations(published: run.Workshop) -> None:
    published.keep(DGH, record(DGH, "theirs", top1=61.5))
    twin = record(DGH, "theirs", top1=61.5)
    assert again.compared([twin]).data == again.compared([]).data == again.NOTHING
    assert again.looked_at([], "sets", "mean", "mean", 2).data == again.NOTHING
    assert "Real data" in (text := again.compared([twin, record(ON_REAL, "ours", top1=60.0)]).data)
    assert "DGH" not in text


def test_rows_have_the_names_of_what_varies() -> None:
    both = [
        dataclasses.replace(DGH, source_config=dataclasses.replace(DGH.source_config, seed=seed)) for seed in (0, 7)
    ]
    assert [row[-4] for row in rows_of(again.compared([record(each, "ours", top1=1.0) for each in both]))[-2:]] == [
        "0",
        "7",
    ]
    narrow = dataclasses.replace(DGH, source_config=dataclasses.replace(DGH.source_config, scope=4))
    (learned,) = [
        each
        for each in papers.step_sizes("shapes", "smoke", methods=["genie_m"], **ONE)
        if getattr(each.quantizer_config, "weight_search", "") == "l3"
    ]
    other = dataclasses.replace(DGH, images_of="shapes_inverted")
    text = again.compared([record(each, "ours", top1=1.0) for each in (narrow, learned, other)]).data
    for name in ("DGH, scope = 4", "GENIE-M, weight_search = l3", "DGH of inverted", "W2A4"):
        assert name in text


def test_observations_are_compared_set_by_set(published: run.Workshop) -> None:
    (seen,) = observations.figure8("shapes", "smoke", models=["shapes_residual"], sources=["dgh", REAL])
    assert isinstance(seen, Observation)

    def found(machine: str, *distances: float) -> run.Record:
        return record(seen, machine, tables={"sets": {"images": ["dgh", "real"], "distance": list(distances)}})

    published.keep(seen, found("theirs", 0.25, 0.5))
    text = again.looked_at([found("ours", 0.5, 0.375)], "sets", "distance", "distance from the statistics", 3).data
    for part in ("residual", "DGH", "Real data", "0.500", "+0.250", "-0.125", "distance from the statistics"):
        assert part in text
    assert (
        again.looked_at([found("theirs", 0.25, 0.5)], "sets", "distance", "distance from the statistics", 3).data
        == again.NOTHING
    )
