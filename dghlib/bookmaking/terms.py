"""Terms of the glossary in the book's pages: the first use of each on a page links to it, a hover text explains it."""

import html
import re
from collections.abc import Mapping

_ENTRY = re.compile(r'<dt id="(?P<id>term-[^"]+)">(?P<name>.*?)<a.*?</dt>\s*<dd>(?P<text>.*?)</dd>', re.DOTALL)
_TAG = re.compile(r"<[^>]*>", re.DOTALL)
_PARAGRAPH = re.compile(r"<p>.*?</p>", re.DOTALL)
# Parts that are not plain text of the page: links, code, equations, and the tags themselves.
_CLOSED = re.compile(r"(<(?:a|code|span|em|strong)\b.*?</(?:a|code|span|em|strong)>|<[^>]*>)", re.DOTALL)
WIDTHS = "W4A8"  # the entry for all widths
LONGEST = 200  # characters of a hover text


def entries(glossary: str) -> dict[str, tuple[str, str]]:
    """Return the entries of the glossary's page: name -> (anchor, its explanation as plain text)."""
    return {
        _TAG.sub("", found["name"]).strip(): (found["id"], " ".join(html.unescape(_TAG.sub("", found["text"])).split()))
        for found in _ENTRY.finditer(glossary)
    }


def explained(page: str, known: Mapping[str, tuple[str, str]], glossary: str) -> str:
    """Return a page in whose paragraphs the first use of each term is a link to the glossary with a hover text.

    Args:
        page: its HTML.
        known: from `entries`.
        glossary: the address of the glossary, from this page.
    """
    left = {name.lower(): name for name in known}
    words = sorted(map(re.escape, known), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:(?P<width>W\d+A\d+)|{'|'.join(words)})(?![\w-])", re.IGNORECASE)

    def linked(found: re.Match[str]) -> str:
        name = left.pop(WIDTHS.lower() if found["width"] else found[0].lower(), None)
        if name is None:
            return found[0]
        anchor, text = known[name]
        shown = html.escape(text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]} ...", quote=True)
        return f'<a class="term" href="{glossary}#{anchor}" title="{shown}">{found[0]}</a>'

    def in_paragraph(paragraph: re.Match[str]) -> str:
        parts = _CLOSED.split(paragraph[0])
        return "".join(pattern.sub(linked, part) if not part.startswith("<") else part for part in parts)

    return _PARAGRAPH.sub(in_paragraph, page)
