"""The page of `mer report`: what is on it (`prepared`), and its HTML (`rendered`).

Names of runs, labels and corpora are somebody else's text: the templates escape all they are
given, and control characters are spelled out at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mer.fusion.evaluation import opening_rows, robustness
from mer.fusion.measures import metrics
from mer.fusion.measures.intervals import Paired, holm
from mer.fusion.measures.metrics import headline, in_order, lower_is_better
from mer.fusion.measures.tables import Table, glossary, number
from mer.fusion.report import pictures
from mer.fusion.report.comparison import Drawn, drawn, paired
from mer.fusion.report.drawing import Scene, scene
from mer.fusion.report.gathering import LeftOut, Told, told
from mer.fusion.report.pictures import Dot, Intervals, Picture
from mer.fusion.report.results import (
    few_groups,
    interval_head,
    interval_text,
    numbers,
    p_text,
    predictions,
    remarks,
    tables,
)
from mer.fusion.runs import result_files, runs_columns, runs_table
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import GroupMetrics
from mer.fusion.runtime import files
from mer.pipeline.errors import DataError, MerError, Together
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import did_you_mean, escape, plural, shown

MOST_ROWS = 40  # runs in one picture of a comparison; the table has all
MOST_OPEN = 10  # runs whose sections are open; of more, each is opened by a click
REVISION_CHARACTERS = 12


@dataclass(frozen=True)
class PageTable:
    """A table of the page; `name` is that of its files, `links` lead from its first cells."""

    id: str
    name: str
    table: Table
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class PagePicture:
    """A picture of the page; `name` is that of its files; `run` has its cache (None: no run)."""

    id: str
    name: str
    picture: Picture
    scene: Scene
    run: Path | None = None


@dataclass(frozen=True)
class Part:
    """A comparison, or a run."""

    id: str
    title: str
    notes: tuple[str, ...] = ()
    explained: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[PageTable, ...] = ()
    pictures: tuple[PagePicture, ...] = ()
    config: str = ""


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    lead: str
    glossary: str
    comparisons: tuple[Part, ...]
    overview: PageTable
    provenance: Part
    left_out: PageTable | None
    runs: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts that have tables or pictures, in the order of the page."""
        return (*self.comparisons, self.provenance, *self.runs)

    def all_tables(self) -> Iterator[PageTable]:
        """Every table, in the order of the page."""
        yield self.overview
        for part in self.parts:
            yield from part.tables
        if self.left_out is not None:
            yield self.left_out

    def all_pictures(self) -> Iterator[PagePicture]:
        """Every picture, in the order of the page."""
        for part in self.parts:
            yield from part.pictures


@dataclass(frozen=True)
class Named:
    """A run under the name that the page has for it, and the id of its section."""

    name: str
    id: str
    told: Told


def page(given: Sequence[Run], *, progress: Silent = SILENT) -> str:
    """One HTML page without any outside reference.

    Args:
        given: Evaluated runs.
        progress: Shows how far it is.

    Returns:
        The page.

    Raises:
        DataError: One is not finished, not evaluated, or damaged.
    """
    checks = Together()
    found = [checks.of(partial(told, run)) for run in given]
    checks.settle()
    return rendered(prepared(found, progress=progress))


def prepared(
    found: Sequence[Told],
    *,
    left_out: Sequence[LeftOut] = (),
    against: Path | None = None,
    metric: str | None = None,
    made: str = "",
    progress: Silent = SILENT,
) -> Report:
    """All that a page shows of some runs.

    Args:
        found: The runs.
        left_out: Those that nothing is shown of.
        against: The run that the others of its test rows are held against; None: the best on dev.
        metric: The figure that the comparisons picture; None: the task's own.
        made: When and by what the page is made, for its head.
        progress: Shows how far it is.

    Raises:
        DataError: `against` is none of the runs, or no run has `metric`.
    """
    named = _named(found)
    _check_asked(named, against, metric)
    with progress.task("drawing", len(named), "runs", brief=True) as advance:
        sections = []
        for number_, one in enumerate(named, start=1):
            sections.append(_section(one, f"run-{number_:0{len(str(len(named)))}}"))
            advance(1)
    names = [name for one in found for name in one.found.metrics.figures]
    lead = plural(len(found), "run") + (f", {len(left_out)} left out" if left_out else "")
    sets = list(_comparable(named).values())
    with progress.task("comparing", len(named), "runs", brief=True) as advance:
        compared = []
        for place, one_set in enumerate(sets, start=1):
            compared.append(_compared(one_set, place, len(sets), against, metric, advance))
    return Report(
        lead=f"{lead}. {made}".strip(),
        glossary=glossary(names),
        comparisons=tuple(compared),
        overview=_overview(named),
        provenance=_provenance(named),
        left_out=_left_out(left_out) if left_out else None,
        runs=tuple(sections),
    )


