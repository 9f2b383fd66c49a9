"""Tables of finished pages: captions, scopes and frames; wide, filtered and sorted tables in a browser."""

import re
from pathlib import Path

import pandas as pd
import pytest

from dghlib.bookmaking.accessible import accessible
from dghlib.bookmaking.pages import browser, visit
from dghlib.showing import leaderboard, tables

STATIC = Path(__file__).parents[1] / "book" / "_static"


def test_tables_of_results_get_captions_scopes_and_a_frame() -> None:
    frame = pd.DataFrame(
        [[1, 2], [3, 4]],
        index=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")], names=["one", "two"]),
        columns=pd.MultiIndex.from_tuples([("net", "W4A4"), ("net", "W8A8")]),
    )
    page = accessible(f'<h2>Cold &amp; warm<a class="headerlink" href="#x">#</a></h2>{frame.to_html()}')
    assert '<div class="scrolls" role="region" tabindex="0" aria-label="Cold &amp; warm"><table' in page
    assert '<caption class="unseen">Cold &amp; warm</caption>' in page
    assert re.search(r'<th scope="colgroup" colspan="2"[^>]*>net</th>', page)
    assert re.search(r'<th scope="rowgroup" rowspan="2"[^>]*>a</th>', page)
    assert re.search(r'<th scope="row"[^>]*>b</th>', page)
    assert len(re.findall(r"<th(?![^>]*scope)[ >]", page)) == 0


def test_existing_captions_stay_and_tables_without_results_get_only_scopes() -> None:
    styled = accessible(
        '<h1>T</h1><table class="dataframe"><caption>Own</caption><tbody><tr><td>1 ± 2</td></tr></table>'
    )
    assert styled.count("<caption>") == 1
    assert 'aria-label="Own"' in styled
    plain = accessible("<h1>T</h1><table><thead><tr><th>a</th></tr></thead></table>")
    assert plain == '<h1>T</h1><table><thead><tr><th scope="col">a</th></tr></thead></table>'


def test_a_table_below_a_formula_gets_the_formula_as_caption() -> None:
    page = accessible(r'<h2>\(\lambda\)</h2><table class="dataframe"><tbody><tr><td>1</td></tr></table>')
    assert r'<caption class="unseen">\(\lambda\)</caption>' in page


def test_the_papers_columns_become_a_second_table_below() -> None:
    columns = pd.MultiIndex.from_tuples([("ours", "W8A8"), ("paper: RN18", "W8A8")])
    table = pd.DataFrame([["1", ""], ["2", "3"]], index=["noise", "DGH"], columns=columns)
    ours, papers = tables.stacked(table).data.split("</table>")[:2]
    assert "<caption>This book</caption>" in ours
    assert "paper: RN18" not in ours
    assert "<caption>The paper</caption>" in papers
    assert "DGH" in papers
    assert "noise" not in papers  # the paper has no row b
    assert "<caption" not in tables.stacked(table[["ours"]]).data


@pytest.mark.skipif(browser() is None, reason="there is no chromium on this machine")
def test_long_lists_are_filtered_and_sorted(tmp_path: Path) -> None:
    rows = pd.DataFrame({"name": [f"row {number}" for number in range(100)], "seed": [n % 7 for n in range(100)]})
    script = """addEventListener("load", () => {
        const [input, body, head] = ["input", "tbody", "thead button"].map((name) => document.querySelector(name));
        const first = () => [body.rows.length, body.rows[0].cells[0].textContent].join();
        const check = (wanted) => { if (first() !== wanted) throw Error(`${first()} is not ${wanted}`); };
        check("50,row 0");
        input.value = "ROW 9 3"; // words of any case, each somewhere in the row
        input.dispatchEvent(new Event("input"));
        check("WANTED");
        head.click(); head.click();
        check("4,row 94");
    });"""
    for name, wanted in (("right", "4,row 39"), ("wrong", "5,row 39")):
        page = f"<!doctype html><html><body><p>As much text as a page needs.</p>{leaderboard.filterable(rows).data}"
        page += f'<script src="{(STATIC / "tables.js").as_uri()}"></script><script>{script}</script>'
        (tmp_path / f"{name}.html").write_text(page.replace("WANTED", wanted))
    problems = visit(browser() or "", tmp_path)
    assert [problem.partition(":")[0] for problem in problems] == ["wrong.html"], problems
