"""Two ways to make the book: from published records alone, and without them.

In the first, which an environment variable enables, no network is loaded (`run.load_model`), so nothing can be computed
by mistake: plans find their records and name the runs that have none, and a cell that needs a network stops with
`NotRecorded`. The cells after it still run, and a note replaces its error.

In the second, `anew`, which `dgh book` enables, published records are not used: this machine computes its own.
"""

import html
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

RECORDED_VARIABLE = "DGHLIB_RECORDED"
ANEW_VARIABLE = "DGHLIB_ANEW"


class NotRecorded(RuntimeError):
    """Only records should be shown, and this would have to be computed."""


def only_recorded() -> bool:
    """Return whether nothing should be computed: the environment variable DGHLIB_RECORDED."""
    return bool(os.environ.get(RECORDED_VARIABLE))


def anew() -> bool:
    """Return whether this machine should also compute runs with published records: the variable DGHLIB_ANEW."""
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
    """Show, where a notebook runs, which of the wanted runs have no record."""
    if titles:
        from IPython.display import HTML, display  # a part of the extra `book`; plans also run without it

        listed = "".join(f"<li>{html.escape(title)}</li>" for title in titles)
        summary = f"{len(titles)} of {wanted} runs have no record of these settings and versions."
        display(HTML(f'<details class="missing"><summary>{summary}</summary><ul>{listed}</ul></details>'))
