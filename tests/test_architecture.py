"""The house stands straight: who imports whom, and what every module says of itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dghlib
from dghlib.generators import GENERATORS
from dghlib.quantizers import QUANTIZERS

FLOORS = (
    (
        "allocator",
        "assets",
        "checkpoints",
        "choices",
        "copies",
        "hooks",
        "images",
        "large_sets",
        "processes",
        "records",
        "seeds",
        "stems",
        "winograd",
    ),
    ("batchnorm",),
    ("models", "datasets", "generators", "quantizers", "evaluation"),
    ("export",),
    ("experiments",),
    ("commands",),
    ("cli",),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FOR_ALL = {("dghlib.models", "FloatModel"), ("dghlib.models.float_model", "FloatModel")}

PACKAGE = Path(dghlib.__file__).parent
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def imports_of(source: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import in the source; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def forbidden_imports(room: str, source: str) -> list[str]:
    """Return the imports that a module of `room` may not make.

    It may import its own room and lower floors; the tools of the ground floor may also use each other.
    """
    forbidden = []
    for module, name in imports_of(source):
        top, *inner = f"{module}.{name}".split(".")
        if top == "dghlib" and (module, name) not in FOR_ALL:
            floor = FLOOR_OF.get(inner[0], len(FLOORS))
            if inner[0] != room and floor >= max(FLOOR_OF[room], 1):
                forbidden.append(f"from {module} import {name}")
        elif top == "":
            forbidden.append(f"relative import: from {module} import {name}")
    return forbidden


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_imports_go_down(module: str) -> None:
    room = Path(module).with_suffix("").parts[0]
    assert room in FLOOR_OF, "a new room needs a floor in FLOORS"
    assert forbidden_imports(room, (PACKAGE / module).read_text()) == []


def test_the_package_itself_imports_only_what_is_for_all() -> None:
    source = (PACKAGE / "__init__.py").read_text()
    assert {pair for pair in imports_of(source) if pair[0].startswith("dghlib")} <= FOR_ALL


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("generators", "from dghlib import datasets"),
        ("generators", "from dghlib.models import load"),
        ("quantizers", "def f():\n    import dghlib.generators.dgh"),
        ("evaluation", "from dghlib.experiments.run import Workshop"),
        ("export", "from dghlib import experiments"),
        ("batchnorm", "from dghlib.models.classifiers import BasicBlock"),
        ("seeds", "from dghlib.batchnorm import moments"),
        ("experiments", "from dghlib.cli import main"),
        ("models", "from dghlib import __version__"),
        ("models", "from . import float_model"),
        ("models", "from .float_model import FloatModel"),
    ],
)
def test_an_import_that_leans_is_noticed(room: str, source: str) -> None:
    assert len(forbidden_imports(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("images", "from dghlib.records import write_atomically"),
        ("quantizers", "from dghlib.models import FloatModel\nfrom dghlib.models.float_model import FloatModel"),
        ("quantizers", "from dghlib.quantizers.grid import Grid\nfrom dghlib import seeds\nimport torch"),
        ("cli", "from dghlib import experiments, models"),
    ],
)
def test_an_import_that_goes_down_is_allowed(room: str, source: str) -> None:
    assert forbidden_imports(room, source) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text()))


@pytest.mark.parametrize("name", [*GENERATORS, *QUANTIZERS])
def test_every_method_names_its_source_and_how_it_differs(name: str) -> None:
    text = (GENERATORS | QUANTIZERS)[name].__doc__ or ""
    assert "Source:" in text
    assert "Differences" in text
