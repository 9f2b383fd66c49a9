"""The files around the library are consistent with each other and with the library."""

import ast
import csv
import importlib
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from torch import nn

import dghlib
from dghlib.bookmaking.book import notebook_names
from dghlib.bookmaking.holdings import held
from dghlib.bookmaking.notebooks import parameters_of
from dghlib.cli import app
from dghlib.experiments import run
from dghlib.export import OnnxNetwork
from dghlib.generators import GENERATORS
from dghlib.models import MODELS
from dghlib.plans import methods
from dghlib.quantizers import QUANTIZERS
from dghlib.showing import image_figures, tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def requirements() -> list[Requirement]:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    listed = PYPROJECT["project"]["dependencies"] + [line for extra in extras for line in extra]
    return [Requirement(line) for line in listed]


def locked_versions() -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", LOCK, flags=re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


def test_the_lock_satisfies_pyproject() -> None:
    versions = locked_versions()
    for requirement in requirements():
        found = versions.get(canonicalize_name(requirement.name))
        assert found, f"{requirement.name} is not in requirements.lock: make lock"
        assert all(version in requirement.specifier for version in found), f"{requirement}: {found}; make lock"


def test_the_lock_has_a_hash_for_every_package_and_names_no_host() -> None:
    assert "://" not in LOCK
    packages = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) > 100
    assert [package.splitlines()[0] for package in packages if "--hash=sha256:" not in package] == []


def test_every_import_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    distributions = packages_distributions()
    imported = {name for path in (ROOT / "dghlib").rglob("*.py") for name in imports(path.read_text())}
    for name in imported - set(sys.stdlib_module_names) - {"dghlib"}:
        owners = {canonicalize_name(owner) for owner in distributions[name]}
        assert owners & declared, f"{name} comes from {owners}, which pyproject.toml does not list"


