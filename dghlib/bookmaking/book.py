"""Build the book: execute its notebooks in sequence, collect the sources, make the pages.

Everything is made under `_build`: `executed` (the notebooks, with the files they wrote; `recorded` if nothing is
computed), `book-src` (the chapters with these notebooks) and `html` (the pages, which need neither network nor server).
"""

import importlib.metadata
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import vl_convert
import yaml
from tqdm import tqdm

from dghlib.bookmaking import terms
from dghlib.bookmaking.accessible import accessible
from dghlib.bookmaking.forecast import forecast, lacking_runs
from dghlib.bookmaking.notebooks import (
    NOT_MADE,
    PAPERMILL_MARKER,
    PARTIAL,
    NotebookError,
    check_parameters,
    parameters_of,
    run_notebook,
    unlink_missing_files,
)
from dghlib.bookmaking.origins import MEMORY, origins, remember, remembered, with_records
from dghlib.bookmaking.pages import broken_links
from dghlib.choices import look_up
from dghlib.experiments.helpers import helped
from dghlib.experiments.profiles import BUDGETS, PROFILES
from dghlib.experiments.recorded import only_recorded, records_alone

MATHJAX = "tex-svg-full.js"
VEGA = "vega.js"  # the file that charts.js loads
_DIRECTIVE = re.compile(r"^```\{(?:figure|csv-table)\}.*?^```$", flags=re.MULTILINE | re.DOTALL)
_BESIDE = re.compile(
    r"(?:\{figure\}|^:file:) (?:\.\./)?notebooks/(\S+)", flags=re.MULTILINE
)  # files to which captions do not link
FRONT = ("table2_public", "table2")  # the notebooks whose tables the front page shows
BEING_COMPUTED = """:::{note}
This page is being computed. Open it again in a while.
:::"""
# The values with which a page shows all records: every repetition of the budget, every network of the profile.
ALL_RECORDED = {"seeds": 0, "networks": 0}
INCOMPLETE = """:::{{error}}
This page is incomplete.

```text
{reason}
```
:::"""


class BookError(RuntimeError):
    """The book was built, but a notebook failed or a page had warnings; the message names them."""


def notebook_names(toc: Path) -> list[str]:
    """Return the names of the notebooks that the table of contents lists, in order."""
    files = _files(yaml.safe_load(toc.read_text(encoding="utf-8")))
    return [file.removeprefix("notebooks/") for file in files if file.startswith("notebooks/")]


