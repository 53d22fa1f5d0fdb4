"""What the pictures of a run show, as numbers and words: free of any drawing library.

`mer report` draws them as SVG (report/drawing.py), `figures.py` with matplotlib for papers. What a
model does not have is left out: edges are DMD's and DHMD's, dictionaries DHMD's, [CLS] attention
and MI bounds DRKF's. Curves are means over the children of a group (seeds, folds) with the range
between them.

Shares are shown as percentages; values here are as they are in the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mer.fusion.evaluation.robustness import Robustness
from mer.fusion.measures import metrics
from mer.fusion.measures.tables import PLAIN, loss_title
from mer.fusion.runs import checkpoint, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import Epoch, Figures, GroupMetrics, Metrics, SingleMetrics
from mer.fusion.runtime import files, typed

Pick = Callable[[Epoch], Mapping[str, float | None]]

# The colours of Okabe and Ito, which people with any colour vision tell apart. Modalities have
# theirs; the others follow each other, then come again dashed and dotted.
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, ORANGE, SKY, BLACK = "#cc79a7", "#e69f00", "#56b4e9", "#000000"
COLOURS = {"text": BLUE, "audio": VERMILLION, "vision": GREEN}
OTHERS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", "--", ":")
GREY = "#7f7f7f"  # of what is no modality beside modalities
CAPS = {  # of the bounds of mutual information, by the contrast: a name, and a dash
    "nt_xent": ("cap with one modality", "--"),
    "info_nce": ("cap with two", ":"),
}
LOOKS = {name: (colour, "-") for name, colour in COLOURS.items()}
LOOKS |= {name: (GREY, dash) for name, dash in CAPS.values()}


@dataclass(frozen=True)
class Line:
    """One name over epochs: the mean over the runs, and the range between them (None: one run)."""

    name: str
    colour: str
    dash: str
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


@dataclass(frozen=True)
class Curves:
    """Lines over epochs; `chosen` are the epochs that dev chose, one of each run. `share`: the axis
    begins at 0. `percent`: values are shown as percentages.
    """

    name: str
    title: str
    label: str
    lines: tuple[Line, ...]
    chosen: tuple[int, ...] = ()
    log: bool = False
    share: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Bars:
    """One value of each name, with the colour it has; None where it is undefined."""

    name: str
    title: str
    label: str
    values: tuple[tuple[str, float | None, str], ...]
    percent: bool = False


@dataclass(frozen=True)
class Matrix:
    """Counts, one row per reference class and one column per predicted one."""

    name: str
    title: str
    labels: tuple[str, ...]
    counts: tuple[tuple[float, ...], ...]

    @property
    def shares(self) -> np.ndarray:
        """(C, C) share of the row, 0 in an empty one."""
        counts = np.array(self.counts, dtype=float)
        return counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)


def counted_as(count: float) -> str:
    """A count of a confusion matrix, whole but where it is a mean over seeds.

    >>> counted_as(2.0), counted_as(5 / 3)
    ('2', '1.7')
    """
    return f"{count:.0f}" if count == int(count) else f"{count:.1f}"


@dataclass(frozen=True)
class Layers:
    """The weights of the layers that are mixed, of one feature set: by layer, one of each run."""

    name: str
    title: str
    part: str
    colour: str
    weights: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Dot:
    """A value with its interval, and those of single seeds or folds; None where undefined."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Intervals:
    """Runs below each other, and a line that they are held against (None: there is none)."""

    name: str
    title: str
    label: str
    rows: tuple[Dot, ...]
    line: float | None
    line_name: str
    percent: bool
    signed: bool = False


@dataclass(frozen=True)
class Reliability:
    """How often answers are right, by their probability: of every bin that has answers the mean
    probability, the share that is right, and how many there are. On the diagonal a probability
    means what it says.
    """

    name: str
    title: str
    bins: tuple[tuple[float, float, int], ...]


Picture = Curves | Bars | Matrix | Layers | Intervals | Reliability


