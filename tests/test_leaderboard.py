"""The leaderboard: differences and intervals by hand, without stale records and ablations."""

import copy
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dghlib.experiments import looks, run
from dghlib.experiments.experiment import Experiment, RealImages
from dghlib.experiments.recorded import RECORDED_VARIABLE
from dghlib.experiments.run import Record, inputs_of
from dghlib.generators import dgh
from dghlib.generators import zeroq as zeroq_module
from dghlib.plans import observations
from dghlib.quantizers import brecq, hptq
from dghlib.showing import leaderboard
from dghlib.storage.records import fingerprint, plain, write_json


def _record(source: str, top1: float, seed: int, **settings: Any) -> Record:
    made = dgh.Config(num_images=8, steps=3, seed=seed, **settings)
    experiment = Experiment(
        profile="shapes",
        model="shapes_residual",
        source=source,
        source_config=RealImages(num_images=8, seed=seed) if source == "real" else made,
        quantizer="hptq",
        quantizer_config=hptq.Config(weight_bits=4, activation_bits=4),
        test_images=96,
    )
    outputs = {"top1": top1, "generation_seconds": 2.0, "quantization_seconds": 1.0}
    provenance = {"commit": "0" * 40, "modified": False, "seconds": 3.0, "machine": "", "versions": {}}
    return {"inputs": inputs_of(experiment), "outputs": outputs, "provenance": provenance}


def _float(model: str) -> Record:
    inputs = inputs_of(Experiment(profile="shapes", model=model, test_images=96))
    return RECORDS[0] | {"inputs": inputs, "outputs": {"top1": 64.0}}


RECORDS = [_record("dgh", top1, seed) for seed, top1 in enumerate([60.0, 61.0, 62.0])] + [
    _record("real", top1, seed) for seed, top1 in enumerate([61.0, 63.0, 65.0])
]


def test_means_have_students_intervals() -> None:
    table = leaderboard.standings(leaderboard.runs(RECORDS))
    half = 4.302652729911275 / math.sqrt(3)  # the 97.5 % quantile at 2 degrees of freedom, a deviation of 1
    assert table["DGH"].item() == f"61.0 ± {half:.1f} (3)"


def test_differences_pair_runs_of_the_same_seed() -> None:
    # 1, 2 and 3 points: mean 2, deviation 1, though each source alone spreads by 1 and 2
    table = leaderboard.paired_differences(leaderboard.runs(RECORDS))
    assert table["Real data"].item() == f"+2.0 ± {4.302652729911275 / math.sqrt(3):.1f} (3)"
    without = [record for record in RECORDS if record["inputs"]["images"]["config"]["seed"] == 1]
    assert leaderboard.paired_differences(leaderboard.runs(without))["Real data"].item() == "+2.0"


def _verdicts(*top1: float, margin: float = 1.0) -> dict[str, Any]:
    """Return the verdicts on real images of these accuracies, beside DGH's 60, 61 and 62."""
    real = [_record("real", value, seed) for seed, value in enumerate(top1)]
    table = leaderboard.wins(leaderboard.runs(RECORDS[:3] + real), margin=margin)
    return table.loc[("Real data", len(top1))].to_dict()


def test_a_difference_counts_if_its_interval_excludes_zero() -> None:
    half = f"{4.302652729911275 / math.sqrt(3):.1f}"
    assert _verdicts(61.0, 63.0, 65.0) == {"better": 0, "alike": 0, "worse": 0, "undecided": 1, "median ±": half}
    assert _verdicts(65.0, 66.0, 67.1)["better"] == 1
    assert _verdicts(55.0, 56.0, 57.1)["worse"] == 1


def test_differences_below_one_image_do_not_count() -> None:
    assert _verdicts(61.0, 62.0, 63.0, margin=0.5)["undecided"] == 1  # one of 96 images is 1.04 points


