"""Two ways to make the book: from committed records alone, and without them.

In the former, which an environment variable turns on, no network is loaded (`run.load_model`), so nothing can be
computed by mistake: plans find their records and name the runs that have none, and a cell that needs a network stops
with `NotRecorded`. The cells after it run all the same, and a note takes the place of its error.

In the latter, `anew`, which `dgh book` turns on, committed records do not count: this machine computes its own.
"""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

from IPython.display import HTML, display
from nbformat import NotebookNode
from nbformat.v4 import new_output

RECORDED_VARIABLE = "DGHLIB_RECORDED"
ANEW_VARIABLE = "DGHLIB_ANEW"
PAPERMILL_MARKER = "papermill-error-cell-tag"
_NOTE = "Not in this book, which was made from records alone: <code>make book</code> computes it."
# A link to a file beside the page, in either way that notebooks write it.
_LINK = re.compile(r"\[([^\]]+)\]\((\w+\.(?:csv|svg))\)|\{download\}`([^<`]+) <(\w+\.(?:csv|svg))>`")
_DIRECTIVE = re.compile(r"^```\{(?:figure|csv-table)\}.*?^```$", flags=re.MULTILINE | re.DOTALL)
_BESIDE = re.compile(r"\bnotebooks/(\S+)")


class NotRecorded(RuntimeError):
    """Records alone were to be shown, and this would have to be computed."""


def only_recorded() -> bool:
    """Return whether nothing is to be computed: the environment variable DGHLIB_RECORDED."""
    return bool(os.environ.get(RECORDED_VARIABLE))


def anew() -> bool:
    """Return whether this machine is to compute what the repository has records of, too: the variable DGHLIB_ANEW."""
    return bool(os.environ.get(ANEW_VARIABLE))


def show_missing(titles: Sequence[str], wanted: int) -> None:
    """Show, where a notebook runs, which of so many runs have no record."""
    if titles:
        listed = "".join(f"<li>{html.escape(title)}</li>" for title in titles)
        summary = f"{len(titles)} of {wanted} runs have no record of these settings and versions."
        display(HTML(f'<details class="missing"><summary>{summary}</summary><ul>{listed}</ul></details>'))


def with_notes(notebook: NotebookNode) -> NotebookNode | None:
    """Return an executed notebook with notes for errors where something would have to be computed.

    What fails later because a name is missing is left out. None if a cell failed for another reason.
    """
    notebook.cells = [cell for cell in notebook.cells if PAPERMILL_MARKER not in cell.metadata.get("tags", [])]
    stopped = False
    for cell in notebook.cells:
        for error in [output for output in cell.get("outputs", []) if output.output_type == "error"]:
            if error.ename == NotRecorded.__name__:
                stopped = True
                note = new_output("display_data", {"text/html": f'<p class="missing">{_NOTE}</p>'})
                shown = [output for output in cell.outputs if "image/svg+xml" not in output.get("data", {})]
                cell.outputs = [output for output in shown if output is not error] + [note]  # a figure begun is empty
            elif error.ename == "NameError" and stopped:
                cell.outputs.remove(error)
            else:
                return None
    return notebook


def unlink_missing_files(notebook: NotebookNode, folder: Path) -> None:
    """Turn the links of a notebook's prose to files that are not in `folder` into plain text."""

    def unlinked(link: re.Match[str]) -> str:
        title, file = (link[1], link[2]) if link[1] else (link[3], link[4])
        return link[0] if (folder / file).is_file() else f"{title} (not made)"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(unlinked, cell.source)


def without_dead_figures(text: str, folder: Path) -> str:
    """Return a chapter in which figures and tables of files that notebooks did not write in `folder` are notes."""

    def replaced(directive: re.Match[str]) -> str:
        file = _BESIDE.search(directive[0])
        return directive[0] if file is None or (folder / file[1]).is_file() else f'<p class="missing">{_NOTE}</p>'

    return _DIRECTIVE.sub(replaced, text)
