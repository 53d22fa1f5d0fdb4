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
from mer.fusion.runs.identity import outcome
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
TWIN = "the same training as another one, copied or made twice"


@dataclass(frozen=True)
class ReadRun:
    """A finished run that has test figures, read: all that a page says of it."""

    run: Run
    children: tuple[Run, ...]
    scores: SingleMetrics | GroupMetrics
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


def read_run(run: Run) -> ReadRun:
    """All that a page says of a run.

    Raises:
        DataError: It is not finished, not evaluated, or damaged.
    """
    scores = result_files.stored_metrics(run.trained())
    if scores is None:
        raise DataError(
            f"{run.path}: no test figures yet; run `mer evaluate {run.path}` first, or leave it out"
        )
    children = run.children
    logs = [pictures.read_log(child) for child in children]
    config = files.read_text(children[0].path / files.CONFIG, AGAIN)
    row = run_rows.read(run.path)
    if row.state == "damaged":
        raise DataError(f"{run.path}: {row.why}")
    robustness_files = (robustness.stored(run, split) for split in ("test", "dev"))
    robust = tuple(one for one in robustness_files if one is not None)
    return ReadRun(run, tuple(children), scores, tuple(logs), config, row, robust)


def gather(
    paths: Sequence[Path], *, progress: Silent = SILENT
) -> tuple[list[ReadRun], list[LeftOut], list[str]]:
    """The runs that a report can be made of.

    Args:
        paths: Run folders.
        progress: Shows how far it is.

    Returns:
        Those that are finished, have test figures and are sound, each training once; the others;
        and lines for the user that count the others and say why.

    Raises:
        MerError: There is none that a report can be made of; says of each what it lacks.
    """
    readable: list[ReadRun] = []
    left_out: list[LeftOut] = []
    once: dict[Path, Path] = {}
    trainings: dict[tuple[str, ...], Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path)
    with progress.task("reading", len(once), "runs", brief=True) as advance:
        for path in once.values():
            why = UNREADABLE
            try:
                run = Run.open(path)
                why = _lacking(run) or UNREADABLE
                found = read_run(run)
                twin = trainings.setdefault(outcome(run), path)
                if twin is path:
                    readable.append(found)
                else:
                    why = TWIN
                    raise DataError(f"{path}: the same training as {twin}, copied or made twice")
            except MerError as error:
                left_out.append(LeftOut(path, why, error))
            advance(1)
    if not readable:
        checks = Together()
        checks.errors += [entry.error for entry in left_out]
        checks.settle()
    twice = len(paths) - len(once)
    again = [f"{plural(twice, 'run')} named twice, taken once"] if twice else []
    return readable, left_out, [*again, *_lines(left_out)]


def _lacking(run: Run) -> str | None:
    """What a run lacks that is whole as far as it goes."""
    if not (run.finished and all(child.finished for child in run.children)):
        return UNFINISHED
    return None if (run.path / files.METRICS).exists() else UNTESTED


def _lines(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each kind of reason."""
    lines = []
    for why in dict.fromkeys(entry.why for entry in left_out):
        alike = [entry for entry in left_out if entry.why == why]
        more = f" and {len(alike) - NAMED_RUNS} more" if len(alike) > NAMED_RUNS else ""
        first = ", ".join(shown(entry.path.name, 40) for entry in alike[:NAMED_RUNS])
        if why == UNREADABLE:
            first = f"{first}{more} (first: {shown(alike[0].error, REASON_CHARACTERS)})"
            more = ""
        lines.append(f"{plural(len(alike), 'run')} left out, {why}: {first}{more}")
    return lines