def imports(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


def test_conda_installs_the_lock() -> None:
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(item for item in packages if str(item).startswith("python="))
    assert python.removeprefix("python=") in PYPROJECT["project"]["requires-python"]
    assert packages[-1] == {"pip": ["--requirement requirements.lock"]}


def test_the_citation_has_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PYPROJECT["project"]["version"] == dghlib.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_make_alone_lists_every_target() -> None:
    listing = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    described = set(re.findall(r"^  ([a-z]+) +\w", listing, flags=re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (.*)", MAKEFILE, flags=re.MULTILINE)[0].split())
    assert described == TARGETS == phony


def test_the_readmes_table_matches_the_records() -> None:
    lines = [line.split("|")[2:-1] for line in README.splitlines() if re.match(r"\|.*\|( \d+\.\d \|){6}$", line)]
    printed = [[float(number) for number in line] for line in lines]
    table = tables.accuracy(run.published(held("table2", "shapes")), bits=["W8A8", "W4A4"])
    table = table.drop(index=list(tables.FEET))
    assert len(printed) == len(table) == 7
    for line, row in zip(printed, table.itertuples(index=False), strict=True):
        assert line == [pytest.approx(float(mean.split()[0]), abs=0.051) for mean in row]


def test_the_readmes_table_of_imagenet_matches_the_records() -> None:
    lines = [line.split("|")[2:-1] for line in README.splitlines() if re.match(r"\|[^|]*\|( \d+\.\d \|){3}$", line)]
    printed = [[float(number) for number in line] for line in lines]
    shown = [each for each in held("table2", "imagenet_lite") if each.model == "imagenet_efficientnet_lite0_128"]
    table = tables.accuracy(run.published(shown)).drop(index=list(tables.FEET))
    assert len(printed) == len(table) >= 6
    for line, row in zip(printed, table.itertuples(index=False), strict=True):
        assert line == [pytest.approx(float(mean.split()[0]), abs=0.051) for mean in row]


def test_the_readmes_figures_match_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image_figures.save_strips(run.published(held("gallery", "shapes")))
    shown = re.findall(r'src="(book/_static/(images_\w+\.png))"', README)
    assert len(shown) == 4
    for path, name in shown:
        with Image.open(ROOT / path) as committed, Image.open(tmp_path / name) as recorded:
            assert committed.tobytes() == recorded.tobytes(), path


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "book/index.md", ".ci/run"])
def test_documents_name_existing_make_targets(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = re.findall(r"(?:^|`|\$ |exec )make ([a-z ]+)", text, flags=re.MULTILINE)
    named = {target for command in commands for target in command.split()}
    assert named
    assert named <= TARGETS


def test_continuous_integration_is_one_script() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github").rglob("*.yml")}
    steps = workflows["test"]["jobs"]["test"]["steps"]
    assert {"run": ".ci/run"} in steps
    assert any("make book" in step.get("run", "") for step in workflows["book"]["jobs"]["build"]["steps"])


def test_the_book_lists_every_notebook_and_chapter() -> None:
    assert sorted(notebook_names(ROOT / "book" / "_toc.yml")) == [path.stem for path in NOTEBOOKS]
    toc = (ROOT / "book" / "_toc.yml").read_text()
    for chapter in (ROOT / "book").rglob("*.md"):
        name = chapter.relative_to(ROOT / "book").with_suffix("")
        assert re.search(rf"(file|root): {name}$", toc, flags=re.MULTILINE), chapter


def test_no_line_of_a_chapter_starts_with_a_percent_sign() -> None:
    """MyST reads such a line as a comment, even in the middle of a paragraph."""
    for chapter in (ROOT / "book").rglob("*.md"):
        assert re.findall(r"^%.*", chapter.read_text(encoding="utf-8"), flags=re.MULTILINE) == [], chapter.name


def test_every_method_is_in_the_book() -> None:
    """Each generator has a chapter with images, and each method has an entry in the pages of the library."""
    images, quantizers = ((ROOT / "book" / "library" / f"{name}.md").read_text() for name in ("images", "quantizers"))
    assert [name for name in GENERATORS if f"dghlib.generators.{name}.generate" not in images] == []
    assert [name for name in QUANTIZERS if f"dghlib.quantizers.{name}.quantize" not in quantizers] == []
    pages = {path.stem for path in (ROOT / "book" / "methods").glob("*.md")}
    assert {name for name in GENERATORS if name not in ("dgh", "noise")} == pages


def test_pages_show_committed_records_at_any_budget_of_the_book() -> None:
    """They use parameters such as `recorded` to find them, since the book's budget replaces `budget`."""
    for path in NOTEBOOKS:
        for plan in re.findall(r"run\.published\((.*)\)", path.read_text(encoding="utf-8")):
            budgets = [name for name in parameters_of(path) if name.startswith("recorded")]
            assert any(name in plan for name in budgets), path.name
    for profile in ("cifar10", "tiny_imagenet"):
        wanted = methods.table2(profile, "standard", seeds=1)
        assert len(run.published(wanted)) == len(wanted)


def test_pages_that_compute_a_sample_compare_it_with_published_records() -> None:
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert ("beside(" in text) == (re.search(r"again\.\w+\(computed", text) is not None), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_thin_and_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source.startswith("# ")
    assert len(code) <= 8
    assert all(len(cell.source.splitlines()) <= 12 for cell in code)
    assert {name for cell in code for name in imports(cell.source)} <= {"dghlib", "myst_nb"}
    assert not any(re.search(r"\d\.\d", cell.source) for cell in prose), "a number typed by hand"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_explain_their_parameters(path: Path) -> None:
    parameters = parameters_of(path)
    text = path.read_text(encoding="utf-8")
    whatever_there_is = ("leaderboard.all_records", "speed.benchmark", "peers.records")
    if not any(each in text for each in whatever_there_is):
        assert parameters.keys() & {"budget", "recorded"}
    assert all(parameter.help for parameter in parameters.values())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_link_the_files_that_they_save(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    figures = re.findall(r'save="(\w+)"', code)
    links = re.findall(r"\((\w+\.(?:svg|csv))\)", prose)
    wanted = {f"{name}.csv" for name in figures} | set(re.findall(r'"(\w+\.csv)"', code))
    assert wanted <= set(links)
    tables_alone = {"unit_costs", "genq_table1", "sources_cost"}
    assert {link for link in links if link.endswith(".svg")} == {f"{name}.svg" for name in {*figures} - tables_alone}


@pytest.mark.parametrize("name", ["datasets", "evaluation", "export", "models", "quantizers"])
def test_the_api_pages_list_all_public_names(name: str) -> None:
    room = importlib.import_module(f"dghlib.{name}")
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "book/library").glob("*.md"))
    public = {name for name in room.__all__ if callable(getattr(room, name))}
    assert public <= set(re.findall(r"auto(?:class|function|exception):: dghlib[\w.]*\.(\w+)", pages))


@pytest.mark.parametrize("path", sorted((ROOT / "dghlib/showing/paper").glob("*.csv")), ids=lambda p: p.stem)
def test_the_papers_numbers_are_complete(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = {(row["method"], row["network"], row["setting"]) for row in rows}
    assert len(keys) == len(rows)
    for row in rows:
        assert 0 < float(row["mean"]) < 100 or "minutes" in row["setting"]
        assert row["spread"] == "" or 0 <= float(row["spread"]) < 10
        in_text = r"|(DGH|IntraQ) \w+, |as [\w -]+ prints? it"
        assert re.match(rf"(DGH|GENIE|IntraQ supplement|GenQ|SynQ) Table {in_text}", row["source"])


def test_the_readme_tree_matches_the_files() -> None:
    (tree,) = fenced(README, "text")
    listed = paths_of(tree)
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert missing == [], "named in the README, but not there"
    rooms = {str(path.relative_to(ROOT)) for path in (ROOT / "dghlib").glob("*.py")} - {"dghlib/__init__.py"}
    rooms |= {str(path.parent.relative_to(ROOT)) for path in (ROOT / "dghlib").glob("*/__init__.py")}
    assert rooms - {path.rstrip("/") for path in listed} == set(), "there, but not named in the README"


def paths_of(tree: str) -> list[str]:
    """Return the paths in an indented listing: folders end with /, and text follows after 2 blanks."""
    folders: list[str] = []
    paths = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"  +", line.strip())[0].split(", ")
        folders = folders[:depth]
        paths += ["".join(folders) + name for name in names]
        if names[0].endswith("/"):
            folders.append(names[0])
    return paths


def test_the_readme_commands_are_valid() -> None:
    commands = [line.split()[1:] for line in README.splitlines() if line.startswith("dgh ")]
    assert len(commands) >= 3
    for command in commands:
        _, bound, _ = app.parse_args(command, exit_on_error=False, print_error=False)
        assert bound.args[0] in MODELS


def test_the_readme_example_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, below_8_bits = fenced(README, "python")
    assert len([line for line in example.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()
    namespace: dict[str, Any] = {"net": net}
    exec(compile(example, "README.md", "exec"), namespace)
    assert re.fullmatch(r"on \d+ % of the images both find the same class\n", capsys.readouterr().out)
    unseen = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        expected, found = namespace["quantized"](unseen), OnnxNetwork(tmp_path / "mine.onnx")(unseen)
    assert found.shape == (7, 5)
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    exec(compile(below_8_bits, "README.md", "exec"), namespace)
    assert {each.bits for each in namespace["quantized"].weight_quantizers().values()} == {4}


def test_values_for_make_are_passed_as_plain_text(tmp_path: Path) -> None:
    """Recipes run in a shell, and make expands texts that look like its functions."""
    (tmp_path / "dgh").write_text(f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:], sep='|')\n")
    (tmp_path / "dgh").chmod(0o755)
    for name in ("requirements.lock", "pyproject.toml", "ready"):
        (tmp_path / name).touch()
    tricks = "x=1; touch a `touch a` $(touch a) $(shell touch a) \" ' $$HOME"
    given = [f"NB={tricks}", f"P={tricks}", f"PROFILE={tricks}"]
    for target in ("notebook", "data", "results"):
        command = ["make", "-f", str(ROOT / "Makefile"), target, f"BIN={tmp_path}", f"READY={tmp_path}/ready", *given]
        printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert printed.count(tricks) == (2 if target == "notebook" else 1)
    assert not (tmp_path / "a").exists()
