"""The page of `mer report`: what is on it (`prepared`), and its HTML (`rendered`).

Names of runs, labels and corpora are somebody else's text: the templates escape all they are
given, and control characters are spelled out at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mer.fusion.evaluation import robustness_tables
from mer.fusion.measures import metrics
from mer.fusion.measures.metrics import in_order
from mer.fusion.measures.tables import Table, glossary
from mer.fusion.report import pictures
from mer.fusion.report.gathering import LeftOut, Told, told
from mer.fusion.report.page_comparison import comparable, compared
from mer.fusion.report.page_parts import Named, PageTable, Part, Report, pictured
from mer.fusion.report.results import numbers, remarks, tables
from mer.fusion.runs import runs_columns, runs_table
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import GroupMetrics
from mer.pipeline.errors import DataError, Together
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import did_you_mean, escape, plural, shown

MOST_OPEN = 10  # runs whose sections are open; of more, each is opened by a click
REVISION_CHARACTERS = 12


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
    sets = list(comparable(named).values())
    with progress.task("comparing", len(named), "runs", brief=True) as advance:
        comparisons = []
        for place, one_set in enumerate(sets, start=1):
            comparisons.append(compared(one_set, place, len(sets), against, metric, advance))
    return Report(
        lead=f"{lead}. {made}".strip(),
        glossary=glossary(names),
        comparisons=tuple(comparisons),
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
    if against is not None and not any(one.is_at(against) for one in named):
        raise DataError(f"--against {against}: none of the runs that the report has figures of")


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
        rows.append((one.name, found.model, one.context, part, *cells))
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
        every += robustness_tables.tables(measured)
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
        pictures=tuple(pictured(picture, one.id, file, path) for picture in drawn_here),
        config=one.told.config,
    )
