"""Two ways to make the book: from committed records alone, and without them.

In the former, which an environment variable turns on, no network is loaded (`run.load_model`), so nothing can be
computed by mistake: plans find their records and name the runs that have none, and a cell that needs a network stops
with `NotRecorded`. The cells after it run all the same, and a note takes the place of its error.

In the latter, `anew`, which `dgh book` turns on, committed records do not count: this machine computes its own.
"""

import html
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

RECORDED_VARIABLE = "DGHLIB_RECORDED"
ANEW_VARIABLE = "DGHLIB_ANEW"


class NotRecorded(RuntimeError):
    """Records alone were to be shown, and this would have to be computed."""


def only_recorded() -> bool:
    """Return whether nothing is to be computed: the environment variable DGHLIB_RECORDED."""
    return bool(os.environ.get(RECORDED_VARIABLE))


def anew() -> bool:
    """Return whether this machine is to compute what the repository has records of, too: the variable DGHLIB_ANEW."""
    return bool(os.environ.get(ANEW_VARIABLE))


@contextmanager
def records_alone() -> Iterator[None]:
    """Compute nothing in this block, here and in processes that are started."""
    before = os.environ.get(RECORDED_VARIABLE, "")
    os.environ[RECORDED_VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ[RECORDED_VARIABLE] = before


def show_missing(titles: Sequence[str], wanted: int) -> None:
    """Show, where a notebook runs, which of so many runs have no record."""
    if titles:
        from IPython.display import HTML, display  # a part of the extra `book`, without which plans run all the same

        listed = "".join(f"<li>{html.escape(title)}</li>" for title in titles)
        summary = f"{len(titles)} of {wanted} runs have no record of these settings and versions."
        display(HTML(f'<details class="missing"><summary>{summary}</summary><ul>{listed}</ul></details>'))
