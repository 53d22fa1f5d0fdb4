"""Many runs against one: the paired bootstrap of `mer compare`, drawn once for each run.

Every draw of dialogues is the same for all runs of the same test rows, so that the differences of
two runs are those of their draws.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from mer.fusion.evaluation import scoring
from mer.fusion.measures import intervals
from mer.fusion.measures.intervals import Paired, Sampled
from mer.fusion.report.results import predictions
from mer.fusion.runs import prediction_table
from mer.fusion.runs.checkpoint import Run


@dataclass(frozen=True)
class Drawn:
    """A figure of one run, of each seed, and what it is in each draw of the bootstrap. `rows`
    stands for the test rows, their labels and how they are scored: only draws of the same rows are
    paired.
    """

    rows: str
    figure: Sampled


def drawn(run: Run, metric: str) -> Drawn:
    """A figure of a run in every draw.

    Args:
        run: An evaluated run.
        metric: A figure of its task.

    Raises:
        DataError: Its predictions are not there, or damaged.
    """
    by_seed = predictions(run)
    _, groups = prediction_table.unit(by_seed[0].table)
    return Drawn(_rows(by_seed[0]), scoring.sampled(by_seed, groups)[metric])


def _rows(p: prediction_table.Predicted) -> str:
    """sha256 of what must be the same for a pair."""
    ids = json.dumps([p.task, p.labels, p.measures, p.table["id"].to_pylist()])
    return hashlib.sha256(ids.encode("utf-8", "backslashreplace") + p.true.tobytes()).hexdigest()


def paired(first: Drawn, second: Drawn) -> Paired:
    """Second minus first, as `mer compare` has it."""
    return intervals.difference(first.figure, second.figure)
