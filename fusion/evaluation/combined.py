"""MER2023's combined measure: one number for a discrete emotion and a valence of the same clips.

    combined = WF1 - 0.25 MSE

WF1 is the weighted F1 of the emotions in 0 … 1, MSE the mean squared error of the valence: the
challenge's MER-MULTI and MER-NOISE are ranked by it (Lian et al. 2023, arXiv 2304.08981; weight
and both terms as in `overall_metric` of github.com/zeroQiaoba/MERTools, MER2023). A model of ours
answers one of the two, so it is computed of two runs that were tested on the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mer.fusion.evaluation import scoring
from mer.fusion.measures import intervals, metrics
from mer.fusion.measures.intervals import Sampled
from mer.fusion.measures.tables import Table, context_words, number
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import Predicted, seeds_of, unit
from mer.fusion.runs.records import Bootstrap
from mer.fusion.runs.result_files import read_predictions
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import plural, shown

WEIGHT = 0.25  # of the squared error
Figure = TypeVar("Figure", float, np.ndarray)


@dataclass(frozen=True)
class Combined:
    """The measure and its two terms, means over the seeds; `interval` is that of the measure,
    `contexts` are the kinds of conversation context of both runs.
    """

    emotion: str  # the folders of both runs
    valence: str
    target: str  # what the second calls what it answers
    n: int
    seeds: tuple[int, int]
    wf1: float
    mse: float
    combined: float
    interval: tuple[float, ...]
    bootstrap: Bootstrap
    contexts: tuple[str | None, str | None]


def measure(wf1: Figure, mse: Figure) -> Figure:
    """MER2023's combined measure, of single figures or of arrays of them.

    >>> round(measure(0.7757, 0.82), 4)
    0.5707
    """
    return wf1 - WEIGHT * mse


def of_runs(first: Run, second: Run) -> Combined:
    """The measure of two runs, from the test predictions that both have stored.

    Args:
        first: A run that answers one of several emotions.
        second: One that answers one number, on the same test rows; either may be over seeds.

    Returns:
        The measure. The interval resamples dialogues, both runs scored on the same draw, and the
        seeds of each.

    Raises:
        DataError: They are of other tasks or other rows, or one has not been evaluated.
    """
    check(first, second)
    classes, numbers = _predicted(first), _predicted(second)
    _check_rows(first, second, classes[0], numbers[0])
    name, groups = unit(classes[0].table)
    wf1, mse = _wf1(classes, groups), _mse(numbers, groups)
    return Combined(
        emotion=first.path.name,
        valence=second.path.name,
        target=numbers[0].labels[0],
        n=len(classes[0].true),
        seeds=(wf1.seeds, mse.seeds),
        wf1=float(wf1.values.mean()),
        mse=float(mse.values.mean()),
        combined=measure(float(wf1.values.mean()), float(mse.values.mean())),
        interval=tuple(intervals.interval_of_sum([wf1, mse], [1.0, -WEIGHT])),
        bootstrap=scoring.bootstrap_of(name, groups),
        contexts=(_context(first), _context(second)),
    )


def _context(run: Run) -> str | None:
    asked = run.children[0].spec.context
    return None if asked is None else asked.title


def other_of(first: Run, place: str | os.PathLike) -> Run:
    """The run that answers the valence, in a folder; raises DataError as `check`."""
    second = Run.open(place)
    check(first, second)
    return second


def check(first: Run, second: Run) -> None:
    """Raise DataError, before anything is scored, for runs of other tasks, or where the second has
    not been evaluated.
    """
    for run, task in ((first, "single"), (second, "regression")):
        spec = run.trained().children[0].spec
        if spec.task != task or (task == "regression" and spec.outputs > 1):
            wanted = "one emotion of several" if task == "single" else "one number"
            has = plural(spec.outputs, "output")
            raise DataError(
                f"--valence: {run.path} is of task {spec.task} with {has}; expected {wanted}"
            )
    read_predictions(second)


def _predicted(run: Run) -> list[Predicted]:
    """The predictions of each seed, their rows by id."""
    p = read_predictions(run)
    parts = seeds_of(p)
    if len(parts) == 1:
        ids = np.array(parts[0].table["id"].to_pylist())
        return [parts[0].take(np.argsort(ids, kind="stable"))]
    return parts


def _check_rows(first: Run, second: Run, p: Predicted, q: Predicted) -> None:
    """Raise DataError unless both are of the same labelled rows."""
    mine, theirs = p.table["id"].to_pylist(), q.table["id"].to_pylist()
    if mine == theirs and mine:
        return
    alone = set(mine) ^ set(theirs)
    some = f" (first: {shown(min(alone), 60)})" if alone else ""
    raise DataError(
        f"--valence: {first.path} has {plural(len(mine), 'labelled test row')} and {second.path} "
        f"{len(theirs):,}; {plural(len(alone), 'is', 'are')} in one alone{some}; both have to be "
        "the same"
    )


def _wf1(by_seed: Sequence[Predicted], groups: np.ndarray) -> Sampled:
    return scoring.sampled(by_seed, groups)["wf1"]


def _mse(by_seed: Sequence[Predicted], groups: np.ndarray) -> Sampled:
    values, draws = [], []
    for p in by_seed:
        squared = np.square(p.true[:, 0].astype(float) - p.pred)

        def of_rows(rows: np.ndarray, squared: np.ndarray = squared) -> dict[str, float]:
            return {"mse": float(squared[rows].mean())}

        values.append(float(squared.mean()))
        drawn = metrics.resampled(of_rows, groups, resamples=scoring.RESAMPLES)
        draws.append(drawn[:, 0])
    return Sampled(np.array(values), np.stack(draws, axis=1), intervals.effective(groups))


def table(found: Combined) -> Table:
    """For people."""
    low, high = found.interval
    rows = (
        (f"WF1 of {shown(found.emotion, 40)}", number("wf1", found.wf1), ""),
        (f"MSE of {shown(found.target, 40)}, {shown(found.valence, 40)}", f"{found.mse:.3f}", ""),
        (
            f"combined, WF1 - {WEIGHT} MSE",
            f"{found.combined:.3f}",
            f"{low:.3f} … {high:.3f}",
        ),
    )
    seen = " and ".join(map(context_words, dict.fromkeys(found.contexts)))
    title = f"MER2023's combined measure, {plural(found.n, 'utterance')}, {seen}"
    groups = plural(found.bootstrap.groups, found.bootstrap.unit)
    return Table(title, ("", "value", f"95 % interval ({groups})"), rows)
