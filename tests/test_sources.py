"""Images of every source: what a budget means for each, and what they cost."""

import dataclasses
from pathlib import Path

import pytest

from dghlib.choices import UnknownName
from dghlib.experiments.profiles import BUDGETS
from dghlib.generators import FOR_TRANSFORMERS, GENERATORS
from dghlib.plans import observations, parts
from dghlib.showing import speed


def test_a_budget_for_fewer_images_is_in_proportion() -> None:
    assert observations.budget_for("shapes", "quick") == BUDGETS["quick"]
    few = observations.budget_for("shapes", "quick", 32)
    assert (few.num_images, few.batch_size, few.steps) == (32, 32, BUDGETS["quick"].steps)
    assert observations.budget_for("shapes", "quick", 500).batch_size == BUDGETS["quick"].batch_size
    with pytest.raises(UnknownName, match="unknown budget 'fast'"):
        observations.budget_for("shapes", "fast")


@pytest.mark.parametrize("budget", BUDGETS)
def test_intraq_has_several_batches_and_the_others_what_the_budget_says(budget: str) -> None:
    spend = BUDGETS[budget]
    for name in set(GENERATORS) - {"noise", "genq"}:
        config = parts.source_config(name, spend, seed=3)
        assert (config.num_images, config.steps, config.seed) == (spend.num_images, spend.steps, 3)
        if name == "intraq":
            assert config.num_images >= 4 * config.batch_size
        else:
            assert config.batch_size == spend.batch_size
        default = GENERATORS[name].PRESETS["default"]
        same = dataclasses.replace(
            config, **{key: getattr(default, key) for key in ("num_images", "steps", "batch_size", "seed")}
        )
        assert same == default


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_budget_asks_for_more_denoising_than_the_pipeline(budget: str) -> None:
    spend, default = BUDGETS[budget], GENERATORS["genq"].PRESETS["default"]
    config = parts.source_config("genq", spend, seed=3)
    assert (config.num_images, config.batch_size, config.seed) == (spend.num_images, spend.batch_size, 3)
    assert config.denoising_steps == min(default.denoising_steps, spend.steps)


def test_genq_is_a_source_where_there_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PIPELINES", {"shapes": tmp_path})
    drawn = parts.every_source("shapes")
    assert "genq" in drawn
    assert parts.every_source("cifar10") == tuple(name for name in drawn if name != "genq")
    assert not set(FOR_TRANSFORMERS) & set(drawn)


def test_the_speeds_of_methods_have_no_cell_that_is_no_number() -> None:
    table = speed.methods_table(speed.benchmark("generators"))
    assert set(table.index.get_level_values("method")) >= {"DGH", "GENIE"}
    cells = table.to_numpy().flatten().tolist()
    assert "" in cells  # DGH has no generator network
    assert all(cell == "" or float(cell) > 0 for cell in cells)
