"""Silence sphinx-thebe, which jupyter-book always loads: no page runs code, and its script fails on every page.

Its style sheet stays: every page links to it.
"""

from sphinx.application import Sphinx
from sphinx.config import Config


def setup(app: Sphinx) -> dict[str, bool]:
    """Disconnect what sphinx-thebe connected, once all extensions are loaded."""
    app.connect("config-inited", _disconnect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _disconnect(app: Sphinx, _: Config) -> None:
    for event in ("env-before-read-docs", "doctree-resolved"):
        for listener in list(app.events.listeners[event]):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)
