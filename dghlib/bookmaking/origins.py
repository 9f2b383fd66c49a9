"""The inputs of an executed notebook: if none has changed, the notebook need not be executed again.

They are its own text and parameters, the package and all its dependencies, the existing records, including those of the
benchmarks, and the location of public data. All inputs are read before anything is executed, except for the records of
this machine, which the executed notebooks make.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dghlib.experiments.run import PUBLISHED, results_dir
from dghlib.storage import assets
from dghlib.storage.records import fingerprint, write_json

PACKAGE = Path(__file__).parents[1]
MEMORY = "made_from.json"  # among executed notebooks


def origins(notebooks: Sequence[Path], values: Sequence[Mapping[str, Any]], requirements: Path) -> dict[str, str]:
    """Return, by name of notebook, a fingerprint of its current inputs, except this machine's records.

    Args:
        notebooks: their files.
        values: the values of all parameters of each.
        requirements: the file that lists all packages.
    """
    code = [path for path in sorted(PACKAGE.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    shared = {
        "code": [(str(path.relative_to(PACKAGE)), _contents(path)) for path in code],
        "packages": _contents(requirements) if requirements.is_file() else "",
        "records": _records(PUBLISHED),
        "data": str(assets.data_dir()),
    }
    common = fingerprint(shared)
    return {
        notebook.stem: fingerprint([_contents(notebook), dict(chosen), common])
        for notebook, chosen in zip(notebooks, values, strict=True)
    }


def with_records(made_from: Mapping[str, str]) -> dict[str, str]:
    """Return the result of `origins` with this machine's current records included."""
    records = _records(results_dir())
    return {name: fingerprint([origin, records]) for name, origin in made_from.items()}


def remembered(folder: Path) -> dict[str, str]:
    """Return the inputs of the executed notebooks in a folder."""
    path = folder / MEMORY
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: origin for name, origin in known.items() if (folder / f"{name}.ipynb").is_file()}


def remember(folder: Path, made_from: Mapping[str, str]) -> None:
    """Store the inputs of executed notebooks, for `remembered`."""
    write_json(folder / MEMORY, dict(made_from))


def _records(folder: Path) -> list[tuple[str, str]]:
    """Return the name and the contents of every record in a folder, at any depth."""
    return [(path.name, _contents(path)) for path in sorted(folder.rglob("*.json"))]


def _contents(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
