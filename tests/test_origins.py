"""Notebooks that need not be executed again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dghlib.bookmaking import book, origins
from dghlib.bookmaking.notebooks import NotebookError
from dghlib.experiments.run import RESULTS_VARIABLE


class Clone:
    """A clone with 2 notebooks; `build` returns the names of those that it executes."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.broken, self.stopped_at, self.executed = root, "", "", list[str]()
        self.meanwhile: Callable[[], object] = lambda: None  # called while a notebook is executed
        self.notebooks = [root / "notebooks" / name for name in ("a.ipynb", "b.ipynb")]
        self.results = root / "_build" / "results"
        self.results.mkdir(parents=True)
        (root / "notebooks").mkdir()
        for notebook in self.notebooks:
            self.write(notebook, "1 + 1")
        monkeypatch.setenv(RESULTS_VARIABLE, str(self.results))
        monkeypatch.setattr(book, "run_notebook", self.run_notebook)

    def write(self, notebook: Path, cell: str) -> None:
        parameters = new_code_cell('profile: str = "shapes"  # data', metadata={"tags": ["parameters"]})
        cells = [parameters, new_code_cell(cell)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), notebook)

    def run_notebook(self, notebook: Path, parameters: dict[str, object], output: Path, *, progress: bool) -> None:
        self.executed.append(notebook.stem)
        if notebook.stem == self.broken:
            raise NotebookError("broken", output)
        if notebook.stem == self.stopped_at:
            raise KeyboardInterrupt
        output.parent.mkdir(exist_ok=True)
        shutil.copy(notebook, output)
        self.meanwhile()

    def build(self, **parameters: object) -> list[str]:
        self.executed = []
        book._run_notebooks(self.notebooks, parameters, self.root / "_build" / "executed", progress=False)
        return self.executed


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return Clone(tmp_path, monkeypatch)


def test_unchanged_notebooks_are_not_executed_again(clone: Clone) -> None:
    assert clone.build() == ["a", "b"]
    assert clone.build() == []


def test_a_changed_notebook_is_executed(clone: Clone) -> None:
    clone.build()
    clone.write(clone.notebooks[1], "2 + 2")
    assert clone.build() == ["b"]
    assert clone.build(profile="cifar10") == ["a", "b"]


def test_new_records_make_all_notebooks_run_again(clone: Clone) -> None:
    clone.build()
    (clone.results / "0123.json").write_text("{}")
    assert clone.build() == ["a", "b"]


def test_a_changed_record_makes_all_notebooks_run_again(clone: Clone) -> None:
    record = clone.results / "0123.json"
    record.write_text('{"top1": 1}')
    clone.build()
    record.write_text('{"top1": 2}')
    assert clone.build() == ["a", "b"]


def test_records_made_during_a_build_make_no_notebook_run_again(clone: Clone) -> None:
    clone.meanwhile = (clone.results / "0123.json").touch
    assert clone.build() == ["a", "b"]
    assert clone.build() == []


@pytest.mark.parametrize(
    "edited", ["notebooks/a.ipynb", "requirements.lock", "dghlib/run.py", "published/shapes/0123.json"]
)
def test_a_notebook_edited_during_a_build_is_executed_again(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    monkeypatch.setattr(origins, "PACKAGE", clone.root / "dghlib")
    monkeypatch.setattr(origins, "PUBLISHED", clone.root / "published")

    def edit() -> None:
        path = clone.root / edited
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(" ")

    clone.meanwhile = edit
    clone.build()
    clone.meanwhile = lambda: None
    assert clone.build() == (["a"] if edited.startswith("notebooks") else ["a", "b"])
    assert clone.build() == []


def test_pages_of_a_stopped_build_are_executed_again(clone: Clone) -> None:
    clone.build()
    clone.stopped_at = "b"
    with pytest.raises(KeyboardInterrupt):
        clone.build(profile="cifar10")
    clone.stopped_at = ""
    assert clone.build() == ["a", "b"]


def test_failed_and_lost_pages_are_executed_again(clone: Clone) -> None:
    clone.broken = "a"
    assert clone.build() == ["a", "b"]
    assert clone.build() == ["a"]
    clone.broken = ""
    assert clone.build() == ["a"]
    (clone.root / "_build" / "executed" / "b.ipynb").unlink()
    assert clone.build() == ["b"]
