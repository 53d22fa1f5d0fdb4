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
from mer.fusion.runs.records import GroupMetrics
from mer.fusion.runtime import files
from mer.pipeline.errors import MerError
from mer.pipeline.runtime.terminal import plural, shown

MOST_ROWS = 40  # runs in one picture of a comparison; the table has all


def comparable(named: Sequence[Named]) -> dict[tuple, list[Named]]:
    """Runs by what they were tested on."""
    found: dict[tuple, list[Named]] = {}
    for one in named:
        of = one.told.found
        key = (of.dataset, of.split, of.task, of.labels, of.measures)
        found.setdefault(key, []).append(one)
    return found


def _value(one: Named, metric: str) -> float | None:
    """The figure that the interval is of: over folds, that of all held-out predictions together."""
    found = one.told.found
    if isinstance(found, GroupMetrics) and found.pooled:
        return found.pooled.get(metric)
    return found.metrics.figures.get(metric)


def _seeds(one: Named, metric: str) -> tuple[float, ...]:
    found = one.told.found
    if not isinstance(found, GroupMetrics):
        return ()
    each = [run.metrics.get(metric) for run in found.runs]
    return tuple(value for value in each if value is not None)


def _several(one: Named) -> bool:
    return isinstance(one.told.found, GroupMetrics)


def _one_seed(one: Named) -> bool:
    found = one.told.found
    return not isinstance(found, GroupMetrics) or len(found.seeds) < 2


def _on_dev(one: Named, metric: str) -> float:
    """The dev figure of what is pictured, else of what chose the epoch; large for a good one."""
    row = one.told.row
    name = metric if row.dev.get(metric) is not None else row.select_metric
    value = row.dev.get(name)
    if value is None:
        return -math.inf
    return -value if lower_is_better(name) else value


def compared(
    some: Sequence[Named],
    place: int,
    sets: int,
    against: Path | None,
    asked: str | None,
    advance: Callable[[int], object],
) -> Part:
    """The runs of one test part: their figures, and their differences from one of them."""
    first = some[0].told.found
    known = first.metrics.figures
    metric = asked if asked in known else headline(first.task, known)
    draws: dict[str, Drawn] = {}
    troubles = []
    for one in some:
        if len(some) > 1:
            try:
                draws[one.id] = drawn(one.told.run, metric)
            except MerError as error:
                troubles.append(f"{one.name} is not compared: {shown(error, 200)}")
        advance(1)
    reference = _reference([one for one in some if one.id in draws], against, metric)
    differences = _differences(some, draws, reference)
    others = sum(one.id in draws and one.id not in differences for one in some)
    if reference is not None and others - 1 > 0:
        troubles.append(
            f"{plural(others - 1, 'run')} tested on other rows or labels than {reference.name}: no "
            "difference is given."
        )
    tested = _tested_alike(some, draws, reference)
    by, doubts = _seen(tested)
    troubles += doubts
    best = sorted(some, key=lambda one: -_on_dev(one, metric))[:MOST_ROWS]
    shown_runs = sorted(best, key=partial(_rank, metric=metric))
    end = f"-{place}" if sets > 1 else ""
    made = [_of_values(shown_runs, metric, len(some))]
    if reference is not None and differences:
        made.append(_of_differences(shown_runs, differences, reference, metric))
    return Part(
        id=f"comparison{end}",
        title=f"{first.dataset} {first.split}, {metrics.title(metric)}",
        notes=tuple(troubles),
        explained=(*_explained(some, metric, reference, differences, against is not None), *by),
        tables=(_table_of(some, metric, differences, reference, f"comparison{end}"),),
        pictures=tuple(pictured(one, f"comparison{end}") for one in made),
    )


def _rank(one: Named, metric: str) -> float:
    """Small for a good figure; what has none comes last."""
    value = _value(one, metric)
    if value is None:
        return math.inf
    return value if lower_is_better(metric) else -value


def _reference(some: Sequence[Named], against: Path | None, metric: str) -> Named | None:
    """The run that others are held against: the one asked for, else the best on dev."""
    if len(some) < 2:
        return None
    if against is not None:
        return next((one for one in some if one.is_at(against)), None)
    return max(some, key=lambda one: _on_dev(one, metric))


def _differences(
    some: Sequence[Named], draws: Mapping[str, Drawn], reference: Named | None
) -> dict[str, Paired]:
    """By the ids of the runs that share their test rows with the reference."""
    if reference is None:
        return {}
    base = draws[reference.id]
    found = {}
    for one in some:
        mine = draws.get(one.id)
        if one is not reference and mine is not None and mine.rows == base.rows:
            found[one.id] = paired(base, mine)
    return found


def _tested_alike(
    some: Sequence[Named], draws: Mapping[str, Drawn], reference: Named | None
) -> list[Named]:
    """The runs that share their test rows with the reference; without one, the first run."""
    if reference is None:
        return list(some[:1])
    rows = draws[reference.id].rows
    alike = [one for one in some if one.id in draws and draws[one.id].rows == rows]
    return [reference, *(one for one in alike if one is not reference)]


