"""How the runs of one test part compare, on the page of `mer report`: their figures, and their
paired differences from one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from mer.fusion.evaluation import opening_rows
from mer.fusion.measures import metrics
from mer.fusion.measures.intervals import Paired, holm
from mer.fusion.measures.metrics import headline, lower_is_better
from mer.fusion.measures.tables import Table, number
from mer.fusion.report import pictures
from mer.fusion.report.comparison import Drawn, drawn, paired
from mer.fusion.report.page_parts import Named, PageTable, Part, pictured
from mer.fusion.report.pictures import Dot, Intervals
from mer.fusion.report.results import (
    few_groups,
    interval_head,
    interval_text,
    p_text,
    predictions,
)
from mer.fusion.runs import result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import GroupMetrics
from mer.fusion.runtime import files
from mer.pipeline.errors import MerError
from mer.pipeline.runtime.terminal import plural, shown

MOST_ROWS = 40  # runs in one picture of a comparison; the table has all


def comparable(named: Sequence[Named]) -> dict[tuple, list[Named]]:
    """Runs by what they were tested on."""
    sets: dict[tuple, list[Named]] = {}
    for run in named:
        scores = run.read.scores
        key = (scores.dataset, scores.split, scores.task, scores.labels, scores.measures)
        sets.setdefault(key, []).append(run)
    return sets


def _value(run: Named, metric: str) -> float | None:
    """The figure that the interval is of: over folds, that of all held-out predictions together."""
    scores = run.read.scores
    if isinstance(scores, GroupMetrics) and scores.pooled:
        return scores.pooled.get(metric)
    return scores.metrics.figures.get(metric)


def _seeds(run: Named, metric: str) -> tuple[float, ...]:
    scores = run.read.scores
    if not isinstance(scores, GroupMetrics):
        return ()
    by_run = [run.metrics.get(metric) for run in scores.runs]
    return tuple(value for value in by_run if value is not None)


def _several(run: Named) -> bool:
    return isinstance(run.read.scores, GroupMetrics)


def _one_seed(run: Named) -> bool:
    scores = run.read.scores
    return not isinstance(scores, GroupMetrics) or len(scores.seeds) < 2


def _on_dev(run: Named, metric: str) -> float:
    """The dev figure of what is pictured, else of what chose the epoch; large for a good one."""
    row = run.read.row
    name = metric if row.dev.get(metric) is not None else row.select_metric
    value = row.dev.get(name)
    if value is None:
        return -math.inf
    return -value if lower_is_better(name) else value


def compared(
    runs: Sequence[Named],
    place: int,
    sets: int,
    against: Path | None,
    asked: str | None,
    advance: Callable[[int], object],
) -> Part:
    """The runs of one test part: their figures, and their differences from one of them."""
    first = runs[0].read.scores
    known = first.metrics.figures
    metric = asked if asked in known else headline(first.task, known)
    draws: dict[str, Drawn] = {}
    troubles = []
    for run in runs:
        if len(runs) > 1:
            try:
                draws[run.id] = drawn(run.read.run, metric)
            except MerError as error:
                troubles.append(f"{run.name} is not compared: {shown(error, 200)}")
        advance(1)
    reference = _reference([run for run in runs if run.id in draws], against, metric)
    differences = _differences(runs, draws, reference)
    others = sum(run.id in draws and run.id not in differences for run in runs)
    if reference is not None and others - 1 > 0:
        troubles.append(
            f"{plural(others - 1, 'run')} tested on other rows or labels than {reference.name}: no "
            "difference is given."
        )
    tested = _tested_alike(runs, draws, reference)
    by, doubts = _seen(tested)
    troubles += doubts
    best = sorted(runs, key=lambda run: -_on_dev(run, metric))[:MOST_ROWS]
    shown_runs = sorted(best, key=partial(_rank, metric=metric))
    end = f"-{place}" if sets > 1 else ""
    drawings = [_of_values(shown_runs, metric, len(runs))]
    if reference is not None and differences:
        drawings.append(_of_differences(shown_runs, differences, reference, metric))
    return Part(
        id=f"comparison{end}",
        title=f"{first.dataset} {first.split}, {metrics.title(metric)}",
        notes=tuple(troubles),
        explained=(*_explained(runs, metric, reference, differences, against is not None), *by),
        tables=(_table_of(runs, metric, differences, reference, f"comparison{end}"),),
        pictures=tuple(pictured(drawing, f"comparison{end}") for drawing in drawings),
    )


def _rank(run: Named, metric: str) -> float:
    """Small for a good figure; what has none comes last."""
    value = _value(run, metric)
    if value is None:
        return math.inf
    return value if lower_is_better(metric) else -value


def _reference(runs: Sequence[Named], against: Path | None, metric: str) -> Named | None:
    """The run that others are held against: the one asked for, else the best on dev."""
    if len(runs) < 2:
        return None
    if against is not None:
        return next((run for run in runs if run.is_at(against)), None)
    return max(runs, key=lambda run: _on_dev(run, metric))


def _differences(
    runs: Sequence[Named], draws: Mapping[str, Drawn], reference: Named | None
) -> dict[str, Paired]:
    """By the ids of the runs that share their test rows with the reference."""
    if reference is None:
        return {}
    theirs = draws[reference.id]
    differences = {}
    for run in runs:
        mine = draws.get(run.id)
        if run is not reference and mine is not None and mine.rows == theirs.rows:
            differences[run.id] = paired(theirs, mine)
    return differences


def _tested_alike(
    runs: Sequence[Named], draws: Mapping[str, Drawn], reference: Named | None
) -> list[Named]:
    """The runs that share their test rows with the reference; without one, the first run."""
    if reference is None:
        return list(runs[:1])
    rows = draws[reference.id].rows
    alike = [run for run in runs if run.id in draws and draws[run.id].rows == rows]
    return [reference, *(run for run in alike if run is not reference)]


def _seen(tested: Sequence[Named]) -> tuple[list[str], list[str]]:
    """(how many have seen the test rows of these runs, what of the ledgers cannot be read).

    Raises DataError for predictions that are there and damaged.
    """
    children = [child for run in tested for child in run.read.children]
    reference = tested[0].read.run
    there = (reference.path / files.PREDICTIONS).exists()
    try:
        rows = predictions(reference)[0]
        others = [predictions(run)[0] for run in _of_other_folds(tested)]
    except MerError as error:
        if there:
            raise
        return [], [f"who has seen the test rows is not known: {shown(error, 200)}"]
    try:
        seen = opening_rows.seen(children, rows, others=others)
    except MerError as error:
        return [], [f"who has seen the test rows is not known: {shown(error, 200)}"]
    line = seen.line()
    return [f"{line[0].upper()}{line[1:]}."], list(seen.troubles)


def _of_other_folds(tested: Sequence[Named]) -> list[Run]:
    """A run for each way of folding the test rows, beside that of the first."""
    found: dict[tuple, Run] = {}
    for run in tested:
        folds = dict.fromkeys(child.fold for child in run.read.children)
        found.setdefault(tuple(folds), run.read.run)
    return list(found.values())[1:]


def _chance(runs: Sequence[Named], metric: str) -> float | None:
    """What answers get that look at nothing; None where the task has no classes to name."""
    scores = runs[0].read.scores
    matrix = result_files.reference_by_answer(scores)
    if not matrix or scores.task != "single":
        return None
    reference = [sum(row) for row in matrix]
    known = runs[0].read.children[0].result.label_counts or {}
    learnt = [known.get(name, 0) for name in scores.labels]
    value = metrics.chance(reference, learnt if sum(learnt) else reference).get(metric)
    return value if value is not None and math.isfinite(value) else None


def _of_values(runs: Sequence[Named], metric: str, total: int) -> Intervals:
    rows = []
    for run in runs:
        low, high = _bounds(run.read.scores.interval.get(metric))
        rows.append(Dot(run.name, _value(run, metric), low, high, _seeds(run, metric)))
    line = _chance(runs, metric)
    part = f", the {len(runs)} best on dev of {plural(total, 'run')}" if total > len(runs) else ""
    return Intervals(
        name="figures",
        title=f"{metrics.title(metric)} on the test part{part}",
        label=pictures.titled(metric),
        rows=tuple(rows),
        line=line,
        line_name="" if line is None else f"chance {number(metric, line)}",
        percent=pictures.percent(metric),
    )


def _bounds(interval: Sequence[float | None] | None) -> tuple[float | None, float | None]:
    return (interval[0], interval[1]) if interval and len(interval) == 2 else (None, None)


def _of_differences(
    runs: Sequence[Named], differences: Mapping[str, Paired], reference: Named, metric: str
) -> Intervals:
    rows = []
    for run in runs:
        if run.id in differences:
            pair = differences[run.id]
            low, high = _finite(pair.low), _finite(pair.high)
            rows.append(Dot(run.name, _finite(pair.difference), low, high))
    unit = "points" if pictures.percent(metric) else pictures.titled(metric)
    return Intervals(
        name="differences",
        title=f"{metrics.title(metric)} minus that of {reference.name}, paired",
        label=f"difference ({unit})",
        rows=tuple(rows),
        line=0.0,
        line_name=f"as {shown(reference.name, 30)}",
        percent=pictures.percent(metric),
        signed=True,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _explained(
    runs: Sequence[Named],
    metric: str,
    reference: Named | None,
    differences: Mapping[str, Paired],
    asked: bool,
) -> Iterator[str]:
    """How to read a comparison."""
    bootstrap = runs[0].read.scores.bootstrap
    resampled = " or ".join(_resampled(runs))
    what = "A dot is a run, its line the 95 % interval"
    yield f"{what}, which resamples {resampled} of the test part."
    if any(_several(run) for run in runs):
        yield "Small orange dots are single seeds or folds."
    if any(isinstance(run.read.scores, GroupMetrics) and run.read.scores.pooled for run in runs):
        yield (
            "Of a run over folds the figure here is of all held-out answers together (pooled); the "
            "table of all runs has the mean over the folds and its deviation."
        )
    if _chance(runs, metric) is not None:
        yield (
            "Chance is the better of always naming the class most frequent in training, and of "
            "naming classes as often as training has them."
        )
    if reference is not None and differences:
        why = "as asked for" if asked else "the best on dev"
        yield (
            f"Differences are paired, on the same draws of {bootstrap.unit}s: each run minus "
            f"{reference.name} ({why})."
        )
        if len(differences) > 1:
            yield (
                "Each interval is of one comparison alone: of twenty runs that do not differ, "
                "about one leaves out 0. p is by Holm over all differences shown."
            )
        if any(_one_seed(run) for run in runs if run is reference or run.id in differences):
            yield (
                "Of a run with one seed the interval does not say how much another seed changes."
            )
    yield from (f"{line[0].upper()}{line[1:]}." for line in few_groups(bootstrap))


def _resampled(runs: Sequence[Named]) -> list[str]:
    """What the intervals of some runs resample: one thing where all are of the same rows."""
    each = (run.read.scores.bootstrap for run in runs)
    return list(dict.fromkeys(plural(one.groups, one.unit) for one in each))


def _table_of(
    runs: Sequence[Named],
    metric: str,
    differences: Mapping[str, Paired],
    reference: Named | None,
    id: str,
) -> PageTable:
    title = metrics.title(metric)
    alike = len(_resampled(runs)) == 1
    interval = interval_head(runs[0].read.scores.bootstrap) if alike else "95 % interval"
    head = ["run", "context", "dev", title, interval, *([] if alike else ["over"])]
    if reference is not None and differences:
        head += [f"minus {reference.name}", "95 % interval of that", "p (Holm)"]
    together = dict(zip(differences, holm([pair.p for pair in differences.values()]), strict=True))
    rows, links = [], []
    for run in sorted(runs, key=partial(_rank, metric=metric)):
        row = run.read.row
        dev = number(metric, row.dev.get(metric))
        cells = [run.name, run.context, dev, number(metric, _value(run, metric))]
        cells.append(interval_text(metric, run.read.scores.interval.get(metric)))
        cells += [] if alike else _resampled([run])
        if len(head) > len(cells):
            cells += [*_spelled(metric, differences.get(run.id)), p_text(together.get(run.id))]
        rows.append(tuple(cells))
        links.append(run.id)
    return PageTable(
        f"{id}-table", id, Table(f"{title} of every run", tuple(head), tuple(rows)), tuple(links)
    )


def _spelled(metric: str, pair: Paired | None) -> list[str]:
    if pair is None:
        return ["–", "–"]
    bounds = (number(metric, end, signed=True) for end in (pair.low, pair.high))
    return [number(metric, pair.difference, signed=True), " … ".join(bounds)]
