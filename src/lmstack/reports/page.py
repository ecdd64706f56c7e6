"""An HTML page in one file: style, sections, tables. Nothing is loaded from elsewhere, nothing runs."""

from collections.abc import Sequence
from html import escape

_LONGEST_WORD = 24
"""Characters; what is longer is text that may be broken anywhere."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #666; --rule: #ddd; --paper: #fff; --shade: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e6; --soft: #9a9a98; --rule: #3a3a3a; --paper: #161616; --shade: #202020; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
p.lead, figcaption, .soft { color: var(--soft); }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem; }
.charts svg { flex: 1 1 24rem; max-width: 31rem; }
svg { font: 11px system-ui, sans-serif; } svg text { fill: var(--ink); }
svg .title { font-weight: 600; font-size: 13px; }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; } svg .small { font-size: 9px; }
svg .grid { stroke: var(--rule); }
svg .rule { stroke: var(--soft); stroke-dasharray: 5 4; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; } td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; }
td.text { white-space: pre-line; overflow-wrap: anywhere; min-width: 9rem; }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: Its heading.
        lead: A sentence under it.
        sections: Headings and their HTML.
    """
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{content}" for heading, content in sections if content)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n{body}\n</body>\n</html>\n'
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]) -> str:
    """A table; numbers stand on the right, what is not known is a dash.

    Args:
        columns: Headings.
        rows: As many cells each.
    """
    is_number = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    head = "".join(
        f"<th{' class=num' if number else ''}>{escape(name)}</th>"
        for name, number in zip(columns, is_number, strict=True)
    )
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def paragraph(text: str) -> str:
    """A paragraph.

    Args:
        text: Plain text.
    """
    return f"<p>{escape(text)}</p>"


def figures(*charts: str) -> str:
    """Charts side by side.

    Args:
        *charts: SVG.
    """
    return f'<div class="charts">{"".join(charts)}</div>'


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return '<td class="num">–</td>'
    if isinstance(value, str):
        kind = ' class="text"' if len(value) > _LONGEST_WORD else ""
        return f"<td{kind}>{escape(value)}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{1 if abs(value) >= 100 else 3}f}"
    return f'<td class="num">{text}</td>'
