"""Observations of quantized copies: each measure on copies with known properties, and the tables of pages."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import make_tiny_model

from dghlib import models
from dghlib.experiments import quantized_looks, run
from dghlib.experiments.experiment import FLOAT, Observation
from dghlib.experiments.scoring import real_images
from dghlib.generators import noise
from dghlib.plans import observations, quantized
from dghlib.quantizers import QUANTIZERS, hptq, noise_report
from dghlib.showing import deployment, figures, leaderboard, tables
from dghlib.showing.detections import detections
from dghlib.storage.records import plain

SMALL: dict[str, Any] = {"seeds": 1, "models": ["shapes_residual"]}


def observe(plan: list[Observation], folder: Path) -> list[run.Record]:
    return run.run(plan, results=folder / "results", progress=False)


def test_noise_equals_the_report_in_the_order_of_layers() -> None:
    model = make_tiny_model()
    images = noise.generate(model, noise.Config(num_images=8))
    copy = hptq.quantize(model, images, hptq.Config(weight_bits=4, activation_bits=4))
    found = quantized_looks.layers(model, {"noise": copy}, {"noise": images})
    report = noise_report(model, copy, images)
    assert found["noise"]["name"] == [row.name for row in report]
    assert found["noise"]["own"] == pytest.approx([row.own for row in report], rel=1e-4)
    rows = pd.DataFrame(found["noise"])
    tensors = rows[rows.kind == "tensor"].sort_values("place")
    assert list(tensors.name) == list(copy.activation_quantizers())
    assert not found["units"]


def test_layers_and_units_are_listed_with_their_noise(tmp_path: Path) -> None:
    records = observe(quantized.layers("shapes", "smoke", **SMALL), tmp_path)
    worst = tables.worst(records, "noise")
    assert list(worst.columns) == ["kind", "name", "bits", "own", "accumulated"]
    assert list(worst.accumulated.astype(float)) == sorted(worst.accumulated.astype(float))
    assert list(tables.worst(records, "units").columns) == ["unit", "learned", "before", "after"]
    units = tables.observed(records, "units")
    assert sorted(units.place) == list(range(len(units)))
    for draw, name in ((figures.noise_profile, "noise"), (figures.unit_profile, "units")):
        draw(tables.observed(records, name), title="a network", save=str(tmp_path / name))
        assert (tmp_path / f"{name}.svg").stat().st_size > 0
        draw(tables.observed([], name), title="none")  # an empty figure
    assert "no records" in str(tables.worst([], "noise"))


def test_boxes_of_detectors_are_recorded_and_drawn(tmp_path: Path) -> None:
    records = observe(quantized.boxes("shapes_detection", "smoke", models=["shapes_ssdlite"]), tmp_path)
    boxes = tables.observed(records, "boxes")
    assert FLOAT in set(boxes.network)
    assert (boxes.score >= quantized_looks.SURE).all()
    assert (boxes.right > boxes.left).all()
    assert boxes.scene.between(0, quantized.SCENES - 1).all()
    figure = detections(records, save=str(tmp_path / "boxes"))
    lines = [[patch.get_linestyle() for patch in axis.patches] for axis in figure.axes]
    assert sum(len(styles) - styles.count(":") for styles in lines) == len(boxes)
    truths = [styles.count(":") for styles in lines]
    assert min(truths) > 0
    assert truths[: quantized.SCENES] == truths[-quantized.SCENES :]  # every row has the same scenes
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()][-1] == "Real data"
    assert "no records" in detections([]).axes[0].texts[0].get_text()


def test_files_are_compared_with_the_simulation(tmp_path: Path) -> None:
    records = observe(quantized.files("shapes", "smoke", **SMALL), tmp_path)
    table = deployment.files(records)
    assert list(table.index) == ["residual, float", "residual, HPTQ W8A8", "residual, HPTQ W4A4"]
    sizes = list(table["file, kB"])
    assert sizes == sorted(sizes, reverse=True)
    gaps = table["top-1 of file"].astype(float) - table["simulated"].astype(float)
    assert gaps.abs().max() <= 100 * 2 / 96  # 2 of the test images
    assert "no records" in str(deployment.files([]))


def test_files_of_detectors_are_compared_by_their_boxes() -> None:
    model = models.load("shapes_ssdlite")
    images = real_images("shapes_detection", model, 4, seed=0)
    copy = hptq.quantize(model, images, hptq.Config())
    found = quantized_looks.files(model, {"real": copy}, {"real": images}, profile="shapes_detection", test_images=8)
    inputs = {"model": {"name": model.name}, "seed": 0, "quantizer": {"method": "hptq", "config": plain(hptq.Config())}}
    table = deployment.files([{"inputs": inputs, "outputs": {"tables": found}}])
    assert list(table.index) == ["ssdlite, float", "ssdlite, HPTQ W8A8"]
    reached = table["mAP of file"].astype(float)
    assert reached.min() > 20
    assert (reached - table["simulated"].astype(float)).abs().max() < 3
    assert list(table.columns)[-1] == "outputs equal"


def test_the_quantizer_of_onnxruntime_is_listed(tmp_path: Path) -> None:
    records = observe(observations.onnxruntime("shapes", "smoke", **SMALL), tmp_path)
    table = deployment.onnxruntime_alone(records)
    assert list(table.index) == ["Gaussian noise", "ZeroQ", "DGH", "Real data", "Float"]
    reached = table.iloc[:, 0].astype(float)
    assert reached["Float"] - 10 < reached["Real data"] <= 100
    assert "no records" in str(deployment.onnxruntime_alone([]))


def test_a_copy_of_another_version_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = quantized.files("shapes", "smoke", bits=["W8A8"], **SMALL)
    assert "hptq W8A8" in plan.title
    (record,) = observe([plan], tmp_path)
    assert record["inputs"]["quantizer"]["version"] == hptq.VERSION
    assert leaderboard.is_current(record)
    monkeypatch.setattr(QUANTIZERS["hptq"], "VERSION", hptq.VERSION + 1)
    assert not leaderboard.is_current(record)
    assert run.Workshop(tmp_path / "results").find(plan) is None
