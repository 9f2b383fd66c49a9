"""The floors of `dghlib`, read from its imports: `python tests/house.py` prints those of CONTRIBUTING.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import dghlib

# From the lowest. A room imports itself and lower floors; the rooms of one floor never import each other.
FLOORS = (
    ("choices", "running", "seeds"),
    ("storage",),
    ("evaluation", "images", "models"),
    ("synthesis",),
    ("datasets", "generators", "quantizers"),
    ("export", "training"),
    ("experiments",),
    ("plans",),
    ("showing",),
    ("bookmaking",),
    ("commands",),
    ("cli",),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
PACKAGE = Path(dghlib.__file__).parent
LIBRARY = FLOORS[: FLOORS.index(("experiments",))]  # the library; the other rooms make the book
# The type that every room may use.
FOR_ALL = {("dghlib.models", "FloatModel"), ("dghlib.models.float_model", "FloatModel")}


def imports_of(source: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import in the source; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def rooms_used(source: str) -> set[str]:
    """Return the rooms of `dghlib` that a source imports."""
    pairs = (f"{module}.{name}".split(".") for module, name in imports_of(source) if (module, name) not in FOR_ALL)
    return {parts[1] for parts in pairs if parts[0] == "dghlib" and parts[1] in FLOOR_OF}


def arrows() -> dict[str, set[str]]:
    """Return the other rooms that every room imports."""
    found: dict[str, set[str]] = {room: set() for room in FLOOR_OF}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room in found:
            found[room] |= rooms_used(path.read_text(encoding="utf-8")) - {room}
    return found


def drawing() -> str:
    """Return the house as a Mermaid diagram, highest floor first, without arrows that follow from longer paths."""
    used = arrows()
    lines = ["```mermaid", "flowchart TB"]
    for number, floor in reversed(list(enumerate(FLOORS))):
        lines += [f'  subgraph floor{number} ["{number}"]', f"    {' ~~~ '.join(floor)}", "  end"]
    for room in sorted(FLOOR_OF, key=lambda name: (-FLOOR_OF[name], name)):
        further = {below for other in used[room] for below in _all_below(other, used)}
        lines += [f"  {room} --> {other}" for other in sorted(used[room] - further)]
    return "\n".join([*lines, "```"])


def _all_below(room: str, used: dict[str, set[str]]) -> set[str]:
    """Return the rooms that a room imports, at any distance."""
    return used[room] | {below for other in used[room] for below in _all_below(other, used)}


def table() -> str:
    """Return the house as a table, highest floor first: the rooms, and the rooms that each imports."""
    used = arrows()
    lines = ["| floor | room | imports |", "|---|---|---|"]
    for number, floor in reversed(list(enumerate(FLOORS))):
        for room in floor:
            below = sorted(used[room], key=lambda name: (-FLOOR_OF[name], name))
            lines.append(f"| {number} | `{room}` | {', '.join(below) or 'none'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(drawing(), table(), sep="\n\n")
