"""The geometry of line charts.

The template `macros.html` draws the charts as SVG. Their colours come from the style sheet, which has two themes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# In units of the SVG's viewBox; on the page, one unit is about one pixel.
WIDTH, HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 104, 14, 34
_LABEL_HEIGHT = 15
# More points could not be told apart at this width.
_MAX_POINTS = 200
_TICKS = 4


@dataclass(frozen=True)
class Series:
    """One line to draw.

    Attributes:
        name: label at the end of the line.
        style: CSS classes for colour and dashes.
        points: (x, y), sorted by x.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PlottedLine:
    """One line in SVG units.

    Attributes:
        name: label at the end of the line.
        style: CSS classes.
        path: value of the `d` attribute of an SVG path.
        dots: (x, y) of the points to mark: all of them if there are few, otherwise only the last.
        label_y: position of the label, chosen so that labels do not overlap.
    """

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float], ...]
    label_y: float


@dataclass(frozen=True)
class LineChart:
    """A chart in SVG units.

    Attributes:
        title: heading.
        description: the content in words, for screen readers.
        lines: the lines.
        x_ticks: (position, text) along the horizontal axis.
        y_ticks: (position, text) along the vertical axis.
        left, right, top, bottom: edges of the plotting area.
        width, height: size of the whole chart.
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
    """Lay out a chart over epochs. Its vertical axis always includes 0.

    Args:
        title: heading.
        series: lines, each with at least one point.
        x_range: first and last epoch, so that all charts of a run share one axis.
    """
    ys = [y for line in series for _, y in line.points]
    y_marks = nice_ticks(min(0.0, *ys), max(0.0, *ys))
    y_range = y_marks[0], y_marks[-1]

    def to_svg(x: float, y: float) -> tuple[float, float]:
        return (
            round(_scaled(x, x_range, (_LEFT, WIDTH - _RIGHT)), 1),
            round(_scaled(y, y_range, (HEIGHT - _BOTTOM, _TOP)), 1),
        )

    plotted = [[to_svg(x, y) for x, y in thinned(line.points)] for line in series]
    label_ys = spread([points[-1][1] for points in plotted], _LABEL_HEIGHT, _TOP, HEIGHT - _BOTTOM - _LABEL_HEIGHT / 2)
    return LineChart(
        title,
        "; ".join(f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in series),
        tuple(
            PlottedLine(line.name, line.style, _path(points), tuple(points if len(points) < 12 else points[-1:]), y)
            for line, points, y in zip(series, plotted, label_ys, strict=True)
        ),
        tuple((to_svg(x, y_range[0])[0], f"{x:g}") for x in _epoch_ticks(*x_range)),
        tuple((to_svg(x_range[0], y)[1], f"{y:.6g}") for y in y_marks),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """About four round numbers that cover a range: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw_step = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw_step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` of the points, evenly spaced, including the first and the last."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (_MAX_POINTS - 1))] for i in range(_MAX_POINTS)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as needed to put at least `gap` between them, keeping their order.

    If they do not fit between `low` and `high`, they are evenly spaced with a smaller gap.
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    positions = [0.0] * len(wanted)
    lower_limit = low
    for i in order:
        positions[i] = lower_limit = max(wanted[i], lower_limit)
        lower_limit += gap
    upper_limit = high
    for i in reversed(order):
        positions[i] = upper_limit = min(positions[i], upper_limit)
        upper_limit -= gap
    return [round(position, 1) for position in positions]


def _epoch_ticks(first: float, last: float) -> list[float]:
    """Round epochs within the range, or the first epoch if there are none."""
    ticks = [tick for tick in nice_ticks(first, last) if first <= tick <= last and tick == int(tick)]
    return ticks or [first]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _scaled(value: float, source: tuple[float, float], target: tuple[float, float]) -> float:
    if source[0] == source[1]:
        return (target[0] + target[1]) / 2
    share = (value - source[0]) / (source[1] - source[0])
    return target[0] + share * (target[1] - target[0])
