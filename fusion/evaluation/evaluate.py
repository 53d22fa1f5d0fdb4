"""Run + store -> predictions.parquet and metrics.json.

The only place that opens the test split, and it keeps a log of that (opening_rows.py, ledger.py).

Every figure is computed from the columns of predictions.parquet, so that it can be checked,
compared and pooled without the store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mer.fusion.data import feature_sets, splits
from mer.fusion.evaluation.answering import predict_rows
from mer.fusion.evaluation.crosscorpus import WHOLE, LabelMap, label_map
from mer.fusion.evaluation.means import deviation_of, mean_figures, mean_of, mean_parts
from mer.fusion.evaluation.opening_rows import (
    OPENED,
    content_of_rows,
    opened_rows,
    rows_of,
    scored_store,
    tried,
)
from mer.fusion.evaluation.scoring import bootstrap_of, describe, intervals_of
from mer.fusion.measures import metrics
from mer.fusion.runs import checkpoint, ledger
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import (
    Predicted,
    from_table,
    joined,
    of_child,
    seeds_of,
    unit,
)
from mer.fusion.runs.records import (
    Confusion,
    GroupInfo,
    GroupMetrics,
    GroupRow,
    Mapped,
    Scores,
    SingleMetrics,
    defined,
)
from mer.fusion.runs.result_files import write, write_parquet
from mer.fusion.runtime.notes import Note, Once
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terms import PARTS
from mer.pipeline.store import FeatureStore


@dataclass(frozen=True)
class Evaluated:
    """A run, its predictions and their figures."""

    run: Run
    table: pa.Table
    metrics: SingleMetrics


def evaluate(
    run: Run | str | os.PathLike,
    features: str | os.PathLike | None = None,
    split: str | None = None,
    *,
    mapping: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    predictions: str | os.PathLike | None = None,
    note: Note = print,
    progress: Silent = SILENT,
) -> SingleMetrics | GroupMetrics:
    """Predict a split, and write metrics and predictions into the run folder.

    Another split than test, or a store with other clips, writes beside the run's own figures
    (metrics-dev.json, metrics-test-<dataset>.json).

    Args:
        run: A finished run, or its folder.
        features: The store; None: the one it was trained on.
        split: train, dev or test; all: every row of a corpus that the run has not seen. None: test,
            or with a `mapping` all, where the store has no test part. Every opening of test or all
            is logged in the run folder.
        mapping: The store is another corpus, its labels read as `crosscorpus.label_map` is told
            here. Its parts are those that it stores, also where the run is of folds: each run of a
            group is scored on the same rows. None: the labels are the run's.
        device: Where to predict.
        predictions: A Parquet file for the predictions, besides.
        note: Told what the user should know, line by line.
        progress: Shows how far it is.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: The run is not finished or damaged, there are no such rows, test rows trained the
            run, or labels cannot be mapped.
        KeyMismatchError: The store is of another recipe or of other labels.
    """
    run = (run if isinstance(run, Run) else Run.open(run)).trained()
    if split is not None and split not in (*PARTS, WHOLE):
        raise DataError(f"--split {split}: expected train, dev or test, or all of another corpus")
    with FeatureStore(scored_store(run, features, note)) as store:
        labels = None
        if mapping is not None:
            spec = run.children[0].spec
            labels = label_map(mapping, store, spec.task, spec.labels)
        split = split or _usual_split(store, labels)
        stem = stem_of(run, store, split, labels)
        results, opened = _score_children(run, store, split, labels, stem, device, note, progress)
        seen_by = _seen_now(run, store, opened) if split in OPENED else None
        rows, what = np.unique(np.concatenate(opened)), "row" if split == WHOLE else f"{split} row"
        for line in feature_sets.absent_notes(store, run.children[0].spec, rows, what):
            note(line)
        tested_once = split == "test" and labels is None
        untested = _untested(run, store, rows) if tested_once else None
    found: SingleMetrics | GroupMetrics = results[0].metrics
    table = results[0].table
    if isinstance(run.info, GroupInfo):
        shared = labels is not None or split == WHOLE
        found, table = _aggregate(run, results, shared=shared)
        found = replace(found, untested=untested)
    write(run.path, stem, found, table)
    if predictions is not None:
        write_parquet(table, Path(predictions))
    if seen_by is not None:
        for line in (seen_by.line(), *seen_by.troubles):
            note(line)
    return found


def _usual_split(store: FeatureStore, labels: LabelMap | None) -> str:
    """What is scored where nobody said: test, or all of another corpus that has no test part."""
    if labels is None or "test" in store.table()["split"].to_pylist():
        return "test"
    return WHOLE


def stem_of(run: Run, store: FeatureStore, split: str, labels: LabelMap | None = None) -> str:
    """What stands behind `metrics` and `predictions` in the names of the files; empty only for the
    test part that the run was trained beside.
    """
    if labels is not None or not checkpoint.same_rows(run, store):
        return f"-{split}-{store.header.dataset.replace('/', '-')}"
    return "" if split == "test" else f"-{split}"


def _score_children(
    run: Run,
    store: FeatureStore,
    split: str,
    labels: LabelMap | None,
    stem: str,
    device: torch.device | str,
    note: Note,
    progress: Silent,
) -> tuple[list[Evaluated], list[np.ndarray]]:
    """Every training of a run, scored and, in a group, written; and the rows opened for each."""
    results, opened = [], []
    tell = Once(note)
    with store if labels is None else labels.show(store) as read:
        for line in checkpoint.check_store(run.children[0], read):
            note(line)
        if labels is not None:  # refused, if it is, before anything is opened
            labels.kept(store, rows_of(run.children[0], store, split, mapped=True)[0])
        for child in run.children:
            rows, pool = opened_rows(child, store, split, tell, mapped=labels is not None)
            opened.append(rows)
            kept = rows if labels is None else labels.kept(store, rows)
            table = predict_rows(child, read, kept, device=device, progress=progress, pool=pool)
            figures = describe(child, table, split, device=device, store=read, labels=labels)
            if labels is not None:
                answers = table.filter(table["label"].is_valid())["pred"].to_pylist()
                figures = replace(figures, mapped=labels.record(store, rows, answers))
            results.append(Evaluated(child, table, figures))
            if isinstance(run.info, GroupInfo):
                write(child.path, stem, figures, table)
    return results, opened


def _untested(run: Run, store: FeatureStore, tested: np.ndarray) -> dict[str, int] | None:
    """How many rows of a store are `tested` in no fold of a run; None: none, or it has no folds."""
    folds = run.info.folds if isinstance(run.info, GroupInfo) else None
    if folds is None:
        return None
    target = splits.targets(store.table(), store.header.task, store.header.labels)
    return splits.untested(store.table(), target, folds, tested) or None


def _seen_now(run: Run, store: FeatureStore, opened: Sequence[np.ndarray]) -> ledger.Seen:
    """Who has seen the rows that were just opened for each training of a run."""
    rows = np.unique(np.concatenate(opened))
    target = splits.targets(store.table(), store.header.task, store.header.labels)[rows]
    contents = [content_of_rows(store, one) for one in opened]
    count = int(splits.labelled(target).sum())
    return ledger.seen(contents, count, [Path(store.path).resolve()], tried(run.children))


def has_test(run: Run, store: FeatureStore) -> bool:
    """Whether there is a test part to open; reads the table's split column only."""
    return run.children[0].fold is not None or "test" in store.table()["split"].to_pylist()