def test_images_are_equivalent_if_the_interval_is_within_the_margin() -> None:
    quantile = 2.919985580355516  # the 95 % quantile at 2 degrees of freedom: 2 one-sided tests
    reach = 0.5 + quantile * 0.1 / math.sqrt(3)  # differences of 0.4, 0.5 and 0.6
    assert _verdicts(60.4, 61.5, 62.6, margin=reach + 0.01)["alike"] == 1
    assert _verdicts(60.4, 61.5, 62.6, margin=reach - 0.01)["undecided"] == 1
    assert _verdicts(60.0, 61.0, 62.0)["alike"] == 1


def test_settings_with_different_numbers_of_seeds_are_separate() -> None:
    real = [_record("real", value, seed) for seed, value in enumerate([61.0, 62.0])]
    zeroq = copy.deepcopy(RECORDS[:3])
    for record in zeroq:
        record["inputs"]["images"]["source"] = "zeroq"
        record["inputs"]["images"]["config"] = plain(zeroq_module.Config(num_images=8, seed=0)) | {
            "seed": record["inputs"]["images"]["config"]["seed"]
        }
    table = leaderboard.wins(leaderboard.runs([*RECORDS[:3], *real, *zeroq]))
    assert list(table.index) == [("ZeroQ", 3), ("Real data", 2)]
    assert "no records" in leaderboard.wins(leaderboard.runs([*RECORDS[:3], real[0]])).columns


def test_the_figure_of_differences_has_a_dot_for_each_setting(tmp_path: Path) -> None:
    name = str(tmp_path / "picture")
    leaderboard.differences(leaderboard.runs(RECORDS), save=name)
    (dot,) = pd.read_csv(f"{name}.csv").itertuples()
    assert (dot.source, dot.weights, dot.difference) == ("real", 4, 2.0)


def test_the_column_with_most_values_comes_first() -> None:
    other = copy.deepcopy(RECORDS[0])
    other["inputs"]["quantizer"]["config"]["activation_bits"] = 8
    assert list(leaderboard.standings(leaderboard.runs([*RECORDS, other])).columns) == ["DGH", "Real data"]
    for record in (more := copy.deepcopy(RECORDS[3:])):
        record["inputs"]["quantizer"]["config"]["activation_bits"] = 6
    assert list(leaderboard.standings(leaderboard.runs([*RECORDS, *more])).columns) == ["Real data", "DGH"]


def test_only_image_sets_of_the_usual_size_count() -> None:
    small = copy.deepcopy(RECORDS[:3])
    for record in small[:2]:
        record["inputs"]["images"]["config"]["num_images"] = 4
    small[2]["inputs"]["images"]["config"]["num_images"] = 16
    for record in small:
        record["outputs"]["top1"] = 20.0
    rows = leaderboard.runs([*RECORDS, *small])
    assert set(rows.num_images) == {8}
    assert leaderboard.lost([*RECORDS, *small, _float("shapes_residual")])["HPTQ"].item() == "3.0 (0 min, 1)"


def test_losses_are_measured_from_the_float_network() -> None:
    table = leaderboard.lost([*RECORDS, _float("shapes_residual")])
    assert table["HPTQ"].item() == "3.0 (0 min, 1)"  # 64 minus the mean of 60, 61 and 62, in 3 seconds


def test_ablations_and_stale_records_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = _record("dgh", 50.0, 0, output_weight=0.5)
    assert len(leaderboard.runs([*RECORDS, ablation])) == len(RECORDS)
    older = copy.deepcopy(RECORDS[0])
    older["inputs"]["images"]["version"] -= 1
    other = copy.deepcopy(RECORDS[0])
    other["inputs"]["model"]["weights"] = "0" * 64
    of_another = copy.deepcopy(RECORDS[0])
    of_another["inputs"]["images"]["model"] = {"name": "shapes_inverted", "weights": "0" * 64}
    gone = [copy.deepcopy(RECORDS[0]) for _ in range(3)]
    gone[0]["inputs"]["model"]["name"] = gone[1]["inputs"]["images"]["source"] = "of old"
    gone[2]["inputs"]["quantizer"]["method"] = "of old"
    states = leaderboard.overview([RECORDS[0], older, other, of_another, *gone]).state
    assert list(states) == ["current"] + 6 * ["stale"]
    monkeypatch.setattr(hptq, "VERSION", 99)
    assert leaderboard.runs(RECORDS).empty


