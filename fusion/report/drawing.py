"""A picture as the shapes of an SVG, which templates/picture.svg writes into the page.

Shapes have classes and no colours: the style sheet has those, so that one drawing serves a light
page, a dark one and paper. Coordinates are pixels of a picture that is as wide as a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from unicodedata import east_asian_width

import numpy as np

from mer.fusion.report import pictures
from mer.fusion.report.pictures import (
    Bars,
    Curves,
    Dot,
    Intervals,
    Layers,
    Line,
    Matrix,
    Picture,
    Reliability,
)
from mer.pipeline.runtime.terminal import escape, plural

WIDTH = 360.0
LETTER, WIDE_LETTER, LINE = 6.4, 11.5, 13.0  # pixels of the 11-pixel type
EDGE = 8.0
NAME_HEIGHT = 17.0  # of a run's name and figure, above its dot
CELL = 36.0  # of a confusion matrix, where there are many classes
COUNTED_CLASSES = 12  # of a confusion matrix whose cells have counts below the percentages
THRESHOLD = 1e-3  # up to which a logarithmic axis is linear, so that it also shows 0
MOST_TOLD = 8  # lines or rows that a description puts into words
COLOURS = {
    pictures.BLUE: "blue",
    pictures.VERMILLION: "vermillion",
    pictures.GREEN: "green",
    pictures.PURPLE: "purple",
    pictures.ORANGE: "orange",
    pictures.SKY: "sky",
    pictures.BLACK: "ink",
    pictures.GREY: "grey",
}
DASHES = {"-": "solid", "--": "dashed", ":": "dotted"}


@dataclass(frozen=True)
class Mark:
    """One shape: an SVG element, its attributes and its text."""

    tag: str
    attributes: dict[str, object]
    text: str = ""


@dataclass(frozen=True)
class Entry:
    """One entry of a legend, and the classes of its line."""

    name: str
    look: str


@dataclass(frozen=True)
class Scene:
    """A drawn picture; `description` says in words what it shows."""

    title: str
    description: str
    width: float
    height: float
    marks: tuple[Mark, ...]
    legend: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Scale:
    """From values to pixels: `low` is drawn at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    bent: Callable[[float], float] = field(default=lambda value: value)

    def __call__(self, value: float) -> float:
        low, high = self.bent(self.low), self.bent(self.high)
        share = (self.bent(value) - low) / (high - low or 1)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values within a range, at most so many.

    >>> ticks(0, 1), ticks(37, 84, 5)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [40.0, 50.0, 60.0, 70.0, 80.0])
    """
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(n * size for n in (1, 2, 5, 10, 20) if span / (n * size) < most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def told(value: float) -> str:
    """A number of an axis or a description.

    >>> told(40.0), told(0.25), told(1e-7)
    ('40', '0.25', '1e-07')
    """
    return f"{value:.4g}"


@singledispatch
def scene(picture: Picture) -> Scene:
    """The shapes of a picture."""
    raise TypeError(f"{type(picture).__name__} is no picture")


# ---- Parts of all pictures


def _text(x: float, y: float, text: str, look: str = "", **more: object) -> Mark:
    return Mark("text", {"x": round(x, 1), "y": round(y, 1), "class": look or None, **more}, text)


def _rule(x1: float, y1: float, x2: float, y2: float, look: str) -> Mark:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return Mark("line", {"class": look, **{name: round(at, 1) for name, at in ends.items()}})


def _dot(x: float, y: float, radius: float, look: str) -> Mark:
    return Mark("circle", {"cx": round(x, 1), "cy": round(y, 1), "r": radius, "class": look})


def _path(points: Iterable[tuple[float, float]], look: str, end: str = "") -> Mark:
    return Mark("path", {"d": "M" + "L".join(f"{x},{y}" for x, y in points) + end, "class": look})


def pixels(text: str) -> float:
    """About how wide a text is, rather too wide."""
    wide = sum(east_asian_width(letter) in "WF" or letter in "mwMW@%" for letter in text)
    return LETTER * (len(text) - wide) + WIDE_LETTER * wide


def fitted(text: str, room: float) -> str:
    """The beginning of a text that has room in so many pixels.

    >>> fitted("a long name of a run", 64)
    'a long na…'
    """
    text = escape(text)
    if pixels(text) <= room:
        return text
    kept = len(text)
    while kept > 1 and pixels(text[:kept]) + LETTER > room:
        kept -= 1
    return f"{text[:kept]}…"


def _below(scale: Scale, at: Sequence[float], top: float, bottom: float, label: str) -> list[Mark]:
    """An axis below a picture, with a rule at every tick."""
    marks = []
    for value in at:
        marks.append(_rule(scale(value), top, scale(value), bottom, "grid"))
        marks.append(_text(scale(value), bottom + LINE, told(value), "middle"))
    middle = (scale.start + scale.end) / 2
    return [*marks, _text(middle, bottom + 2.3 * LINE, label, "middle label")]


def _beside(scale: Scale, at: Sequence[float], left: float, right: float, label: str) -> list[Mark]:
    """An axis on the left of a picture, with a rule at every tick."""
    marks = []
    for value in at:
        marks.append(_rule(left, scale(value), right, scale(value), "grid"))
        marks.append(_text(left - 5, scale(value) + 4, told(value), "end"))
    middle = (scale.start + scale.end) / 2
    turned = f"rotate(-90 11 {middle:.1f})"
    return [*marks, _text(11, middle, label, "middle label", transform=turned)]


def _range(values: Iterable[float | None], room: float = 0.06) -> tuple[float, float]:
    """The least and the largest of the values that there are, with some room beyond them."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    beyond = room * (high - low) or 0.5 * abs(high) or 0.5
    return low - beyond, high + beyond


