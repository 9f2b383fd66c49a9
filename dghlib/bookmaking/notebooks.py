"""Run a notebook through papermill, with parameters that are checked before anything runs.

papermill only warns about a parameter that does not exist and never checks a type; here both are errors that list the
notebook's parameters. A parameter's type and help come from the line that declares it, in the cell tagged `parameters`:
`weight_bits: int = 4  # weight bit width, 2 to 8`.
"""

import ast
import logging
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_markdown_cell, new_output
from papermill.exceptions import PapermillExecutionError

from dghlib.bookmaking.kernels import OwnInterpreter
from dghlib.choices import nearest
from dghlib.experiments.recorded import NotRecorded, only_recorded
from dghlib.showing import figures, interactive
from dghlib.showing.tables import PROVENANCE, foot_line
from dghlib.storage.records import provenance

TYPES: dict[str, type] = {"bool": bool, "float": float, "int": int, "str": str}
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
PARTIAL = ".partial.ipynb"
PAPERMILL_MARKER = "papermill-error-cell-tag"
NOT_MADE = (
    '<p class="missing">Not in this book, which was made from records alone: <code>make book</code> computes it.</p>'
)
_LINK = re.compile(r"\[([^\]]+)\]\((\w+\.(?:csv|svg))\)")  # to a file beside the page


class ParameterError(ValueError):
    """A notebook was given a parameter it does not have, or a value of the wrong type."""


class NotebookError(RuntimeError):
    """A cell of a notebook failed; `partial` holds the results up to this point."""

    def __init__(self, message: str, partial: Path) -> None:
        super().__init__(message)
        self.partial = partial


@dataclass(frozen=True)
class Parameter:
    """A line of a notebook's `parameters` cell."""

    name: str
    type: type
    default: object
    help: str

    def __str__(self) -> str:
        return f"{self.name}: {self.type.__name__} = {self.default!r}  # {self.help}"


def parameters_of(notebook: Path) -> dict[str, Parameter]:
    """Return the parameters that `notebook` declares, by name, in order.

    Raises:
        FileNotFoundError: there is no such notebook; the message suggests the nearest name.
        ParameterError: a parameter is declared without a type, or with one other than bool, float, int, str.
    """
    if not notebook.is_file():
        others = sorted(path.stem for path in notebook.parent.glob("*.ipynb"))
        hint = nearest(notebook.stem, others)
        listed = ", ".join(others) or "none"
        raise FileNotFoundError(f"no notebook {notebook}{hint}; in that folder there are: {listed}")
    declared = papermill.inspect_notebook(notebook, parameters={})
    return {name: _declared_parameter(notebook, entry) for name, entry in declared.items()}


def _declared_parameter(notebook: Path, entry: Mapping[str, str]) -> Parameter:
    kind = TYPES.get(entry["inferred_type_name"])
    if kind is None:
        raise ParameterError(
            f"{notebook.name}: parameter {entry['name']!r} is declared with type "
            f"{entry['inferred_type_name']}; declare it as one of {', '.join(TYPES)}, for instance "
            f"`{entry['name']}: int = 4  # what it means`"
        )
    return Parameter(entry["name"], kind, ast.literal_eval(entry["default"]), entry["help"])


def parse_assignments(words: Iterable[str]) -> dict[str, str]:
    """Split words such as `weight_bits=3` into names and the strings given for them.

    Raises:
        ParameterError: a word has no `=`, or a name is given twice.
    """
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ParameterError(f"cannot read {word!r} as a parameter; write name=value, as in seeds=5")
        if name in values:
            raise ParameterError(f"parameter {name!r} is given twice")
        values[name] = value
    return values


def check_parameters(notebook: Path, given: Mapping[str, object]) -> dict[str, Any]:
    """Return `given` with every value in the type that `notebook` declares; strings are converted to it.

    Raises:
        ParameterError: a name that the notebook does not declare, or a value that does not fit; the message
            lists the parameters, with types, defaults and help.
    """
    declared = parameters_of(notebook)
    listing = "\n".join(f"  {parameter}" for parameter in declared.values()) or "  (no parameters)"
    checked = {}
    for name, value in given.items():
        if name not in declared:
            problem = f"unknown parameter {name!r}{nearest(name, declared)}"
            raise ParameterError(f"{notebook.stem}: {problem}; it takes:\n{listing}")
        try:
            checked[name] = _as_type(value, declared[name].type)
        except (ValueError, KeyError):
            problem = f"parameter {name!r} got {value!r}, which is not of type {declared[name].type.__name__}"
            raise ParameterError(f"{notebook.stem}: {problem}; it takes:\n{listing}") from None
    return checked


def _as_type(value: object, kind: type) -> object:
    if isinstance(value, str) and kind is bool:
        return BOOLEANS[value.lower()]
    if isinstance(value, str) or (kind is float and type(value) is int):
        return kind(value)
    if type(value) is not kind:  # not isinstance: True is an int to Python, but no count
        raise ValueError(value)
    return value


