"""Several trained models as one: the mean of their probabilities, or values (Lakshminarayanan et
al. 2017).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mer.fusion import infer
from mer.fusion.batch import DataSpec
from mer.fusion.evaluation import evaluate, opening_rows, scoring
from mer.fusion.runs import checkpoint, prediction_table, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.identity import outcome
from mer.fusion.runs.records import SingleMetrics
from mer.fusion.runtime.notes import Note, Once
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.runtime.terms import SPLITS
from mer.pipeline.store import FeatureStore

STEM = "-ensemble"  # in the names of its files, beside those of the seeds' mean
ALONE = "pred_"  # before a modality: what its own head decides, of which there is no mean


def members(runs: Sequence[Run]) -> list[Run]:
    """The runs of an ensemble: finished ones, those of groups one by one.

    Args:
        runs: Runs, or runs over seeds.

    Raises:
        DataError: There are fewer than two, one is there twice, or they do not answer the same.
    """
    found = [child for run in runs for child in run.trained().children]
    if len(found) < 2:
        raise DataError(
            f"{runs[0].path}: one run is no ensemble; name several, or train with --seeds"
        )
    first, seen = found[0], set()
    trainings: dict[tuple[str, ...], Run] = {}
    for one in found:
        if one.path.resolve() in seen:
            raise DataError(f"{one.path}: named twice, so that it would count twice; name it once")
        seen.add(one.path.resolve())
        twin = trainings.setdefault(outcome(one), one)
        if twin is not one:
            raise DataError(
                f"{shown(one.path, 100)} and {shown(twin.path, 100)} are one training, copied or "
                "made twice, so that it would count twice; name one of them"
            )
        if (one.spec.task, one.spec.labels) != (first.spec.task, first.spec.labels):
            raise DataError(f"{one.path}: has another task or other labels than {first.path}")
        if one.fold != first.fold:
            raise DataError(
                f"{one.path} and {first.path} are of other folds, so of other test parts; "
                "name runs of one fold"
            )
    return found


def check_alike(runs: Sequence[Run]) -> None:
    """Raise DataError for runs that read different features: new clips are encoded once for all."""
    first = runs[0]
    for one in runs[1:]:
        kinds = [_kind(run) for run in (first, one)]
        if first.spec.context != one.spec.context:
            raise DataError(
                f"{one.path}: sees other turns of a dialogue than {first.path} (data.context); "
                "clips can be predicted by each alone"
            )
        if kinds[0] != kinds[1] or first.spec.sources != one.spec.sources:
            raise DataError(
                f"{one.path}: reads other features than {first.path}; clips can be predicted by "
                "each alone"
            )


def _kind(run: Run) -> tuple[Any, ...]:
    """What the features of a run are, wherever its store and the members of that lie."""
    store = run.info.store
    origins = {m: (origin.modality, origin.recipe) for m, origin in (store.origins or {}).items()}
    return store.modalities, store.recipe, origins


def title(runs: Sequence[Run]) -> str:
    """What an ensemble is, in words."""
    models = ", ".join(dict.fromkeys(run.info.model for run in runs))
    return f"mean of {plural(len(runs), 'run')} of {models}"


def mean_table(tables: Sequence[pa.Table], runs: Sequence[Run]) -> pa.Table:
    """Predictions of the ensemble.

    Args:
        tables: Those of each run, as `mer.fusion.evaluation.answering.predict_rows` gives them.
        runs: In the same order.

    Returns:
        The same columns, scores, attention and disagreement as means; those of unimodal heads are
        left out.

    Raises:
        DataError: The tables are of other rows.
    """
    first, spec = tables[0], runs[0].spec
    for table, run in zip(tables, runs, strict=True):
        if table["id"] != first["id"]:
            raise DataError(f"{run.path}: answers other rows than {runs[0].path}")
    scores = np.mean([_scores(table, spec) for table in tables], axis=0)
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(chain.from_iterable(table.column_names for table in tables)):
        if not name.startswith(ALONE):
            columns[name] = next(table[name] for table in tables if name in table.column_names)
    columns["turns"] = _most([table["turns"] for table in tables])
    pred = infer.decide(scores, spec.task, thresholds(runs))
    columns["pred"] = prediction_table.named(pred, spec.task, spec.labels)
    for place, name in enumerate(spec.score_columns):
        columns[name] = scores[:, place]
    for name in columns:
        if name == "disagreement" or name.startswith("attention_"):
            columns[name] = _mean_where_known(
                [table[name] for table in tables if name in table.column_names]
            )
    return pa.table(columns)


def thresholds(runs: Sequence[Run]) -> tuple[float, ...] | None:
    """Those of the mean of probabilities, the mean of the runs' own; None where labels exclude each
    other.
    """
    if runs[0].spec.task != "multi":
        return None
    return tuple(np.mean([run.result.thresholds or () for run in runs], axis=0).tolist())


def _most(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """The largest of the runs' values; null where none has any."""
    values = []
    for row in zip(*(column.to_pylist() for column in columns), strict=True):
        values.append(max((one for one in row if one is not None), default=None))
    return pa.array(values, pa.int32())


