"""Small charts as inline SVG: lines, points and bars, in the page's own colours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 42
_TITLE = 17  # where its line stands; the legend is on the same
COLORS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")


@dataclass(frozen=True)
class Series:
    """Points of one name.

    Attributes:
        name: In the legend.
        points: (x, y) pairs; those that are not finite are left out.
        style: Joined by a line, or dots.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: Literal["line", "dots", "dashes"] = "line"


def chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str, y_from_zero: bool = False) -> str:
    """Lines and dots over two axes.

    Args:
        title: Above the chart.
        series: At least one with a finite point, or the chart says that there is nothing.
        x_label: Under the chart.
        y_label: At its left.
        y_from_zero: Whether the vertical axis begins at 0.
    """
    kept = [Series(s.name, [p for p in s.points if all(map(math.isfinite, p))], s.style) for s in series]
    kept = [s for s in kept if s.points]
    if not kept:
        return _frame(title, f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="mid">no data</text>')
    xs = [x for s in kept for x, _ in s.points]
    ys = [y for s in kept for _, y in s.points] + ([0.0] if y_from_zero else [])
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    to_x = _scale(min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs)), _LEFT, WIDTH - _RIGHT)
    to_y = _scale(min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)), HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x_ticks, y_ticks, to_x, to_y, x_label, y_label)]
    for number, one in enumerate(kept):
        color = COLORS[number % len(COLORS)]
        places = [(to_x(x), to_y(y)) for x, y in one.points]
        if one.style == "dots":
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in places]
        else:
            dashes = ' stroke-dasharray="5 4"' if one.style == "dashes" else ""
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dashes}/>')
    if len(kept) > 1:
        parts.append(_legend([s.name for s in kept]))
    return _frame(title, "".join(parts))


def bars(title: str, heights: Sequence[tuple[str, float]], *, y_label: str, line_at: float | None = None) -> str:
    """Bars side by side, each with its value.

    Args:
        title: Above the chart.
        heights: Name and height of each bar.
        y_label: At the left.
        line_at: A dashed line at this height; None for none.
    """
    finite = [(name, value) for name, value in heights if math.isfinite(value)]
    if not finite:
        return _frame(title, f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="mid">no data</text>')
    values = [value for _, value in finite] + [0.0] + ([line_at] if line_at is not None else [])
    y_ticks = ticks(min(values), max(values))
    to_y = _scale(min(y_ticks[0], min(values)), max(y_ticks[-1], max(values)), HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / len(finite)
    parts = [_axes([], y_ticks, lambda x: x, to_y, "", y_label)]
    for number, (name, value) in enumerate(finite):
        x, top, base = _LEFT + step * (number + 0.15), to_y(max(value, 0.0)), to_y(min(value, 0.0))
        color = COLORS[number % len(COLORS)]
        middle = x + step * 0.35
        parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{step * 0.7:.1f}" height="{base - top:.1f}" fill="{color}"/>'
        )
        parts.append(f'<text x="{middle:.1f}" y="{top - 4:.1f}" class="mid">{number_text(value)}</text>')
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - _BOTTOM + 16}" class="mid small">{escape(name)}</text>')
    if line_at is not None:
        y = to_y(line_at)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
    return _frame(title, "".join(parts))


def histogram(title: str, bins: Sequence[str], series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """Groups of bars side by side; hover for a bar's value.

    Args:
        title: Above the chart.
        bins: Names of the groups, from left to right.
        series: Points whose x is the number of a group.
        x_label: Under the chart.
        y_label: At its left.
    """
    highest = max((y for one in series for _, y in one.points), default=0.0)
    y_ticks = ticks(0.0, highest or 1.0)
    to_y = _scale(0.0, y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(bins), 1)
    width = 0.84 * step / max(len(series), 1)
    parts = [_axes([], y_ticks, lambda x: x, to_y, x_label, y_label)]
    for number, name in enumerate(bins):
        x = _LEFT + step * (number + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" class="mid small">{escape(name)}</text>')
    for place, one in enumerate(series):
        for group, value in one.points:
            x, top = _LEFT + step * (group + 0.08) + width * place, to_y(value)
            hint = escape(f"{one.name}, {bins[int(group)]}: {number_text(value)}")
            parts.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{HEIGHT - _BOTTOM - top:.1f}" '
                f'fill="{COLORS[place % len(COLORS)]}"><title>{hint}</title></rect>'
            )
    return _frame(title, "".join(parts) + _legend([one.name for one in series]))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range.

    Args:
        low: Its lower end.
        high: Its upper end.
        count: About how many.
    """
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(first, last + 1)]


def number_text(value: float) -> str:
    """A number as a reader wants it: three digits that matter, from ten thousand on as k and M, never a power of ten.

    Args:
        value: The number.
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


_Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float | int, stop: float | int) -> _Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], to_x: _Scale, to_y: _Scale, x_label: str, y_label: str
) -> str:
    bottom = HEIGHT - _BOTTOM
    parts = []
    for tick in y_ticks:
        y = to_y(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" class="end">{number_text(tick)}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{to_x(tick):.1f}" y="{bottom + 16}" class="mid">{number_text(tick)}</text>')
    parts.append(f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 8}" class="mid">{escape(x_label)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text x="13" y="{middle}" class="mid" transform="rotate(-90 13 {middle})">{escape(y_label)}</text>')
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    parts, x = [], float(WIDTH - _RIGHT)
    for number in reversed(range(len(names))):
        name = names[number]
        x -= 6.2 * len(name)
        parts.append(f'<text x="{x:.1f}" y="{_TITLE}">{escape(name)}</text>')
        x -= 14
        parts.append(f'<rect x="{x:.1f}" y="{_TITLE - 8}" width="9" height="9" fill="{COLORS[number % len(COLORS)]}"/>')
        x -= 8
    return "".join(parts)


def _frame(title: str, content: str) -> str:
    heading = f'<text x="{_LEFT}" y="{_TITLE}" class="title">{escape(title)}</text>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{heading}{content}</svg>'
