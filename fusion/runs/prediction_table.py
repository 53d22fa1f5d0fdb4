"""The table of predictions: from labels to its columns, and from these to arrays and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mer.fusion import infer
from mer.fusion.data import splits
from mer.fusion.measures import metrics
from mer.fusion.measures.metrics import Measures
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import Scores
from mer.fusion.runtime.typed import convert

UNITS = ("dialogue", "session", "speaker")
FEWEST_UNITS = 8  # below this a bootstrap over groups means little


@dataclass(frozen=True)
class Predicted:
    """Columns of a predictions table as arrays, labelled rows only.

    `true` as in `Batch.target`, `pred` as of `infer.decide`.
    """

    table: pa.Table
    true: np.ndarray
    pred: np.ndarray
    task: str
    labels: tuple[str, ...]
    measures: Measures = "mosi"  # by whose definitions a regression is scored
    among: tuple[int, ...] | None = None  # the classes that a reference may have; None: all

    def figures(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """The metrics that are one number, on some of the rows."""
        pred, true = self.pred[index], self.true[index]
        return infer.figures(pred, true, self.task, self.labels, self.measures, self.among)

    def scores(self) -> Scores:
        """All metrics."""
        found = infer.score(self.pred, self.true, self.task, self.labels, self.measures, self.among)
        return convert(Scores, metrics.jsonable(found))

    def take(self, rows: np.ndarray) -> Predicted:
        """Some of the rows, in this order."""
        table = self.table.take(pa.array(rows))
        return replace(self, table=table, true=self.true[rows], pred=self.pred[rows])


def from_table(
    table: pa.Table,
    task: str,
    labels: Sequence[str],
    measures: Measures = "mosi",
    among: tuple[int, ...] | None = None,
) -> Predicted:
    """The labelled rows of a predictions table."""
    true = splits.targets(table, task, labels)
    kept = splits.labelled(true)
    table = table.filter(pa.array(kept))
    pred = decisions(table["pred"], task, labels)
    return Predicted(table, true[kept], pred, task, tuple(labels), measures, among)


def unit(table: pa.Table) -> tuple[str, np.ndarray]:
    """What the bootstrap resamples: the first of dialogue, session, speaker with at least eight
    groups, else single utterances. A row of which no group is known is one of its own.
    """
    ids = table["id"].to_pylist()
    for name in UNITS:
        groups = table[name].to_pylist()
        if len({one for one in groups if one}) >= FEWEST_UNITS:
            alone = (f"\0{id}" for id in ids)  # no group is called so
            return name, np.array([one or lone for one, lone in zip(groups, alone, strict=True)])
    return "utterance", np.array(ids)


def named(pred: np.ndarray, task: str, labels: Sequence[str]) -> pa.Array:
    if task == "single":
        return pa.array([labels[c] for c in pred], pa.string())
    if task == "multi":
        names = np.array(labels, dtype=object)
        return pa.array([names[row].tolist() for row in pred], pa.list_(pa.string()))
    if pred.ndim == 2:
        return pa.array(pred.tolist(), pa.list_(pa.float64()))
    return pa.array(pred, pa.float64())


def decisions(column: pa.ChunkedArray, task: str, labels: Sequence[str]) -> np.ndarray:
    """Inverse of `named`; where nothing is answered -1, no label, or NaN."""
    index: dict[str | None, int] = {name: c for c, name in enumerate(labels)}
    values = column.to_pylist()
    if task == "single":
        index[None] = -1
        return np.array([index[v] for v in values], dtype=np.int64)
    if task != "multi":
        width = max(len(labels), 1)
        nothing = [math.nan] * width if width > 1 else math.nan
        told = [nothing if v is None else v for v in values]
        return np.array(told, dtype=float).reshape((-1, width) if width > 1 else -1)
    holds = np.zeros((len(values), len(labels)), dtype=bool)
    for row, names in zip(holds, values, strict=True):
        row[:] = [name in (names or ()) for name in labels]
    return holds


def of_children(run: Run, tables: Sequence[pa.Table], measures: Measures) -> list[Predicted]:
    """The predictions of each seed of a run, from those of its children; the rows in one order."""
    children = run.children
    parts = [of_child(child, table) for child, table in zip(children, tables, strict=True)]
    spec = children[0].spec
    return seeds_of(from_table(joined(parts), spec.task, spec.labels, measures))


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of several predictions tables. A column that one lacks is null there: of unimodal
    labels, which no row of a fold's test part may have.
    """
    return pa.concat_tables(tables, promote_options="default")


def of_child(run: Run, table: pa.Table) -> pa.Table:
    """A run's predictions with its fold and its seed as columns."""
    fold, size = run.fold, len(table)
    folds = pa.array([fold.name if fold else None] * size, pa.string())
    seeds = pa.array([run.single.seed] * size, pa.int64())
    return table.append_column("fold", folds).append_column("seed", seeds)


def seeds_of(p: Predicted) -> list[Predicted]:
    """One `Predicted` per seed (all folds together), with the rows of all seeds in the same
    order.
    """
    if "seed" not in p.table.column_names:
        return [p]
    seed = np.array(p.table["seed"].to_pylist())
    ids = np.array(p.table["id"].to_pylist())
    parts = []
    for one in np.unique(seed):
        rows = np.flatnonzero(seed == one)
        parts.append(p.take(rows[np.argsort(ids[rows], kind="stable")]))
    return parts
