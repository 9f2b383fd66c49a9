"""The rules of CONTRIBUTING.md on imports, docstrings and repeated code."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from house import FLOOR_OF, FLOORS, FOR_ALL, LIBRARY, PACKAGE, drawing, imports_of, table

from dghlib.generators import GENERATORS
from dghlib.quantizers import QUANTIZERS

MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def forbidden_imports(room: str, source: str) -> list[str]:
    """Return the imports that a module of `room` may not make.

    It may import its own room and lower floors.
    """
    forbidden = []
    for module, name in imports_of(source):
        top, *inner = f"{module}.{name}".split(".")
        if top == "dghlib" and (module, name) not in FOR_ALL:
            floor = FLOOR_OF.get(inner[0], len(FLOORS))
            if inner[0] != room and floor >= FLOOR_OF[room]:
                forbidden.append(f"from {module} import {name}")
        elif top == "":
            forbidden.append(f"relative import: from {module} import {name}")
    return forbidden


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_modules_import_only_lower_floors(module: str) -> None:
    room = Path(module).with_suffix("").parts[0]
    assert room in FLOOR_OF, "a new room needs a floor in FLOORS"
    assert forbidden_imports(room, (PACKAGE / module).read_text()) == []


def test_the_package_init_imports_only_the_lowest_floors() -> None:
    source = (PACKAGE / "__init__.py").read_text()
    assert {pair for pair in imports_of(source) if pair[0].startswith("dghlib")} <= FOR_ALL


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("generators", "from dghlib import datasets"),
        ("models", "from dghlib.generators import dgh"),
        ("quantizers", "def f():\n    import dghlib.generators.dgh"),
        ("evaluation", "from dghlib.experiments.run import Workshop"),
        ("export", "from dghlib import experiments"),
        ("running", "from dghlib.models.classifiers import BasicBlock"),
        ("seeds", "from dghlib.running.batchnorm import moments"),
        ("experiments", "from dghlib.cli import main"),
        ("experiments", "from dghlib.plans import methods"),
        ("plans", "from dghlib.showing.tables import summary"),
        ("storage", "from dghlib.images import normalise"),
        ("models", "from dghlib import __version__"),
        ("models", "from . import float_model"),
        ("models", "from .float_model import FloatModel"),
    ],
)
def test_an_import_of_a_higher_floor_is_noticed(room: str, source: str) -> None:
    assert len(forbidden_imports(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("images", "from dghlib.storage.records import write_atomically"),
        ("quantizers", "from dghlib.models import FloatModel\nfrom dghlib.models.float_model import FloatModel"),
        ("quantizers", "from dghlib.quantizers.grid import Grid\nfrom dghlib import seeds\nimport torch"),
        ("cli", "from dghlib import experiments, models"),
    ],
)
def test_an_import_of_a_lower_floor_is_allowed(room: str, source: str) -> None:
    assert forbidden_imports(room, source) == []


@pytest.mark.parametrize("form", [drawing, table])
def test_the_house_in_contributing_matches_the_imports(form: Callable[[], str]) -> None:
    assert form() in (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"), "python tests/house.py"


BOOK_PACKAGES = {"IPython", "jupyter_client", "matplotlib", "nbclient", "nbformat", "pandas", "papermill", "scipy"}
BOOK_PACKAGES |= {"altair", "vl_convert", "seaborn", "sklearn", "yaml", "distributed"}


@pytest.mark.parametrize(
    "module", [each for each in MODULES if Path(each).with_suffix("").parts[0] in sum(LIBRARY, ())]
)
def test_the_library_needs_none_of_the_books_packages(module: str) -> None:
    used = {name.split(".")[0] for name, _ in imports_of((PACKAGE / module).read_text(encoding="utf-8"))}
    assert used.isdisjoint(BOOK_PACKAGES)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text()))


@pytest.mark.parametrize("name", [*GENERATORS, *QUANTIZERS])
def test_every_method_names_its_source_and_its_differences(name: str) -> None:
    text = (GENERATORS | QUANTIZERS)[name].__doc__ or ""
    assert "Source:" in text
    assert "Differences" in text


LONGEST_REPETITION = 10


def lines_that_count(path: Path) -> list[tuple[str, int]]:
    """Return the lines of a module and their numbers, without blank lines, comments, imports and lone brackets."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    passed_over = ("#", "from ", "import ")
    return [
        (line, number)
        for number, line in enumerate(lines, start=1)
        if re.search(r"\w", line) and not line.startswith(passed_over)
    ]


def test_no_long_run_of_lines_occurs_twice() -> None:
    places: dict[tuple[str, ...], str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = lines_that_count(path)
        for start in range(len(lines) - LONGEST_REPETITION):
            run = lines[start : start + LONGEST_REPETITION + 1]
            place = f"{path.relative_to(PACKAGE)}:{run[0][1]}"
            other = places.setdefault(tuple(line for line, _ in run), place)
            assert other == place, f"{place} repeats more than {LONGEST_REPETITION} lines of {other}: write them once"