def key(picture: Picture) -> str:
    """sha256 of what a picture shows: the same content is the same picture."""
    content = json.dumps([type(picture).__name__, typed.tree(picture)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()


def percent(metric: str) -> bool:
    """Whether a figure is shown as a percentage."""
    return metrics.kind_of(metric) not in PLAIN


def titled(metric: str) -> str:
    """A figure as an axis names it."""
    unit = " (%)" if percent(metric) else ""
    return f"{metrics.title(metric)}{unit}"


# ---- What a run has


def read_log(run: Run) -> list[Epoch]:
    """The epochs of one training.

    Raises:
        DataError: log.jsonl is not as it was written.
    """
    path = run.verified(checkpoint.LOG)
    again = checkpoint.AGAIN
    lines = files.read_text(path, again).splitlines()
    return [files.read_json(path, Epoch, again, text=line) for line in lines]


def of_results(
    children: Sequence[Run], found: SingleMetrics | GroupMetrics, logs: Sequence[list[Epoch]]
) -> list[Picture]:
    """The pictures of what the metrics and the logs hold.

    Args:
        children: The runs of a group, or one run.
        found: Its test figures.
        logs: The epochs of each child.
    """
    chosen = tuple(child.result.best_epoch for child in children)
    metric = found.select_metric
    made: list[Picture | None] = [
        confusion(found),
        unimodal(found),
        bars(found.attention, "attention", "[CLS] attention", "share (%)", percent=True),
        curves(
            logs,
            terms,
            "training loss terms, unweighted",
            name="losses",
            label="loss",
            log=True,
            chosen=chosen,
        ),
        curves(
            logs,
            lambda entry: {metric: entry.dev.get(metric)},
            f"dev {metrics.title(metric)}",
            name="dev",
            label=titled(metric),
            percent=percent(metric),
            chosen=chosen,
        ),
    ]
    for space in ("homo", "hetero"):
        made += _of_space(logs, space, chosen)
    made += [
        curves(
            logs,
            overlap,
            "share with the same strongest atom in two modalities",
            name="overlap",
            label="share (%)",
            share=True,
            percent=True,
            chosen=chosen,
        ),
        curves(
            logs,
            under("cosine_"),
            "cosine of raw and augmented view (identity: 1)",
            name="cosine",
            label="cosine",
            chosen=chosen,
        ),
        curves(
            logs,
            bounds,
            "lower bound of the mutual information, and the most it can be",
            name="mi-bounds",
            label="nats",
            chosen=chosen,
        ),
        *layer_weights(chosen_layers(children, logs)),
    ]
    return [picture for picture in made if picture is not None]


def _of_space(logs: Sequence[list[Epoch]], space: str, chosen: tuple[int, ...]) -> list:
    """The pictures of one space of DMD and DHMD."""
    atoms = f"dictionary/{space}"
    return [
        curves(
            logs,
            under(f"edge/{space}/"),
            f"GD-Unit edges, {space} space",
            name=f"edges-{space}",
            label="mean weight",
            chosen=chosen,
        ),
        curves(
            logs,
            under(f"{atoms}/entropy/"),
            f"entropy of atom usage, {space} space",
            name=f"entropy-{space}",
            label="entropy / log K",
            chosen=chosen,
        ),
        curves(
            logs,
            under(f"{atoms}/dead/"),
            f"unused atoms, {space} space",
            name=f"dead-{space}",
            label="share (%)",
            share=True,
            percent=True,
            chosen=chosen,
        ),
    ]


def chosen_layers(
    children: Sequence[Run], logs: Sequence[list[Epoch]]
) -> dict[str, dict[str, list[float]]]:
    """The weights of the mixed layers in the epochs that dev chose: by feature set and by layer,
    one of each child.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for child, entries in zip(children, logs, strict=True):
        best = child.result.best_epoch
        entry = next((entry for entry in entries if entry.epoch == best), None)
        for name, weights in ((entry.layers if entry else None) or {}).items():
            for layer, weight in weights.items():
                value = np.nan if weight is None else weight
                found.setdefault(name, {}).setdefault(layer, []).append(value)
    return found


def layer_weights(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Layers]:
    """Where the emotion is: a picture for each feature set whose layers are mixed."""
    made = []
    for number, (name, weights) in enumerate(found.items()):
        stem = name.split()[0].partition(".")[0]
        shown = tuple((layer, tuple(values)) for layer, values in weights.items())
        title = "where the emotion is: weights of the layers"
        colour = COLOURS.get(stem, GREY)
        end = f"-{number + 1}" if number else ""
        made.append(Layers(f"layers{end}", title, name, colour, shown))
    return made


# ---- Over epochs


def under(prefix: str) -> Pick:
    """The diagnostics of an epoch whose name begins with `prefix`, without it."""

    def pick(entry: Epoch) -> Figures:
        there = [name for name in entry.diagnostics if name.startswith(prefix)]
        return {name.removeprefix(prefix): entry.diagnostics[name] for name in there}

    return pick


def bounds(entry: Epoch) -> Figures:
    """The bounds of mutual information, and what no such bound can exceed in batches of that size;
    runs of an earlier mer lack that.
    """
    caps = under("mi_cap_")(entry)
    named = {CAPS[kind][0]: value for kind, value in caps.items() if kind in CAPS}
    return {**under("mi_bound_")(entry), **named}


def terms(entry: Epoch) -> Figures:
    """The loss terms of an epoch, without their sum."""
    return {loss_title(name): value for name, value in entry.train.items() if name != "total"}


def overlap(entry: Epoch) -> Figures:
    """How much the dictionaries of two modalities share, by space."""
    names = [name for name in entry.diagnostics if name.startswith("dictionary/")]
    names = [name for name in names if name.endswith("/overlap")]
    return {name.split("/")[1]: entry.diagnostics[name] for name in names}


def curves(
    logs: Sequence[list[Epoch]],
    pick: Pick,
    title: str,
    *,
    name: str = "curves",
    label: str = "",
    log: bool = False,
    share: bool = False,
    percent: bool = False,
    chosen: tuple[int, ...] = (),
) -> Curves | None:
    """One line per name: mean over the logs, and the range between them.

    None when no epoch has such a value.
    """
    picked = [list(map(pick, entries)) for entries in logs]
    names = list(dict.fromkeys(_names(picked)))
    looks = _looks(len(names))
    lines = []
    for one in names:
        values = _over_epochs(picked, one)
        there = np.flatnonzero(~np.isnan(values).all(0))
        if len(there):
            colour, dash = LOOKS[one] if one in LOOKS else next(looks)
            lines.append(_line(one, there, values[:, there], colour, dash))
    if not lines:
        return None
    return Curves(name, title, label, tuple(lines), chosen, log, share, percent)


def _names(picked: list[list[Mapping[str, float | None]]]) -> Iterator[str]:
    for entries in picked:
        for values in entries:
            yield from values


def _looks(lines: int) -> Iterator[tuple[str, str]]:
    """A colour and a dash for each of so many lines; they come again when all are used."""
    dashes_and_colours = list(product(DASHES, OTHERS))
    times = 1 + lines // len(dashes_and_colours)
    return ((colour, dash) for dash, colour in dashes_and_colours * times)


def _over_epochs(picked: list[list[Mapping[str, float | None]]], name: str) -> np.ndarray:
    """(logs, epochs), NaN where there is no value."""
    values = np.full((len(picked), max(map(len, picked))), np.nan)
    for row, entries in zip(values, picked, strict=True):
        there = [entry.get(name) for entry in entries]
        row[: len(entries)] = [np.nan if value is None else value for value in there]
    return values


def _line(name: str, there: np.ndarray, values: np.ndarray, colour: str, dash: str) -> Line:
    """The mean over the logs at the epochs `there`, and the range between them."""
    several = len(values) > 1
    return Line(
        name.replace("->", " \N{RIGHTWARDS ARROW} "),
        colour,
        dash,
        tuple((there + 1).tolist()),
        tuple(np.nanmean(values, 0).tolist()),
        tuple(np.nanmin(values, 0).tolist()) if several else None,
        tuple(np.nanmax(values, 0).tolist()) if several else None,
    )


# ---- Of the test figures


def confusion(found: SingleMetrics | GroupMetrics) -> Matrix | None:
    """The confusion matrix, where the task has one."""
    counts = result_files.reference_by_answer(found)
    if not counts:
        return None
    title = f"{found.model} on {found.dataset} {found.split}"
    if any(count != int(count) for row in counts for count in row):
        title += ", counts averaged over the seeds"
    return Matrix("confusion", title, found.labels, counts)


def unimodal(found: Metrics) -> Bars | None:
    """The headline figure of each modality's own head beside the whole model's."""
    if found.unimodal is None:
        return None
    metric = metrics.headline(found.task, found.metrics.figures)
    values = {m: head.figures.get(metric) for m, head in found.unimodal.items()}
    values["all"] = found.metrics.figures.get(metric)
    title, label = "each modality alone, and all", titled(metric)
    if any(head.without for head in found.unimodal.values()):
        title = "each modality alone, on the utterances that have it, and all"
    return bars(values, "unimodal", title, label, percent=percent(metric))


def bars(
    values: Figures | None, name: str, title: str, label: str, *, percent: bool = False
) -> Bars | None:
    """One bar per name."""
    if not values:
        return None
    shown = tuple((one, value, COLOURS.get(one, GREY)) for one, value in values.items())
    return Bars(name, title, label, shown, percent)


def reliability(measured: Robustness) -> Reliability | None:
    """The calibration curve, where the task has one answer of several."""
    bins = []
    for one in measured.calibration:
        if one.confidence is not None and one.right is not None:
            bins.append((one.confidence, one.right, one.n))
    if not bins:
        return None
    name = "calibration" if measured.split == "test" else f"calibration-{measured.split}"
    title = f"calibration on {measured.dataset} {measured.split}"
    return Reliability(name, title, tuple(bins))
