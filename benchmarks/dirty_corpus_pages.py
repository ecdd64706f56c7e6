"""HTML pages for `dirty_corpus.py`: a main text within what sites put around it, in four layouts."""

import random
from collections.abc import Sequence
from html import escape
from string import Template

CHROME = (
    "We use cookies to improve your experience.",
    "Accept all",
    "Related posts",
    "Share this page with your friends",
    "Subscribe to our newsletter and never miss an article",
    "All rights reserved.",
    "Terms and conditions",
)
"""Texts around the content, each of which stands on every page."""

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title | Example Media</title>
<style>body { margin: 0; color: #222; } nav li { display: inline; }</style>
<script>window.tracker = { id: $number, send: function (page) { return page + 1; } };</script></head>
"""

_LAYOUTS = {
    "semantic": """<body><header><nav><ul>$links</ul></nav></header>
<div class="cookie-banner"><p>We use cookies to improve your experience.</p><button>Accept all</button></div>
<main><article><h1>$title</h1>
$body
</article></main>
<aside class="sidebar"><h3>Related posts</h3><ul>$links</ul><p>Share this page with your friends</p></aside>
<footer><form><label>Subscribe to our newsletter and never miss an article</label><input type="email"></form>
<p>Copyright 2024 Example Media. All rights reserved.</p><a href="/terms">Terms and conditions</a></footer>
</body></html>
""",
    "divs": """<body class="page-$number"><div id="top"><div class="menu"><ul>$links</ul></div></div>
<div id="wrapper"><div class="post-content"><h1 class="title">$title</h1>
$body
<div class="social-share"><span>Share this page with your friends</span></div></div>
<div class="related"><h3>Related posts</h3><ul>$links</ul></div>
<div class="newsletter-signup"><p>Subscribe to our newsletter and never miss an article</p></div></div>
<div id="footer"><p>Copyright 2024 Example Media. All rights reserved.
<a href="/terms">Terms and conditions</a></p></div>
<div id="cookie-consent"><p>We use cookies to improve your experience.</p><a href="#">Accept all</a></div>
</body></html>
""",
    "tables": """<body bgcolor="white"><table width="100%"><tr><td colspan="2"><font size="1">$bar</font></td></tr>
<tr><td width="150" valign="top"><b>Related posts</b><ul>$links</ul>
<font size="1">Share this page with your friends</font></td><td valign="top"><h1>$title</h1>
$body
</td></tr><tr><td colspan="2" align="center"><font size="1">Subscribe to our newsletter and never miss an article<br>
We use cookies to improve your experience. <a href="#">Accept all</a><br>Copyright 2024 Example Media.
All rights reserved. <a href="/terms">Terms and conditions</a></font></td></tr></table></body></html>
""",
    "anonymous": """<body><div class="a1"><div class="b2">$bar</div><div class="c3"><h1>$title</h1>
$body
</div><div class="d4"><div>Related posts</div>$bar<div>Share this page with your friends</div></div>
<div class="e5"><div>Subscribe to our newsletter and never miss an article</div>
<div>We use cookies to improve your experience. <span>Accept all</span></div>
<div>Copyright 2024 Example Media. All rights reserved. Terms and conditions</div></div></div></body></html>
""",
}
"""Tags that say what they hold; classes that do; tables as of 1999; nothing that says anything."""


def make_page(
    draw: random.Random, title: str, main: Sequence[str], entries: Sequence[str], *, links: Sequence[str]
) -> tuple[str, str, list[str]]:
    """A page; its content is the title, the first paragraph, a list, and the other paragraphs.

    Args:
        draw: Source of chance.
        title: Heading.
        main: Paragraphs.
        entries: Of the list.
        links: Of the navigation.

    Returns:
        The layout, the page, and the texts in it that are not its content.
    """
    layout = draw.choice(sorted(_LAYOUTS))
    listed = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    first, *others = (f"<p>{_with_inline_tags(draw, escape(paragraph))}</p>" for paragraph in main)
    body = "\n".join([first, f"<ul>{listed}</ul>", *others])
    names = [escape(word.title()) for word in links]
    values = {
        "title": escape(title),
        "body": body,
        "number": draw.randrange(10**6),
        "links": "".join(f'<li><a href="/{number}">{name}</a></li>' for number, name in enumerate(names)),
        "bar": " | ".join(f'<a href="/{number}">{name}</a>' for number, name in enumerate(names)),
    }
    return layout, Template(_HEAD + _LAYOUTS[layout]).substitute(values), list(CHROME)


def _with_inline_tags(draw: random.Random, paragraph: str) -> str:
    """The paragraph with two of its words marked up, one of them as a link, and a comment."""
    words = paragraph.split(" ")
    for opening, closing in (("<em>", "</em>"), ('<a href="/more">', "</a>"), ("", "<!-- anchor -->")):
        place = draw.randrange(len(words))
        words[place] = f"{opening}{words[place]}{closing}"
    return " ".join(words)
