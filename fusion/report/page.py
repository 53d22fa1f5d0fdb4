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
from mer.fusion.report.gathering import LeftOut, ReadRun, read_run
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
    runs = [checks.of(partial(read_run, run)) for run in given]
    checks.settle()
    return rendered(prepared(runs, progress=progress))


def prepared(
    runs: Sequence[ReadRun],
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
    named = _named(runs)
    _check_asked(named, against, metric)
    with progress.task("drawing", len(named), "runs", brief=True) as advance:
        sections = []
        for number_, run in enumerate(named, start=1):
            sections.append(_section(run, f"run-{number_:0{len(str(len(named)))}}"))
            advance(1)
    names = [name for run in runs for name in run.scores.metrics.figures]
    lead = plural(len(runs), "run") + (f", {len(left_out)} left out" if left_out else "")
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


def _named(runs: Sequence[ReadRun]) -> list[Named]:
    """Runs by the names of their folders; by the whole path where two have one name, and counted
    where two are one run.
    """
    short = [run.run.path.name for run in runs]
    used: dict[str, int] = {}
    named = []
    for place, (run, name) in enumerate(zip(runs, short, strict=True), start=1):
        name = name if name and short.count(name) == 1 else str(run.run.path)
        used[name] = used.get(name, 0) + 1
        again = f" ({used[name]})" if used[name] > 1 else ""
        named.append(Named(f"{name}{again}", f"run-{place}", run))
    return named


def _check_asked(named: Sequence[Named], against: Path | None, metric: str | None) -> None:
    known = dict.fromkeys(name for run in named for name in run.read.scores.metrics.figures)
    if metric is not None and metric not in known:
        raise DataError(
            f"--metric {shown(metric, 40)}: no run has it{did_you_mean(metric, known)}; known are "
            f"{', '.join(known)}"
        )
    if against is not None and not any(run.is_at(against) for run in named):
        raise DataError(
            f"--against {against}: none of the runs that the report has figures of; name one of "
            "these"
        )


# ---- All runs, and where they come from


def _overview(named: Sequence[Named]) -> PageTable:
    names = in_order(
        dict.fromkeys(name for run in named for name in run.read.scores.metrics.figures)
    )
    rows = []
    for run in named:
        scores = run.read.scores
        cells = numbers(scores.metrics.figures, names)
        if isinstance(scores, GroupMetrics):
            spread = numbers(scores.sd, names)
            pairs = zip(names, cells, spread, strict=True)
            figures = scores.metrics.figures
            cells = [f"{mean} ± {sd}" if name in figures else mean for name, mean, sd in pairs]
        part = f"{scores.dataset} {scores.split}"
        rows.append((run.name, scores.model, run.context, part, *cells))
    heads = ("run", "model", "context", "test part", *map(metrics.title, names))
    table = Table("test figures of every run", heads, tuple(rows))
    return PageTable("all-runs-table", "all-runs", table, tuple(run.id for run in named))


def _provenance(named: Sequence[Named]) -> Part:
    """What all runs share, and a table of what they do not."""
    facts = [_facts(run.read) for run in named]
    keys = list(dict.fromkeys(key for some in facts for key in some))
    common = {}
    for key in keys:
        values = {some.get(key, "") for some in facts}
        if len(values) == 1:
            common[key] = values.pop()
    differ = [key for key in keys if key not in common]
    told = [[some.get(key, "") for key in differ] for some in facts]
    settings = runs_table.differing([run.read.row for run in named])
    given = [[runs_columns.cell(run.read.row, name) for name in settings] for run in named]
    tables = []
    if differ:
        title = "what differs between the runs"
        tables.append(_what_differs(named, "provenance", title, differ, told))
    if settings:
        tables.append(_what_differs(named, "settings", "settings that differ", settings, given))
    shared = tuple((key, value) for key, value in common.items() if value)
    return Part("provenance", "Provenance", facts=shared, tables=tuple(tables))


def _what_differs(
    named: Sequence[Named],
    name: str,
    title: str,
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
) -> PageTable:
    """A table of a row per run: what it has of each of these."""
    rows = []
    for run, of_run in zip(named, cells, strict=True):
        rows.append((run.name, *(cell or "–" for cell in of_run)))
    table = Table(title, ("run", *heads), tuple(rows))
    return PageTable(f"{name}-table", name, table, tuple(run.id for run in named))


def _facts(run: ReadRun) -> dict[str, str]:
    """Where the figures of a run come from."""
    row, info, child = run.row, run.run.info, run.children[0].result
    counts = {**child.counts, "test": run.scores.metrics.n}
    if isinstance(run.scores, GroupMetrics):
        counts["test"] = run.scores.n
    utterances = ", ".join(f"{part} {n:,.0f}" for part, n in counts.items() if n is not None)
    results = [training.result for training in run.children]
    epochs = [f"{result.best_epoch} of {result.epochs or '?'}" for result in results]
    versions = info.versions or {}
    known = (name for name in ("torch", "python") if name in versions)
    return {
        "date": runs_columns.cell(row, "date"),
        "mer": " ".join([row.mer, *(f"{name} {versions[name]}" for name in known)]).strip(),
        "model": row.model,
        "context": run.scores.context or "none",
        "parameters": "" if row.parameters is None else f"{row.parameters:,}",
        "device": row.device,
        "store": row.store,
        "store key": runs_columns.cell(row, "key"),
        "dataset": f"{row.dataset} ({info.store.language})" if info.store.language else row.dataset,
        "encoders": "; ".join(_encoders(run)),
        "seeds": runs_columns.cell(row, "seeds"),
        "folds": row.folds or "",
        "utterances": utterances,
        "epoch chosen by dev": ", ".join(epochs),
        "test part opened": plural(row.opened, "time"),
        "command": row.command,
    }


def _encoders(run: ReadRun) -> Iterator[str]:
    """What the model read, a phrase for each feature set."""
    stored = run.run.info.store.modalities
    for name, used in run.children[0].spec.sources.items():
        info = stored[name]
        words = [info.encoder or "imported features"]
        if info.revision:
            words.append(f"revision {info.revision[:REVISION_CHARACTERS]}")
        if used.means:
            words.append(f"mix of {plural(used.means, 'layer')}")
        elif info.layer:
            words.append(f"layer {info.layer}")
        if info.trained is False:
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


def _section(run: Named, file: str) -> Part:
    scores = run.read.scores
    page_tables = []
    shown_tables = tables(scores)
    for measured in run.read.robust:
        shown_tables += robustness_tables.tables(measured)
    for number_, table in enumerate(shown_tables, start=1):
        page_tables.append(PageTable(f"{run.id}-table-{number_}", f"{file}-table-{number_}", table))
    drawn_here = pictures.of_results(run.read.children, scores, run.read.logs)
    curves = map(pictures.reliability, run.read.robust)
    drawn_here += [curve for curve in curves if curve is not None]
    path = run.read.run.path
    return Part(
        id=run.id,
        title=run.name,
        notes=tuple(remarks(scores)),
        facts=tuple((key, value) for key, value in _facts(run.read).items() if value),
        tables=tuple(page_tables),
        pictures=tuple(pictured(picture, run.id, file, path) for picture in drawn_here),
        config=run.read.config,
    )
