"""Every notebook runs at the smallest budget; its cells are executed in this process, without a kernel."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from dghlib.bookmaking.notebooks import parameters_of
from dghlib.experiments.experiment import Experiment
from dghlib.experiments.run import RESULTS_VARIABLE, Workshop
from dghlib.quantizers.starting import LearningSettings
from dghlib.showing import readings

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SAID = re.compile(r"\{glue:text\}`(\w+)`")
SMALLEST = {"budget": "smoke", "networks": 1, "num_images": 8, "seeds": 1, "iterations": 5}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of records and images for all notebooks, so that each is computed once."""
    return tmp_path_factory.mktemp("notebooks") / "results"


@pytest.fixture(autouse=True)
def nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantizers that learn have their own tests; here, their results are invented."""
    compute = Workshop._tested

    def outputs(self: Workshop, experiment: Experiment, wait: bool) -> dict[str, Any]:
        if isinstance(experiment.quantizer_config, LearningSettings):
            return {"top1": 50.0, "map": 30.0, "generation_seconds": 1.0, "quantization_seconds": 1.0}
        return compute(self, experiment, wait)

    monkeypatch.setattr(Workshop, "_tested", outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_profile_of_a_book_suits_every_notebook_that_takes_it(path: Path) -> None:
    """`make book` passes its profile on; a page about other networks names its parameter differently."""
    profile = parameters_of(path).get("profile")
    assert profile is None or profile.default == "shapes"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESULTS_VARIABLE, str(results))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    said: dict[str, str] = {}
    monkeypatch.setattr(readings, "glue", lambda name, text, display: said.update({name: text}))
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, path.name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= {name: value for name, value in SMALLEST.items() if name in parameters_of(path)}
    asked = {name for cell in cells if cell.cell_type == "markdown" for name in SAID.findall(cell.source)}
    assert asked <= said.keys(), "numbers in sentences that no cell computes"
