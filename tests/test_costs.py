"""Cost estimates by hand: proportions from two records, a plan of shared images, what is left of a book."""

from pathlib import Path
from typing import Any

import pytest

from dghlib.experiments import costs, forecast, plans
from dghlib.experiments.forecast import BUILDING, PAGE_SECONDS, TRUST, Forecast
from dghlib.experiments.notebooks import parameters_of
from dghlib.experiments.profiles import first_models
from dghlib.experiments.run import Record


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


def test_a_unit_costs_what_the_least_disturbed_record_shows() -> None:
    assert costs.unit_costs(RECORDS) == {
        ("shapes_residual", "dgh"): pytest.approx(1.0),  # 48 seconds for 16 images of 3 steps
        ("shapes_residual", "hptq"): pytest.approx(0.1),
        ("shapes_residual", "brecq"): pytest.approx(3.0),
    }


def test_shared_images_are_paid_once_and_what_is_not_known_is_told() -> None:
    experiments = plans.table2("shapes", "smoke", models=["shapes_residual"], sources=["dgh", "zeroq"], seeds=1)
    table = costs.estimate(experiments, costs.unit_costs(RECORDS))
    assert table.loc["dgh"].to_dict() == {"runs": 1, "hours": pytest.approx(48 / 3600), "unknown": 0}
    assert table.loc["zeroq"].to_dict() == {"runs": 1, "hours": 0, "unknown": 1}
    assert table.loc["hptq"].to_dict() == {"runs": 6, "hours": pytest.approx(6 * 1.6 / 3600), "unknown": 0}
    assert table.loc["all", "runs"] == 8


def test_what_plans_share_is_paid_by_the_first_and_unknown_networks_cost_what_others_do() -> None:
    ours, both = (
        plans.table2("shapes", "smoke", models=names, sources=["dgh"], bits=["W8A8"], seeds=1)
        for names in (["shapes_residual"], ["shapes_residual", "shapes_inverted"])
    )
    seconds = costs.seconds_in_turn({"first": ours, "again": ours, "more": both}, costs.unit_costs(RECORDS))
    assert seconds == {"first": pytest.approx(48 + 1.6), "again": 0, "more": pytest.approx(48 + 1.6)}


def test_the_time_left_is_scaled_by_what_this_machine_has_shown() -> None:
    left = Forecast({"text": 0.0, "slow": 100.0, "slower": 400.0, "last": 0.0})
    assert left.seconds == pytest.approx(500 + (4 + BUILDING) * PAGE_SECONDS)
    left.done("text", 10.0)  # what a page takes without runs
    assert left.seconds == pytest.approx(500 + (3 + BUILDING) * 10)
    left.done("slow", 310.0)  # of which 300 for the runs
    assert left.seconds == pytest.approx(400 * (300 + TRUST) / (100 + TRUST) + (2 + BUILDING) * 10)
    assert str(left) == "about 16 min left"
    assert str(Forecast({"paper": 4 * 3600.0})) == "about 4 h left"
    left.done("slower", 900.0)
    left.done("last", 10.0)
    assert left.seconds == pytest.approx(BUILDING * 10)


def test_the_runs_of_a_notebook_are_those_it_asks_for() -> None:
    """The forecast reads them from the notebooks' code, so a change of its form must not leave it behind."""
    folder = Path(__file__).parents[1] / "notebooks"
    for notebook in folder.glob("*.ipynb"):
        values = {name: parameter.default for name, parameter in parameters_of(notebook).items()}
        asks = "run.run(" in notebook.read_text(encoding="utf-8") and "profile" in values
        assert bool(forecast._runs(notebook, values)) == asks, notebook.stem
    (shapes,) = first_models("shapes", 1)
    expected = plans.table2("shapes", "quick", seeds=2)
    assert forecast._runs(folder / "table2.ipynb", {"profile": "shapes", "budget": "quick", "seeds": 2}) == expected
    one = forecast._runs(folder / "table1.ipynb", {"profile": "shapes", "budget": "quick", "seeds": 1, "networks": 1})
    assert {run.model for run in one} == {shapes}


def test_a_page_about_one_network_lacks_the_runs_of_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGHLIB_RESULTS", str(tmp_path / "results"))
    page = Path(__file__).parents[1] / "notebooks" / "genq_table1.ipynb"
    values = {name: parameter.default for name, parameter in parameters_of(page).items()} | {"budget": "smoke"}
    for named, model in (("", "shapes_residual"), ("shapes_inverted", "shapes_inverted")):
        (lacking,) = forecast.lacking_runs({page: values | {"network": named}}).values()
        assert [run.model for run in lacking] == [model]