# ---- Several trainings


def _aggregate(
    run: Run, results: list[Evaluated], *, shared: bool
) -> tuple[GroupMetrics, pa.Table]:
    """Figures over the children: mean and deviation over folds (of the seeds' means) or over seeds;
    with folds also pooled over all held-out predictions. The interval resamples groups of the
    pooled predictions, each figure averaged over the seeds. Where all children are scored on
    `shared` rows nothing is held out, and each of them counts as a seed does.
    """
    info = run.info
    assert isinstance(info, GroupInfo)
    first = results[0].metrics
    whole = joined([of_child(one.run, one.table) for one in results])
    by_seed = _by_seed(results, whole, shared)
    name, groups = unit(by_seed[0].table)
    rows = [_row(one) for one in results]
    over = "folds" if info.folds else "seeds"
    spread = _spread(rows, over)
    there = [one.metrics for one in results]
    seeds = {one.run.single.seed for one in results}
    means = {name: mean_of(values) for name, values in spread.items()}
    deviations = {name: deviation_of(values) for name, values in spread.items()}
    unlabelled = sum(one.unlabelled for one in there)
    times = len(there) if shared else info.seeds  # that each row was predicted
    found = GroupMetrics(
        run=run.path.name,
        model=first.model,
        dataset=first.dataset,
        split=first.split,
        task=first.task,
        labels=first.labels,
        select_metric=first.select_metric,
        modalities=first.modalities,
        untrained_encoders=first.untrained_encoders,
        over=over,
        seeds=tuple(sorted(seeds)),
        folds=_folds_of(rows),
        n=len(by_seed[0].table),
        unlabelled=unlabelled // times,
        context=first.context,
        metrics=Scores(figures={**means}),
        sd={**deviations},
        pooled={**mean_figures(by_seed)} if info.folds and not shared else None,
        interval=intervals_of(by_seed, groups),
        bootstrap=bootstrap_of(name, groups),
        runs=tuple(rows),
        confusion=_mean_confusion(by_seed),
        measures=first.measures,
        unseen=_unseen_of(there),
        mapped=_mean_mapped(there),
    )
    return defined(replace(found, **mean_parts(there))), whole


