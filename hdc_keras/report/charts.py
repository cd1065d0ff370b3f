"""Line charts as geometry, which the template draws as SVG: colours come from CSS, and so follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# In the units of the SVG's viewBox; a chart is shown at about one pixel a unit.
WIDTH, HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 104, 14, 34
_LABEL_HEIGHT = 15
# More points than this cannot be told apart at that width.
_MOST_POINTS = 200
_TICKS = 4


@dataclass(frozen=True)
class Series:
    """One line to draw.

    Attributes:
        name: written at its end.
        style: CSS classes: its colour and dashes.
        points: (x, y) in order of x.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PlottedLine:
    """One line in the units of the SVG.

    Attributes:
        name: written at its end.
        style: CSS classes.
        path: of an SVG path element.
        dots: (x, y) of the measured points, where they are few; only the last otherwise.
        label_y: where the name goes, so that names do not overlap.
    """

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float], ...]
    label_y: float


@dataclass(frozen=True)
class LineChart:
    """A chart in the units of the SVG.

    Attributes:
        title: what is shown.
        description: what it shows, in words.
        lines: its lines.
        x_ticks: place and text.
        y_ticks: place and text.
        left, right, top, bottom: of the area of the lines.
    """

    title: str
    description: str
    lines: tuple[PlottedLine, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(title: str, series: Sequence[Series], x_range: tuple[float, float]) -> LineChart:
    """Lay out a chart over epochs, with 0 on its vertical axis.

    Args:
        title: what is shown.
        series: lines, each with a point at least.
        x_range: first and last epoch, so that all charts of a run have the same axis.
    """
    ys = [y for one in series for _, y in one.points]
    y_marks = nice_ticks(min(0.0, *ys), max(0.0, *ys))
    y_range = y_marks[0], y_marks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(_scaled(x, x_range, (_LEFT, WIDTH - _RIGHT)), 1),
            round(_scaled(y, y_range, (HEIGHT - _BOTTOM, _TOP)), 1),
        )

    placed = [[place(x, y) for x, y in thinned(one.points)] for one in series]
    label_ys = spread([points[-1][1] for points in placed], _LABEL_HEIGHT, _TOP, HEIGHT - _BOTTOM - _LABEL_HEIGHT / 2)
    return LineChart(
        title,
        "; ".join(f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in series),
        tuple(
            PlottedLine(one.name, one.style, _path(points), tuple(points if len(points) < 12 else points[-1:]), y)
            for one, points, y in zip(series, placed, label_ys, strict=True)
        ),
        tuple((place(x, y_range[0])[0], f"{x:g}") for x in _whole_ticks(*x_range)),
        tuple((place(x_range[0], y)[1], f"{y:.6g}") for y in y_marks),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """About four round numbers that span a range: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS` of the points, evenly spaced, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to those wanted as they can be without two closer than `gap`, in the order given.

    Where there is no room for all of them, they are closer, and evenly spaced.
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    next_free = low
    for i in order:
        places[i] = next_free = max(wanted[i], next_free)
        next_free += gap
    limit = high
    for i in reversed(order):
        places[i] = limit = min(places[i], limit)
        limit -= gap
    return [round(place, 1) for place in places]


def _whole_ticks(low: float, high: float) -> list[float]:
    """Epochs to name: round ones, and the first where it is alone."""
    marks = [tick for tick in nice_ticks(low, high) if low <= tick <= high and tick == int(tick)]
    return marks or [low]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _scaled(value: float, source: tuple[float, float], target: tuple[float, float]) -> float:
    if source[0] == source[1]:
        return (target[0] + target[1]) / 2
    share = (value - source[0]) / (source[1] - source[0])
    return target[0] + share * (target[1] - target[0])