def test_detectors_are_listed_with_their_precision() -> None:
    detector = copy.deepcopy(RECORDS[0])
    detector["outputs"] = {"map": 37.5}
    overview = leaderboard.overview([RECORDS[0], detector])
    assert list(overview["top-1 or mAP in %"]) == [RECORDS[0]["outputs"]["top1"], 37.5]


def test_records_of_this_machine_and_of_the_repository_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "PUBLISHED", tmp_path / "published")
    monkeypatch.setenv(run.RESULTS_VARIABLE, str(tmp_path / "made"))
    both, here, _ = RECORDS[:3]
    for folder, record in (("published", both), ("made", both), ("made", here)):
        name = fingerprint(record["inputs"])
        write_json(tmp_path / folder / "shapes" / f"{name}.json", record)
    assert len(leaderboard.all_records()) == 2
    files = leaderboard.overview(leaderboard.all_records()).file
    assert sorted("this machine" in name for name in files) == [False, True]
    monkeypatch.setenv(RECORDED_VARIABLE, "1")
    assert len(leaderboard.all_records()) == 1


def test_losses_are_compared_on_the_same_networks() -> None:
    learned, elsewhere = copy.deepcopy(RECORDS[:3]), copy.deepcopy(RECORDS[:3])
    for record in learned:
        config = brecq.Config(weight_bits=4, activation_bits=4)
        record["inputs"]["quantizer"] = plain({"method": "brecq", "version": brecq.VERSION, "config": config})
    for record in elsewhere:
        record["inputs"]["model"] = _float("shapes_inverted")["inputs"]["model"]
        record["outputs"]["top1"] = 0.0
    floats = [_float("shapes_residual"), _float("shapes_inverted")]
    every = leaderboard.lost([*RECORDS, *learned, *elsewhere, *floats])
    assert every.loc[("W4A4", "every tensor"), "BRECQ"] == ""  # which leaves some tensors in float that HPTQ quantizes
    for record in learned:
        record["inputs"]["quantizer"]["config"]["placement"] = "every_tensor"
    table = leaderboard.lost([*RECORDS, *learned, *elsewhere, *floats])
    assert table["HPTQ"].item() == table["BRECQ"].item() == "3.0 (0 min, 1)"


def test_committed_records_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run.RESULTS_VARIABLE, str(tmp_path))
    records = leaderboard.all_records()
    stale = leaderboard.overview(records).query("state == 'stale'")
    assert stale.empty, stale
    assert all(leaderboard.is_current(record) for record in leaderboard.all_observations())


def test_an_observation_of_another_version_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = observations.figure2("shapes", "smoke", seeds=1, models=["shapes_residual"])
    record: Any = {"inputs": inputs_of(plan), "provenance": {"seconds": 1.0, "commit": "0" * 40}}
    (row,) = leaderboard.overview_of_observations([record]).itertuples(index=False)
    assert (row.look, row.images, row.state) == ("features", "Real data, DGH, ZeroQ", "current")
    older = copy.deepcopy(record)
    older["inputs"]["sets"]["DGH"]["version"] -= 1
    assert not leaderboard.is_current(older)
    monkeypatch.setattr(looks, "VERSION", 99)
    assert not leaderboard.is_current(record)


def test_the_figure_shows_cost_and_accuracy(tmp_path: Path) -> None:
    name = str(tmp_path / "picture")
    leaderboard.cost_and_accuracy(leaderboard.runs(RECORDS), bits="W4A4", policy="full", save=name)
    assert pd.read_csv(f"{name}.csv").set_index("source").seconds.to_dict() == {"dgh": 3.0, "real": 3.0}
