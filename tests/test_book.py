"""Notebooks with parameters, and the book that they become."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import until
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dghlib.bookmaking import book, notebooks
from dghlib.bookmaking.book import BookError, build_book, notebook_names
from dghlib.bookmaking.notebooks import (
    NotebookError,
    ParameterError,
    check_parameters,
    parameters_of,
    parse_assignments,
    run_notebook,
)
from dghlib.bookmaking.origins import remember, remembered
from dghlib.bookmaking.pages import broken_links, browser, visit
from dghlib.choices import UnknownName
from dghlib.experiments.recorded import only_recorded

ROOT = Path(__file__).parents[1]
PARAMETERS = """\
seeds: int = 3  # repetitions
rate: float = 0.5  # a step
name: str = "a b"  # a name
fast: bool = False  # whether to hurry
"""


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    notebook.cells = [new_markdown_cell(f"# {path.stem}\n\nA question.")]
    notebook.cells += [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    notebook.cells += [new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def text_of(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_parameters_have_types_defaults_and_help(tmp_path: Path) -> None:
    found = parameters_of(write_notebook(tmp_path / "a.ipynb"))
    assert [str(parameter) for parameter in found.values()] == PARAMETERS.replace('"', "'").splitlines()


def test_values_are_converted_to_the_declared_type(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb")
    words = ["seeds=5", "rate=1", "name=x=y", "fast=True"]
    assert check_parameters(notebook, parse_assignments(words)) == {
        "seeds": 5,
        "rate": 1.0,
        "name": "x=y",
        "fast": True,
    }
    assert check_parameters(notebook, {"rate": 2, "fast": False}) == {"rate": 2.0, "fast": False}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "5"}, r"unknown parameter 'seed' \(did you mean 'seeds'\?\)"),
        ({"seeds": "five"}, "parameter 'seeds' got 'five', which is not of type int"),
        ({"seeds": True}, "parameter 'seeds' got True, which is not of type int"),
        ({"seeds": 2.5}, "parameter 'seeds' got 2.5, which is not of type int"),
        ({"fast": "perhaps"}, "parameter 'fast' got 'perhaps', which is not of type bool"),
        ({"name": 3}, "parameter 'name' got 3, which is not of type str"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    tmp_path: Path, given: dict[str, object], message: str
) -> None:
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "print('ran')")
    with pytest.raises(ParameterError, match=message) as caught:
        run_notebook(notebook, given, tmp_path / "out" / "a.ipynb")
    assert "  rate: float = 0.5  # a step" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"), [(["seeds"], "cannot read 'seeds'"), (["a=1", "a=2"], "'a' is given twice")]
)
def test_malformed_assignments_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_assignments(words)


def test_a_parameter_without_a_type_is_refused(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", parameters="seeds = 3")
    with pytest.raises(ParameterError, match="declare it as one of bool, float, int, str"):
        parameters_of(notebook)


def test_an_unknown_notebook_suggests_the_nearest(tmp_path: Path) -> None:
    write_notebook(tmp_path / "table2.ipynb")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'table2'\?"):
        parameters_of(tmp_path / "tabel2.ipynb")


def test_a_run_leaves_an_executed_copy_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "no", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("DGHLIB_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    notebook = write_notebook(
        tmp_path / "in" / "a.ipynb",
        "import sys\nprint(seeds, sys.executable)\nprint('half of it', file=sys.stderr)",
        "import os, pathlib\npathlib.Path('a.csv').write_text(os.environ['DGHLIB_RESULTS'])",
        "from IPython.display import SVG, display\ndisplay(SVG('<svg></svg>'))",
    )
    output = tmp_path / "out" / "a.ipynb"
    run_notebook(notebook, {"seeds": "5"}, output)
    assert (output.parent / "a.csv").read_text() == str(tmp_path / "_build" / "results")

    cells = nbformat.read(output, as_version=4).cells
    assert cells[2].source.splitlines() == ["# Parameters", "seeds = 5", "rate = 0.5", 'name = "a b"', "fast = False"]
    assert "remove-input" in cells[1].metadata.tags  # the defaults, which would confuse readers
    assert '<p class="provenance">' in cells[-1].source  # no cell printed a foot line
    drawing = {"image": {"alt": "a figure", "classes": "drawing"}}
    assert [cell.metadata.get("mystnb") for cell in cells[4:6]] == [None, drawing]
    assert all("hide-input" in cell.metadata.tags for cell in cells[2:6])
    assert text_of(output) == f"5 {sys.executable}\n"  # of this interpreter; progress is left out
    assert "half of it" in capfd.readouterr().err  # progress is passed on
    assert sorted(path.name for path in output.parent.iterdir()) == ["a.csv", "a.ipynb"]
    assert str(tmp_path) not in output.read_text(encoding="utf-8")


def test_a_page_with_a_foot_line_gets_no_second_one() -> None:
    for shown, feet in (("<p>a table</p>", 1), ('<p class="provenance">of its records</p>', 0)):
        cell = new_code_cell(outputs=[new_output("display_data", {"text/html": shown})])
        page = new_notebook(cells=[cell], metadata={"papermill": {"duration": 61.0}})
        notebooks._say_what_made(page)
        assert [("computed in: 61 s" in cell.source) for cell in page.cells[1:]] == [True] * feet


def test_a_failure_keeps_what_was_computed_and_the_earlier_copy(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "print('so far')", "raise RuntimeError('on purpose')")
    output = tmp_path / "out" / "a.ipynb"
    output.parent.mkdir()
    output.write_text("earlier")
    with pytest.raises(NotebookError, match=r"a\.ipynb failed in cell \[4\]: RuntimeError: on purpose") as caught:
        run_notebook(notebook, {}, output, progress=False)
    assert output.read_text() == "earlier"
    assert caught.value.partial.parent == output.parent
    assert "so far" in text_of(caught.value.partial)


def test_a_killed_kernel_is_reported(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(NotebookError, match="killed or out of memory"):
        run_notebook(notebook, {}, tmp_path / "out" / "a.ipynb", progress=False)


def test_figures_are_vector_graphics(tmp_path: Path) -> None:
    """Also in kernels that are copies of a process which imported matplotlib earlier."""
    draws = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1)).gca().plot([0, 1]);"
    run_notebook(write_notebook(tmp_path / "a.ipynb", draws), {}, tmp_path / "out" / "a.ipynb", progress=False)
    cells = nbformat.read(tmp_path / "out" / "a.ipynb", as_version=4).cells
    shown = [set(output.data) for cell in cells for output in cell.get("outputs", [])]
    assert [kinds & {"image/svg+xml", "image/png"} for kinds in shown] == [{"image/svg+xml"}]


def test_kernels_use_the_wanted_threads_and_end_with_their_killed_parent(tmp_path: Path) -> None:
    cell = (
        "import os, time, torch\nopen('seen', 'w').write(f'{os.getpid()} {torch.get_num_threads()}')\ntime.sleep(3600)"
    )
    notebook, seen = write_notebook(tmp_path / "a.ipynb", cell), tmp_path / "out" / "seen"
    program = (
        "from pathlib import Path; from dghlib.bookmaking.notebooks import run_notebook\n"
        f"run_notebook(Path({str(notebook)!r}), {{}}, Path({str(seen.with_name('a.ipynb'))!r}), progress=False)"
    )
    executing = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": "3"})
    until(lambda: seen.is_file() and seen.read_text(), lambda: executing.poll() is None)
    kernel, threads = map(int, seen.read_text().split())
    assert threads == 3
    os.kill(kernel, 0)  # fails if there is none
    executing.kill()
    executing.wait()
    with contextlib.suppress(ProcessLookupError):
        for _ in range(3000):
            os.kill(kernel, 0)
            time.sleep(0.02)
        pytest.fail("the kernel of a killed process still runs")


def test_a_kernel_that_does_not_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(notebooks.papermill, "execute_notebook", refused)
    notebook = write_notebook(tmp_path / "a.ipynb", "print('never')")
    with pytest.raises(NotebookError, match=r"a\.ipynb could not be started: Kernel died") as caught:
        run_notebook(notebook, {}, tmp_path / "out" / "a.ipynb", progress=False)
    assert "never" in caught.value.partial.read_text()


def test_the_table_of_contents_gives_the_notebooks_in_order(tmp_path: Path) -> None:
    toc = tmp_path / "_toc.yml"
    toc.write_text(
        "root: index\nparts:\n- chapters:\n  - file: notebooks/b\n    sections:\n    - file: notebooks/a\n"
        "  - file: method\n- chapters:\n  - file: notebooks/c\n"
    )
    assert notebook_names(toc) == ["b", "a", "c"]


def test_a_folder_without_a_book_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run this in a clone"):
        build_book(tmp_path, {})


@pytest.mark.parametrize("name", ["profile", "budget"])
def test_an_unknown_profile_or_budget_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(book, "run_notebook", lambda *_, **__: pytest.fail("a notebook ran"))
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").write_text("root: notebooks/a\n")
    write_notebook(tmp_path / "notebooks" / "a.ipynb", parameters=f'{name}: str = "quick"  # what is run')
    page = tmp_path / "_build" / "executed" / "a.ipynb"
    write_notebook(page)
    remember(page.parent, {"a": "what it was made from"})
    with pytest.raises(UnknownName, match=f"unknown {name} 'nonsense'"):
        build_book(tmp_path, {name: "nonsense"}, progress=False)
    assert remembered(page.parent) == {"a": "what it was made from"}


def test_the_chapters_build_without_warnings_around_a_notebook_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "book", tmp_path / "book")
    for included in ("dghlib", "README.md", "CHANGELOG.md", "CITATION.cff"):
        (tmp_path / included).symlink_to(ROOT / included)
    profile = 'profile: str = "shapes"  # data'
    for name in notebook_names(ROOT / "book" / "_toc.yml"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", parameters=profile)
    table = "from myst_nb import glue\nopen('table2.csv', 'w').close()\nglue('front_page', profile)"
    table += "\nglue('front_page_made', 'a foot line')"
    write_notebook(tmp_path / "notebooks" / "table2.ipynb", table, parameters=profile)
    public = "from myst_nb import glue\nglue('imagenet', 'a table of ImageNet')"
    write_notebook(tmp_path / "notebooks" / "table2_public.ipynb", public, parameters=profile)
    write_notebook(tmp_path / "notebooks" / "figure8.ipynb", "raise ValueError('<on purpose>')", parameters=profile)
    monkeypatch.setattr(book, "run_notebook", run_only({"table2", "table2_public", "figure8"}))
    executed = tmp_path / "_build" / "executed"
    executed.mkdir(parents=True)
    (executed.parent / "html").mkdir()  # so that pages exist, and no first build precedes
    methods = [page.stem for page in (ROOT / "book" / "methods").glob("*.md")]
    for source in [*methods, "dgh", "real"]:  # files that the page of all sources writes for other pages
        (executed / f"cost_{source}.csv").write_text("seconds\n1\n")
        Image.new("RGB", (8, 8)).save(executed / f"images_{source}.png")

    with pytest.raises(BookError) as caught:
        build_book(tmp_path, {"profile": "cifar10"}, progress=False)

    html = tmp_path / "_build" / "html"
    problems = str(caught.value).splitlines()
    assert problems[0].startswith(f"the book is at {html / 'index.html'}")
    assert problems[1] == "figure8.ipynb failed in cell [3]: ValueError: <on purpose>"
    assert len(problems) == 3, "warnings"
    pages = {page.stem: page.read_text(encoding="utf-8") for page in html.rglob("*.html")}
    assert [name for name, page in pages.items() if "This page is incomplete" in page] == ["figure8"]
    assert "cifar10" in pages["index"]
    assert "a foot line" in pages["index"]
    assert "a table of ImageNet" in pages["index"]
    assert (html / "notebooks" / "table2.csv").is_file()
    needs_network = re.compile(r'<(?:script|img|link)[^>]+(?:src|href)="https?:')
    assert [name for name, page in pages.items() if needs_network.search(page)] == []
    assert "tex-svg-full.js" in pages["method"]
    assert (html / "_static" / "tex-svg-full.js").is_file()
    if program := browser():
        assert visit(program, html) == []


def test_broken_links_pictures_and_scripts_are_reported(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text('<p id="here"><a href="sub/b.html#there">b</a><img src="sub/x.png"></p>')
    (tmp_path / "sub" / "b.html").write_text('<a href="../a.html#here"><a href="#gone"><a href="https://example.org/">')
    assert broken_links(tmp_path) == [
        "a.html: sub/b.html#there leads nowhere",
        "a.html: sub/x.png leads nowhere",
        "sub/b.html: #gone leads nowhere",
    ]


without_browser = pytest.mark.skipif(browser() is None, reason="there is no chromium on this machine")


@without_browser
def test_errors_in_a_browser_are_reported(tmp_path: Path) -> None:
    text = "<p>As much text as a page needs.</p>"
    wrong = {
        "a": f"{text}<p id='here'>",
        "b": f"{text}<script>missing()</script>",
        "c": f"{text}<img src='none.png'>",
        "d": f"{text}<div style='width: 600px'>wide</div>",
        "e": "",
        "f": f"{text}<script>console.error('no', 'such thing')</script>",
        "g": f"{text}<script>Promise.reject('two\\nlines')</script>",
    }
    for name, body in wrong.items():
        (tmp_path / f"{name}.html").write_text(f"<!doctype html><html><body>{body}</body></html>")
    *problems, f, g = visit(browser() or "", tmp_path)
    assert (f, g) == ("f.html: no such thing", "g.html: Uncaught (in promise) two\nlines")
    assert problems[0] == "b.html: Uncaught ReferenceError: missing is not defined"
    assert "c.html: the picture none.png shows nothing" in problems
    assert problems[-2].startswith("d.html: the page is 60")
    assert problems[-1] == "e.html: the page shows no text"


@without_browser
def test_tables_can_be_downloaded_as_csv(tmp_path: Path) -> None:
    script = (ROOT / "book" / "_static" / "csv.js").as_uri()
    text = """<!doctype html><html><body><p>As much text as a page needs.</p><div class="cell_output"><table>
        <tr><th rowspan=2>net</th><th colspan=2>W4, A4</th></tr><tr><th>mean</th><th>spread</th></tr>
        <tr><td> a "b" </td><td>1</td><td></td></tr></table></div><script src="SCRIPT"></script>
        <script>addEventListener("load", () => {
            const link = document.querySelector("a.csv");
            if (decodeURIComponent(link.href.split("utf-8,")[1]) !== `WANTED`) throw Error(link.download);
        });</script>"""
    shown = 'net,"W4, A4","W4, A4"\nnet,mean,spread\n"a ""b""",1,\n'
    for name, wanted in (("right", shown), ("wrong", "something else")):
        (tmp_path / f"{name}.html").write_text(text.replace("SCRIPT", script).replace("WANTED", wanted))
    assert visit(browser() or "", tmp_path) == ["wrong.html: Uncaught Error: wrong-1.csv"]