def run_notebook(notebook: Path, parameters: Mapping[str, object], output: Path, *, progress: bool = True) -> None:
    """Execute a copy of `notebook` and write it to `output`; files of its cells are written beside `output`.

    While it runs, and after a failure, the results so far are beside `output`, in `.partial.ipynb`.
    `progress` passes the cells' stderr on, with their progress bars; `output` has none of it.

    Raises:
        ParameterError: see `check_parameters`; nothing has run and nothing has been written.
        NotebookError: a cell failed; the message names it and the error.
    """
    given = check_parameters(notebook, parameters)
    # All parameters, so that the executed copy shows every value in one place.
    values = {name: parameter.default for name, parameter in parameters_of(notebook).items()} | given
    partial = output.with_suffix(PARTIAL)
    output.parent.mkdir(parents=True, exist_ok=True)
    executed = _publishable(_execute(notebook, values, partial, progress), output.parent)
    _say_what_made(executed)
    if only_recorded():
        unlink_missing_files(executed, output.parent)
    nbformat.write(executed, partial)
    partial.replace(output)


def _execute(notebook: Path, values: dict[str, object], partial: Path, progress: bool) -> nbformat.NotebookNode:
    """Execute `notebook` with every parameter's value, beside `partial`, which is written all the time."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        return papermill.execute_notebook(
            notebook.resolve(),
            partial.resolve(),
            values,
            resources={"metadata": {"path": str(partial.parent)}},  # the kernel's folder; ours does not change
            kernel_name="python3",
            kernel_manager_class=OwnInterpreter,
            start_timeout=3600,  # seconds; busy machines take long, and a kernel that ended is noticed at once
            allow_errors=only_recorded(),
            progress_bar=False,
            stderr_file=sys.stderr if progress else None,
        )
    except (PapermillExecutionError, RuntimeError) as error:  # the latter for kernels that end, or never start
        stopped = only_recorded() and isinstance(error, PapermillExecutionError)
        if stopped and (shown := _with_notes(nbformat.read(partial, as_version=4))):
            return shown
        if not partial.exists():
            shutil.copyfile(notebook, partial)
        message = f"{notebook.name} {_reason(error)}\nThe results up to this point: {partial}"
        raise NotebookError(message, partial) from error


def _with_notes(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """Return an executed notebook with notes instead of errors where something would have to be computed.

    Later failures because of missing names are left out. None if a cell failed for another reason.
    """
    notebook.cells = [cell for cell in notebook.cells if PAPERMILL_MARKER not in cell.metadata.get("tags", [])]
    stopped = False
    for cell in notebook.cells:
        for error in [output for output in cell.get("outputs", []) if output.output_type == "error"]:
            if error.ename == NotRecorded.__name__:
                stopped = True
                note = new_output("display_data", {"text/html": NOT_MADE})
                shown = [output for output in cell.outputs if "image/svg+xml" not in output.get("data", {})]
                cell.outputs = [output for output in shown if output is not error] + [note]  # a figure begun is empty
            elif error.ename == "NameError" and stopped:
                cell.outputs.remove(error)
            else:
                return None
    return notebook


def _say_what_made(executed: nbformat.NotebookNode) -> None:
    """Give an executed notebook that shows no provenance of records a foot line of its own."""
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    if not any(PROVENANCE in "".join(output.get("data", {}).get("text/html", "")) for output in outputs):
        how = "made from records alone" if only_recorded() else "computed when the book was made"
        line = foot_line({"page": how}, [provenance(executed.metadata.papermill.duration)])
        executed.cells.append(new_markdown_cell(line))


def _reason(error: PapermillExecutionError | RuntimeError) -> str:
    if isinstance(error, PapermillExecutionError):
        return f"failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}"
    if isinstance(error, DeadKernelError):
        return "was stopped: its Python process ended, killed or out of memory"
    return f"could not be started: {error}"


def _publishable(executed: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Remove everything that only concerned the run: progress bars, paths of this machine, the cell of defaults.

    Code is folded. Figures get a text for readers who do not see them, and their numbers below.
    """
    for key in ("input_path", "output_path"):
        executed.metadata.papermill.pop(key, None)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            own = "remove-input" if "parameters" in cell.metadata.get("tags", []) else "hide-input"
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), own]
            _describe_figures(cell, folder)
    return executed


def _describe_figures(cell: nbformat.NotebookNode, folder: Path) -> None:
    """Move the description out of a cell's figure (`figures.saved`); its chart and, folded, its numbers go below."""
    for output in [each for each in cell.outputs if "image/svg+xml" in each.get("data", {})]:
        text, drawn = figures.description_of("".join(output.data["image/svg+xml"]))
        output.data["image/svg+xml"] = drawn
        cell.metadata["mystnb"] = {
            "image": {"alt": text, "classes": "photographs" if "<image " in drawn else "drawing"}
        }
        if chart := output.data.pop(interactive.MIME, None):
            below = new_output("display_data", {"text/html": interactive.embedded(chart)})
            cell.outputs.insert(cell.outputs.index(output) + 1, below)
        for name in re.findall(r'save="(\w+)"', cell.source):
            if numbers := figures.numbers_below(folder / f"{name}.csv"):
                cell.outputs.append(new_output("display_data", {"text/html": numbers}))


def unlink_missing_files(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Turn links in a notebook's prose to files that are not in `folder` into plain text."""

    def unlinked(link: re.Match[str]) -> str:
        return link[0] if (folder / link[2]).is_file() else f"{link[1]} (not made)"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(unlinked, cell.source)
