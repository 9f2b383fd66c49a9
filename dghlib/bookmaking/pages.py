"""Checks of the book's pages: every link leads somewhere, every picture exists, no script fails."""

import json
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
    *("--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=600000", "--dump-dom"),
)
SECONDS_PER_PAGE = 120  # exceeded only by a browser that hangs, also on a busy machine
PHONE = 390  # pixels
# A page that shows every page in turn in a frame, waits until it has loaded, and inspects it.
_HOST = """<!doctype html><body><script>
function problemsOf(page) {
  const width = page.documentElement.scrollWidth, empty = page.body.innerText.trim().length < 20;
  const blank = [...page.images].filter((image) => image.complete && !image.naturalWidth);
  return [
    ...blank.map((image) => `the picture ${image.getAttribute("src")} shows nothing`),
    ...(empty ? ["the page shows no text"] : []),
    ...(width > WIDTH ? [`the page is ${width} pixels wide on a screen of ${WIDTH}`] : []),
  ];
}
const WIDTH = %d;
(async () => {
  for (const address of %s) {
    console.log("VISIT " + address);
    const frame = document.createElement("iframe");
    frame.style = `width: ${WIDTH}px; height: 900px; border: 0`;
    await new Promise((loaded) => {
      frame.onload = loaded;
      frame.src = address;
      document.body.append(frame);
      // The page replaces the empty frame's window. The browser does not say which messages are errors.
      frame.contentWindow.console.error = (...said) => console.log("PROBLEM " + said.map(String).join(" "));
    });
    await new Promise((resolve) => setTimeout(resolve, 100));
    for (const problem of problemsOf(frame.contentDocument)) console.log("PROBLEM " + problem);
    frame.remove();
  }
  console.log("VISITED ALL");
})();
</script>"""


class _Page(HTMLParser):
    """The links of a page, and the anchors in it."""

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
    """Return the links, pictures and scripts of the pages under `html` that lead nowhere, with their page.

    Addresses of other machines are not followed.
    """
    html = html.resolve()
    pages = {path: _Page(path) for path in _pages(html)}
    return [
        f"{path.relative_to(html)}: {target} leads nowhere"
        for path, page in pages.items()
        for target in dict.fromkeys(page.targets)
        if not _leads_somewhere(path, target, pages)
    ]


def _pages(html: Path) -> list[Path]:
    return [path for path in sorted(html.rglob("*.html")) if "_static" not in path.parts]


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


def visit(program: str, html: Path, width: int = PHONE) -> list[str]:
    """Open every page under `html` in a browser without a window; return the problems.

    These are errors that scripts report or do not catch, files that they could not load, pictures that show nothing,
    pages without text, and pages wider than the screen, which has `width` pixels.
    """
    html = html.resolve()
    pages = {path.as_uri(): str(path.relative_to(html)) for path in _pages(html)}
    with tempfile.TemporaryDirectory() as folder:
        host = Path(folder) / "host.html"
        host.write_text(_HOST % (width, json.dumps(list(pages))), encoding="utf-8")
        command = [program, f"--user-data-dir={folder}/profile", *BROWSER_OPTIONS, host.as_uri()]
        seconds = SECONDS_PER_PAGE * (len(pages) + 5)
        finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    said = re.findall(r'CONSOLE[^\]]*\] "(.*?)", source', finished.stderr, re.DOTALL)
    problems, page = [], ""
    for line in said:
        mark, _, text = line.partition(" ")
        if mark == "VISIT":
            page = pages[text]
        elif mark == "PROBLEM" or re.search(r"error|failed|refused|uncaught", line, re.IGNORECASE):
            problems.append(f"{page}: {text if mark == 'PROBLEM' else line}")
    return problems if "VISITED ALL" in said else [*problems, f"{page}: the browser stopped here"]
