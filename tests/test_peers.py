"""Other people's tools: questions and answers, facts about their copies, and the tables of pages."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dghlib.showing import peers, readings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A record at the smallest size; onnxruntime, which is installed here, stands for all tools; NNCF is missing."""
    folder = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT))
        module, tools = (importlib.import_module(f"benchmarks.{name}") for name in ("peers", "tools"))
        patched.setattr(tools, "python_of", lambda name: Path(sys.executable))
        patched.setattr("benchmarks.measuring.RESULTS", folder)
        patched.setenv("DGHLIB_RESULTS", str(folder / "runs"))
        patched.setattr(module, "REAL", "noise")
        patched.setattr(module, "OUR_METHODS", ("hptq",))
        patched.setattr(module, "WIDTHS", ((8, 8), (4, 8)))
        module.main(["--smoke", "--save", "--tools", "onnxruntime", "nncf"])
        yield json.loads((folder / "peers_shapes_residual_noise.json").read_text())


def test_a_tool_makes_copies_in_its_own_process(record: dict[str, Any]) -> None:
    made = {(each["tool"], each["weight_bits"]): each for each in record["outputs"]["copies"]}
    assert record["inputs"]["tools"].keys() == {"onnxruntime"}
    for who in ("dghlib", "onnxruntime"):
        assert made[who, 8]["file"]["four_bits"] == 0
        assert made[who, 4]["file"]["four_bits"] >= 21  # one weight per layer
        for bits in (8, 4):
            copy = made[who, bits]
            assert copy["file"]["top1"] == pytest.approx(copy["top1"], abs=4)  # of 96 images
            assert copy["seconds"]["processor"] > 0
            assert copy["failure"] == ""
    assert made["dghlib", 4]["file"]["kilobytes"] < 0.7 * made["dghlib", 8]["file"]["kilobytes"]
    assert "process ended" in made["nncf", 8]["failure"]
    assert made["nncf", 8]["top1"] is None


def test_a_tool_reports_what_it_cannot_do(record: dict[str, Any]) -> None:
    module, tools = (importlib.import_module(f"benchmarks.{name}") for name in ("peers", "tools"))
    of = module.subject("shapes_residual", "noise", module.budget_of("shapes", "smoke"))
    with tools.tool("onnxruntime", module.traced(of.model), of.images["noise"], test=of.test) as asked:
        with pytest.raises(tools.ToolFailed, match="KeyError"):
            asked.ask(do="something")
        with pytest.raises(tools.ToolFailed, match=r"net\.onnx"):  # it continues; this file was not sent
            asked.ask(do="copy", method="static", weight_bits=8, activation_bits=8, iterations=1)
    with (
        pytest.raises(tools.ToolFailed, match="took too long"),
        tools.tool("onnxruntime", module.traced(of.model), limit=0.01) as late,
    ):
        late.ask(do="copy", method="static", weight_bits=8, activation_bits=8, iterations=1)


def test_only_marked_lines_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.peers")
    (tmp_path / "worker.py").write_text("a\n# what a user writes\nb\n\n  # said\n  c(\n  )\n# until here\nd\n")
    assert module.lines_of(tmp_path / "worker.py") == 3
    assert all(count > 3 for count in module.lines().values())


# Tables of pages


def copy(tool: str, top1: float | None, seconds: float | None = None, **more: Any) -> dict[str, Any]:
    method = {"dghlib": "hptq", "mct": "gptq"}.get(tool, "ptq")
    took = {"seconds": {"processor": seconds, "wall": 0.0} if seconds else None}
    fields = {"source": "real", "weight_bits": 4, "activation_bits": 8, "file": None, "failure": ""}
    return {"tool": tool, "method": method, "top1": top1, **took, **fields, **more}


def file(top1: float | None, four_bits: int) -> dict[str, Any]:
    return {"kilobytes": 1, "four_bits": four_bits, "top1": top1, "failure": ""}


def found(*copies: dict[str, Any], model: str = "shapes_residual") -> dict[str, Any]:
    inputs = {"model": model, "tools": {"mct": {"torch": "2"}}}
    return {"inputs": inputs, "outputs": {"float": 90.0, "lines": {"dghlib": 4, "mct": 9}, "copies": list(copies)}}


RECORDS = [
    found(
        copy("dghlib", 80.0, 2.0, file=file(79.0, 5)),
        copy("dghlib", 84.0, 8.0, method="brecq"),
        copy("mct", 83.8, 40.0, file=file(None, 0)),
        copy("quark", None),
    ),
    found(copy("dghlib", 70.0, 1.0), copy("mct", 71.0, 30.0), model="cifar10_resnet20"),
]


def test_accuracies_are_listed_by_tool_and_network() -> None:
    table = peers.accuracy(RECORDS)
    assert table.columns.tolist() == [("residual", "W4A8"), ("resnet20", "W4A8")]
    assert table.loc[("Real data", "dghlib", "HPTQ")].tolist() == ["80.0", "70.0"]
    assert table.loc[("Real data", "Model Compression Toolkit", "gradient PTQ")].tolist() == ["83.8", "71.0"]
    assert table.loc[("Real data", "Quark", "ranges")].tolist() == ["", ""]
    assert table.loc[("Float", "", "")].tolist() == ["90.0", "90.0"]
    assert peers.seconds(RECORDS).loc[("Real data", "dghlib", "BRECQ")].tolist() == ["8.0", ""]


def test_tables_of_files_show_whether_they_run_and_store_four_bits() -> None:
    table = peers.files(RECORDS)
    assert table.loc["dghlib", "lines"] == 4
    assert table.loc["dghlib", "files W4A8"] == "1 of 1 run, in 4 bits; 1.0 points away"
    assert table.loc["Model Compression Toolkit", "files W4A8"] == "0 of 1 run"
    assert table.loc["Quark", "files W4A8"] == "cannot"


def test_our_methods_are_compared_with_each_tool_and_with_the_best() -> None:
    gaps = peers.above(RECORDS, "mct", "W4A8")
    assert gaps.tolist() == pytest.approx([0.2, -1.0])
    assert readings.above(peers.above(RECORDS, "any", "W4A8")) == "-1.0 to +0.2"
    assert peers.above(RECORDS, "quark", "W4A8").empty
    assert peers.time_of_level(RECORDS, "W4A8").tolist() == [pytest.approx(8 / 40)]  # HPTQ does not equal the best


def test_without_records_a_page_says_so() -> None:
    for table in (peers.accuracy([]), peers.seconds([]), peers.files([]), peers.versions([])):
        assert isinstance(table, pd.DataFrame)
    assert readings.above(peers.above([], "mct", "W4A8")) == readings.NOT_RECORDED
    assert readings.between(peers.time_of_level([], "W4A8")) == readings.NOT_RECORDED
