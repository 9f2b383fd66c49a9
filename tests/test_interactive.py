"""Charts show the data of their figures; in a page they are hidden until scripts draw them."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import vl_convert
from nbformat.v4 import new_code_cell, new_output
from test_leaderboard import RECORDS
from test_paper_pages import made_up

from dghlib.bookmaking.book import _vega
from dghlib.bookmaking.notebooks import _describe_figures
from dghlib.plans.catalogue import PLANS
from dghlib.showing import figures, interactive, leaderboard, paper_figures


def _svg(figure: figures.Figure) -> str:
    """Return the SVG that a browser would draw for a figure's chart."""
    svg: str = vl_convert.vegalite_to_svg(interactive.chart_of(figure))
    return svg


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_chart_contains_every_mean_of_its_figure(tmp_path: Path, seeds: int) -> None:
    models = ["shapes_residual", "shapes_inverted"]
    records = made_up(PLANS["figure5"]("shapes", "quick", models=models, seeds=seeds))
    figure = paper_figures.scope_curves(records, save=str(tmp_path / "figure"))
    svg, means = _svg(figure), pd.read_csv(tmp_path / "figure.csv")
    said = {float(mean) for mean in re.findall(r'aria-label="[^"]*?top-1 in %: ([\d.]+)', svg)}
    shown = means[means.row != "Real data"]
    assert set(shown["mean"]) <= said
    assert all(f">{model}<" in svg for model in models)
    assert all(f">{title}<" in svg for title in ("Real data", "Float"))
    assert ("standard deviation: " in svg) == (seeds == 2)


def test_there_is_no_chart_of_real_images_alone() -> None:
    records = made_up(PLANS["figure5"]("shapes", "quick", models=["shapes_residual"], seeds=1))
    real = [record for record in records if record["inputs"].get("images", {}).get("source", "real") == "real"]
    assert not hasattr(paper_figures.scope_curves(real), "_repr_mimebundle_")


def test_every_setting_of_the_leaderboard_is_a_labelled_dot() -> None:
    rows = leaderboard.runs(RECORDS)
    dots = _svg(leaderboard.differences(rows))
    assert re.search(r'aria-label="[^"]*images: Real data; [^"]*method: HPTQ; model: shapes_residual[^"]*\+2\.00', dots)
    costs = _svg(leaderboard.cost_and_accuracy(rows, bits="W4A4", policy="full"))
    assert len(re.findall(r'aria-label="[^"]*calibrated with: [^"]*method: HPTQ', costs)) == 2  # DGH and real images


def test_vega_defines_only_one_global_name() -> None:
    """At its top level it declares `_` and many more; scripts of the page do too, and then nothing is drawn."""
    script = _vega().strip()
    assert script.startswith("(() => {")
    assert re.search(r"Object\.assign\(window,\{vegaEmbed:[^}]*\}\);\}\)\(\);$", script)
    assert not re.search(r"^\s*(?:import|export) ", script, re.MULTILINE)


def test_a_page_has_the_chart_below_its_figure(tmp_path: Path) -> None:
    chart = {"mark": "</script>"}
    shown = {"image/svg+xml": "<svg/>", interactive.MIME: chart}
    cell = new_code_cell("draw()", outputs=[new_output("display_data", shown), new_output("stream", text="after")])
    _describe_figures(cell, tmp_path)
    assert [sorted(output.get("data", {})) for output in cell.outputs] == [["image/svg+xml"], ["text/html"], []]
    html = cell.outputs[1].data["text/html"]
    found = re.search(r"<script[^>]*>(.*?)</script>", html)
    assert found
    assert json.loads(found[1]) == chart
    nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))