def _seen(tested: Sequence[Named]) -> tuple[list[str], list[str]]:
    """(how many have seen the test rows of these runs, what of the ledgers cannot be read).

    Raises DataError for predictions that are there and damaged.
    """
    children = [child for one in tested for child in one.told.children]
    run = tested[0].told.run
    there = (run.path / files.PREDICTIONS).exists()
    try:
        rows = predictions(run)[0]
    except MerError as error:
        if there:
            raise
        return [], [f"who has seen the test rows is not known: {shown(error, 200)}"]
    try:
        found = opening_rows.seen(children, rows)
    except MerError as error:
        return [], [f"who has seen the test rows is not known: {shown(error, 200)}"]
    line = found.line()
    return [f"{line[0].upper()}{line[1:]}."], list(found.troubles)


def _chance(some: Sequence[Named], metric: str) -> float | None:
    """What answers get that look at nothing; None where the task has no classes to name."""
    found = some[0].told.found
    matrix = result_files.reference_by_answer(found)
    if not matrix or found.task != "single":
        return None
    reference = [sum(row) for row in matrix]
    known = some[0].told.children[0].result.label_counts or {}
    learnt = [known.get(name, 0) for name in found.labels]
    value = metrics.chance(reference, learnt if sum(learnt) else reference).get(metric)
    return value if value is not None and math.isfinite(value) else None


def _of_values(some: Sequence[Named], metric: str, total: int) -> Intervals:
    rows = []
    for one in some:
        low, high = _bounds(one.told.found.interval.get(metric))
        rows.append(Dot(one.name, _value(one, metric), low, high, _seeds(one, metric)))
    line = _chance(some, metric)
    part = f", the {len(some)} best on dev of {plural(total, 'run')}" if total > len(some) else ""
    return Intervals(
        name="figures",
        title=f"{metrics.title(metric)} on the test part{part}",
        label=pictures.titled(metric),
        rows=tuple(rows),
        line=line,
        line_name="" if line is None else f"chance {number(metric, line)}",
        percent=pictures.percent(metric),
    )


def _bounds(found: Sequence[float | None] | None) -> tuple[float | None, float | None]:
    return (found[0], found[1]) if found and len(found) == 2 else (None, None)


def _of_differences(
    some: Sequence[Named], found: Mapping[str, Paired], reference: Named, metric: str
) -> Intervals:
    rows = []
    for one in some:
        if one.id in found:
            pair = found[one.id]
            low, high = _finite(pair.low), _finite(pair.high)
            rows.append(Dot(one.name, _finite(pair.difference), low, high))
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
    some: Sequence[Named],
    metric: str,
    reference: Named | None,
    differences: Mapping[str, Paired],
    asked: bool,
) -> Iterator[str]:
    """How to read a comparison."""
    bootstrap = some[0].told.found.bootstrap
    what = "A dot is a run, its line the 95 % interval"
    yield f"{what}, which resamples {bootstrap.groups:,} {bootstrap.unit}s of the test part."
    if any(_several(one) for one in some):
        yield "Small orange dots are single seeds or folds."
    if any(isinstance(one.told.found, GroupMetrics) and one.told.found.pooled for one in some):
        yield (
            "Of a run over folds the figure here is of all held-out answers together (pooled); the "
            "table of all runs has the mean over the folds and its deviation."
        )
    if _chance(some, metric) is not None:
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
        if any(_one_seed(one) for one in some if one is reference or one.id in differences):
            yield (
                "Of a run with one seed the interval does not say how much another seed changes."
            )
    yield from (f"{line[0].upper()}{line[1:]}." for line in few_groups(bootstrap))


def _table_of(
    some: Sequence[Named],
    metric: str,
    differences: Mapping[str, Paired],
    reference: Named | None,
    id: str,
) -> PageTable:
    title = metrics.title(metric)
    interval = interval_head(some[0].told.found.bootstrap)
    head = ["run", "context", "dev", title, interval]
    if reference is not None and differences:
        head += [f"minus {reference.name}", "95 % interval of that", "p (Holm)"]
    together = dict(zip(differences, holm([one.p for one in differences.values()]), strict=True))
    rows, links = [], []
    for one in sorted(some, key=partial(_rank, metric=metric)):
        row = one.told.row
        dev = number(metric, row.dev.get(metric))
        cells = [one.name, one.context, dev, number(metric, _value(one, metric))]
        cells.append(interval_text(metric, one.told.found.interval.get(metric)))
        if len(head) > len(cells):
            cells += [*_spelled(metric, differences.get(one.id)), p_text(together.get(one.id))]
        rows.append(tuple(cells))
        links.append(one.id)
    return PageTable(
        f"{id}-table", id, Table(f"{title} of every run", tuple(head), tuple(rows)), tuple(links)
    )


def _spelled(metric: str, pair: Paired | None) -> list[str]:
    if pair is None:
        return ["–", "–"]
    bounds = (number(metric, end, signed=True) for end in (pair.low, pair.high))
    return [number(metric, pair.difference, signed=True), " … ".join(bounds)]