def _by_seed(results: list[Evaluated], whole: pa.Table, shared: bool) -> list[Predicted]:
    """The predictions of each seed, all folds together, or on `shared` rows those of each child."""
    first = results[0].metrics
    among = None
    if first.mapped is not None:
        meant = set(first.mapped.labels.values())
        among = tuple(c for c, name in enumerate(first.labels) if name in meant)
    told = (first.task, first.labels, first.measures or "mosi", among)
    if shared:
        return [from_table(one.table, *told) for one in results]
    return seeds_of(from_table(whole, *told))


def _mean_mapped(results: Sequence[SingleMetrics]) -> Mapped | None:
    """How labels were read, with the mean of what each run answers beside them."""
    first = results[0].mapped
    if first is None:
        return None
    unmet = {}
    for name in first.unmet:
        unmet[name] = mean_of([one.mapped.unmet[name] for one in results if one.mapped is not None])
    return replace(first, unmet=unmet)


def _folds_of(rows: list[GroupRow]) -> tuple[str, ...]:
    """The names of the folds, each once."""
    return tuple(dict.fromkeys(row.fold for row in rows if row.fold))


def _unseen_of(results: list[SingleMetrics]) -> tuple[str, ...]:
    """Labels that nobody had in the training of some run."""
    return tuple(sorted(set().union(*(one.unseen or () for one in results))))


def _row(one: Evaluated) -> GroupRow:
    """What a group's metrics say of one of its runs."""
    fold = one.metrics.fold
    return GroupRow(
        run=one.run.path.name,
        fold=None if fold is None else fold.name,
        seed=one.metrics.seed,
        best_epoch=one.run.result.best_epoch,
        metrics=one.metrics.metrics.figures,
    )


def _spread(rows: list[GroupRow], over: str) -> dict[str, list[float]]:
    """Every figure of every seed; or of every fold, averaged over the seeds."""
    keys = [row.fold if over == "folds" else row.seed for row in rows]
    found: dict[str, list[float]] = {}
    for name in rows[0].metrics:
        for key in dict.fromkeys(keys):
            mine = [row.metrics[name] for row, of in zip(rows, keys, strict=True) if of == key]
            found.setdefault(name, []).append(mean_of(mine))
    return found


def _mean_confusion(by_seed: Sequence[Predicted]) -> Confusion | None:
    """The confusion matrix, averaged over the seeds."""
    if by_seed[0].task != "single":
        return None
    matrices = [metrics.confusion(p.true, p.pred, len(p.labels)) for p in by_seed]
    return np.mean(matrices, axis=0).tolist()
