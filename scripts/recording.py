"""What terminals showed, as a picture that plays: an SVG whose lines appear one after the other, for pages that show
pictures and run no scripts. Where nothing moves, all lines are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from xml.sax.saxutils import escape

LONGEST_PAUSE_S = 2.0
"""Of the playing; the times beside the lines are the true ones."""
FIRST_S = 0.5
LINE_HEIGHT = 19
LETTER_WIDTH = 7.9
MARGIN = 18
TIMES_WIDTH = 62
RIGHT_LETTERS = 34
"""By which lines of the right terminal are moved."""


class Kind(Enum):
    HEADING = "heading"
    COMMAND = "command"
    LEFT = "left"
    RIGHT = "right"
    """Of the terminal where somebody is asked."""


@dataclass(frozen=True)
class Line:
    seconds: float
    """Since the beginning."""
    kind: Kind
    text: str


_FONT = "DejaVu Sans Mono, Menlo, Consolas, monospace"
_GROUND, _TIME = "#1d2430", "#6b7689"
_COLOURS = {Kind.HEADING: "#8fbcbb", Kind.COMMAND: "#ffffff", Kind.LEFT: "#d8dee9", Kind.RIGHT: "#ebcb8b"}
_STYLE = "text { white-space: pre; animation: appear 1ms backwards } @keyframes appear { from { opacity: 0 } }"


def svg(lines: Sequence[Line], title: str) -> str:
    """The picture; each line is an element of its own."""
    widest = max((_left(line) + LETTER_WIDTH * len(line.text) for line in lines), default=0)
    rows = list(_rows(lines))
    height = 2 * MARGIN + LINE_HEIGHT * (rows[-1] + 1 if rows else 1)
    width = round(widest + MARGIN)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{_GROUND}"/>',
        f'<g font-family="{_FONT}" font-size="13" xml:space="preserve">',
    ]
    for line, row, delay in zip(lines, rows, _delays(lines), strict=True):
        y = MARGIN + LINE_HEIGHT * row + 13
        begin = f'style="animation-delay:{delay:.1f}s"'
        if line.kind is not Kind.HEADING:
            parts.append(f'<text x="{MARGIN}" y="{y}" fill="{_TIME}" {begin}>{line.seconds:6.1f} s</text>')
        x, colour = round(_left(line)), _COLOURS[line.kind]
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}" {begin}>{escape(line.text)}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _left(line: Line) -> float:
    if line.kind is Kind.HEADING:
        return MARGIN
    return MARGIN + TIMES_WIDTH + (LETTER_WIDTH * RIGHT_LETTERS if line.kind is Kind.RIGHT else 0)


def _rows(lines: Sequence[Line]) -> Iterator[int]:
    """One below the other; a heading is set off from what is before it."""
    row = -1
    for line in lines:
        row += 2 if line.kind is Kind.HEADING and row >= 0 else 1
        yield row


def _delays(lines: Sequence[Line]) -> Iterator[float]:
    at, before = FIRST_S, lines[0].seconds if lines else 0.0
    for line in lines:
        at += min(line.seconds - before, LONGEST_PAUSE_S)
        before = line.seconds
        yield at
