"""Accessible tables in the book's pages: names, headings with scopes, and frames that scroll by keyboard.

pandas writes tables without any of these. Here the finished pages get them, whatever wrote the tables.
"""

import html
import re

MANY_COLUMNS = 6
_HEADING_OR_TABLE = re.compile(r"<h[1-6][^>]*>(?P<heading>.*?)</h[1-6]>|<table\b[^>]*>.*?</table>", re.DOTALL)
_TAG = re.compile(r"<(?:a class=\"headerlink\".*?</a>|[^>]*>)", re.DOTALL)
_PART = re.compile(r"<(?P<part>thead|tbody)\b.*?</(?P=part)>", re.DOTALL)
_CAPTION = re.compile(r"<caption\b[^>]*>(.*?)</caption>", re.DOTALL)
_OPENING = re.compile(r"^<table\b[^>]*>")


def accessible(page: str) -> str:
    """Return a page in which every table of results has a caption, scopes, and a frame that the keyboard scrolls.

    A table without a caption gets the name of the heading above it, for readers who do not see the page.
    """
    heading = ""

    def replaced(found: re.Match[str]) -> str:
        nonlocal heading
        if found["heading"] is not None:
            heading = _TAG.sub("", found["heading"]).strip()
            return found[0]
        # In tables with many columns, spreads go below their means; otherwise a narrow screen may break before them.
        many = found[0].rpartition("<tr")[2].count("<td") > MANY_COLUMNS
        table = _PART.sub(_with_scopes, found[0]).replace("± ", "<br>±&nbsp;" if many else "±&nbsp;")
        return _framed(table, heading) if "dataframe" in table.partition(">")[0] else table

    return _HEADING_OR_TABLE.sub(replaced, page)


def _with_scopes(part: re.Match[str]) -> str:
    """Return the head or the body of a table in which every heading cell has a scope."""
    scope, span = ("col", "colspan") if part["part"] == "thead" else ("row", "rowspan")

    def scoped(cell: re.Match[str]) -> str:
        if "scope=" in cell[0]:
            return cell[0]
        group = "group" if re.search(rf'{span}="(?!1")', cell[0]) else ""
        return f'<th scope="{scope}{group}"{cell[1]}>'

    return re.sub(r"<th\b([^>]*)>", scoped, part[0])


def _framed(table: str, heading: str) -> str:
    caption = _CAPTION.search(table)
    name = _TAG.sub("", caption[1]).strip() if caption else heading
    if caption is None:
        table = _OPENING.sub(lambda tag: f'{tag[0]}<caption class="unseen">{name}</caption>', table)
    label = html.escape(html.unescape(name), quote=True)
    return f'<div class="scrolls" role="region" tabindex="0" aria-label="{label}">{table}</div>'
