"""Images of every source: their settings at each budget, and their cost."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from dghlib.choices import UnknownName
from dghlib.experiments.experiment import changed_settings
from dghlib.experiments.profiles import BUDGETS
from dghlib.generators import FOR_TRANSFORMERS, GENERATORS, dgh, genie_d, intraq, zeroq
from dghlib.plans import observations, parts
from dghlib.quantizers import QUANTIZERS
from dghlib.showing import sources, speed
from dghlib.showing.tables import TITLES
from dghlib.storage.records import plain


def test_budgets_are_proportional_to_the_number_of_images() -> None:
    assert observations.budget_for("shapes", "quick") == BUDGETS["quick"]
    few = observations.budget_for("shapes", "quick", 32)
    assert (few.num_images, few.batch_size, few.steps) == (32, 32, BUDGETS["quick"].steps)
    assert observations.budget_for("shapes", "quick", 500).batch_size == BUDGETS["quick"].batch_size
    with pytest.raises(UnknownName, match="unknown budget 'fast'"):
        observations.budget_for("shapes", "fast")


EQUAL = [name for name, budget in BUDGETS.items() if budget.share is None]
ITERATIVE = sorted(set(GENERATORS) - {"noise", "genq"})


@pytest.mark.parametrize("budget", BUDGETS)
def test_intraq_has_several_batches(budget: str) -> None:
    config = parts.source_config("intraq", BUDGETS[budget], 3, "cifar10_resnet20")
    assert config.num_images >= 4 * config.batch_size


@pytest.mark.parametrize("budget", EQUAL)
@pytest.mark.parametrize("name", ITERATIVE)
def test_short_budgets_give_all_methods_equal_steps(budget: str, name: str) -> None:
    spend, default = BUDGETS[budget], GENERATORS[name].PRESETS["default"]
    config = parts.source_config(name, spend, 3, "cifar10_resnet20")
    assert (config.num_images, config.steps, config.seed) == (spend.num_images, spend.steps, 3)
    assert name == "intraq" or config.batch_size == spend.batch_size
    assert not getattr(config, "scaled_schedule", False), "otherwise existing records would not be found"
    spent = ("num_images", "steps", "batch_size", "seed", "scaled_schedule")
    same = {key: getattr(default, key) for key in spent if hasattr(default, key)}
    assert dataclasses.replace(config, **same) == default


# Steps and batch sizes of each method's authors, on CIFAR-10.
OF_AUTHORS = {
    "zeroq": (500, 64),
    "intraq": (1000, 256),
    "genie_d": (4000, 128),
    "deep_inversion": (2000, 256),
    "qimera": (13_333, 200),
    "dgh": (1000, 128),
}


@pytest.mark.parametrize("name", OF_AUTHORS)
def test_the_papers_budget_has_the_settings_of_each_methods_authors(name: str) -> None:
    config = parts.source_config(name, BUDGETS["paper"], 3, "cifar10_resnet20")
    assert (config.num_images, config.seed) == (1024, 3)
    assert (config.steps, config.batch_size) == OF_AUTHORS[name]
    assert getattr(config, "scaled_schedule", True)
    half = parts.source_config(name, dataclasses.replace(BUDGETS["paper"], share=0.5), 3, "cifar10_resnet20")
    assert half == dataclasses.replace(config, steps=round(config.steps / 2))


def test_at_the_papers_budget_methods_use_presets_of_the_network_or_data() -> None:
    def settings(source: str, model: str) -> dict[str, object]:
        return vars(parts.source_config(source, BUDGETS["paper"], 0, model)) | {"num_images": 0}

    def preset(source: str, name: str) -> dict[str, object]:
        return vars(GENERATORS[source].PRESETS[name]) | {"num_images": 0}

    assert settings("qimera", "imagenet_resnet50") == preset("qimera", "imagenet_resnet50")
    assert settings("deep_inversion", "cifar10_resnet20") == preset("deep_inversion", "cifar10")
    for model in ("imagenet_resnet18", "imagenet_efficientnet_lite0_128"):
        assert settings("intraq", model) == preset("intraq", "imagenet")
    assert settings("intraq", "shapes_residual") == preset("intraq", "default")
    of_data = parts.source_config("deep_inversion", BUDGETS["paper"], 0, "cifar10_resnet20")
    assert changed_settings("deep_inversion", plain(of_data)) == {}, "otherwise it would be treated as an ablation"
    others = dataclasses.replace(of_data, jitter=3)
    assert changed_settings("deep_inversion", plain(others))["jitter"] == 3


@pytest.mark.parametrize("method", ["brecq", "qdrop"])
def test_at_the_papers_budget_learners_use_settings_for_depthwise_networks(method: str) -> None:
    def penalty(model: str, budget: str) -> float:
        spend = BUDGETS[budget]
        config = parts.source_config("dgh", spend, 0, model)
        return parts.calibrated("shapes", model, "dgh", config, "W4A4", spend, method).quantizer_config.penalty

    assert penalty("shapes_inverted", "paper") == 0.1
    usual = QUANTIZERS[method].Config().penalty
    assert penalty("shapes_residual", "paper") == penalty("shapes_inverted", "quick") == usual != 0.1


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_budget_exceeds_the_pipelines_denoising_steps(budget: str) -> None:
    spend, default = BUDGETS[budget], GENERATORS["genq"].PRESETS["default"]
    config = parts.source_config("genq", spend, 3, "shapes_residual")
    assert (config.num_images, config.seed) == (spend.num_images, 3)
    fewest = default.denoising_steps if budget == "paper" else spend.steps
    assert config.denoising_steps == min(default.denoising_steps, fewest)


def test_genq_is_a_source_if_there_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PIPELINES", {"shapes": tmp_path})
    drawn = parts.every_source("shapes")
    assert "genq" in drawn
    assert parts.every_source("cifar10") == tuple(name for name in drawn if name != "genq")
    assert not set(FOR_TRANSFORMERS) & set(drawn)


def test_the_table_of_speeds_contains_no_nan() -> None:
    table = speed.methods_table(speed.benchmark("generators"))
    assert set(table.index.get_level_values("method")) >= {"DGH", "GENIE"}
    cells = table.to_numpy().flatten().tolist()
    assert "" in cells  # DGH has no generator network
    assert all(cell == "" or float(cell) > 0 for cell in cells)


def _record(source: str, steps: int | None, seconds: float, **settings: int) -> dict[str, Any]:
    config = settings | ({} if steps is None else {"steps": steps})
    inputs = {"model": {"name": "shapes_residual"}, "images": {"source": source, "config": config}}
    return {"inputs": inputs, "outputs": {"generation_seconds": seconds}}


def test_costs_of_images_are_listed_with_their_accuracy() -> None:
    records = [
        _record("genie_d", 80, 10.0),
        _record("genie_d", 80, 30.0),
        _record("genie_d", 80, 12.0),
        _record("zeroq", 50, 4.4),
        _record("noise", None, 0.0),
        {"inputs": {"model": {"name": "shapes_residual"}}, "outputs": {"top1": 88.0}},
    ]
    table = sources.spent(records)
    assert table.index.tolist() == ["ZeroQ", "GENIE"]
    assert table.columns.tolist() == ["steps", "of their authors'", "residual"]
    assert table.to_numpy().tolist() == [[50, "10%", "4 s"], [80, "2%", "12 s"]]
    assert "no records" in sources.spent(records[-2:]).columns


def test_the_chapter_lists_the_settings_of_the_code() -> None:
    text = (Path(__file__).parents[1] / "book" / "methods.md").read_text(encoding="utf-8")
    for name, (steps, batch_size) in OF_AUTHORS.items():
        (row,) = re.findall(rf"^\| {TITLES[name]} \| (\d.*?) \| ([\d ]+)", text, flags=re.MULTILINE)
        assert str(batch_size) in re.findall(r"\d+", row[0]), name
        assert int(row[1].replace(" ", "")) == (80_000 if name == "qimera" else steps), name
    for method, row in ((zeroq, "ZeroQ"), (intraq, "IntraQ"), (genie_d, "GENIE")):
        assert re.search(rf"^\| {row} \|.*{method.STEPS}.*{method.PATIENCE} steps", text, flags=re.MULTILINE), row


def test_missing_settings_of_a_record_have_their_earlier_values() -> None:
    config = plain(dgh.Config(relative=False))
    assert "relative" not in config
    assert changed_settings("dgh", config) == {"relative": False}
