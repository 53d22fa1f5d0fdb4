"""Means of figures over seeds, folds and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from mer.fusion.runs.prediction_table import Predicted
from mer.fusion.runs.records import HeadScores, Metrics, OwnScores, Subset
from mer.fusion.runtime import typed
from mer.fusion.runtime.typed import convert

Scored = TypeVar("Scored", HeadScores, OwnScores)


def mean_parts(results: Sequence[Metrics]) -> dict[str, Any]:
    """What metrics.json has beside the metrics, averaged over runs; by the names of its keys."""
    found: dict[str, Any] = {}
    for part in (
        "discrimination",
        "inconsistent",
        "unlike_labels",
        "unlike_heads",
        "attention",
        "calibration",
        "soft",
    ):
        records = [getattr(one, part) for one in results]
        if None not in records:
            kind = typed.hints(Metrics)[part]
            found[part] = convert(kind, mean_tree([typed.tree(record) for record in records]))
    for part in ("unimodal", "own_labels"):
        heads = [getattr(one, part) for one in results]
        if None not in heads:
            found[part] = _mean_heads(heads)
    for part in ("heads_agree", "heads_disagree"):
        subsets = [getattr(one, part) for one in results]
        if None not in subsets:
            found[part] = _mean_subset(subsets)
    return found


def _mean_subset(subsets: list[Subset]) -> Subset:
    """The mean over runs; of figures over the runs that have such utterances, as `without` counts
    the others.
    """
    there = [subset for subset in subsets if subset.n]
    figures = mean_tree([subset.figures for subset in there or subsets])
    sizes = [subset.n for subset in subsets]
    shares = [subset.share for subset in subsets if subset.of != 0]
    of = [subset.of for subset in subsets]
    return Subset(
        n=mean_of(sizes),
        of=None if None in of else mean_of(of),
        share=mean_of(shares),
        figures=figures,
        without=len(subsets) - len(there),
    )


def _mean_heads(results: Sequence[Mapping[str, Scored]]) -> dict[str, Scored]:
    """The mean over runs of what each unimodal head scores; of figures over the runs that have rows
    of it, as `runs_without` counts the others.
    """
    found = {}
    for m in dict.fromkeys(chain.from_iterable(results)):
        heads = [one[m] for one in results if m in one]
        there = [head for head in heads if head.n]
        found[m] = replace(
            heads[0],
            n=mean_of([head.n for head in heads]),
            without=mean_of([head.without for head in heads]),
            figures=mean_tree([head.figures for head in there or heads]),
            runs_without=len(results) - len(there),
        )
    return found


def mean_figures(
    by_seed: Sequence[Predicted], index: np.ndarray | slice = slice(None)
) -> dict[str, float]:
    """Every metric on the same rows, averaged over the seeds."""
    return mean_tree([p.figures(index) for p in by_seed])


def mean_of(values: Sequence[float | None]) -> float:
    """NaN for no values, and where one of them is undefined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else float("nan")


def deviation_of(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def mean_tree(trees: list[Any]) -> Any:
    """The mean of every leaf; a key that some lack, over those that have it."""
    if not isinstance(trees[0], dict):
        return mean_of(trees)
    made = {}
    for key in trees[0]:
        made[key] = mean_tree([one[key] for one in trees if key in one])
    return made
