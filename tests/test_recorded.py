"""The book from records alone: nothing is computed, missing records are named, and all else is shown."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dghlib.bookmaking import book
from dghlib.bookmaking.notebooks import NotebookError, run_notebook
from dghlib.experiments import run
from dghlib.experiments.recorded import RECORDED_VARIABLE, NotRecorded
from dghlib.plans import methods
from dghlib.storage.records import fingerprint, write_json


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Turn the mode on, with an empty folder of records; return the list of what pages show."""
    displayed: list[Any] = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    monkeypatch.setattr(run, "PUBLISHED", tmp_path)
    monkeypatch.setenv(RECORDED_VARIABLE, "1")
    return displayed


def test_existing_records_are_found_and_missing_ones_named(shown: list[Any], tmp_path: Path) -> None:
    experiments = methods.table2("shapes", "smoke", models=["shapes_residual"], sources=["noise"], seeds=1)
    record = {"inputs": run.inputs_of(experiments[1]), "outputs": {"top1": 12.0}, "provenance": {}}
    write_json(tmp_path / "shapes" / f"{fingerprint(record['inputs'])}.json", record)
    assert run.run(experiments) == [record]
    assert f"3 of {len(experiments)} runs have no record" in shown[0].data
    assert f"<li>{experiments[2].title}</li>" in shown[0].data


def test_records_of_float_networks_alone_are_no_results(shown: list[Any], tmp_path: Path) -> None:
    experiments = methods.table2("shapes", "smoke", models=["shapes_residual"], sources=["noise"], seeds=1)
    record = {"inputs": run.inputs_of(experiments[0]), "outputs": {"top1": 12.0}, "provenance": {}}
    write_json(tmp_path / "shapes" / f"{fingerprint(record['inputs'])}.json", record)
    assert run.run(experiments) == []


def test_no_network_is_loaded(shown: list[Any]) -> None:
    with pytest.raises(NotRecorded, match="shapes_residual is not loaded"):
        run.load_model("shapes_residual")


def notebook_of(path: Path, *cells: str) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    links = new_markdown_cell("[Gone](gone.csv), [here](here.csv), [this too](too.svg)")
    notebook = new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [new_markdown_cell("# A page"), *(new_code_cell(cell) for cell in cells), links]
    nbformat.write(notebook, path)
    return path


STOPS = "class NotRecorded(RuntimeError): ...\nraise NotRecorded('no network')"


def test_a_cell_that_would_compute_is_marked_and_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RECORDED_VARIABLE, "1")
    begun = "from IPython.display import SVG, display\ndisplay(SVG('<svg></svg>'))"  # like a figure without content
    cells = ["open('here.csv', 'w').close()", f"print('before')\n{begun}\n{STOPS}", "figure", "print('after')"]
    run_notebook(notebook_of(tmp_path / "in.ipynb", *cells), {}, tmp_path / "out" / "a.ipynb", progress=False)
    page = nbformat.read(tmp_path / "out" / "a.ipynb", as_version=4)
    first, needs_it, after = page.cells[2].outputs, page.cells[3].outputs, page.cells[4].outputs
    assert [output.get("text") for output in first] == ["before\n", None]
    assert "<code>make book</code> computes it" in first[1].data["text/html"]
    assert needs_it == []
    assert after[0].text == "after\n"
    *_, prose, foot_line = page.cells
    assert prose.source == "Gone (not made), [here](here.csv), this too (not made)"
    assert "page: made from records alone" in foot_line.source


def test_other_errors_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RECORDED_VARIABLE, "1")
    notebook = notebook_of(tmp_path / "in.ipynb", STOPS, "1 / 0")
    with pytest.raises(NotebookError, match="ZeroDivisionError"):
        run_notebook(notebook, {}, tmp_path / "out" / "a.ipynb", progress=False)


def test_chapters_are_built_without_missing_files_of_notebooks(tmp_path: Path) -> None:
    (tmp_path / "cost_dgh.csv").write_text("seconds\n1\n")
    there = "```{csv-table} Cost, on the machine of {doc}`../notebooks/sources`\n:file: ../notebooks/cost_dgh.csv\n```"
    gone = "```{figure} ../notebooks/images_dgh.png\n:alt: images\n```"
    gone_from_front = gone.replace("../", "").replace("dgh", "zeroq")
    code = "```{literalinclude} ../dgh.py\n```"
    text = book._without_dead_figures("\n".join([there, gone, gone_from_front, code]), tmp_path)
    assert text.startswith(there)
    assert text.endswith(code)
    assert "images_" not in text
    assert text.count("<code>make book</code>") == 2
