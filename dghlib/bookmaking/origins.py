"""What an executed notebook was made from: if none of it has changed since, it need not be executed again.

That is its own text and parameters, the package and all that it needs, the records that there are, those of the
benchmarks among them, and where public data lies. All this is looked at before anything is executed, but for the
records of this machine: the executed notebooks make them.
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
    """Return, by name of notebook, a fingerprint of what it would be made from now, this machine's records apart.

    Args:
        notebooks: their files.
        values: those of all parameters of each.
        requirements: the file that names all packages.
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
    """Return what `origins` returned, with the records that this machine has by now taken in."""
    records = _records(results_dir())
    return {name: fingerprint([origin, records]) for name, origin in made_from.items()}


def remembered(folder: Path) -> dict[str, str]:
    """Return what the executed notebooks in a folder were made from."""
    path = folder / MEMORY
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: origin for name, origin in known.items() if (folder / f"{name}.ipynb").is_file()}


def remember(folder: Path, made_from: Mapping[str, str]) -> None:
    """Note what executed notebooks were made from, for `remembered`."""
    write_json(folder / MEMORY, dict(made_from))


def _records(folder: Path) -> list[tuple[str, str]]:
    """Return the name and the contents of every record in a folder, however deep."""
    return [(path.name, _contents(path)) for path in sorted(folder.rglob("*.json"))]


def _contents(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
