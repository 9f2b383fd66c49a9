"""Figures have alternative texts, fit the page, and have 1 legend; their numbers are below them."""

import errno
import os
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dghlib.showing import figures


def _drawn() -> figures.Figure:
    figure, axes = figures.panels(["one & two", "three", "four"])
    for name, axis in axes.items():
        axis.plot([1, 2], [10, 90], label="DGH")
        axis.plot([1, 2], [20, 80], label="GENIE")
        axis.set(title=name, xlabel="images", ylabel="top-1 in %", xlim=(1, 2), ylim=(0, 100))
        axis.legend()
    figures.legend_below(figure)
    return figures.saved(figure, pd.DataFrame(), None)


def test_a_figure_has_an_alternative_text() -> None:
    file = StringIO()
    _drawn().savefig(file, format="svg")
    text, svg = figures.description_of(file.getvalue())
    assert text == (
        "3 parts; one & two, three, four; x: images, from 1 to 2; y: top-1 in %, from 0 to 100; drawn: DGH, GENIE"
    )
    assert '<g id="figure_1">' in svg
    assert "drawn:" not in svg
    assert figures.description_of("<svg/>") == ("a figure", "<svg/>")


def test_a_figure_fits_the_page_and_has_one_legend() -> None:
    figure = _drawn()
    assert figure.get_figwidth() == figures.WIDTH
    assert [axis.get_legend() for axis in figure.axes] == [None] * 3
    assert len(figure.legends) == 1


def test_numbers_are_shown_unless_they_are_too_many(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    assert figures.numbers_below(path) == ""
    for count, shown in ((figures.MOST_NUMBERS, True), (figures.MOST_NUMBERS + 1, False)):
        pd.DataFrame({"mean": range(count)}).to_csv(path, index=False)
        assert ("The numbers of this figure" in figures.numbers_below(path)) is shown


def test_a_figure_is_written_identically_every_time(tmp_path: Path) -> None:
    for name in ("first", "again"):
        figure, axes = figures.panels(["one"])
        axes["one"].plot([1, 2], [3, 4], "o")
        figures.saved(figure, pd.DataFrame(), str(tmp_path / name))
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


@pytest.mark.parametrize(("kind", "name"), [(figures.Figure, "savefig"), (pd.DataFrame, "to_csv")])
def test_a_full_disk_leaves_no_incomplete_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    def full(written: Any, path: Path, **settings: Any) -> None:
        Path(path).write_text("<svg>" if name == "savefig" else "a,")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    figure, _ = figures.panels(["one"])
    monkeypatch.setattr(kind, name, full)
    with pytest.raises(OSError, match=r"could not write .*/drawn\.(svg|csv): No space left on device"):
        figures.saved(figure, pd.DataFrame({"mean": [1]}), str(tmp_path / "drawn"))
    assert [path.name for path in tmp_path.iterdir()] == (["drawn.svg"] if name == "to_csv" else [])