def _scores(table: pa.Table, spec: DataSpec) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in spec.score_columns], axis=1)


def _mean_where_known(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """The mean over the runs that have an answer; null where none has."""
    values = np.array([column.to_pylist() for column in columns], dtype=float)
    known = ~np.isnan(values)
    count = known.sum(0)
    mean = np.where(known, values, 0).sum(0) / np.maximum(count, 1)
    return pa.array(mean, pa.float32(), mask=count == 0)


def score(
    runs: Sequence[Run],
    features: str | os.PathLike | None = None,
    split: str = "test",
    *,
    device: torch.device | str = "cpu",
    predictions: str | os.PathLike | None = None,
    note: Note = print,
    progress: Silent = SILENT,
) -> SingleMetrics:
    """Predict a split with every run, and score the mean of their probabilities.

    A run over seeds gets metrics-ensemble.json and predictions-ensemble.parquet beside its own; of
    several runs nothing is written but `predictions`.

    Args:
        runs: Finished runs, or runs over seeds.
        features: The store; None: the one that the first was trained on.
        split: train, dev or test. Every opening of the test part is logged in each run's folder,
            and in the ledger as one of the ensemble's, which is a configuration of its own.
        device: Where to predict.
        predictions: A Parquet file for the predictions.
        note: Told what the user should know, line by line.
        progress: Shows how far it is.

    Returns:
        The figures; `members` names the runs.

    Raises:
        DataError: The runs are no ensemble, one is damaged, or there are no such rows.
        KeyMismatchError: The store is of another recipe or of other labels.
    """
    there = members(runs)
    if split not in SPLITS or not split:
        raise DataError(f"--split {split}: expected train, dev or test")
    with FeatureStore(opening_rows.scored_store(there[0], features, note)) as store:
        said = dict.fromkeys(line for run in there for line in checkpoint.check_store(run, store))
        for line in said:
            note(line)
        tell = Once(note)
        seen_by = opening_rows.ensemble_configuration(there)
        tables = []
        for run in there:
            table = opening_rows.predict_split(run, store, split, device, progress, tell, seen_by)
            tables.append(table)
        table = mean_table(tables, there)
        found = scoring.describe(there[0], table, split, device=device, store=store, together=True)
        p = prediction_table.from_table(table, found.task, found.labels, found.measures or "mosi")
        found = replace(_of_all(found, there, p, store), run=runs[0].path.name)
        stem = evaluate.stem_of(there[0], store, split)
    if len(runs) == 1:
        result_files.write(runs[0].path, f"{stem}{STEM}", found, table)
    if predictions is not None:
        result_files.write_parquet(table, Path(predictions))
    if split == "test":
        by = opening_rows.seen(there, p, seen_by)
        for line in (by.line(), *by.troubles):
            note(line)
    return found


def _of_all(
    found: SingleMetrics, runs: Sequence[Run], p: prediction_table.Predicted, store: FeatureStore
) -> SingleMetrics:
    """Figures of the mean, which say of all runs what they said of the first."""
    specs = [run.spec for run in runs]
    read = dict.fromkeys(chain.from_iterable(spec.sources for spec in specs))
    without = chain.from_iterable(scoring.unlearnt(run.result, p) for run in runs)
    return replace(
        found,
        model=_together(run.info.model for run in runs),
        modalities=tuple(dict.fromkeys(chain.from_iterable(spec.modalities for spec in specs))),
        untrained_encoders=tuple(m for m in read if not store.header.modalities[m].trained),
        unseen=tuple(dict.fromkeys(without)),
        context=_context(specs),
        thresholds=thresholds(runs),
        seed=None,
        members=tuple(shown(run.path, 200) for run in runs),
    )


def _context(specs: Sequence[DataSpec]) -> str | None:
    """The kinds of conversation context; None where no run has any."""
    kinds = [None if spec.context is None else spec.context.title for spec in specs]
    if not any(kinds):
        return None
    return _together(kind or "none" for kind in kinds)


def _together(names: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(names))
