"""Which runs a report can be made of, and what it reads of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mer.fusion.evaluation import robustness
from mer.fusion.evaluation.robustness import Robustness
from mer.fusion.report import pictures
from mer.fusion.runs import result_files, run_rows
from mer.fusion.runs.checkpoint import AGAIN, Run
from mer.fusion.runs.records import Epoch, GroupMetrics, SingleMetrics
from mer.fusion.runs.run_rows import RunRow
from mer.fusion.runtime import files
from mer.pipeline.errors import DataError, MerError, Together
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import plural, shown

NAMED_RUNS = 3  # of those that a report leaves out, on stderr; the page names all
REASON_CHARACTERS = 120  # of why one cannot be read, on stderr
UNFINISHED = "not finished training"
UNTESTED = "no test figures; `mer evaluate` makes them"
UNREADABLE = "damaged or no run"


@dataclass(frozen=True)
class Told:
    """A finished run that has test figures, read: all that a page says of it."""

    run: Run
    children: tuple[Run, ...]
    found: SingleMetrics | GroupMetrics
    logs: tuple[list[Epoch], ...]
    config: str
    row: RunRow
    robust: tuple[Robustness, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A run that the report has nothing of: a kind of reason, and the reason."""

    path: Path
    why: str
    error: MerError


def told(run: Run) -> Told:
    """All that a page says of a run.

    Raises:
        DataError: It is not finished, not evaluated, or damaged.
    """
    found = result_files.stored_metrics(run.trained())
    if found is None:
        raise DataError(
            f"{run.path}: no test figures yet; run `mer evaluate {run.path}` first, or leave it out"
        )
    children = run.children
    logs = [pictures.read_log(child) for child in children]
    config = files.read_text(children[0].path / files.CONFIG, AGAIN)
    row = run_rows.read(run.path)
    if row.state == "damaged":
        raise DataError(f"{run.path}: {row.why}")
    measured = (robustness.stored(run, split) for split in ("test", "dev"))
    robust = tuple(one for one in measured if one is not None)
    return Told(run, tuple(children), found, tuple(logs), config, row, robust)


def gather(
    paths: Sequence[Path], *, progress: Silent = SILENT
) -> tuple[list[Told], list[LeftOut], list[str]]:
    """The runs that a report can be made of.

    Args:
        paths: Run folders.
        progress: Shows how far it is.

    Returns:
        Those that are finished, have test figures and are sound; the others; and lines for the
        user that count the others and say why.

    Raises:
        MerError: There is none that a report can be made of; says of each what it lacks.
    """
    there: list[Told] = []
    left: list[LeftOut] = []
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path)
    with progress.task("reading", len(once), "runs", brief=True) as advance:
        for path in once.values():
            why = UNREADABLE
            try:
                run = Run.open(path)
                why = _lacking(run) or UNREADABLE
                there.append(told(run))
            except MerError as error:
                left.append(LeftOut(path, why, error))
            advance(1)
    if not there:
        checks = Together()
        checks.errors += [one.error for one in left]
        checks.settle()
    twice = len(paths) - len(once)
    again = [f"{plural(twice, 'run')} named twice, taken once"] if twice else []
    return there, left, [*again, *_lines(left)]


def _lacking(run: Run) -> str | None:
    """What a run lacks that is whole as far as it goes."""
    if not (run.finished and all(child.finished for child in run.children)):
        return UNFINISHED
    return None if (run.path / files.METRICS).exists() else UNTESTED


def _lines(left: Sequence[LeftOut]) -> list[str]:
    """A line for each kind of reason."""
    lines = []
    for why in dict.fromkeys(one.why for one in left):
        some = [one for one in left if one.why == why]
        more = f" and {len(some) - NAMED_RUNS} more" if len(some) > NAMED_RUNS else ""
        first = ", ".join(shown(one.path.name, 40) for one in some[:NAMED_RUNS])
        if why == UNREADABLE:
            first = f"{first}{more} (first: {shown(some[0].error, REASON_CHARACTERS)})"
            more = ""
        lines.append(f"{plural(len(some), 'run')} left out, {why}: {first}{more}")
    return lines
