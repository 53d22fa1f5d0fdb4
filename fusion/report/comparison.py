"""Many runs against one: the paired bootstrap of `mer compare`, drawn once for each run.

Every draw of dialogues is the same for all runs of the same test rows, so that the differences of
two runs are those of their draws.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from mer.fusion import evaluate, metrics
from mer.fusion.checkpoint import Run
from mer.fusion.report.results import predictions


@dataclass(frozen=True)
class Drawn:
    """A figure of one run: its value, and what it is in each draw of the bootstrap. `rows` stands
    for the test rows, their labels and how they are scored: only draws of the same rows are paired.
    """

    rows: str
    value: float
    draws: np.ndarray


@dataclass(frozen=True)
class Paired:
    """A run minus another in one figure, with the 95 % interval; NaN where it is undefined."""

    difference: float
    low: float
    high: float


def drawn(run: Run, metric: str) -> Drawn:
    """A figure of a run, averaged over its seeds, in every draw.

    Args:
        run: An evaluated run.
        metric: A figure of its task.

    Raises:
        DataError: Its predictions are not there, or damaged.
    """
    by_seed = predictions(run)
    first = by_seed[0]
    _, groups = evaluate.unit(first.table)
    if first.task == "single":
        draws = np.mean([_counted(p, groups, metric) for p in by_seed], axis=0)
    else:
        figures = list(evaluate.mean_figures(by_seed))
        every = metrics.resampled(
            lambda index: evaluate.mean_figures(by_seed, index),
            groups,
            resamples=evaluate.RESAMPLES,
        )
        draws = every[:, figures.index(metric)]
    return Drawn(_rows(first), evaluate.mean_figures(by_seed)[metric], draws)


def _counted(p: evaluate.Predicted, groups: np.ndarray, metric: str) -> np.ndarray:
    """(resamples,) of one seed of a single-label task."""
    found = metrics.resampled_classification(
        p.true, p.pred, len(p.labels), groups, resamples=evaluate.RESAMPLES
    )
    return found[metric]


def _rows(p: evaluate.Predicted) -> str:
    """sha256 of what must be the same for a pair."""
    ids = json.dumps([p.task, p.labels, p.measures, p.table["id"].to_pylist()])
    return hashlib.sha256(ids.encode("utf-8", "backslashreplace") + p.true.tobytes()).hexdigest()


def paired(first: Drawn, second: Drawn) -> Paired:
    """Second minus first, as `mer compare` has it."""
    between = metrics.quantiles(second.draws - first.draws, [0.025, 0.975])
    return Paired(second.value - first.value, between[0], between[1])
