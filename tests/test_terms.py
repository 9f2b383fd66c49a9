"""Terms of the glossary are explained where a page first uses them."""

from dghlib.bookmaking.terms import entries, explained

GLOSSARY = """<dl class="glossary">
<dt id="term-W4A8">W4A8<a class="headerlink">#</a></dt><dd><p>Weights in 4 bits.</p></dd>
<dt id="term-record">record<a class="headerlink">#</a></dt><dd><p>One run as a <em>file</em> &amp; more.</p></dd>
</dl>"""


def test_entries_are_read_from_the_glossary_page() -> None:
    assert entries(GLOSSARY) == {
        "W4A8": ("term-W4A8", "Weights in 4 bits."),
        "record": ("term-record", "One run as a file & more."),
    }


def test_the_first_use_of_each_term_in_a_paragraph_is_explained() -> None:
    page = "<h1>A record</h1><p>A <a href='x'>record</a>, records, <code>record</code>, a record. W2A4.</p>"
    page += "<p>record W4A8</p>"
    shown = explained(page, entries(GLOSSARY), "../glossary.html")
    link = '<a class="term" href="../glossary.html#term-record" title="One run as a file &amp; more.">record</a>'
    widths = '<a class="term" href="../glossary.html#term-W4A8" title="Weights in 4 bits.">W2A4</a>'
    assert shown == page.replace("a record. W2A4.", f"a {link}. {widths}.")
