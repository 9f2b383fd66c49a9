"""Pages of the papers' tables and figures: rows are named after what varied, and sets of features told apart."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from matplotlib.figure import Figure

from dghlib.experiments import image_figures, paper_figures, paper_plans, paper_tables, run, tables
from dghlib.experiments.catalogue import PLANS
from dghlib.experiments.plans import FLOAT, Experiment, source_config
from dghlib.experiments.profiles import BUDGETS
from dghlib.generators import deep_inversion
from dghlib.images import save_images

ONE: dict[str, Any] = {"seeds": 2, "models": ["shapes_residual"]}


def made_up(experiments: list[Experiment]) -> list[run.Record]:
    """Return a record for each experiment; top-1 counts them, so that every number in a table has one source."""
    return [
        {"inputs": run.inputs_of(experiment), "outputs": {"top1": float(number)}}
        for number, experiment in enumerate(experiments)
    ]


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_asks_for_nothing_twice_and_is_the_same_each_time(name: str) -> None:
    profile = "shapes_detection" if name == "table3" else "shapes"
    experiments = PLANS[name](profile, "quick", seeds=2)
    assert len(set(experiments)) == len(experiments)
    assert experiments == PLANS[name](profile, "quick", seeds=2)


def test_table4_has_a_row_for_every_choice_of_parts_beside_the_papers() -> None:
    experiments = paper_plans.table4("shapes", "quick", **(ONE | {"seeds": 1}))
    table = paper_tables.table4(made_up(experiments))
    assert len(table) == 9
    assert table.loc[("✓", "✓", "✓"), ("paper: ResNet-18", "W4A4")] == "65.64"
    for place, experiment in enumerate(experiments[1:], start=1):
        dgh = experiment.source_config
        on = (dgh.scope is None, dgh.preprocessing, dgh.output_stretching)
        width = f"W{experiment.quantizer_config.weight_bits}A4"
        assert table.loc[tuple("✓" if part else "" for part in on), ("residual", width)] == f"{place}.00"


def test_rows_hold_means_over_seeds() -> None:
    experiments = paper_plans.intraq_parts("shapes", "quick", **ONE)
    records = made_up(experiments)
    table = paper_tables.intraq_parts(records)
    without = [k for k, e in enumerate(experiments) if e.quantizer != FLOAT and e.source_config.crop_area == 1]
    assert table.loc["without LOR", ("residual", "W4A4")].startswith(f"{sum(without) / 2:.2f} ± ")
    assert table.loc["Float", ("residual", "W4A4")] == "0.00"


def test_a_network_with_its_own_images_is_on_the_diagonal() -> None:
    names = ["shapes_residual", "shapes_inverted"]
    experiments = paper_plans.transfer("shapes", "quick", seeds=1, models=names, sources=["dgh"])
    table = paper_tables.transfers(made_up(experiments))
    for place, experiment in enumerate(experiments[2:], start=2):
        row, column = (name.removeprefix("shapes_") for name in (experiment.maker, experiment.model))
        assert table.loc[("DGH", row), column] == f"{place}.00"
    assert "65.72" in paper_tables.paper_transfers().to_string()


def test_amounts_and_printed_numbers() -> None:
    table = paper_tables.by_amount(made_up(paper_plans.samples("shapes", "quick", **ONE)))
    assert list(table.index.get_level_values("images")) == [16, 32, 64, 128]
    assert paper_tables.paper_amounts("genie_tableA1").loc[1024, ("MBV2", "GENIE")] == "49.89"
    assert paper_tables.printed("genq_table1").loc["GENIE", ("batch-norm distance", "MBV2")] == "1.03 ± 0.296"


def test_curves_show_every_record() -> None:
    drawn: dict[str, Callable[..., Figure]] = {
        "figure5": paper_figures.scope_curves,
        "figure6": partial(paper_figures.width_curves, vary="activations"),
        "figure7": partial(paper_figures.width_curves, vary="weights"),
        "samples": paper_figures.amount_curves,
        "step_sizes": paper_figures.step_size_curves,
        "genq_filters": paper_figures.filter_curves,
    }
    for name, draw in drawn.items():
        records = made_up(PLANS[name]("shapes", "quick", **ONE))
        (axis,) = draw(records).axes
        shown = [float(y) for line in axis.lines for y in np.asarray(line.get_ydata())]
        top1 = tables.frame(records).groupby(["source", "bits", "quantizer"]).top1
        draw([])  # says so
        assert min(shown) == top1.get_group((FLOAT, FLOAT, FLOAT)).mean(), name
        assert len(set(shown)) > 5, name


def test_sets_that_lie_apart_are_told_apart_and_equal_ones_are_not() -> None:
    draws = torch.Generator().manual_seed(0)
    real, alike = torch.randn(2, 400, 5, generator=draws)
    assert image_figures._told_apart(real + 100, real) == 1
    assert image_figures._told_apart(alike, real) == pytest.approx(0.5, abs=0.1)


def test_the_plane_is_the_one_in_which_points_vary() -> None:
    points = torch.zeros(50, 6)
    points[:, 1], points[:, 4] = torch.linspace(-5, 5, 50), torch.linspace(-1, 1, 50).square()
    plane = image_figures.principal_plane(points)
    assert torch.allclose(plane[:, 0].abs(), points[:, 1].abs(), atol=1e-4)
    assert torch.allclose(torch.cdist(plane, plane), torch.cdist(points, points), atol=1e-3)


def test_spread_within_a_class_is_a_cosine_distance() -> None:
    features, classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), torch.tensor([0, 0, 1])
    table = image_figures.spreads({"Real data": (features, classes)}, "Real data")
    assert table.loc["Real data", "within a class"] == f"{1 - 2**-0.5:.3f}"
    assert table.loc["Real data", "classes seen"] == 2


def test_augmented_images_are_moved_by_the_margin_at_most() -> None:
    images = torch.zeros(64, 1, 9, 9)
    images[:, :, 4, 4] = 1
    moved = image_figures.augmented(images, 2, torch.Generator().manual_seed(0))
    assert moved[:, :, 2:7, 2:7].sum() == 64
    assert (moved == images).flatten(1).all(1).sum() < 32


def test_a_filter_discards_what_the_page_says() -> None:
    records = made_up(paper_plans.genq_filters("shapes", "quick", **(ONE | {"seeds": 1})))[1:]
    shown = [(paper_figures._filter_of(record), paper_figures._discarded(record)) for record in records]
    tenths = [10, 30, 50, 70, 90]
    filters = [(name, share) for name in ("energy", "batch-norm sensitivity") for share in tenths]
    assert shown == [("no filter", 0), *filters]


def test_images_against_a_student_are_made_once_and_not_those_without(tmp_path: Path) -> None:
    model, student = make_tiny_model(), make_tiny_model(seed=1)
    spend = dataclasses.replace(BUDGETS["smoke"], num_images=4, batch_size=4)
    images = image_figures.competing_images(tmp_path, model, student, spend)
    alone = deep_inversion.generate(model, source_config("deep_inversion", spend, seed=0), progress=False)
    assert not torch.equal(images, alone)
    (kept,) = tmp_path.iterdir()
    save_images(kept, torch.zeros_like(images), {})
    assert not image_figures.competing_images(tmp_path, model, student, spend).any()