@without_browser
def test_the_book_of_this_clone_has_no_errors() -> None:
    html = ROOT / "_build" / "html"
    built = html / "index.html"
    changed = max(path.stat().st_mtime for folder in ("book", "notebooks") for path in (ROOT / folder).rglob("*.*"))
    if not built.is_file() or built.stat().st_mtime < changed:
        pytest.skip("no book has been built of these chapters and notebooks: make book")
    assert visit(browser() or "", html) + broken_links(html) == []


def run_only(names: set[str]) -> Callable[..., None]:
    """Return a stand-in for `run_notebook` that executes the notebooks `names` and copies the others."""

    def run(notebook: Path, parameters: dict[str, object], output: Path, *, progress: bool) -> None:
        if notebook.stem in names:
            run_notebook(notebook, parameters, output, progress=progress)
        else:
            output.parent.mkdir(exist_ok=True)
            shutil.copy(notebook, output)

    return run


def test_the_front_page_exists_while_the_rest_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").write_text(
        "root: index\nchapters:\n- file: notebooks/table2\n- file: notebooks/figure1\n"
    )
    (tmp_path / "book" / "_config.yml").write_text("title: a book\n")
    for name in ("table2", "figure1"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "print('computed')")
    computed: list[bool] = []
    pages: list[list[bool]] = []

    def run(*given: Any, **how: Any) -> None:
        computed.append(not only_recorded())
        run_notebook(*given, **how)

    def build(source: Path, html: Path) -> list[str]:
        texts = [(source / "notebooks" / f"{name}.ipynb").read_text() for name in ("table2", "figure1")]
        pages.append(["This page is being computed" in text for text in texts])
        html.mkdir(parents=True, exist_ok=True)
        (html / "index.html").write_text("<p>a page</p>")
        return []

    monkeypatch.setattr(book, "run_notebook", run)
    monkeypatch.setattr(book, "_build_pages", build)
    build_book(tmp_path, {}, progress=False)
    assert computed == [False, True, True]  # first the front page's from records alone, then both
    assert pages == [[False, True], [False, False]]
    build_book(tmp_path, {}, progress=False)
    assert len(pages) == 3, "pages existed: no first build was needed"