def rendered(report: Report) -> str:
    """The page as HTML."""
    html = (
        _templates()
        .get_template("report.html")
        .render(report=report, opened=len(report.runs) <= MOST_OPEN)
    )
    # bytes of a file name that are no text have no place in a file of text
    return escape(html, breaks=True).encode("utf-8", "backslashreplace").decode()


def made_now() -> str:
    """When a page is made, and by which mer, for its head."""
    return f"Made on {datetime.now():%Y-%m-%d %H:%M} by mer {metadata.version('mer')}."


def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _named(found: Sequence[Told]) -> list[Named]:
    """Runs by the names of their folders; by the whole path where two have one name, and counted
    where two are one run.
    """
    short = [one.run.path.name for one in found]
    used: dict[str, int] = {}
    named = []
    for place, (one, name) in enumerate(zip(found, short, strict=True), start=1):
        name = name if name and short.count(name) == 1 else str(one.run.path)
        used[name] = used.get(name, 0) + 1
        again = f" ({used[name]})" if used[name] > 1 else ""
        named.append(Named(f"{name}{again}", f"run-{place}", one))
    return named


def _check_asked(named: Sequence[Named], against: Path | None, metric: str | None) -> None:
    known = dict.fromkeys(name for one in named for name in one.told.found.metrics.figures)
    if metric is not None and metric not in known:
        raise DataError(
            f"--metric {shown(metric, 40)}: no run has it{did_you_mean(metric, known)}; known are "
            f"{', '.join(known)}"
        )
    if against is not None and not any(_is(one, against) for one in named):
        raise DataError(
            f"--against {against}: none of the runs that the report has figures of; name one of "
            "these"
        )


def _is(one: Named, path: Path) -> bool:
    return one.told.run.path.resolve() == path.resolve()


# ---- Comparison


def _comparable(named: Sequence[Named]) -> dict[tuple, list[Named]]:
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


