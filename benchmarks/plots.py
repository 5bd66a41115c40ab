"""
Plots as SVG: bars of contenders, and lines of growth.

The background is transparent and all colours have medium brightness, so that a plot is readable on
a light page and on a dark one. All scales are logarithmic, because contenders differ by orders of
magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

TEXT, FAINT = "#7d828a", "#8b9098"
_GRID = {"stroke": FAINT, "stroke_opacity": 0.3}
OURS, PEER, FLOOR = "#3d8bd4", "#a58a5c", "#5f9e78"
COLOURS = ("#3d8bd4", "#c2703d", "#5f9e78", "#a06bb8", "#b0893a", "#5b8f9e")

_WIDTH = 720
_FONT = 12
_LETTER = 6.4  # the average width of a letter at that size


@dataclass(frozen=True)
class Bar:
    """A contender: its figure, and the lowest and highest of the rounds."""

    name: str
    value: float
    low: float
    high: float
    colour: str = PEER


@dataclass(frozen=True)
class Line:
    """A growing figure: its points and its style."""

    name: str
    points: Mapping[float, float]
    colour: str
    dashed: bool = False


@dataclass
class Drawing:
    """A picture under construction; `text` is the whole of it."""

    width: int
    height: int
    title: str
    elements: list[str] = field(default_factory=list)

    def add(self, tag: str, content: str = "", /, **attributes: object) -> None:
        """Add an element. Underscores in attribute names become dashes."""
        said = "".join(
            f" {name.replace('_', '-')}={quoteattr(_said(value))}"
            for name, value in attributes.items()
        )
        self.elements.append(f"<{tag}{said}>{escape(content)}</{tag}>")

    def words(self, x: float, y: float, content: str, /, **attributes: object) -> None:
        """Add text."""
        self.add("text", content, x=x, y=y, **{"fill": TEXT, **attributes})

    @property
    def text(self) -> str:
        """The SVG."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
            f' width="{self.width}" height="{self.height}" role="img"'
            f' font-family="system-ui, sans-serif" font-size="{_FONT}">'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", *self.elements, "</svg>\n"])


def _said(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale from one interval to another."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        part = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.begin + min(1.0, part) * (self.end - self.begin)

    @property
    def decades(self) -> list[float]:
        """The powers of ten on the scale."""
        first, last = (
            math.ceil(math.log10(self.low) - 1e-9),
            math.floor(math.log10(self.high) + 1e-9),
        )
        return [10.0**n for n in range(first, last + 1)]


def around(values: Sequence[float], begin: float, end: float) -> Scale:
    """Return a scale of whole decades that contains all positive values."""
    above = [value for value in values if value > 0] or [1.0]
    low = 10.0 ** math.floor(math.log10(min(above)))
    high = 10.0 ** math.ceil(math.log10(max(above)))
    return Scale(low, max(high, 10 * low), begin, end)


def short(value: float) -> str:
    """Format a number for an axis: 20k, 1.5M, 0.4."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def bars(title: str, unit: str, contenders: Sequence[Bar]) -> str:
    """Return a picture of horizontal bars, in the given order."""
    left = 16 + _LETTER * max((len(bar.name) for bar in contenders), default=0)
    right, top, step = _WIDTH - 64, 48, 22
    height = top + step * len(contenders) + 30
    drawing = Drawing(_WIDTH, height, title)
    scale = around([x for bar in contenders for x in (bar.low, bar.high)], left, right)
    drawing.words(8, 20, f"{title} ({unit}, logarithmic)", font_weight="bold")
    bottom = height - 24
    for decade in scale.decades:
        x = scale(decade)
        drawing.add("line", x1=x, y1=top - 8, x2=x, y2=bottom, **_GRID)
        drawing.words(x, bottom + 16, short(decade), text_anchor="middle", fill=FAINT)
    for n, bar in enumerate(contenders):
        y, end = top + n * step, scale(bar.value)
        drawing.words(left - 6, y + 11, bar.name, text_anchor="end")
        drawing.add("rect", x=left, y=y, width=max(1.0, end - left), height=14, fill=bar.colour)
        low, high, middle = scale(bar.low), scale(bar.high), y + 7
        drawing.add("line", x1=low, y1=middle, x2=high, y2=middle, stroke=TEXT, stroke_width=2)
        drawing.words(max(end, high) + 5, y + 11, short(bar.value))
    return drawing.text


def lines(title: str, across: str, unit: str, drawn: Sequence[Line]) -> str:
    """Return a picture of lines with their names at the right. Both scales are logarithmic."""
    named = _LETTER * max((len(line.name) for line in drawn), default=0)
    left, right, top, bottom = 56, _WIDTH - 24 - named, 44, 320
    drawing = Drawing(_WIDTH, 372, title)
    xs = [x for line in drawn for x in line.points]
    along = Scale(min(xs), max(*xs, 10 * min(xs)), left, right)
    up = around([y for line in drawn for y in line.points.values()], bottom, top)
    drawing.words(8, 20, f"{title} ({unit}, logarithmic)", font_weight="bold")
    for x in sorted(set(xs)):
        drawing.add("line", x1=along(x), y1=top, x2=along(x), y2=bottom, **_GRID)
        drawing.words(along(x), bottom + 18, short(x), text_anchor="middle", fill=FAINT)
    for decade in up.decades:
        y = up(decade)
        drawing.add("line", x1=left, y1=y, x2=right, y2=y, **_GRID)
        drawing.words(left - 6, y + 4, short(decade), text_anchor="end", fill=FAINT)
    drawing.words((left + right) / 2, bottom + 40, across, text_anchor="middle")
    ends = _apart({line.name: up(line.points[max(line.points)]) for line in drawn})
    for line in drawn:
        path = " ".join(f"{along(x):.1f},{up(y):.1f}" for x, y in sorted(line.points.items()))
        dashes = {"stroke_dasharray": "5 4"} if line.dashed else {}
        style = {"fill": "none", "stroke": line.colour, "stroke_width": 2, **dashes}
        drawing.add("polyline", points=path, **style)
        for x, y in line.points.items():
            drawing.add("circle", cx=along(x), cy=up(y), r=3, fill=line.colour)
        drawing.words(right + 8, ends[line.name] + 4, line.name, fill=line.colour)
    return drawing.text


def _apart(places: Mapping[str, float]) -> dict[str, float]:
    """Move names apart that would overlap."""
    found: dict[str, float] = {}
    last = -math.inf
    for name, y in sorted(places.items(), key=lambda one: one[1]):
        last = max(y, last + _FONT + 2)
        found[name] = last
    return found
