"""Cost estimates by hand: in proportion to 2 records, for shared images, and for the rest of a book."""

from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dghlib.bookmaking import forecast
from dghlib.bookmaking.book import notebook_names
from dghlib.bookmaking.forecast import BUILDING, PAGE_SECONDS, TRUST, Forecast
from dghlib.bookmaking.notebooks import parameters_of
from dghlib.experiments import costs
from dghlib.experiments.experiment import Run
from dghlib.experiments.profiles import first_models
from dghlib.experiments.run import Record
from dghlib.plans import fine_tuned, methods, observations, quantized


def _record(source: str, method: str, generation: float, quantization: float, **config: Any) -> Record:
    return {
        "inputs": {
            "model": {"name": "shapes_residual"},
            "images": {"source": source, "config": {"num_images": 16, "steps": 3}},
            "quantizer": {"method": method, "config": config},
        },
        "outputs": {"generation_seconds": generation, "quantization_seconds": quantization},
    }


RECORDS = [
    _record("dgh", "hptq", 96.0, 3.2),
    _record("dgh", "hptq", 48.0, 1.6),
    _record("dgh", "brecq", 48.0, 30.0, iterations=10),
]


def test_the_cost_of_a_unit_is_that_of_the_fastest_record() -> None:
    assert costs.unit_costs(RECORDS) == {
        ("shapes_residual", "dgh"): pytest.approx(1.0),  # 48 seconds for 16 images of 3 steps
        ("shapes_residual", "hptq"): pytest.approx(0.1),
        ("shapes_residual", "brecq"): pytest.approx(3.0),
    }


def test_shared_images_are_counted_once_and_unknown_costs_are_reported() -> None:
    experiments = methods.table2("shapes", "smoke", models=["shapes_residual"], sources=["dgh", "zeroq"], seeds=1)
    table = costs.estimate(experiments, costs.unit_costs(RECORDS))
    assert table.loc["dgh"].to_dict() == {"runs": 1, "hours": pytest.approx(48 / 3600), "unknown": 0}
    assert table.loc["zeroq", ["runs", "unknown"]].to_list() == [1, 1]
    assert pd.isna(table.loc["zeroq", "hours"])
    assert table.loc["hptq"].to_dict() == {"runs": 6, "hours": pytest.approx(6 * 1.6 / 3600), "unknown": 0}
    assert table.loc["all", "runs"] == 8
    both = costs.estimates({"one": experiments, "other": experiments}, costs.unit_costs(RECORDS))
    assert both.loc["all together"].to_dict() == both.loc["one"].to_dict()
    assert both.loc["one", "hours to make images"] == pytest.approx(48 / 3600)
    assert both.loc["one", "hours to quantize"] == pytest.approx(6 * 1.6 / 3600)


def test_the_cost_of_training_without_images_is_proportional_to_its_steps() -> None:
    trained = fine_tuned.trained_together("shapes", "smoke", models=["shapes_residual"], methods=["gdfq"], seeds=1)
    made = _record("real", "gdfq", 0.0, 40.0, steps=20)
    rounded = _record("real", "squant", 0.0, 2.0)
    for record in (made, rounded):
        del record["inputs"]["images"]
    units = costs.unit_costs([made, rounded])
    assert units == {("shapes_residual", "gdfq"): pytest.approx(2.0)}  # SQuant has no steps
    table = costs.estimate(trained, units)
    assert table.loc["gdfq"].to_dict() == {"runs": 1, "hours": pytest.approx(12 * 2 / 3600), "unknown": 0}


def test_shared_runs_count_for_the_first_plan_and_unknown_networks_cost_as_others() -> None:
    ours, both = (
        methods.table2("shapes", "smoke", models=names, sources=["dgh"], bits=["W8A8"], seeds=1)
        for names in (["shapes_residual"], ["shapes_residual", "shapes_inverted"])
    )
    seconds = costs.seconds_in_turn({"first": ours, "again": ours, "more": both}, costs.unit_costs(RECORDS))
    assert seconds == {"first": pytest.approx(48 + 1.6), "again": 0, "more": pytest.approx(48 + 1.6)}


def test_the_time_left_is_scaled_to_the_speed_of_this_machine() -> None:
    left = Forecast({"text": 0.0, "slow": 100.0, "slower": 400.0, "last": 0.0})
    assert left.seconds == pytest.approx(500 + (4 + BUILDING) * PAGE_SECONDS)
    left.done("text", 10.0)  # the time of a page without runs
    assert left.seconds == pytest.approx(500 + (3 + BUILDING) * 10)
    left.done("slow", 310.0)  # of which 300 for the runs
    assert left.seconds == pytest.approx(400 * (300 + TRUST) / (100 + TRUST) + (2 + BUILDING) * 10)
    assert str(left) == "about 16 min left"
    assert str(Forecast({"paper": 4 * 3600.0})) == "about 4 h left"
    left.done("slower", 900.0)
    left.done("last", 10.0)
    assert left.seconds == pytest.approx(BUILDING * 10)


NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def runs_of(name: str, **chosen: object) -> list[Run]:
    page = NOTEBOOKS / f"{name}.ipynb"
    values = {name: parameter.default for name, parameter in parameters_of(page).items()}
    return forecast._runs(page, values | chosen)


def test_the_forecast_finds_the_runs_of_every_notebook() -> None:
    """It reads them from the notebooks' code, so it must follow the form of this code."""
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        runs, asks = runs_of(notebook.stem), "run.run" in notebook.read_text(encoding="utf-8")
        if "computed" in parameters_of(notebook):
            assert runs == [], "by default this page shows only records"
            runs = runs_of(notebook.stem, computed="smoke")
        assert bool(runs) == asks, notebook.stem
    assert runs_of("table2", seeds=2, networks=0) == methods.table2("shapes", "quick", seeds=2)
    assert {run.model for run in runs_of("table1", networks=1)} == set(first_models("shapes", 1))


def test_a_book_computes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make book` should take less than 20 minutes on 2 cores."""
    monkeypatch.setenv("DGHLIB_RESULTS", str(tmp_path / "results"))
    pages = [NOTEBOOKS / f"{name}.ipynb" for name in notebook_names(NOTEBOOKS.parent / "book" / "_toc.yml")]
    values = {page: {key: each.default for key, each in parameters_of(page).items()} for page in pages}
    work = forecast.forecast(forecast.lacking_runs(values)).work
    assert 300 < sum(work.values()) < 850, work  # seconds of a core, at the speed of the published records


def test_the_forecast_follows_the_choices_of_a_notebook() -> None:
    smoke = {"budget": "smoke", "recorded": "smoke"}
    ours, detector = ["shapes_residual"], ["shapes_ssdlite"]
    assert runs_of("which_layer", **smoke, model="shapes_residual", method="qdrop", bits="W2A4") == quantized.layers(
        "shapes", "smoke", method="qdrop", bits=["W2A4"], models=ours
    )
    assert runs_of("deployment", **smoke) == [
        *quantized.files("shapes", "smoke", models=ours),
        *observations.onnxruntime("shapes", "smoke", models=ours),
    ]
    assert runs_of("sources", **smoke, num_images=8) == [
        *observations.gallery("shapes", "smoke", num_images=8, models=ours),
        *observations.image_costs("shapes", "smoke", num_images=8, seeds=1, models=ours),
    ]
    computed = methods.table3(
        "shapes_detection",
        "smoke",
        seeds=1,
        quantized={"hptq": ["W8A8"]},
        sources=["noise", "zeroq", "dgh", "real"],
        models=detector,
    )
    assert runs_of("table3", **smoke) == computed
    assert runs_of("table3", **smoke, figures=True) == [
        *computed,
        *quantized.boxes("shapes_detection", "smoke", models=detector),
        *observations.figure8("shapes_detection", "smoke", models=detector),
    ]


def test_the_forecast_ignores_notebooks_that_it_cannot_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page itself reports its error; the other pages are not affected."""
    monkeypatch.chdir(tmp_path)
    page = Path("a.ipynb")
    run = (
        "from dghlib.experiments import run\nfrom dghlib.plans import methods\nrun.run(methods.table2(profile, budget))"
    )
    cells = [new_code_cell(cell) for cell in ("%matplotlib inline", "open('written', 'w')", "1 / 0", run)]
    nbformat.write(new_notebook(cells=cells), page)
    assert forecast._runs(page, {"profile": "nonsense", "budget": "smoke"}) == []
    assert len(forecast._runs(page, {"profile": "shapes", "budget": "smoke"})) > 0
    assert not Path("written").exists()


def test_a_page_about_one_network_needs_only_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGHLIB_RESULTS", str(tmp_path / "results"))
    page = NOTEBOOKS / "genq_table1.ipynb"
    values = {name: parameter.default for name, parameter in parameters_of(page).items()} | {"budget": "smoke"}
    for named, model in (("", "shapes_residual"), ("shapes_inverted", "shapes_inverted")):
        (lacking,) = forecast.lacking_runs({page: values | {"network": named}}).values()
        assert [run.model for run in lacking] == [model]