def _compared(
    some: Sequence[Named],
    place: int,
    sets: int,
    against: Path | None,
    asked: str | None,
    advance: object,
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
        advance(1)  # type: ignore[operator]
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
        pictures=tuple(_pictured(one, f"comparison{end}") for one in made),
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
        return next((one for one in some if _is(one, against)), None)
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
        cells = [one.name, _context(one), dev, number(metric, _value(one, metric))]
        cells.append(interval_text(metric, one.told.found.interval.get(metric)))
        if len(head) > len(cells):
            cells += [*_spelled(metric, differences.get(one.id)), p_text(together.get(one.id))]
        rows.append(tuple(cells))
        links.append(one.id)
    return PageTable(
        f"{id}-table", id, Table(f"{title} of every run", tuple(head), tuple(rows)), tuple(links)
    )


def _context(one: Named) -> str:
    """The kind of conversation context that a run has seen."""
    return one.told.found.context or "none"


def _spelled(metric: str, pair: Paired | None) -> list[str]:
    if pair is None:
        return ["–", "–"]
    bounds = (number(metric, end, signed=True) for end in (pair.low, pair.high))
    return [number(metric, pair.difference, signed=True), " … ".join(bounds)]


# ---- All runs, and where they come from


def _overview(named: Sequence[Named]) -> PageTable:
    names = in_order(
        dict.fromkeys(name for one in named for name in one.told.found.metrics.figures)
    )
    rows = []
    for one in named:
        found = one.told.found
        cells = numbers(found.metrics.figures, names)
        if isinstance(found, GroupMetrics):
            spread = numbers(found.sd, names)
            pairs = zip(names, cells, spread, strict=True)
            there = found.metrics.figures
            cells = [f"{mean} ± {sd}" if name in there else mean for name, mean, sd in pairs]
        part = f"{found.dataset} {found.split}"
        rows.append((one.name, found.model, _context(one), part, *cells))
    heads = ("run", "model", "context", "test part", *map(metrics.title, names))
    table = Table("test figures of every run", heads, tuple(rows))
    return PageTable("all-runs-table", "all-runs", table, tuple(one.id for one in named))


def _provenance(named: Sequence[Named]) -> Part:
    """What all runs share, and a table of what they do not."""
    facts = [_facts(one.told) for one in named]
    keys = list(dict.fromkeys(key for some in facts for key in some))
    common = {}
    for key in keys:
        values = {some.get(key, "") for some in facts}
        if len(values) == 1:
            common[key] = values.pop()
    differ = [key for key in keys if key not in common]
    links = tuple(one.id for one in named)
    found = []
    if differ:
        rows = [
            (one.name, *(some.get(key, "") or "–" for key in differ))
            for one, some in zip(named, facts, strict=True)
        ]
        table = Table("what differs between the runs", ("run", *differ), tuple(rows))
        found.append(PageTable("provenance-table", "provenance", table, links))
    rows_of_runs = [one.told.row for one in named]
    settings = runs_table.differing(rows_of_runs)
    if settings:
        rows = [
            (one.name, *(runs_columns.cell(one.told.row, name) or "–" for name in settings))
            for one in named
        ]
        table = Table("settings that differ", ("run", *settings), tuple(rows))
        found.append(PageTable("settings-table", "settings", table, links))
    shared = tuple((key, value) for key, value in common.items() if value)
    return Part("provenance", "Provenance", facts=shared, tables=tuple(found))


def _facts(one: Told) -> dict[str, str]:
    """Where the figures of a run come from."""
    row, info, child = one.row, one.run.info, one.children[0].result
    counts = {**child.counts, "test": one.found.metrics.n}
    if isinstance(one.found, GroupMetrics):
        counts["test"] = one.found.n
    said = ", ".join(f"{part} {n:,.0f}" for part, n in counts.items() if n is not None)
    epochs = [f"{run.result.best_epoch} of {run.result.epochs or '?'}" for run in one.children]
    versions = info.versions or {}
    known = (name for name in ("torch", "python") if name in versions)
    return {
        "date": runs_columns.cell(row, "date"),
        "mer": " ".join([row.mer, *(f"{name} {versions[name]}" for name in known)]).strip(),
        "model": row.model,
        "context": one.found.context or "none",
        "parameters": "" if row.parameters is None else f"{row.parameters:,}",
        "device": row.device,
        "store": row.store,
        "store key": runs_columns.cell(row, "key"),
        "dataset": f"{row.dataset} ({info.store.language})" if info.store.language else row.dataset,
        "encoders": "; ".join(_encoders(one)),
        "seeds": runs_columns.cell(row, "seeds"),
        "folds": row.folds or "",
        "utterances": said,
        "epoch chosen by dev": ", ".join(epochs),
        "test part opened": plural(row.opened, "time"),
        "command": row.command,
    }


def _encoders(one: Told) -> Iterator[str]:
    """What the model read, a phrase for each feature set."""
    stored = one.run.info.store.modalities
    for name, used in one.children[0].spec.sources.items():
        of = stored[name]
        words = [of.encoder or "imported features"]
        if of.revision:
            words.append(f"revision {of.revision[:REVISION_CHARACTERS]}")
        if used.means:
            words.append(f"mix of {plural(used.means, 'layer')}")
        elif of.layer:
            words.append(f"layer {of.layer}")
        if of.trained is False:
            words.append("untrained")
        yield f"{name}: {', '.join(words)}"


def _left_out(left: Sequence[LeftOut]) -> PageTable:
    rows = []
    for one in left:
        rows.append((one.path.name or str(one.path), one.why, _reason(one)))
    table = Table("why each run is left out", ("run", "why", "what is said"), tuple(rows))
    return PageTable("left-out-table", "left-out", table)


def _reason(one: LeftOut) -> str:
    """The message without the folder, which the row names."""
    return str(one.error).removeprefix(f"{one.path}: ").removeprefix(f"{one.path}/")


# ---- One run


def _section(one: Named, file: str) -> Part:
    found = one.told.found
    made = []
    every = tables(found)
    for measured in one.told.robust:
        every += robustness.tables(measured)
    for number_, table in enumerate(every, start=1):
        made.append(PageTable(f"{one.id}-table-{number_}", f"{file}-table-{number_}", table))
    drawn_here = pictures.of_results(one.told.children, found, one.told.logs)
    path = one.told.run.path
    return Part(
        id=one.id,
        title=one.name,
        notes=tuple(remarks(found)),
        facts=tuple((key, value) for key, value in _facts(one.told).items() if value),
        tables=tuple(made),
        pictures=tuple(_pictured(picture, one.id, file, path) for picture in drawn_here),
        config=one.told.config,
    )


def _pictured(
    picture: Picture, id: str, file: str | None = None, run: Path | None = None
) -> PagePicture:
    name = f"{file or id}-{picture.name}"
    return PagePicture(f"{id}-{picture.name}", name, picture, scene(picture), run)
