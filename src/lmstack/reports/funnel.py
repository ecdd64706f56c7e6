"""A funnel as inline SVG: for each stage, what went on and what was dropped, reason by reason."""

from collections.abc import Sequence
from html import escape

from lmstack.reports.svg import COLORS, number_text

_WIDTH, _ROW, _LEFT, _TOP, _BAR = 940, 34, 150.0, 40.0, 20
_KEPT = "#94a3b8"
_NARROWEST_LABEL = 46


def funnel(title: str, rows: Sequence[tuple[str, float, Sequence[tuple[str, float]]]]) -> str:
    """One bar a stage: grey went on, each colour is a reason to drop; after it, the share that was dropped.

    Args:
        title: Above the bars.
        rows: Name of the stage, amount that went on, and amounts dropped by reason.
    """
    whole = max((kept + sum(amount for _, amount in dropped) for _, kept, dropped in rows), default=0.0) or 1.0
    height = _TOP + _ROW * len(rows) + 10
    scale = (_WIDTH - _LEFT - 70) / whole
    parts = [f'<text x="0" y="17" class="title">{escape(title)}</text>']
    for number, (name, kept, dropped) in enumerate(rows):
        y = _TOP + _ROW * number
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" class="end">{escape(name)}</text>')
        parts.append(_segment(_LEFT, y, kept * scale, _KEPT, f"{name}: {number_text(kept)} went on", number_text(kept)))
        x = _LEFT + kept * scale
        for place, (reason, amount) in enumerate(dropped):
            color = COLORS[place % len(COLORS)]
            parts.append(_segment(x, y, amount * scale, color, f"{reason}: {number_text(amount)} dropped", reason))
            x += amount * scale
        if gone := sum(amount for _, amount in dropped):
            parts.append(f'<text x="{x + 6:.1f}" y="{y + 14}">− {_percent(gone / (kept + gone))}</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" style="max-width:none;width:100%" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _segment(x: float, y: float, width: float, color: str, hint: str, label: str) -> str:
    width = max(width, 0.0)
    rectangle = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{color}"/>'
    text = ""
    if width >= max(_NARROWEST_LABEL, 5.5 * len(label)):
        text = f'<text x="{x + width / 2:.1f}" y="{y + 14}" class="mid small">{escape(label)}</text>'
    return f"<g><title>{escape(hint)}</title>{rectangle}{text}</g>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "&lt; 0.1 %"