# ---- Curves


def _bent(value: float) -> float:
    """Logarithmic beyond `THRESHOLD`, on both sides of 0."""
    return math.copysign(math.log10(1 + abs(value) / THRESHOLD), value)


def _decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis."""
    sizes = [n * 10.0**k for k in range(-3, 12) for n in (1, 3)]
    found = [v for v in (*(-s for s in reversed(sizes)), 0.0, *sizes) if low <= v <= high]
    if len(found) < 2:
        return ticks(low, high, 5)
    return found[:: -(-len(found) // 7)]


@scene.register(Curves)
def _curves(picture: Curves) -> Scene:
    unit = 100.0 if picture.percent else 1.0
    ends: list[float] = []
    for line in picture.lines:
        ends += [unit * v for v in (*line.mean, *(line.low or ()), *(line.high or ()))]
    epochs = [epoch for line in picture.lines for epoch in line.epochs] + list(picture.chosen)
    low, high = _range(ends)
    low = min(-0.03 * high, low) if picture.share else low
    if picture.log and min(ends) >= 0:  # with room for a line at 0, and no tick below it
        low = -0.3 * THRESHOLD
    top, bottom, left, right = 16.0, 186.0, 56.0, WIDTH - EDGE
    bent = _bent if picture.log else (lambda value: value)
    y = Scale(low, high, bottom, top, bent)
    first, last = min(epochs), max(epochs)
    spare = 0 if last > first else 0.5
    x = Scale(first - spare, last + spare, left + 6, right - 6)
    at = _decades(low, high) if picture.log else ticks(low, high, 6)
    whole = [value for value in ticks(first, last, 8) if value == int(value)] or [first]
    marks = _beside(y, at, left, right, picture.label)
    marks += _below(x, whole, bottom, bottom, "epoch")
    marks += _chosen(picture.chosen, x, top, bottom)
    for line in picture.lines:
        marks += _drawn(line, x, y, unit)
    legend = [Entry(line.name, _look(line)) for line in picture.lines]
    return Scene(
        picture.title,
        _told_curves(picture, unit),
        WIDTH,
        bottom + 2.8 * LINE,
        tuple(marks),
        tuple(legend) if len(legend) > 1 else (),
    )


def _look(line: Line) -> str:
    return f"{COLOURS[line.colour]} {DASHES[line.dash]}"


def _chosen(epochs: tuple[int, ...], x: Scale, top: float, bottom: float) -> list[Mark]:
    """A rule at every epoch that dev chose, and one word for all."""
    if not epochs:
        return []
    marks = [_rule(x(epoch), top, x(epoch), bottom, "chosen") for epoch in sorted(set(epochs))]
    place = x(max(epochs))
    said = "chosen by dev" if len(set(epochs)) > 1 else f"epoch {max(epochs)}, chosen by dev"
    right = place + pixels(said) < x.end
    marks.append(_text(place if right else x.end, top - 5, said, "" if right else "end"))
    return marks


def _drawn(line: Line, x: Scale, y: Scale, unit: float) -> list[Mark]:
    """The range between the runs, and the mean on it; a dot where there is one epoch."""
    look, marks = _look(line), []
    if line.low is not None and line.high is not None and len(line.epochs) > 1:
        upper = [(x(e), y(unit * v)) for e, v in zip(line.epochs, line.high, strict=True)]
        lower = [(x(e), y(unit * v)) for e, v in zip(line.epochs, line.low, strict=True)]
        marks.append(_path([*upper, *reversed(lower)], f"band {look}", "Z"))
    points = [(x(e), y(unit * v)) for e, v in zip(line.epochs, line.mean, strict=True)]
    if len(points) > 1:
        return [*marks, _path(points, f"curve {look}")]
    return [*marks, _dot(*points[0], 3, f"dot {look}")]


def _told_curves(picture: Curves, unit: float) -> str:
    epochs = max(epoch for line in picture.lines for epoch in line.epochs)
    said = [f"{picture.label or 'value'} over {plural(epochs, 'epoch')}."]
    for line in picture.lines[:MOST_TOLD]:
        ends = told(unit * line.mean[0]), told(unit * line.mean[-1])
        said.append(f"{line.name}: from {ends[0]} to {ends[1]}.")
    if len(picture.lines) > MOST_TOLD:
        said.append(f"And {plural(len(picture.lines) - MOST_TOLD, 'more line')}.")
    if picture.chosen:
        said.append(f"Dev chose epoch {', '.join(map(str, picture.chosen))}.")
    return " ".join(said)


# ---- Bars, matrices, layers


@scene.register(Bars)
def _bars(picture: Bars) -> Scene:
    unit = 100.0 if picture.percent else 1.0
    known = [unit * value for _, value, _ in picture.values if value is not None]
    high = 100.0 if picture.percent else max(known, default=0.0) * 1.08 or 1.0
    left = min(120.0, 16 + max(pixels(name) for name, _, _ in picture.values))
    row, top = 26.0, 6.0
    bottom = top + row * len(picture.values)
    x = Scale(0.0, high, left, WIDTH - 44)
    marks = _below(x, ticks(0.0, high, 6), top, bottom, picture.label)
    said = []
    for place, (name, value, colour) in enumerate(picture.values):
        middle = top + row * (place + 0.5)
        marks.append(_text(left - 6, middle + 4, fitted(name, left - 10), "end"))
        spelled = "–" if value is None else f"{unit * value:.{1 if picture.percent else 3}f}"
        length = x(unit * max(value or 0.0, 0.0)) - left
        box = {"x": left, "y": middle - 8, "width": round(length, 1), "height": 16}
        marks.append(Mark("rect", {**box, "class": f"bar {COLOURS[colour]}"}))
        marks.append(_text(left + length + 5, middle + 4, spelled))
        said.append(f"{name}: {spelled}.")
    return Scene(picture.title, " ".join(said), WIDTH, bottom + 2.8 * LINE, tuple(marks))


@scene.register(Matrix)
def _matrix(picture: Matrix) -> Scene:
    labels, shares = picture.labels, picture.shares
    left = min(110.0, 30 + max(map(pixels, labels)))
    size = max((WIDTH - left - EDGE) / len(labels), CELL)
    size = min(size, 64.0)
    head = min(90.0, 24 + 0.8 * max(map(pixels, labels)))
    side = size * len(labels)
    marks = []
    for row, label in enumerate(labels):
        middle = head + size * (row + 0.5)
        marks.append(_text(left - 6, middle + 4, fitted(label, left - 26), "end"))
        for column in range(len(labels)):
            marks += _cell(picture, shares, row, column, left + size * column, head, size)
    for column, label in enumerate(labels):
        x = left + size * (column + 0.5)
        turned = f"rotate(-45 {x:.1f} {head - 8:.1f})"
        marks.append(_text(x, head - 8, fitted(label, 1.25 * (head - 22)), transform=turned))
    marks.append(_text(left + side / 2, 12, "predicted", "middle label"))
    middle = head + side / 2
    turned = f"rotate(-90 11 {middle:.1f})"
    marks.append(_text(11, middle, "reference", "middle label", transform=turned))
    room = 0.7 * max(pixels(label) for label in labels[-2:])
    width = max(left + side + min(room, 60.0), WIDTH)
    return Scene(_title_of(picture), _told_matrix(picture), width, head + side + 4, tuple(marks))


def _title_of(picture: Matrix) -> str:
    return f"confusion matrix, % of the reference class: {picture.title}"


def _cell(
    picture: Matrix, shares: np.ndarray, row: int, column: int, x: float, top: float, size: float
) -> list[Mark]:
    y, share, count = top + size * row, shares[row, column], picture.counts[row][column]
    box = {"x": round(x, 1), "y": round(y, 1), "width": round(size, 1), "height": round(size, 1)}
    look = {"class": "cell", "fill-opacity": round(float(share), 3)}
    counted = len(picture.labels) <= COUNTED_CLASSES
    middle = x + size / 2, y + size / 2 + (0 if counted else 4)
    marks = [
        Mark("rect", {**box, **look}),
        _text(*middle, f"{100 * share:.0f}", "middle strong" if row == column else "middle"),
    ]
    if counted:
        marks.append(
            _text(
                middle[0], middle[1] + LINE - 1, f"({pictures.counted_as(count)})", "middle small"
            )
        )
    return marks


def _told_matrix(picture: Matrix) -> str:
    said = []
    for row, name in enumerate(picture.labels):
        total = sum(picture.counts[row])
        right = (
            f"{100 * picture.shares[row, row]:.0f} % of {pictures.counted_as(total)} found"
            if total
            else "none"
        )
        said.append(f"{name}: {right}.")
    return " ".join(said)


@scene.register(Layers)
def _layers(picture: Layers) -> Scene:
    names = [layer for layer, _ in picture.weights]
    means = [float(np.mean(values)) for _, values in picture.weights]
    every = [value for _, values in picture.weights for value in values]
    top, bottom, left, right = 10.0, 180.0, 50.0, WIDTH - EDGE
    y = Scale(0.0, _range(every)[1], bottom, top)
    x = Scale(0.0, max(len(names) - 1, 1), left + 10, right - 10)
    marks = _beside(y, ticks(0.0, y.high, 6), left, right, "weight")
    step = -(-len(names) // 13)
    for place in range(0, len(names), step):
        marks.append(_text(x(place), bottom + LINE, names[place], "middle"))
    marks.append(_text((left + right) / 2, bottom + 2.3 * LINE, "layer", "middle label"))
    look = COLOURS[picture.colour]
    equal = 1 / len(names)
    marks.append(_rule(left, y(equal), right, y(equal), "chance"))
    if len(names) > 1:
        points = [(x(place), y(mean)) for place, mean in enumerate(means)]
        marks.append(_path(points, f"curve {look} solid"))
    for place, (_, values) in enumerate(picture.weights):
        marks += [_dot(x(place), y(value), 2.5, f"seed {look}") for value in values]
    best = int(np.argmax(means))
    said = (
        f"{picture.part}: layer {names[best]} has the largest mean weight, {means[best]:.2f}; "
        f"equal weights would be {equal:.2f}, the dashed line."
    )
    title = f"{picture.title}, {picture.part}"
    return Scene(title, said, WIDTH, bottom + 2.8 * LINE, tuple(marks))


# ---- Calibration


@scene.register(Reliability)
def _reliability(picture: Reliability) -> Scene:
    top, bottom, left, right = 10.0, 210.0, 56.0, WIDTH - EDGE
    x, y = Scale(0.0, 100.0, left + 6, right - 6), Scale(0.0, 100.0, bottom, top)
    marks = _beside(y, ticks(0.0, 100.0), left, right, "right (%)")
    marks += _below(x, ticks(0.0, 100.0), bottom, bottom, "probability of the answer (%)")
    marks.append(_rule(x(0.0), y(0.0), x(100.0), y(100.0), "chance"))
    points = [(x(100 * mean), y(100 * share)) for mean, share, _ in picture.bins]
    if len(points) > 1:
        marks.append(_path(points, "curve blue solid"))
    marks += [_dot(*point, 3, "dot blue") for point in points]
    said = ["On the dashed line answers are right as often as they say."]
    for mean, share, n in picture.bins:
        answers = plural(n, "answer")
        said.append(f"{answers} of {100 * mean:.0f} % on average: {100 * share:.0f} % right.")
    return Scene(picture.title, " ".join(said), WIDTH, bottom + 2.8 * LINE, tuple(marks))


# ---- Runs below each other


@scene.register(Intervals)
def _intervals(picture: Intervals) -> Scene:
    unit = 100.0 if picture.percent else 1.0
    ends: list[float | None] = [picture.line]
    for row in picture.rows:
        ends += [row.value, row.low, row.high, *row.seeds]
    low, high = _range(unit * value if value is not None else None for value in ends)
    x = Scale(low, high, EDGE + 10, WIDTH - EDGE - 10)
    step, top = 38.0, 26.0 if picture.line is not None else 6.0
    bottom = top + step * len(picture.rows)
    marks = _below(x, ticks(low, high, 7), top, bottom, picture.label)
    if picture.line is not None:
        at = x(unit * picture.line)
        for place in range(len(picture.rows)):  # not through names and figures
            start = top + step * place
            marks.append(_rule(at, start + NAME_HEIGHT, at, start + step, "chance"))
        name = fitted(picture.line_name, WIDTH - 2 * EDGE)
        half = pixels(name) / 2
        centre = min(max(at, half + 2), WIDTH - half - 2)
        marks.append(_text(centre, 12, name, "middle"))
    said = []
    for place, row in enumerate(picture.rows):
        marks += _row(row, x, top + step * place, unit, _spelled(row, picture))
        said.append(f"{row.name}: {_spelled(row, picture)}.")
    more = len(said) - MOST_TOLD
    said = said[:MOST_TOLD] + (
        [f"And {plural(more, 'more run')}, all in the table."] if more > 0 else []
    )
    return Scene(picture.title, " ".join(said), WIDTH, bottom + 2.8 * LINE, tuple(marks))


def _spelled(row: Dot, picture: Intervals) -> str:
    """The value and its interval, as the tables have them."""
    if row.value is None:
        return "–"
    unit, digits = (100.0, 1) if picture.percent else (1.0, 3)
    sign = "+" if picture.signed else ""
    value = f"{unit * row.value:{sign}.{digits}f}"
    if row.low is None or row.high is None:
        return value
    return f"{value} [{unit * row.low:{sign}.{digits}f}, {unit * row.high:{sign}.{digits}f}]"


def _row(row: Dot, x: Scale, top: float, unit: float, spelled: str) -> list[Mark]:
    """The name and the figure above; the interval, the seeds and the value below."""
    middle = top + 27
    room = WIDTH - 2 * EDGE - pixels(spelled) - 10
    marks = [
        _text(EDGE, top + 13, fitted(row.name, room), "name halo"),
        _text(WIDTH - EDGE, top + 13, spelled, "end halo"),
    ]
    if row.low is not None and row.high is not None:
        marks.append(_rule(x(unit * row.low), middle, x(unit * row.high), middle, "interval"))
    marks += [_dot(x(unit * seed), middle, 2.5, "seed orange") for seed in row.seeds]
    if row.value is not None:
        marks.append(_dot(x(unit * row.value), middle, 4, "dot blue"))
    return marks
