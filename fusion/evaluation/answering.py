"""Rows of a store -> what a run answers, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mer.fusion import infer
from mer.fusion.data import feature_sets, sources, splits
from mer.fusion.data.sources import BatchSource
from mer.fusion.evaluation import inconsistency
from mer.fusion.measures import calibration
from mer.fusion.models import reads_summary
from mer.fusion.models.base import FusionModel
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import named
from mer.pipeline.runtime.progress import SILENT, Advance, Silent
from mer.pipeline.store import FeatureStore


def predict_rows(
    run: Run,
    store: FeatureStore,
    rows: Sequence[int] | np.ndarray,
    *,
    device: torch.device | str = "cpu",
    progress: Silent = SILENT,
    pool: np.ndarray | None = None,
    change: infer.Change | None = None,
) -> pa.Table:
    """Predict some rows of a store.

    Args:
        run: One finished training.
        store: Of the kind that it was trained on.
        rows: Their numbers; labels are not read.
        device: Where to predict.
        progress: Shows how far it is.
        pool: The rows that a run with context finds neighbours among; None: `rows`.
        change: Made to every batch before the model sees it; None: as it is.

    Returns:
        One row per row, in their order: id, dialogue, position, speaker, session, tags, turns (how
        many neighbours it was seen with; null: the run has no context), label or targets (null:
        unlabelled), pred, p_<label>... (regression: value; of several targets value_<target>...),
        attention_<modality>, disagreement, pred_<modality>. Columns that the model has no answer
        for are null, and so is pred_<modality> of a row without the modality. `shares` says how
        raters divided over the labels, where the store knows.

    Raises:
        DataError: The run is damaged.
    """
    model = run.model(device)
    part = part_of(run, store, np.asarray(rows, dtype=np.int64), device, pool)
    what = f"predicting with {run.path.name}"
    with progress.task(what, len(part), "utterances", brief=True) as advance:
        return _predict(run, model, part, advance, change)


def modalities_of(
    run: Run, store: FeatureStore, rows: Sequence[int] | np.ndarray
) -> list[tuple[str, ...]]:
    """What a run's model has of some rows, and reads.

    Args:
        run: One finished training.
        store: As for `predict_rows`; what it has nothing of is absent in every row.
        rows: Their numbers.

    Returns:
        For each row the modalities, in the model's order.
    """
    config, spec = run.config, run.spec
    summary = reads_summary(config.model, config.model_args)
    there = {}
    for m in run.reads:
        n = feature_sets.steps(store, spec, config.data, m, summary=summary)
        there[m] = n[np.asarray(rows, dtype=np.int64)] > 0
    return [tuple(m for m in there if there[m][at]) for at in range(len(rows))]


def part_of(
    run: Run,
    store: FeatureStore,
    rows: np.ndarray,
    device: torch.device | str,
    pool: np.ndarray | None = None,
) -> BatchSource:
    """The rows as the run's model reads them."""
    spec = run.spec
    target = splits.targets(store.table(), spec.task, spec.labels)[rows]
    config = run.config
    summary = reads_summary(config.model, config.model_args)
    return sources.batch_source(
        store, spec, config.data, rows, target, device=device, summary=summary, pool=pool
    )


def _predict(
    run: Run,
    model: FusionModel,
    part: BatchSource,
    advance: Advance,
    change: infer.Change | None,
) -> pa.Table:
    """The columns that `predict_rows` describes."""
    spec, task, labels = run.spec, run.spec.task, run.spec.labels
    out = infer.infer(model, part, advance, change)
    source = part.store.table().take(pa.array(out.rows))
    known = ("id", "dialogue", "position", "speaker", "session", "tags")
    columns: dict[str, Any] = {name: source[name] for name in known}
    turns = part.neighbours
    columns["turns"] = pa.nulls(len(part), pa.int32()) if turns is None else turns.count
    truth = "label" if task == "single" else "targets"
    columns[truth] = source[truth]
    shares = splits.soft(part.store.table(), task, labels)
    if shares is not None:
        columns["shares"] = pa.array(
            [None if np.isnan(row).any() else row.tolist() for row in shares[out.rows]],
            pa.list_(pa.float32()),
        )
    columns.update(inconsistency.columns(source, spec))
    pred = infer.decide(out.scores, task, run.result.thresholds)
    columns["pred"] = named(pred, task, labels)
    scaling, scores = run.result.scaling, out.scores
    if scaling is not None:
        scores = calibration.scaled(scores, scaling.temperature)
    names = spec.score_columns
    columns.update({name: scores[:, column] for column, name in enumerate(names)})
    nothing = pa.nulls(len(part), pa.float32())
    for place, m in enumerate(spec.modalities):
        columns[f"attention_{m}"] = nothing if out.attention is None else out.attention[:, place]
    said = out.disagreement
    columns["disagreement"] = nothing if said is None else _null_nan(said)
    for m in spec.modalities:
        head = (out.unimodal or {}).get(m)
        if head is not None:
            alone = named(infer.decide(head, task, [0.5] * len(labels)), task, labels)
            columns[f"pred_{m}"] = pc.if_else(pa.array(out.there[m]), alone, None)
    return pa.table(columns)


def _null_nan(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))