def _files(node: Any) -> Iterator[str]:
    """Yield the value of every `file` key, at any depth, in the order of the document."""
    if isinstance(node, dict):
        if "file" in node:
            yield node["file"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _files(child)


def build_book(root: Path, parameters: Mapping[str, object], *, progress: bool = True) -> Path:
    """Build the book of the repository at `root`; return the path of its front page.

    `parameters` (the profile, the budget) are passed to each notebook that declares them. The page of a notebook that
    fails stays in the book, marked, and its partial output in `_build/executed`. If nothing should be computed
    (`dghlib.experiments.recorded`), pages show all records of the profile and the budget, and list the missing ones.

    Raises:
        FileNotFoundError: there is no book at `root`.
        UnknownName: there is no such profile or budget; nothing has run, and earlier results are kept.
        ParameterError: a parameter does not fit a notebook; nothing has run.
        BookError: the book is built, but incomplete or with warnings.
    """
    root = root.resolve()
    toc = root / "book" / "_toc.yml"
    if not toc.is_file():
        raise FileNotFoundError(f"no book at {root}: {toc} is missing; run this in a clone of the repository")
    for name, known in (("profile", PROFILES), ("budget", BUDGETS)):
        if name in parameters:
            look_up(known, str(parameters[name]), name)
    notebooks = [root / "notebooks" / f"{name}.ipynb" for name in notebook_names(toc)]
    folders = ("recorded" if only_recorded() else "executed", "book-src", "html")
    executed, source, html = (root / "_build" / folder for folder in folders)
    if only_recorded():
        shutil.rmtree(executed, ignore_errors=True)  # it may hold files of other records, to which pages would link
        parameters = {**ALL_RECORDED, **parameters}

    elif not html.exists():
        _first_look(root / "book", notebooks, parameters, progress)
    failures = _run_notebooks(notebooks, parameters, executed, progress)
    _gather(root / "book", executed, source, failures)
    _report(f"building the pages of {len(notebooks)} notebooks and the chapters", progress)
    complaints = [str(failure) for failure in failures.values()] + _build_pages(source, html) + broken_links(html)
    if complaints:
        listed = "\n".join(complaints)
        raise BookError(f"the book is at {html / 'index.html'}, but not everything went well:\n{listed}")
    return html / "index.html"


def _first_look(book: Path, notebooks: Sequence[Path], parameters: Mapping[str, object], progress: bool) -> None:
    """Make a book of the front page and the chapters from published records, to read while the rest is computed."""
    build = book.parent / "_build"
    first, source = build / "first", build / "book-src"
    shutil.rmtree(first, ignore_errors=True)
    first.mkdir(parents=True)
    with records_alone():
        for notebook in notebooks:
            if notebook.stem in FRONT:
                given = {name: parameters[name] for name in parameters_of(notebook) if name in parameters}
                run_notebook(notebook, given, first / notebook.name, progress=False)
            else:
                title = nbformat.read(notebook, as_version=4).cells[0].source.partition("\n")[0]
                note = nbformat.v4.new_markdown_cell(f"{title}\n\n{BEING_COMPUTED}")
                nbformat.write(nbformat.v4.new_notebook(cells=[note]), first / notebook.name)
        _gather(book, first, source, {})
    _build_pages(source, build / "html")
    _report(f"the front page and the chapters, for the time being: {build / 'html' / 'index.html'}", progress)


def _run_notebooks(
    notebooks: list[Path], parameters: Mapping[str, object], folder: Path, progress: bool
) -> dict[str, NotebookError]:
    """Execute `notebooks` into `folder`, except existing ones that would be the same; return the failures."""
    wanted = {}
    for notebook in notebooks:
        declared = parameters_of(notebook)
        given = check_parameters(notebook, {k: v for k, v in parameters.items() if k in declared})
        wanted[notebook] = {name: parameter.default for name, parameter in declared.items()} | given

    # Edits during the build may not be in the book: the next build finds them.
    made_from = origins(notebooks, list(wanted.values()), folder.parents[1] / "requirements.lock")
    known, now = remembered(folder), with_records(made_from)
    changed = [notebook for notebook in notebooks if known.get(notebook.stem) != now[notebook.stem]]
    if unchanged := len(notebooks) - len(changed):
        _report(f"{unchanged} of {len(notebooks)} notebooks have not changed since they were executed", progress)
    for notebook in changed:
        known.pop(notebook.stem, None)
    remember(folder, known)  # if the build is stopped from here on, the pages are of this run, not of the one before
    failures = _execute({notebook: wanted[notebook] for notebook in changed}, folder, progress)
    now = with_records(made_from)  # with the records that were made meanwhile
    remember(folder, known | {each.stem: now[each.stem] for each in changed if each.stem not in failures})
    return failures


def _execute(wanted: Mapping[Path, Mapping[str, Any]], folder: Path, progress: bool) -> dict[str, NotebookError]:
    """Execute notebooks with these values of their parameters; return the failures by name of notebook."""
    lacking = {path.stem: [] for path in wanted} if only_recorded() else lacking_runs(wanted)
    left, failures = forecast(lacking), {}
    # Notebooks that compute come first: the others, which show all records, are then complete.
    ordered = sorted(wanted, key=lambda notebook: not lacking[notebook.stem])
    with helped(list(dict.fromkeys(itertools.chain.from_iterable(lacking[path.stem] for path in ordered)))):
        for number, notebook in enumerate(ordered, start=1):
            _report(f"[{number}/{len(ordered)}] {notebook.stem}, {left}", progress)
            started = time.perf_counter()
            try:
                run_notebook(notebook, wanted[notebook], folder / notebook.name, progress=progress)
            except NotebookError as failure:
                failures[notebook.stem] = failure
            seconds = time.perf_counter() - started
            left.done(notebook.stem, seconds)
            _report(f"      {'FAILED' if notebook.stem in failures else 'done'} in {seconds:.0f} s", progress)
    return failures


def _report(text: str, progress: bool) -> None:
    if progress:
        tqdm.write(text, file=sys.stderr)


def _gather(book: Path, executed: Path, source: Path, failures: Mapping[str, NotebookError]) -> None:
    """Make `source` anew: the chapters, and under `notebooks` the executed notebooks and their files."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(book, source)
    if executed.is_dir():
        shutil.copytree(executed, source / "notebooks", ignore=shutil.ignore_patterns(f"*{PARTIAL}", MEMORY))
    if only_recorded():
        for chapter in source.rglob("*.md"):
            text = chapter.read_text(encoding="utf-8")
            chapter.write_text(_without_dead_figures(text, source / "notebooks"), encoding="utf-8")
    _name_repository(source / "_config.yml")
    for name, failure in failures.items():
        _write_marked_page(failure, source / "notebooks" / f"{name}.ipynb")


def _name_repository(path: Path) -> None:
    """Name the repository in the settings of a book that GitHub builds, so that pages can link to their sources."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if not (server and name):
        return
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["repository"] = {"url": f"{server}/{name}", "branch": "main", "path_to_book": "book"}
    buttons = ("use_repository_button", "use_edit_page_button", "use_issues_button")
    settings["html"] |= dict.fromkeys(buttons, True)
    settings["sphinx"]["config"]["html_theme_options"] |= dict.fromkeys(buttons, True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _without_dead_figures(text: str, folder: Path) -> str:
    """Return a chapter with notes instead of figures and tables whose files notebooks did not write in `folder`."""

    def replaced(directive: re.Match[str]) -> str:
        file = _BESIDE.search(directive[0])
        return directive[0] if file is None or (folder / file[1]).is_file() else NOT_MADE

    return _DIRECTIVE.sub(replaced, text)


def _write_marked_page(failure: NotebookError, page: Path) -> None:
    """Write the output of a failed notebook as a page that says, below its title, that it is incomplete."""
    notebook = nbformat.read(failure.partial, as_version=4)
    cells = [cell for cell in notebook.cells if PAPERMILL_MARKER not in cell.metadata.get("tags", [])]
    mark = nbformat.v4.new_markdown_cell(INCOMPLETE.format(reason=str(failure).splitlines()[0]))
    notebook.cells = [*cells[:1], mark, *cells[1:]]
    unlink_missing_files(notebook, page.parent)
    nbformat.write(notebook, page)


def _build_pages(source: Path, html: Path) -> list[str]:
    """Make the pages in `html` from `source`; return the warnings. Old pages stay until the new ones are complete."""
    work = html.parent / "sphinx"
    shutil.rmtree(work, ignore_errors=True)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    options = ["--path-output", str(work), "--warningiserror", "--keep-going", "--nitpick", "--quiet"]
    finished = subprocess.run(
        [*jupyter_book, *options, str(source)],
        capture_output=True,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
        check=False,
    )
    made = work / "_build" / "html"
    if not (made / "index.html").is_file():
        raise BookError(f"jupyter-book made no pages:\n{finished.stdout}{finished.stderr}")
    shutil.copy(_mathjax(), made / "_static" / MATHJAX)
    (made / "_static" / VEGA).write_text(_vega(), encoding="utf-8")
    # The files of notebooks, such as tables as CSV, lie beside the page as they lie beside the notebook.
    beside = shutil.ignore_patterns("*.ipynb")
    shutil.copytree(source / "notebooks", made / "notebooks", ignore=beside, dirs_exist_ok=True)
    _finish_pages(made)
    shutil.rmtree(html, ignore_errors=True)
    made.rename(html)
    shutil.rmtree(work)
    return _warnings(finished.stderr) if finished.returncode else []


def _finish_pages(html: Path) -> None:
    """Finish the pages: accessible tables, and explanations of terms."""
    glossary = html / "glossary.html"
    known = terms.entries(glossary.read_text(encoding="utf-8")) if glossary.is_file() else {}
    for page in html.rglob("*.html"):
        text = accessible(page.read_text(encoding="utf-8"))
        if page != glossary and known:
            text = terms.explained(text, known, os.path.relpath(glossary, page.parent))
        # The theme assumes that all pages are files of the book's folder.
        text = re.sub(r"(/(?:edit|blob)/[^/\"]+/)book/notebooks/", r"\1notebooks/", text)
        page.write_text(text, encoding="utf-8")


def _warnings(stderr: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
    return [line for line in plain.splitlines() if "WARNING" in line or "ERROR" in line] or [plain]


def _vega() -> str:
    """Return Vega as a script whose only name is `vegaEmbed`; a browser would not run a module from a disk."""
    return f"(() => {{{vl_convert.javascript_bundle('Object.assign(window, { vegaEmbed });')}}})();"


def _mathjax() -> Path:
    """Return the path of MathJax, one file with all its TeX extensions, in the package that carries it."""
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    return next(Path(str(file.locate())) for file in files if file.name == MATHJAX)
