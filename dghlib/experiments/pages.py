"""Whether the pages of a book hold together: every link leads somewhere, every picture is there, no script fails."""

import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"),
)
SECONDS_PER_PAGE = 60


class _Page(HTMLParser):
    """What a page links to, and the anchors that can be linked to in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        name = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src"}.get(tag)
        if name and (target := given.get(name)):
            self.targets.append(target)


def broken_links(html: Path) -> list[str]:
    """Return the links, pictures and scripts of the pages under `html` that lead nowhere, with the page they are on.

    Addresses of other machines are not followed.
    """
    html = html.resolve()
    pages = {path: _Page(path) for path in sorted(html.rglob("*.html")) if "_static" not in path.parts}
    return [
        f"{path.relative_to(html)}: {target} leads nowhere"
        for path, page in pages.items()
        for target in dict.fromkeys(page.targets)
        if not _leads_somewhere(path, target, pages)
    ]


def _leads_somewhere(path: Path, target: str, pages: dict[Path, _Page]) -> bool:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return True
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if goal.is_dir():
        goal /= "index.html"
    if not goal.is_file():
        return False
    anchor = unquote(parts.fragment)
    return not anchor or goal not in pages or anchor in pages[goal].anchors


def browser() -> str | None:
    """Return the path of a browser of Chromium's kind on this machine, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def console_errors(program: str, page: Path) -> list[str]:
    """Open a page in a browser without a window; return what its scripts report as errors or could not load."""
    with tempfile.TemporaryDirectory() as profile:
        command = [program, f"--user-data-dir={profile}", *BROWSER_OPTIONS, page.resolve().as_uri()]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_PAGE, check=False)
    if "</html>" not in finished.stdout:
        return [f"{page.name}: the browser showed nothing"]
    said = re.findall(r'CONSOLE[^\]]*\] "(.*)", source', finished.stderr)
    return [f"{page.name}: {line}" for line in said if re.search(r"error|failed|refused", line, re.IGNORECASE)]
