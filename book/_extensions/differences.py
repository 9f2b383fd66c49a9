"""The directive `differences`: what a module's docstring says of how it differs from a paper, as the list it is.

```{differences} dghlib.generators.zeroq
```
"""

import ast
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Differences(SphinxDirective):
    """Shows a docstring from the first line that begins with "Differences"."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the list; the page is made anew when the module changes."""
        import dghlib

        path = Path(dghlib.__file__).parents[1] / f"{self.arguments[0].replace('.', '/')}.py"
        self.env.note_dependency(str(path))
        lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("Differences")]
        if not starts:
            raise self.error(f'{path} has no line that begins with "Differences"')
        text: list[str] = []
        for line in lines[starts[0] :]:
            text += ["", line] if line.startswith("Differences") else [line]
            text += [""] if line.startswith("Differences") and line.endswith(":") else []  # a list follows
        content = StringList(text, source=str(path))
        node = nodes.container()
        self.state.nested_parse(content, 0, node)
        return node.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive known."""
    app.add_directive("differences", Differences)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
