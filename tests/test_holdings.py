"""The wanted records of `results/`: existing plans and networks, by repetition, and only records of committed code."""

import re
from pathlib import Path

import pytest

from dghlib import cli
from dghlib.bookmaking import holdings
from dghlib.bookmaking.holdings import HOLDINGS, Holding, held
from dghlib.choices import UnknownName
from dghlib.experiments import run
from dghlib.experiments.experiment import FLOAT, Experiment, Run
from dghlib.experiments.profiles import BUDGETS, PROFILES
from dghlib.experiments.recorded import ANEW_VARIABLE
from dghlib.plans.methods import table2

Folders = tuple[run.Workshop, run.Workshop]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Return empty folders of this machine's records and the published ones; 2 repetitions of 1 plan are wanted."""
    published = tmp_path / "published"
    published.mkdir()
    monkeypatch.setattr(run, "PUBLISHED", published)
    monkeypatch.setenv(run.RESULTS_VARIABLE, str(tmp_path / "made" / "results"))
    two = Holding("shapes", "smoke", ("table2",), ("shapes_residual", "shapes_inverted"), seeds=2)
    monkeypatch.setattr(holdings, "HOLDINGS", (two,))
    return run.Workshop(run.results_dir()), run.Workshop(published)


@pytest.mark.parametrize("holding", HOLDINGS, ids=lambda holding: f"{holding.profile}, {holding.plans[0]}")
def test_holdings_name_existing_plans_and_networks(holding: Holding) -> None:
    for plan in holding.plans:
        experiments = holding.runs(plan)
        assert {experiment.profile for experiment in experiments} == {holding.profile}
        assert {experiment.model for experiment in experiments} == set(
            holding.models or PROFILES[holding.profile].models
        )
        seeds = {experiment.seed for experiment in experiments}
        assert seeds == set(range(holding.seeds or BUDGETS[holding.budget].seeds))


def test_another_budget_has_the_same_networks() -> None:
    usual, paper = held("figure1", "cifar10"), held("figure1", "cifar10", "paper")
    assert {experiment.model for experiment in usual} == {experiment.model for experiment in paper}
    assert {experiment.test_images for experiment in paper if isinstance(experiment, Experiment)} == {None}
    with pytest.raises(UnknownName, match="there are: shapes, cifar10"):
        held("table5", "tiny_imagenet")


def test_missing_runs_are_ordered_by_repetition(folders: Folders) -> None:
    lacking = holdings.lacking()
    seeds = [experiment.seed for experiment in lacking]
    assert seeds == sorted(seeds)
    assert len(lacking) == len(set(lacking)) == len(held("table2", "shapes"))
    assert holdings.lacking("cifar10") == []


def test_records_are_published_once_and_only_from_committed_code(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    made, published = folders
    clean, modified, *others = holdings.lacking()
    for experiment, changed in ((clean, False), (modified, True)):
        inputs = run.inputs_of(experiment)
        made.keep(experiment, {"inputs": inputs, "outputs": {"top1": 1.0}, "provenance": {"modified": changed}})
    assert holdings.publish() == 1
    assert published.find(clean) == made.find(clean)
    assert holdings.lacking() == [modified, *others]
    assert f"delete {made.record_path(modified)} to compute it again" in caplog.text
    assert holdings.publish() == 0


def test_records_of_the_repository_are_used_unless_anew_is_set(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, published = folders
    *_, wanted = table2("shapes", "smoke", sources=["noise"], bits=["W8A8"], seeds=1, models=["shapes_residual"])
    published.keep(wanted, {"inputs": run.inputs_of(wanted), "outputs": {"top1": -1.0}, "provenance": {}})
    (record,) = run.run([wanted], progress=False)
    assert record["outputs"] == {"top1": -1.0}
    assert made.find(wanted) is None
    monkeypatch.setenv(ANEW_VARIABLE, "1")
    (record,) = run.run([wanted], progress=False)
    assert record["outputs"]["top1"] >= 0
    monkeypatch.delenv(ANEW_VARIABLE)
    assert run.run([wanted], progress=False) == [record]


def test_the_command_computes_missing_records_and_lists_the_state(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    float_only = Holding("shapes", "smoke", ("table2",), ("shapes_inverted",), seeds=0)
    monkeypatch.setattr(holdings, "HOLDINGS", (float_only,))
    assert cli.main(["results", "--list", "--threads", "1"]) == 0
    assert re.search(r"shapes +table2 +1 +0 ", capsys.readouterr().out)
    assert cli.main(["results", "--profile", "shapes", "--threads", "1"]) == 0
    (record,) = run.run(held("table2", "shapes"))
    assert record["outputs"]["top1"] > 90
    new = not record["provenance"]["modified"]
    assert f"{int(new)} new records" in capsys.readouterr().out
    assert cli.main(["results", "--profile", "shape"]) == 1
    assert "did you mean 'shapes'" in capsys.readouterr().err


def test_a_page_shows_published_records_and_computed_ones_where_there_are_none(folders: Folders) -> None:
    _, published = folders
    first, second, *others = [each for each in held("table2", "shapes") if each.quantizer != FLOAT]
    (extra,) = [each for each in table2("shapes", "smoke", sources=["noise"], bits=["W3A3"], seeds=1) if each.source][
        :1
    ]

    def record(experiment: Run, top1: float) -> run.Record:
        return {"inputs": run.inputs_of(experiment), "outputs": {"top1": top1}, "provenance": {}}

    published.keep(first, record(first, 1.0))
    published.keep(others[0], record(others[0], 2.0))
    computed = [record(extra, 3.0), record(second, 4.0), record(first, 5.0)]
    shown = holdings.beside("table2", "shapes", "smoke", computed)
    assert [each["outputs"]["top1"] for each in shown] == [1.0, 4.0, 2.0, 3.0]
    assert holdings.beside("table2", "cifar10", "smoke", computed) == computed  # not among the holdings
    assert holdings.beside("table2", "shapes", "quick", computed) == computed  # no records of this budget
