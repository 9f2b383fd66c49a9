"""Every benchmark runs at its smallest size, and its record contains the numbers of its table."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dghlib.showing import chance, speed

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """The module of a benchmark, by its name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def record_of(module: ModuleType, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a benchmark at its smallest size; return the record that it saves."""
    monkeypatch.setattr("benchmarks.measuring.RESULTS", folder)
    module.main(["--smoke", "--save"])
    assert [path.name for path in folder.iterdir()] == [f"{name}.json"]
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["inputs"]["benchmark"] == name
    assert record["inputs"]["keep_freed_memory"] is True
    assert {"commit", "versions", "machine", "seconds"} <= record["provenance"].keys()
    return record


def test_generators(
    benchmark: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = benchmark("generators")
    rows = record_of(module, "generators", tmp_path, monkeypatch)["outputs"]["shapes_residual"]
    assert [row["method"] for row in rows] == module.METHODS
    table = capsys.readouterr().out
    assert all(f"{row['of_bare']:10.2f}" in table for row in rows)
    assert {row["method"] for row in rows if row["of_trained"]} == {"genie_d", "qimera"}


def test_transformers(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    module = benchmark("transformers")
    record = record_of(module, "transformers", tmp_path, monkeypatch)
    assert [cost["method"] for cost in record["outputs"]] == list(module.METHODS)
    assert all(cost["of_forward"]["lowest"] > 1 for cost in record["outputs"])  # each also passes the images
    assert list(speed.transformers_table(record).columns) == ["minutes", "times forward passes"]


def test_fine_tuning(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of the loop itself is measured; crops and rounding make it slower than the bare networks."""
    module = benchmark("fine_tuning")
    monkeypatch.setattr(module, "METHODS", ("intraq_qat", "genq_qat"))
    learn, steps = module._FineTuning._learn, []
    monkeypatch.setattr(module._FineTuning, "_learn", lambda *step: steps.append(learn(*step)))
    costs = record_of(module, "fine_tuning", tmp_path, monkeypatch)["outputs"]
    assert [cost["method"] for cost in costs] == ["intraq_qat", "genq_qat"]
    assert len(steps) == 2 * (1 + module.STEPS)
    assert all(cost["ratio"]["median"] > 1 for cost in costs)
    assert list(speed.fine_tuning_table({"outputs": costs}).index) == ["IntraQ, fine-tuned", "GenQ, fine-tuned"]


def test_reconstruction(
    benchmark: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The loop itself is measured: `learn` runs once for each sweep and round."""
    module = benchmark("reconstruction")
    calls = []
    monkeypatch.setattr(module, "learn", lambda *arguments, learn=module.learn: calls.append(learn(*arguments)))
    costs = record_of(module, "reconstruction", tmp_path, monkeypatch)["outputs"]
    sweeps = [("brecq", "weights"), ("brecq", "steps")]
    sweeps += [(method, "weights and steps") for method in ("qdrop", "genie_m")]
    assert [(cost["method"], cost["learned"]) for cost in costs] == sweeps
    assert len(calls) == len(sweeps)
    table = capsys.readouterr().out
    for cost in costs:
        assert cost["ratio"]["median"] == pytest.approx(cost["loop"] / cost["bare"])
        assert f"{cost['ratio']['median']:.2f}" in table


@pytest.mark.skipif(
    not (ROOT / "_build/tools/mct/bin/python").exists(), reason="needs the environment that `make bench` makes"
)
def test_hptq(
    benchmark: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both compute the same: with powers of 2, their errors are alike."""
    record = record_of(benchmark("hptq"), "hptq", tmp_path, monkeypatch)
    assert record["inputs"]["mct"]["model-compression-toolkit"] == "2.6.1"
    free, power_of_two = record["outputs"]
    assert (free["weight_thresholds"], power_of_two["weight_thresholds"]) == ("free", "power_of_two")
    assert power_of_two["ours_error"] == pytest.approx(power_of_two["mct_error"], rel=0.2)
    for result in record["outputs"]:
        for clock in ("processor", "wall"):
            took = [result[f"{who}_{clock}"]["median"] for who in ("ours", "mct", "faster")]
            assert took[2] == pytest.approx(took[1] / took[0])


def test_detectors(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cost,) = record_of(benchmark("detectors"), "detectors", tmp_path, monkeypatch)["outputs"]
    assert cost["generation"]["processor"] > cost["forward"]["processor"] > 0
    assert cost["quantized_layers"] == 98  # all convolutions of MobileNetV3 and of the head
    assert (cost["model"], cost["image_shape"]) == ("coco_ssdlite", [3, 64, 96])


def test_onnx_files(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = record_of(benchmark("onnx_files"), "onnx_files", tmp_path, monkeypatch)["outputs"]
    assert [(row["network"], row["weights"]) for row in rows] == [
        ("shapes_residual", "signed"),
        ("shapes_residual", "unsigned"),
    ]
    for row in rows:
        assert row["integers"] == {"QLinearConv": 20, "QGemm": 1, "QLinearAdd": 8}
        assert row["floats"] == 0
        assert row["of_float"]["lowest"] > 0


def test_a_spread_is_a_median_and_a_range(benchmark: Callable[[str], ModuleType]) -> None:
    spread = benchmark("measuring").Spread.of([3.0, 1.0, 2.0, 9.0, 2.5])
    assert (spread.median, spread.lowest, spread.highest) == (2.5, 1.0, 9.0)
    assert str(spread) == "2.50 (1.00 to 9.00)"


def test_a_run_without_kept_memory_gets_its_own_record(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = benchmark("measuring")
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    options = measuring.parser("").parse_args(["--save", "--default-allocator"])
    measuring.save(options, "some", {}, [], 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["some_default_allocator.json"]
    assert json.loads(next(tmp_path.iterdir()).read_text())["inputs"]["keep_freed_memory"] is False


def test_dgh_scale(
    benchmark: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs = record_of(benchmark("dgh_scale"), "dgh_scale", tmp_path, monkeypatch)["outputs"]
    assert [cost["batches"] for cost in outputs["steps"]] == [1, 2]
    assert all(memory["peak_mb"] > memory["values_mb"] > 0 for memory in outputs["memory"])


def test_dgh_device(
    benchmark: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command for a GPU runs on the CPU."""
    record = record_of(benchmark("dgh_device"), "dgh_device", tmp_path, monkeypatch)
    (result,) = record["outputs"]
    assert result["per_second"] == pytest.approx(record["inputs"]["num_images"] / result["seconds"])
    assert result["of_bare"] > 0


def test_times_fewer_uses_the_cheapest_set_of_equal_quality(benchmark: Callable[[str], ModuleType]) -> None:
    module, seconds = benchmark("dgh_quality"), benchmark("measuring").Seconds

    def made(by: str, processor: float, distance: float, top1: float) -> object:
        return module.Made(by=by, steps=1, seconds=seconds(processor, 0.0), distance=distance, top1=top1)

    sets = [made("MCT", 90, 0.2, 80), made("ours", 10, 0.3, 79), made("ours", 30, 0.2, 79), made("ours", 60, 0.1, 79)]
    assert module.times_fewer(sets, "distance") == 3
    assert module.times_fewer(sets, "top1") is None


def test_architectures(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("architectures")
    monkeypatch.setattr("benchmarks.measuring.RESULTS", tmp_path)
    monkeypatch.setattr(module, "DONE", tmp_path / "done")
    module.main(["--smoke", "--save"], run=module.outcome)
    (found,) = json.loads((tmp_path / "architectures.json").read_text())["outputs"]
    assert found["stages"] == list(module.STAGES)
    assert found["in_float"] == 0
    assert found["seconds"] > 0
    failed = module.Outcome("torchvision:net", 64, ("traced",), "ValueError: no", 0)
    assert module.counts([failed, module.Outcome(**found)])["traced"] == 2
    assert not module.outcome("torchvision:vit_b_16").batch_norm


def test_a_killed_sweep_continues_and_tries_failures_again_on_demand(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, tried = benchmark("architectures"), []
    monkeypatch.setattr(module, "code_version", lambda: {"commit": "c", "modified": False})

    def run(name: str) -> object:
        tried.append(name)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return module.Outcome(name, 64, ("traced",), "no" if len(tried) == 3 else "", 0)

    with pytest.raises(KeyboardInterrupt):
        module.sweep(["a", "b", "c"], run, tmp_path / "kept")
    found = module.sweep(["a", "b", "c"], run, tmp_path / "kept")
    assert "".join(tried) == "abbc"
    assert [(each.name, each.failure, each.commit) for each in found] == [
        ("a", "", "c"),
        ("b", "no", "c"),
        ("c", "", "c"),
    ]
    assert not any(each.failed for each in module.sweep(["a", "b", "c"], run, tmp_path / "kept", again=True))
    assert "".join(tried) == "abbcb"
    monkeypatch.setattr(module, "code_version", lambda: {"commit": "c", "modified": True})
    for _ in range(2):
        module.sweep(["d"], run, tmp_path / "kept")
    assert "".join(tried) == "abbcbdd"


def test_chance(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = record_of(benchmark("chance"), "chance", tmp_path, monkeypatch)["outputs"]
    assert [row["differs"] for row in rows] == 2 * ["", "last bits", "older kernels"]
    assert len({row["run"] for row in rows}) == 2
    assert not chance.table({"outputs": rows}).empty
    assert torch.get_num_threads() == 1


def test_a_process_has_older_kernels(benchmark: Callable[[str], ModuleType]) -> None:
    with benchmark("chance").older_kernels() as process:
        assert process.submit(torch.backends.cpu.get_cpu_capability).result() == "DEFAULT"


def test_other_processors_are_recognised(benchmark: Callable[[str], ModuleType]) -> None:
    other = benchmark("chance").other_processor
    here = "Linux x86_64, AMD EPYC (cpu family 25, model 1), AVX2, 1 threads"
    assert other("Linux x86_64, AMD EPYC (cpu family 25, model 17), AVX512, 1 threads", here)
    assert not other(here.replace("1 threads", "2 threads"), here)
    assert not other("Linux x86_64, x86_64, 1 threads", here), "it can be the same processor"


def test_moved_images_differ_only_in_their_last_bits() -> None:
    images = torch.ones(1000)
    away = (importlib.import_module("benchmarks.chance").moved(images, 1e-7) - images).abs()
    assert 0 < away.max() < 1e-6
