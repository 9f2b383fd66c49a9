"""Runs: found by fingerprint, resumed after kill -9, and shared by 2 processes without duplicate work."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import until

from dghlib.choices import UnknownName
from dghlib.experiments import run
from dghlib.experiments.profiles import BUDGETS
from dghlib.images import normalise
from dghlib.plans import methods
from dghlib.plans.papers import transfer
from dghlib.plans.parts import parse_bits, quantizer_config
from dghlib.quantizers import QUANTIZERS, reconstruction
from dghlib.showing import tables
from dghlib.storage.records import fingerprint

SMOKE: dict[str, Any] = {"profile": "shapes", "budget": "smoke", "models": ["shapes_bottleneck"]}

# Runs table 2 at the smoke budget with invented outputs, logs what it computes, and waits after a number of runs.
WORKER = """
import os, signal, sys
from pathlib import Path
from dghlib.experiments import run
from dghlib.plans import methods

folder = Path(sys.argv[1])

def outputs(self, experiment, wait):
    if len((folder / "log").read_text().splitlines() if (folder / "log").exists() else []) == int(sys.argv[2]):
        signal.pause()  # until it is killed
    with open(folder / "log", "a") as log:
        log.write(experiment.title + os.linesep)
    return {"top1": 50.0}

run.Workshop._outputs = outputs
experiments = methods.table2("shapes", "smoke", models=["shapes_bottleneck"])
assert len(run.run(experiments, results=folder / "results", progress=False)) == len(experiments)
"""


def _worker(folder: Path, waits_after: int = -1) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(folder), str(waits_after)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def test_a_plan_computes_records_with_their_inputs(tmp_path):
    experiments = methods.table2(**SMOKE, sources=["noise", "dgh", "real"], seeds=2)
    records = run.run(experiments, results=tmp_path / "results", progress=False)
    assert len(records) == len(experiments) == 1 + 2 * 3 * 3
    for path in (tmp_path / "results" / "shapes").glob("*.json"):
        assert path.stem == fingerprint(json.loads(path.read_text())["inputs"])
    assert all(0 <= record["outputs"]["top1"] <= 100 for record in records)
    table = tables.accuracy(records, paper="dgh_table2")
    sources = ["Gaussian noise", "ZeroQ", "IntraQ", "GENIE", "DGH", "Real data"]
    assert list(table.index) == [*sources, "Float", *tables.FEET]
    assert list(table.columns[:4]) == [
        ("bottleneck", "W8A8"),
        ("bottleneck", "W4A8"),
        ("bottleneck", "W4A4"),
        ("paper: ResNet-18", "W8A8"),
    ]
    assert "± " in table.loc["DGH", ("bottleneck", "W8A8")]
    assert table.loc["DGH", ("paper: ResNet-18", "W8A8")] == "70.91 ± 0.02"
    assert list(tables.accuracy(records, bits=["W4A4"]).columns) == [("bottleneck", "W4A4")]
    assert "test images: 96" in tables.provenance(records, budget="smoke").data


def test_a_second_run_computes_nothing(tmp_path, monkeypatch):
    experiments = methods.table2(**SMOKE, sources=["noise"], seeds=1, bits=["W8A8"])
    first = run.run(experiments, results=tmp_path / "results", progress=False)
    monkeypatch.setattr(run.Workshop, "_outputs", lambda *args: pytest.fail("computed again"))
    assert run.run(experiments, results=tmp_path / "results", progress=False) == first


def test_a_corrupt_record_is_computed_again(tmp_path, caplog):
    experiments = methods.table2(**SMOKE, sources=["noise"], seeds=1, bits=["W8A8"])
    first = run.run(experiments, results=tmp_path / "results", progress=False)
    path = next((tmp_path / "results" / "shapes").glob("*.json"))
    path.write_text("{torn")
    again = run.run(experiments, results=tmp_path / "results", progress=False)
    assert [record["outputs"]["top1"] for record in again] == [record["outputs"]["top1"] for record in first]
    assert "kept as" in caplog.text


def test_damaged_images_are_generated_again(tmp_path, caplog):
    (experiment,) = methods.table2(**SMOKE, sources=["noise"], seeds=1, bits=["W8A8"])[1:]
    images, _ = run.Workshop(tmp_path / "results").images(experiment)
    path = next((tmp_path / "images").glob("*.safetensors"))
    path.write_bytes(b"torn")
    again, _ = run.Workshop(tmp_path / "results").images(experiment)
    assert images.equal(again)
    assert "not an image set" in caplog.text


def test_a_killed_plan_loses_only_one_experiment(tmp_path):
    process = _worker(tmp_path, waits_after=4)

    def done() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}

    until(lambda: len(done()) == 4, lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = done()
    assert _worker(tmp_path).wait() == 0
    assert before.items() <= done().items()
    assert len(_log(tmp_path)) == len(methods.table2(**SMOKE))


def test_seconds_of_interrupted_starts_are_in_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(run.checkpoints, "elapsed", lambda path: 1000.0)  # as from a stopped run
    (*_, experiment) = methods.table2(**SMOKE, sources=["dgh"], bits=["W8A8"], seeds=1)
    outputs = run.Workshop(tmp_path / "results").compute(experiment, wait=True)["outputs"]
    assert outputs["generation_seconds"] > 1000
    assert outputs["quantization_seconds"] > 1000


def test_a_float_network_stays_on_its_device(tmp_path, monkeypatch):
    tested = []
    monkeypatch.setattr(run.Workshop, "_quality", lambda self, experiment, model, net: tested.append(net))
    (experiment,) = methods.table2(**SMOKE, sources=[], seeds=1)
    run.Workshop(tmp_path / "results", "meta")._tested(experiment, wait=True)
    assert {weight.device.type for weight in tested[0].parameters()} == {"meta"}
    assert {weight.device.type for weight in run.load_model(experiment.model).net.parameters()} == {"cpu"}


def test_two_processes_share_a_folder_without_duplicate_work(tmp_path):
    workers = [_worker(tmp_path), _worker(tmp_path)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert max(Counter(_log(tmp_path)).values()) == 1
    assert len(_log(tmp_path)) == len(methods.table2(**SMOKE))


def test_fingerprints_depend_on_settings_and_method_versions(monkeypatch):
    experiment = methods.table2(**SMOKE, sources=["dgh"], seeds=1)[1]
    base = run.inputs_of(experiment)
    changed = dataclasses.replace(
        experiment, source_config=dataclasses.replace(experiment.source_config, output_weight=0.5)
    )
    assert fingerprint(run.inputs_of(changed)) != fingerprint(base)
    monkeypatch.setattr("dghlib.generators.dgh.VERSION", 99)
    assert fingerprint(run.inputs_of(experiment)) != fingerprint(base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "shape"}, "did you mean 'shapes'"),
        ({"budget": "fast"}, "unknown budget 'fast'"),
        ({"sources": ["zerok"]}, "did you mean 'zeroq'"),
    ],
)
def test_unknown_names_suggest_the_nearest(arguments, message):
    with pytest.raises(UnknownName, match=message):
        methods.table2(**SMOKE | arguments)


@pytest.mark.parametrize("bits", ["48", "W4", "4A8", "WxA8"])
def test_malformed_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must look like W8A8 or W4A8, got '{bits}'"):
        parse_bits(bits)


def test_every_quantizer_runs_in_a_plan(tmp_path):
    experiments = methods.quantizers(
        **SMOKE, methods=["brecq", "genie_m"], bits=["W4A4"], policies=["academic"], sources=["noise"], seeds=1
    )
    records = run.run(experiments, results=tmp_path / "results", progress=False)
    assert [record["inputs"]["quantizer"]["method"] for record in records] == ["float", "brecq", "genie_m"]
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_checkpoint_is_kept_until_the_record_is_written(tmp_path, monkeypatch):
    options: dict[str, Any] = {
        "methods": ["brecq"],
        "bits": ["W4A4"],
        "policies": ["academic"],
        "sources": ["noise"],
        "seeds": 1,
    }
    (experiment,) = methods.quantizers(**SMOKE, **options)[1:]
    workshop = run.Workshop(tmp_path / "results")
    with monkeypatch.context() as full:
        full.setattr(run, "write_json", lambda *arguments: exec('raise OSError(28, "No space left on device")'))
        with pytest.raises(OSError, match="No space left"):
            workshop.compute(experiment, wait=True)
    with monkeypatch.context() as again:
        again.setattr(reconstruction, "learn", lambda *arguments: pytest.fail("learned again"))
        workshop.compute(experiment, wait=True)
    assert not list(tmp_path.rglob("*.checkpoint"))
    assert not list(tmp_path.rglob(".*"))


def test_short_runs_have_higher_rates():
    """A rounding can move by rate times steps; published values: 0.001 times 20 000."""
    paper, short = BUDGETS["paper"], BUDGETS["standard"]
    assert quantizer_config("brecq", "W4A4", paper) == QUANTIZERS["brecq"].Config(integer_biases=False)
    config = quantizer_config("brecq", "W2A4", short, bits="academic")
    assert (config.weight_bits, config.activation_bits, config.bits) == (2, 4, "academic")
    assert config.rounding_rate * config.iterations == pytest.approx(20)
    assert config.step_iterations == config.iterations / 4


def test_fine_tuning_uses_its_share_of_a_budget():
    """The rate stays the same: a step that is stable in a long run is also stable in a short one."""
    paper, quick = BUDGETS["paper"], BUDGETS["quick"]
    assert quantizer_config("lsq", "W4A4", paper) == QUANTIZERS["lsq"].Config(integer_biases=False)
    short = quantizer_config("genq_qat", "W3A3", quick, bits="academic")
    assert (short.weight_bits, short.steps, short.iterations) == (3, 100, 100)
    assert short.rate == QUANTIZERS["genq_qat"].Config().rate
    start = quantizer_config("genie_m", "W3A3", quick, bits="academic", integer_biases=False)
    assert short.of_start() == start


def test_images_of_another_network_calibrate_a_network(tmp_path):
    both = ["shapes_residual", "shapes_bottleneck"]
    experiments = transfer("shapes", "smoke", sources=["zeroq"], seeds=1, models=both)
    calibrated = {(experiment.model, experiment.maker): experiment for experiment in experiments if experiment.source}
    workshop, of_itself, lent = (
        run.Workshop(tmp_path / "results"),
        calibrated[both[1], both[1]],
        calibrated[both[1], both[0]],
    )
    own_set = dataclasses.replace(of_itself, model=both[0])
    assert torch.equal(workshop.images(lent)[0], workshop.images(own_set)[0])
    assert not torch.equal(workshop.images(lent)[0], workshop.images(of_itself)[0])
    assert run.inputs_of(lent)["images"]["model"]["name"] == both[0]
    assert "model" not in run.inputs_of(of_itself)["images"], "otherwise existing records would not be found"


def test_images_of_another_network_are_the_same_pixels():
    maker = run.load_model("shapes_residual")
    borrower = dataclasses.replace(maker, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    seen = run._in_space_of(borrower, normalise(pixels, maker.mean, maker.std), maker)
    assert torch.allclose(seen, normalise(pixels, borrower.mean, borrower.std), atol=1e-5)
    with pytest.raises(ValueError, match="wants images"):
        run._in_space_of(dataclasses.replace(maker, image_shape=(3, 64, 64)), seen, maker)
