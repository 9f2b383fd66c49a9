"""Observations of images: each measure on sets with known properties, and the records and figures made of them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from dghlib.experiments import looks, run
from dghlib.experiments.experiment import Observation
from dghlib.experiments.run import Workshop
from dghlib.generators import deep_inversion
from dghlib.images import load_images, save_images, to_pixels
from dghlib.plans import observations, papers
from dghlib.showing import detections, image_figures, paper_tables, sources, tables

PLANS: dict[str, Callable[..., list[Observation]]] = {
    "figure2": observations.figure2,
    "figure3": observations.figure3,
    "figure4": observations.figure4,
    "figure8": observations.figure8,
    "figure9": partial(observations.figure9, iterations=5, num_images=8),
    "intraq_figure1": observations.intraq_figure1,
    "genie_figureA5": observations.genie_figure_a5,
}
DRAWN: dict[str, Callable[..., Figure]] = {
    "figure2": image_figures.feature_maps,
    "figure3": image_figures.layer_errors,
    "figure4": image_figures.output_distributions,
    "figure8": image_figures.pictures,
    "figure9": image_figures.pictures,
    "intraq_figure1": image_figures.feature_maps,
    "genie_figureA5": image_figures.traces,
}


def test_the_second_row_of_figure9_has_more_iterations_than_the_first() -> None:
    def rows(budget: str, **wanted: Any) -> list[str]:
        (plan,) = observations.figure9("shapes", budget, models=["shapes_residual"], **wanted)
        return [title for title, _ in plan.sets]

    assert rows("quick") == ["80", "800"]
    assert rows("paper") == ["1000", "40000"]
    with pytest.raises(ValueError, match="iterations, beside those of the budget 'quick', must be at least 81, got 80"):
        rows("quick", iterations=80)


def test_different_sets_are_separated_and_equal_ones_are_not() -> None:
    draws = torch.Generator().manual_seed(0)
    real, alike = torch.randn(2, 400, 5, generator=draws)
    assert looks._told_apart(real + 100, real) == 1
    assert looks._told_apart(alike, real) == pytest.approx(0.5, abs=0.1)


def test_the_projection_plane_has_the_largest_variance() -> None:
    points = torch.zeros(50, 6)
    points[:, 1], points[:, 4] = torch.linspace(-5, 5, 50), torch.linspace(-1, 1, 50).square()
    plane = looks.principal_plane(points)
    assert torch.allclose(plane[:, 0].abs(), points[:, 1].abs(), atol=1e-4)
    assert torch.allclose(torch.cdist(plane, plane), torch.cdist(points, points), atol=1e-3)


def test_the_map_of_neighbours_keeps_clusters_apart() -> None:
    clusters = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    clusters[1] += 50
    coordinates = looks.neighbour_map(clusters.flatten(0, 1))
    assert coordinates.shape == (60, 2)
    assert looks._told_apart(coordinates[:30], coordinates[30:]) == 1
    assert torch.equal(coordinates, looks.neighbour_map(clusters.flatten(0, 1)))


def test_spread_within_a_class_is_a_mean_cosine_distance() -> None:
    features, classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), torch.tensor([0, 0, 1])
    table = looks.spreads({looks.REAL_SET: (features, classes)})
    assert table["within a class"] == [pytest.approx(1 - 2**-0.5)]
    assert table["classes seen"] == [2]
    assert table["nearest neighbour of its own set"] == [None]


def test_classes_and_their_evenness_are_counted() -> None:
    model = make_tiny_model()
    images = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, *model.image_shape)
    with torch.no_grad():
        shares = [times / 64 for times in Counter(model.net(images).argmax(1).tolist()).values()]
    assert len(shares) > 1
    found = looks.classes(model, {"some": images})["classes"]
    assert found["classes"] == [len(shares)]
    assert found["as if evenly"] == [pytest.approx(math.prod(share**-share for share in shares), rel=1e-5)]


def test_classes_are_listed_by_filter() -> None:
    def record(seed: int, model: str, left: int) -> dict[str, Any]:
        counts = {"images": ["no filter, 0%", "energy, 90%"], "classes": [41, left], "as if evenly": [36.0, 10.0]}
        inputs = {"model": {"name": model}, "seed": seed}
        return {"inputs": inputs, "outputs": {"tables": {"classes": counts}}, "provenance": {}}

    table = paper_tables.filtered_classes([record(0, "shapes_residual", 12), record(1, "shapes_residual", 14)])
    assert table["residual"].to_dict() == {"no filter, 0%": "41", "energy, 90%": "13"}
    (plan,) = observations.genq_classes("shapes", "smoke", seeds=1, models=["shapes_residual"])
    filtered = papers.genq_filters("shapes", "smoke", seeds=1, models=["shapes_residual"])[1:]
    assert [wanted.config for _, wanted in plan.sets] == [each.source_config for each in filtered]
    assert [title for title, _ in plan.sets[:2]] == ["no filter, 0%", "energy, 10%"]


def test_augmentation_moves_images_by_at_most_the_margin() -> None:
    images = torch.zeros(64, 1, 9, 9)
    images[:, :, 4, 4] = 1
    moved = looks.augmented(images, 2, torch.Generator().manual_seed(0))
    assert moved[:, :, 2:7, 2:7].sum() == 64
    assert (moved == images).flatten(1).all(1).sum() < 32


def test_pixels_outside_the_image_have_the_colour_of_the_border() -> None:
    images = torch.full((64, 2, 5, 5), 3.0)
    assert (looks.augmented(images, 2, torch.Generator().manual_seed(0)) == 3).all()
    border = torch.tensor([-1.0, -2.0]).reshape(1, 2, 1, 1)
    moved = looks.augmented(images, 2, torch.Generator().manual_seed(0), border)
    assert set(moved[:, 0].unique().tolist()) == {3.0, -1.0}
    assert set(moved[:, 1].unique().tolist()) == {3.0, -2.0}
    assert (moved[:, :, 2, 2] == 3).all()


def test_densities_match_the_outputs() -> None:
    model = make_tiny_model()
    images = torch.randn(64, *model.image_shape, generator=torch.Generator().manual_seed(0))
    found = looks.outputs(model, {"some": images})
    with torch.inference_mode():
        values = model.net(images)
    (quantiles,) = zip(*(found["quantiles"][name] for name in ("q0.0", "q0.5", "q1.0")), strict=True)
    assert quantiles == pytest.approx([values.min().item(), values.median().item(), values.max().item()], abs=0.05)
    places, density = (torch.tensor(found["densities"][name]) for name in ("output", "density"))
    assert 0.8 < torch.trapezoid(density, places) <= 1  # the tails beyond the ends are not drawn
    middle = (density * places).sum() / density.sum()
    assert middle == pytest.approx(values.mean().item(), abs=0.2 * values.std().item())


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[run.Record]]:
    """Return the records of every plan, 2 repetitions for 2 networks."""
    results = tmp_path_factory.mktemp("looks") / "results"
    chosen = {"seeds": 2, "models": ["shapes_residual", "shapes_inverted"]}
    return {
        name: run.run(plan("shapes", "smoke", **chosen), results=results, progress=False)
        for name, plan in PLANS.items()
    }


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_has_its_networks_and_a_file_of_its_numbers(
    name: str, observed: dict[str, list[run.Record]], tmp_path: Path
) -> None:
    figure = DRAWN[name](observed[name], save=str(tmp_path / name))
    titles = " ".join(axis.get_title() + axis.get_title(loc="left") for axis in figure.axes)
    assert "residual" in titles
    assert "inverted" in titles
    assert (tmp_path / f"{name}.svg").stat().st_size > 0
    assert (tmp_path / f"{name}.csv").read_text().count("\n") > 8
    DRAWN[name]([])  # a figure without records


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("figure2", image_figures.spreads),
        ("figure3", image_figures.nearer),
        ("figure4", image_figures.output_ends),
        ("figure9", image_figures.described),
    ],
)
def test_tables_have_a_row_for_every_network_and_set(
    name: str, table: Callable[[Sequence[run.Record]], object], observed: dict[str, list[run.Record]]
) -> None:
    shown = str(table(observed[name]))
    assert "residual" in shown
    assert "inverted" in shown
    assert ("±" in shown) == (name not in ("figure3", "figure9"))
    assert "no records" in str(table([]))


def test_pictures_show_the_first_images_of_their_sets() -> None:
    model = make_tiny_model()
    images = torch.rand(5, *model.image_shape, generator=torch.Generator().manual_seed(0))
    found = looks.pictures(model, {"some": images, "others": -images}, count=3)
    shown = looks.pictures_in(found)
    assert {title: len(pictures) for title, pictures in shown.items()} == {"some": 3, "others": 3}
    for picture, wanted in zip(shown["some"], to_pixels(images, model.mean, model.std), strict=False):
        assert torch.equal(pil_to_tensor(picture), wanted)
    assert found["sets"]["mean"] == pytest.approx([images.mean().item(), -images.mean().item()], rel=1e-5)
    assert found["sets"]["distance"][0] == pytest.approx(looks.distance(model, images), rel=1e-5)


def test_sets_have_the_wanted_size_for_detectors_too() -> None:
    for profile, model in (("shapes", "shapes_residual"), ("shapes_detection", "shapes_ssdlite")):
        (plan,) = observations.figure8(profile, "quick", num_images=4, models=[model])
        assert {wanted.config.num_images for _, wanted in plan.sets} == {4}


def test_real_images_with_other_owners_are_in_no_record() -> None:
    (drawn,) = observations.figure8("shapes", "smoke", models=["shapes_residual"])
    (foreign,) = observations.figure8("cifar10", "smoke", models=["cifar10_resnet20"])
    assert [title for title, _ in drawn.sets] == [*(title for title, _ in foreign.sets), "real"]


def test_pages_of_methods_get_strips_of_images(
    observed: dict[str, list[run.Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image_figures.save_strips(observed["figure8"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"images_{source}.png" for source in ("noise", "zeroq", "genie_d", "dgh", "real")}
    with Image.open(tmp_path / "images_dgh.png") as strip:
        assert strip.size == (observations.PICTURES * 34 + 2, 36)
        assert (pil_to_tensor(strip)[..., ::34] == 255).all(), "images touch"


def test_an_observation_is_reused_and_named_in_the_foot_line(
    observed: dict[str, list[run.Record]], tmp_path: Path
) -> None:
    (plan,) = observations.figure3("shapes", "smoke", num_images=8, seeds=1, models=["shapes_residual"])
    (record,) = run.run([plan], results=tmp_path / "results", progress=False)
    assert Workshop(tmp_path / "results").find(plan) == record
    assert [path.parent.name for path in (tmp_path / "results").rglob("*.json")] == [run.OBSERVATIONS]
    assert "calibration images: 8 ·" in tables.provenance([record]).data
    assert tables.provenance(observed["figure2"]).data.count("records: 4") == 1


def test_the_cost_of_each_source_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = observations.image_costs("shapes", "smoke", num_images=4, seeds=1, models=["shapes_bottleneck"])
    records = run.run(plan, results=tmp_path / "results", progress=False)
    chosen = ["zeroq", "genie_d", "noise"]
    table = sources.cost(records, sources=chosen, save=str(tmp_path / "cost"))
    assert list(table.index) == ["Gaussian noise", "ZeroQ", "GENIE"]
    assert list(table["passes per image"]) == ["0", "3", "3"]
    assert float(table["seconds per image"]["GENIE"]) > 0
    assert (tmp_path / "cost.csv").read_text().count("\n") == 4
    monkeypatch.chdir(tmp_path)
    sources.save_lines(records)
    assert (tmp_path / "cost_zeroq.csv").read_text().startswith("passes per image,")
    sources.save_lines([])  # an empty table


def test_images_against_a_student_are_generated_once_and_differ(tmp_path: Path) -> None:
    (plan,) = observations.intraq_figure1("shapes", "smoke", seeds=1, models=["shapes_residual"])
    by_itself, wanted = (dict(plan.sets)[title] for title in ("DeepInversion", "DeepInversion against a student"))
    assert wanted.student == "shapes_bottleneck"
    workshop = Workshop(tmp_path / "results")
    images, _ = workshop.image_set("shapes", "shapes_residual", wanted)
    alone = deep_inversion.generate(run.load_model("shapes_residual"), by_itself.config, progress=False)
    assert not torch.equal(images, alone)
    (kept,) = workshop.cache.glob("*.safetensors")
    save_images(kept, torch.zeros_like(images), load_images(kept)[1])
    assert not Workshop(tmp_path / "results").image_set("shapes", "shapes_residual", wanted)[0].any()


class TwoTensors(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sums": images.sum(1), "halves": images / 2}


def test_the_tensors_of_a_head_are_listed_separately() -> None:
    model = replace(make_tiny_model(), net=TwoTensors(), task="detection")
    images = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    found = looks.tensors(model, {"noise": images, "real": 3 * images})["tensors"]
    assert list(zip(found["images"], found["tensor"], strict=True)) == [
        (title, name) for title in ("noise", "real") for name in ("sums", "halves")
    ]
    assert [found["q0.0"][k] for k in (1, 3)] == [-0.5, -1.5]
    assert found["q1.0"][2] == pytest.approx(3 * float(images.sum(1).max()), rel=1e-5)
    inputs = {"model": {"name": "coco_fastestdet"}, "seed": 0}
    table = detections.head_outputs([{"inputs": inputs, "outputs": {"tables": {"tensors": found}}}])
    assert table.loc[("fastestdet", "halves", "Real data"), "the largest"] == "1.5"
    assert "no records" in detections.head_outputs([]).columns[0]
