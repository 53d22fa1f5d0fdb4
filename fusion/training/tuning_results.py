"""What a search has found: the expected best of its trials, the winner's preset, and how `mer tune`
shows both.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer.fusion import config as configs
from mer.fusion.data import context
from mer.fusion.measures import metrics
from mer.fusion.measures.tables import Table, context_words, number
from mer.fusion.runtime import files, typed
from mer.fusion.training.trials import Search, SearchResult, Trial, written
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.runtime.terms import PUBLISHED

BUDGETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # of the columns of the table


def result_of(search: Search) -> SearchResult:
    """The trials of a model that were asked for; writes the preset of the winner, which is the best
    of all that are there.
    """
    trials = tuple(search.done[n] for n in range(search.trials))
    best, winner = search.best(), search.best(of_all=True)
    expected: dict[int, float] = {}
    if search.method == "random" and best is not None:
        scores = [trial.score for trial in trials]
        expected = {
            n: expected_best(scores, n, lower=search.lower) for n in range(1, len(trials) + 1)
        }
    preset = None
    if winner is not None:
        path = search.folder.parent / f"{search.space.model}.toml"
        files.write_text(path, _preset(search, winner))
        preset = str(path)
    return SearchResult(
        model=search.space.model,
        metric=search.metric,
        trials=trials,
        best=best,
        contexts=_contexts(search, trials),
        expected=expected,
        preset=preset,
        there=search.there if search.beyond else None,
        winner=winner,
    )


def _contexts(search: Search, trials: Sequence[Trial]) -> tuple[str | None, ...]:
    """The kinds of conversation context that the trials were trained with, each once."""
    found = []
    for trial in trials:
        asked = context.spec(search.space.applied(search.base, trial.settings).data)
        found.append(None if asked is None else asked.title)
    return tuple(dict.fromkeys(found))


def _preset(search: Search, best: Trial) -> str:
    """The configuration of the best trial as TOML."""
    title = metrics.title(search.metric)
    figure = number(search.metric, best.score)
    runs = plural(len(best.figures), "run")
    lines = (
        f"# Trial {best.number} of {search.there}, {search.method} search, seed {search.seed}: "
        f"dev {title} {figure}, mean of {runs}.",
        "# Drawn: " + ", ".join(sorted(search.space.drawn)) + ".",
    )
    config = search.space.applied(search.base, best.settings)
    return "\n".join(lines) + "\n" + configs.to_toml(config)


def expected_best(scores: Sequence[float | None], n: int, *, lower: bool = False) -> float:
    """The expected best of `n` trials at random (Dodge et al. 2019, equation 7), by the empirical
    distribution of those that were made: sum over i of s_i (P(S <= s_i)^n - P(S < s_i)^n).

    Args:
        scores: Of all trials; None: one that failed counts as the worst of the others.
        n: Trials, at most as many as there are.
        lower: Whether the lowest figure is the best.

    Returns:
        The expectation; NaN where every trial failed.

    >>> [expected_best([1.0, 2.0, 3.0], n) for n in (1, 2)]
    [2.0, 2.4444444444444446]
    """
    sign = -1.0 if lower else 1.0
    known = [sign * score for score in scores if score is not None]
    if not known:
        return math.nan
    all_ = sorted([*known, *[min(known)] * (len(scores) - len(known))])
    shares = (np.arange(len(all_) + 1) / len(all_)) ** n
    return sign * float(np.dot(np.diff(shares), all_))


def table(results: Sequence[SearchResult], seeds: int, folds: str | None = None) -> Table:
    """What was found, a row per model; the expected best of n trials where they were drawn at
    random. A figure is the mean over `seeds` and `folds`, with the deviation over these runs.
    """
    metric = results[0].metric
    most = len(results[0].trials)
    drawn = any(result.expected for result in results)
    budgets = [n for n in BUDGETS if n < most] + [most] if drawn else []
    title = metrics.title(metric)
    rows = []
    for result in results:
        failed = sum(trial.failed is not None for trial in result.trials)
        figures = () if result.best is None else result.best.figures
        deviation = float(np.std(figures, ddof=1)) if len(figures) > 1 else None
        score = number(metric, None if result.best is None else result.best.score)
        cell = score if deviation is None else f"{score} ± {number(metric, deviation)}"
        trial = "–" if result.best is None else str(result.best.number)
        expected = [number(metric, result.expected.get(n)) for n in budgets]
        rows.append((result.model, str(most), str(failed), cell, trial, *expected))
    over = [plural(seeds, "seed")] if seeds > 1 else []
    over += ["published folds" if folds == PUBLISHED else f"folds by {folds}"] if folds else []
    over_runs = f", mean of {' and '.join(over)}" if over else ""
    heads = [f"best of {n}" for n in budgets]
    kinds = dict.fromkeys(kind for result in results for kind in result.contexts)
    seen = " or ".join(map(context_words, kinds))
    words = "; best of n: expected over draws of n trials (Dodge et al. 2019)" if drawn else ""
    return Table(
        f"dev {title}{over_runs}, {seen}{words}",
        ("model", "trials", "failed", f"dev {title}", "trial", *heads),
        tuple(rows),
    )


def lines(results: Sequence[SearchResult], features: Path, folds: str | None = None) -> list[str]:
    """What the best trials drew, and how they are trained, over the same folds."""
    made = []
    over = f" --folds {folds}" if folds is not None else ""
    for result in results:
        if result.winner is None:
            made.append(f"{result.model}: every trial failed")
            continue
        best = sorted(result.winner.settings.items())
        drawn = ", ".join(f"{key}={value}" for key, value in best)
        beyond = ""
        if result.there is not None:
            beyond = f", trial {result.winner.number}, the best of all {result.there:,} there"
        made.append(f"{result.model}{beyond}: {drawn}")
        store, preset = shlex.quote(str(features)), shlex.quote(result.preset or "")
        made.append(f"  mer train {store} --preset {preset}{over}")
    return made


def check_found(results: Sequence[SearchResult]) -> None:
    """Raise DataError where a model has no trial that succeeded, so no preset."""
    lost = [result for result in results if result.winner is None]
    if lost:
        count = len(lost[0].trials)
        which = f"all {count:,} trials" if count > 1 else "the only trial"
        why = next((trial.failed for trial in lost[0].trials if trial.failed), "")
        raise DataError(
            f"{which} of {' and '.join(result.model for result in lost)} failed "
            f"({shown(why, 120)}); change the space, or what --set fixes"
        )


def as_json(results: Sequence[SearchResult]) -> list[dict[str, Any]]:
    """The results as JSON: every trial that was asked for, the number of the best of them, and that
    of the winner, whose preset it is.
    """
    made = []
    for result in results:
        tree = typed.tree(result)
        tree["expected"] = {str(n): value for n, value in result.expected.items()}
        for trial in tree["trials"]:
            trial["settings"] = written(trial["settings"])
        for key in ("best", "winner"):
            chosen = getattr(result, key)
            tree[key] = None if chosen is None else chosen.number
        made.append(metrics.jsonable(tree))
    return made
