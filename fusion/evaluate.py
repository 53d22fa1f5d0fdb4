"""Run + store -> predictions.parquet and metrics.json.

The only place that opens the test split, and it keeps a log of that (ledger.py).

Every figure is computed from the columns of predictions.parquet, so that it can be checked,
compared and pooled without the store.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mer.fusion import (
    calibration,
    checkpoint,
    data,
    files,
    infer,
    intervals,
    ledger,
    metrics,
    splits,
    typed,
    unimodal,
)
from mer.fusion.batch import Batch
from mer.fusion.calibration import Scaling
from mer.fusion.checkpoint import Run
from mer.fusion.config import to_tree
from mer.fusion.crosscorpus import WHOLE, LabelMap, label_map
from mer.fusion.data import BatchSource
from mer.fusion.files import METRICS, PREDICTIONS, TEST_LOG
from mer.fusion.intervals import Sampled
from mer.fusion.losses.supervised import same_emotion
from mer.fusion.metrics import Measures
from mer.fusion.models import reads_summary
from mer.fusion.models.base import FusionModel
from mer.fusion.records import (
    Bootstrap,
    Calibration,
    Confusion,
    Figures,
    FinishedInfo,
    GroupInfo,
    GroupMetrics,
    GroupRow,
    Mapped,
    Metrics,
    OwnScores,
    Scores,
    SingleMetrics,
    SoftScores,
    SplitIds,
    Subset,
    TwoWay,
    defined,
)
from mer.fusion.train import measures_of
from mer.fusion.typed import convert
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.columnar import read_small
from mer.pipeline.runtime.limits import SPLIT_JSON_BYTES
from mer.pipeline.runtime.progress import SILENT, Advance, Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.runtime.terms import PARTS
from mer.pipeline.store import FeatureStore

Note = Callable[[str], None]
# What Arrow and the columns of a foreign table raise.
UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
UNITS = ("dialogue", "session", "speaker")
FEWEST_UNITS = 8  # below this a bootstrap over groups means little
FEW_GROUPS = 25  # below this an interval is rough, however it is widened
RESAMPLES = 1000
PAIR_SEED = 0
OPENED = ("test", WHOLE)  # what nobody may have chosen by: every opening is noted
UNEQUAL = "inconsistent"  # the tag of utterances whose voice and words are known to disagree


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
        mapping: The store is another corpus, its labels read as `mer.fusion.crosscorpus.label_map`
            is told here. Its parts are those that it stores, also where the run is of folds: each
            run of a group is scored on the same rows. None: the labels are the run's.
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
    path = Path(features if features is not None else run.info.features)
    if not path.exists():
        raise DataError(f"{path}: no such store; name the one to evaluate on with --features")
    with FeatureStore(path) as store:
        labels = None
        if mapping is not None:
            spec = run.children[0].spec
            labels = label_map(mapping, store, spec.task, spec.labels)
        split = split or _usual_split(store, labels)
        stem = stem_of(run, store, split, labels)
        results, opened = _score_children(run, store, split, labels, stem, device, note, progress)
        seen_by = _seen_now(run, store, opened) if split in OPENED else None
    found: SingleMetrics | GroupMetrics = results[0].metrics
    table = results[0].table
    if isinstance(run.info, GroupInfo):
        shared = labels is not None or split == WHOLE
        found, table = _aggregate(run, results, shared=shared)
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
    tell = once(note)
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


def _seen_now(run: Run, store: FeatureStore, opened: Sequence[np.ndarray]) -> ledger.Seen:
    """Who has seen the rows that were just opened for each training of a run."""
    rows = np.unique(np.concatenate(opened))
    target = splits.targets(store.table(), store.header.task, store.header.labels)[rows]
    contents = [_content(store, one) for one in opened]
    count = int(splits.labelled(target).sum())
    return ledger.seen(contents, count, [Path(store.path).resolve()], _tried(run.children))


def once(note: Note) -> Note:
    """The same, but each line one time only."""
    told: set[str] = set()

    def say(line: str) -> None:
        if line not in told:
            told.add(line)
            note(line)

    return say


def stored_metrics(run: Run) -> SingleMetrics | GroupMetrics | None:
    """The test figures of an earlier evaluate, if there are any."""
    path = run.path / METRICS
    if not path.exists():
        return None
    remedy = f"run `mer evaluate {run.path}` again"
    found: SingleMetrics | GroupMetrics
    if isinstance(run.info, GroupInfo):
        found = files.read_json(path, GroupMetrics, remedy)
    else:
        found = files.read_json(path, SingleMetrics, remedy)
    matrix, size = reference_by_answer(found), len(found.labels)
    if matrix and [len(row) for row in matrix] != [size] * size:
        raise files.damaged(path, "confusion is not one row and one column per label", remedy)
    return found


def reference_by_answer(found: SingleMetrics | GroupMetrics) -> Confusion | None:
    """The confusion matrix of a run or a group, where there is one."""
    mean = found.confusion if isinstance(found, GroupMetrics) else None
    return mean or found.metrics.confusion


def has_test(run: Run, store: FeatureStore) -> bool:
    """Whether there is a test part to open; reads the table's split column only."""
    return run.children[0].fold is not None or "test" in store.table()["split"].to_pylist()


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
        for are null. `shares` says how raters divided over the labels, where the store knows.

    Raises:
        DataError: The run is damaged.
    """
    model = run.model(device)
    part = _part(run, store, np.asarray(rows, dtype=np.int64), device, pool)
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
        n = data.steps(store, spec, config.data, m, summary=summary)
        there[m] = n[np.asarray(rows, dtype=np.int64)] > 0
    return [tuple(m for m in there if there[m][at]) for at in range(len(rows))]


def read_predictions(run: Run) -> Predicted:
    """The test predictions of an earlier evaluate, held against the checksum that metrics.json has.

    Raises:
        DataError: There are none, or they are damaged.
    """
    path = run.path / PREDICTIONS
    again = f"run `mer evaluate {run.path}` again"
    try:
        first = f"run `mer evaluate {run.path}` first"
        with files.opened(path, first, missing="no predictions") as file:
            raw = file.read()
        return _predicted(run, raw)
    except DataError as error:
        if str(error).startswith(str(run.path)):
            raise
        raise files.damaged(path, error, again) from None
    except UNREADABLE as error:
        raise files.damaged(path, error, again) from None


def _predicted(run: Run, raw: bytes) -> Predicted:
    """The bytes of predictions.parquet as arrays; raises ValueError and others of UNREADABLE."""
    spec = run.children[0].spec
    figures = stored_metrics(run)
    if figures is None:
        raise ValueError(f"{METRICS} is missing")
    if figures.predictions_sha256 not in (None, hashlib.sha256(raw).hexdigest()):
        raise ValueError(f"{METRICS} is of other predictions")
    table = read_small(io.BytesIO(raw))
    wanted = {"id", "pred", *UNITS, "label" if spec.task == "single" else "targets"}
    if missing := wanted - set(table.column_names):
        raise ValueError(f"no column {min(missing)}")
    if table["id"].null_count:
        raise ValueError("a row without an id")
    measures = figures.measures or run.children[0].measures
    return from_table(table, spec.task, spec.labels, measures)


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
    pred = _decisions(table["pred"], task, labels)
    return Predicted(table, true[kept], pred, task, tuple(labels), measures, among)


def unit(table: pa.Table) -> tuple[str, np.ndarray]:
    """What the bootstrap resamples: the first of dialogue, session, speaker with at least eight
    groups, else single utterances.
    """
    name = next((g for g in UNITS if _groups(table, g) >= FEWEST_UNITS), "id")
    return ("utterance" if name == "id" else name), np.array(table[name].to_pylist())


def _groups(table: pa.Table, by: str) -> int:
    values = set(table[by].to_pylist())
    return 0 if None in values or "" in values else len(values)


def _part(
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
    return data.batch_source(
        store, spec, config.data, rows, target, device=device, summary=summary, pool=pool
    )


def predict_split(
    run: Run,
    store: FeatureStore,
    split: str,
    device: torch.device | str,
    progress: Silent,
    note: Note,
) -> pa.Table:
    """What a run answers of a split, as `predict_rows` describes it."""
    rows, pool = opened_rows(run, store, split, note)
    return predict_rows(run, store, rows, device=device, progress=progress, pool=pool)


def opened_rows(
    run: Run,
    store: FeatureStore,
    split: str,
    note: Note,
    what: str = ledger.FIGURES,
    *,
    mapped: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """As `rows_of`; that the test part is opened is noted first."""
    rows, pool = rows_of(run, store, split, mapped=mapped)
    if split in OPENED:
        check_unseen(run, store, rows, split, note)
        note_opening(run, store, rows, note, what)
    return rows, pool


def rows_of(
    run: Run, store: FeatureStore, split: str, *, mapped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a part, and those among which they find neighbours; DataError where there are
    none. Of another corpus, whose labels are `mapped`, the parts are those it stores.
    """
    table = store.table()
    if split == WHOLE:
        rows = pool = np.arange(len(table))
    elif mapped:
        rows = pool = np.flatnonzero(np.array(table["split"].to_pylist(), dtype=object) == split)
    elif split == "test":
        rows = pool = splits.held_out(table, run.fold)
    else:
        target = splits.targets(table, run.spec.task, run.spec.labels)
        assigned = splits.assign(table, target, run.config.data, run.fold)
        training = split == "train"
        rows = assigned.train if training else assigned.dev
        pool = assigned.train_pool if training else assigned.dev_pool
    if not len(rows):
        remedy = "; evaluate another split, or train with --folds" if split == "test" else ""
        remedy = "; --split all scores every row of another corpus" if mapped else remedy
        raise DataError(f"{store.path}: no {split} rows{remedy}")
    return rows, pool


def check_unseen(run: Run, store: FeatureStore, rows: np.ndarray, split: str, note: Note) -> None:
    """Raise DataError when test rows were used in training. Of a corpus of another name only tell
    that there are such ids: they may be other clips.
    """
    path = run.verified(checkpoint.SPLIT)
    used = files.read_json(path, SplitIds, checkpoint.AGAIN, most=SPLIT_JSON_BYTES)
    ids = store.table()["id"].to_pylist()
    leaked = {ids[row] for row in rows} & {*used.train, *used.dev}
    if leaked and store.header.dataset != run.info.store.dataset:
        some = f"{plural(len(leaked), 'row')} (first: {shown(min(leaked), 60)})"
        note(
            f"{store.path}: {some} have ids that training {run.path.name} had, too; if they are "
            "the same clips, these are no test figures"
        )
    elif leaked and split == WHOLE:
        raise DataError(
            f"{store.path}: {run.path} was trained on {len(leaked):,} of its rows (first: "
            f"{shown(min(leaked), 60)}); --split all is for a corpus that it has not seen"
        )
    elif leaked:
        some = f"{plural(len(leaked), 'test row')} (first: {min(leaked)})"
        were = "was" if len(leaked) == 1 else "were"
        raise DataError(
            f"{store.path}: {some} {were} used in training {run.path}; train again on the splits "
            "as they are now"
        )


def note_opening(
    run: Run, store: FeatureStore, rows: np.ndarray, note: Note, what: str = ledger.FIGURES
) -> None:
    """Note in the run's log and in the ledger that the test part is opened, before it is read; how
    often that was is part of the result.
    """
    header = store.header
    opening = ledger.Opening(
        id=ledger.new_id(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        store=str(Path(store.path).resolve()),
        fingerprint=header.fingerprint,
        rows=len(rows),
        content=_content(store, rows),
        configuration=configuration(run),
        training=run.info.identity,
        run=str(run.path.resolve()),
        model=run.info.model,
        dataset=header.dataset,
        seed=run.single.seed,
        fold=None if run.fold is None else run.fold.name,
        what=what,
    )
    ledger.record(opening, log=run.path / TEST_LOG, store=Path(store.path).resolve(), note=note)


def _content(store: FeatureStore, rows: np.ndarray) -> str:
    """What stands for the rows."""
    header = store.header
    table = store.table().take(pa.array(rows))
    labelled = _labelled(table, header.task, header.labels)
    return ledger.content_of(header.task, header.labels, *labelled)


def _labelled(table: pa.Table, task: str, labels: Sequence[str]) -> tuple[list[str], list[Any]]:
    """(ids, references) of the rows that have one."""
    kept = pa.array(splits.labelled(splits.targets(table, task, labels)))
    table = table.filter(kept)
    truth = table["label" if task == "single" else "targets"]
    return table["id"].to_pylist(), truth.to_pylist()


def configuration(run: Run) -> str:
    """What stands for what was tried: a sha256 of the settings without the seed, and of the store
    that they were trained on.
    """
    settings = to_tree(run.config)
    settings["train"].pop("seed")
    text = json.dumps([settings, run.info.store_key], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seen(children: Sequence[Run], p: Predicted) -> ledger.Seen:
    """Who has seen the rows on which evaluated runs were tested.

    Args:
        children: Single trainings, those of groups among them, that share their test rows.
        p: The test predictions of one of them, or of its group.

    Returns:
        The counts, by the ledgers of all stores on which these runs are known to be evaluated.
    """
    stores: list[Path] = []
    for child in children:
        stores += [Path(child.info.features)] if ledger.is_path(child.info.features) else []
        stores += ledger.stores_of(child.path / TEST_LOG)
    return ledger.seen(_contents(p), len(seeds_of(p)[0].true), stores, _tried(children))


def _tried(children: Iterable[Run]) -> list[tuple[str, str]]:
    """(configuration, training) of each."""
    return [(configuration(child), child.info.identity) for child in children]


def _contents(p: Predicted) -> list[str]:
    """What stands for the rows of a predictions table; of a run over folds, for those of each."""
    folds = [None] * len(p.table)
    if "fold" in p.table.column_names:
        folds = p.table["fold"].to_pylist()
    first = np.full(len(p.table), True)
    if "seed" in p.table.column_names:
        seed = p.table["seed"].to_numpy()
        first = seed == seed.min(initial=seed[0] if len(seed) else 0)
    found = []
    for fold in dict.fromkeys(folds):
        rows = first & np.array([one == fold for one in folds], dtype=bool)
        part = p.table.filter(pa.array(rows))
        found.append(ledger.content_of(p.task, p.labels, *_labelled(part, p.task, p.labels)))
    return found


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
    columns.update(unimodal.columns(source, spec))
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
            alone = infer.decide(head, task, [0.5] * len(labels))
            columns[f"pred_{m}"] = named(alone, task, labels)
    return pa.table(columns)


def named(pred: np.ndarray, task: str, labels: Sequence[str]) -> pa.Array:
    if task == "single":
        return pa.array([labels[c] for c in pred], pa.string())
    if task == "multi":
        names = np.array(labels, dtype=object)
        return pa.array([names[row].tolist() for row in pred], pa.list_(pa.string()))
    if pred.ndim == 2:
        return pa.array(pred.tolist(), pa.list_(pa.float64()))
    return pa.array(pred, pa.float64())


def _decisions(column: pa.ChunkedArray, task: str, labels: Sequence[str]) -> np.ndarray:
    """Inverse of `named`."""
    index = {name: c for c, name in enumerate(labels)}
    values = column.to_pylist()
    if task == "single":
        return np.array([index[v] for v in values], dtype=np.int64)
    if task != "multi":
        width = max(len(labels), 1)
        return np.array(values, dtype=float).reshape((-1, width) if width > 1 else -1)
    holds = np.zeros((len(values), len(labels)), dtype=bool)
    for row, names in zip(holds, values, strict=True):
        row[:] = [name in names for name in labels]
    return holds


def _null_nan(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))


def describe(
    run: Run,
    table: pa.Table,
    split: str,
    *,
    device: torch.device | str,
    store: FeatureStore,
    together: bool = False,
    labels: LabelMap | None = None,
) -> SingleMetrics:
    """The content of metrics.json for one run, or where it stands `together` with others whose
    predictions these are the mean of: then without what its model alone would be asked. `labels`
    says how those of another corpus are read, which `store` shows as the run's.
    """
    spec, info = run.spec, run.result
    every = splits.targets(store.table(), spec.task, spec.labels)
    measures = measures_of(store, every)
    among = None if labels is None else labels.scored
    p = from_table(table, spec.task, spec.labels, measures, among)
    name, groups = unit(p.table)
    stored = store.header.modalities
    heads = _heads(p, spec.modalities)
    agree, disagree = _where_heads_agree(p, heads)
    answered = p.table["disagreement"].null_count < len(p.table) and not together
    untrained = [name for name in spec.sources if not stored[name].trained]
    alone: dict[str, Figures] = {}
    for m, pred in heads.items():
        alone[m] = {**replace(p, pred=pred).figures()}
    return defined(
        SingleMetrics(
            run=run.path.name,
            model=info.model,
            dataset=store.header.dataset,
            split=split,
            task=info.store.task,
            labels=spec.labels,
            select_metric=info.select_metric,
            modalities=tuple(spec.modalities),
            fold=info.fold,
            seed=info.seed,
            untrained_encoders=tuple(untrained),
            unlabelled=len(table) - len(p.table),
            metrics=p.scores(),
            interval=_intervals([p], groups),
            bootstrap=bootstrap_of(name, groups),
            thresholds=info.thresholds,
            unseen=unlearnt(info, p),
            context=spec.context.title if spec.context is not None else None,
            measures=measures if spec.task == "regression" else None,
            unimodal=alone or None,
            **own_labels(p, heads),
            heads_agree=agree,
            heads_disagree=disagree,
            attention=_attention(p, spec.modalities),
            discrimination=discrimination(run, p, store, device) if answered else None,
            inconsistent=_inconsistent(p),
            calibration=_calibration(p, None if together else info.scaling),
            soft=_soft_scores(table, spec.score_columns),
        )
    )


def _intervals(by_seed: Sequence[Predicted], groups: np.ndarray) -> dict[str, Any]:
    """95 % interval of every figure, averaged over the seeds."""
    found = {}
    for name, one in sampled(by_seed, groups).items():
        # draws of seeds reach beyond the seeds there are, to where no figure can be
        low, high = metrics.ends(name)
        found[name] = np.clip(intervals.interval(one), low, high).tolist()
    return found


def sampled(by_seed: Sequence[Predicted], groups: np.ndarray) -> dict[str, Sampled]:
    """Every figure of every seed, and its draws: the same for all that share their groups, so that
    the draws of two runs on the same rows are paired.

    Args:
        by_seed: The predictions of each seed, their rows in the same order.
        groups: (N,) that of each row.
    """
    count = intervals.effective(groups)
    values = [p.figures() for p in by_seed]
    draws = [_drawn(p, groups) for p in by_seed]
    found = {}
    for name in values[0]:
        each = np.array([one[name] for one in values])
        found[name] = Sampled(each, np.stack([one[name] for one in draws], axis=1), count)
    return found


def _drawn(p: Predicted, groups: np.ndarray) -> dict[str, np.ndarray]:
    """(resamples,) every figure of one seed under each draw of whole groups."""
    if p.task == "single":
        return metrics.resampled_classification(
            p.true, p.pred, len(p.labels), groups, resamples=RESAMPLES, among=p.among
        )
    drawn = metrics.resampled(p.figures, groups, resamples=RESAMPLES)
    return dict(zip(p.figures(), drawn.T, strict=True))


def bootstrap_of(unit_name: str, groups: np.ndarray) -> Bootstrap:
    """What the intervals resample: `groups` (N,) names the one of each utterance."""
    return Bootstrap(unit_name, len(np.unique(groups)), RESAMPLES, 0.95)


def unlearnt(info: FinishedInfo, p: Predicted) -> tuple[str, ...]:
    """Labels that some of these utterances have and none that trained had."""
    learnt = info.label_counts or {}
    there = splits.label_counts(p.true, p.task, p.labels)
    return tuple(name for name, count in there.items() if count and not learnt.get(name, 1))


def _heads(p: Predicted, modalities: Iterable[str]) -> dict[str, np.ndarray]:
    """What each modality's own head answers, where the model has such heads."""
    there = [m for m in modalities if f"pred_{m}" in p.table.column_names]
    return {m: _decisions(p.table[f"pred_{m}"], p.task, p.labels) for m in there}


def _where_heads_agree(
    p: Predicted, heads: dict[str, np.ndarray]
) -> tuple[Subset | None, Subset | None]:
    """The model where the unimodal heads agree, and where they do not; None without two heads."""
    if len(heads) < 2:
        return None, None
    differ = _differ(p, heads)
    found = []
    for rows in (~differ, differ):
        share = float(rows.mean()) if len(rows) else float("nan")
        found.append(Subset(n=int(rows.sum()), share=share, figures={**p.figures(rows)}))
    return found[0], found[1]


def where_heads_differ(p: Predicted, modalities: Iterable[str]) -> np.ndarray | None:
    """(N,) bool: not all unimodal heads say the same; None for a model without two of them."""
    heads = _heads(p, modalities)
    return _differ(p, heads) if len(heads) > 1 else None


def _differ(p: Predicted, heads: dict[str, np.ndarray]) -> np.ndarray:
    """`_heads_differ`, by the middle of the targets where those are dimensions."""
    of_dimensions = p.measures == "ccc" and len(p.true)
    middle = p.true.mean(0) if of_dimensions else 0.0
    return _heads_differ(list(heads.values()), p.task, middle)


def _heads_differ(
    heads: list[np.ndarray], task: str, middle: np.ndarray | float = 0.0
) -> np.ndarray:
    """(N,) bool: not all unimodal heads say the same. Regression: they are not on one side of the
    `middle`, which is 0, or of dimensions the mean target.
    """
    heads = [h > middle for h in heads] if task == "regression" else heads
    rows = [h != heads[0] for h in heads[1:]]
    return np.any([row if row.ndim == 1 else row.any(1) for row in rows], axis=0)


def _attention(p: Predicted, modalities: Iterable[str]) -> Figures | None:
    """The mean share of [CLS] attention of each modality; None: the model has no such thing."""
    columns = {m: p.table[f"attention_{m}"] for m in modalities}
    if any(column.null_count for column in columns.values()):
        return None
    if not len(p.table):
        return dict.fromkeys(columns)
    return {m: float(np.mean(column.to_numpy())) for m, column in columns.items()}


def own_labels(p: Predicted, heads: dict[str, np.ndarray]) -> dict[str, Any]:
    """What metrics.json says by unimodal labels, by its keys: each head against those of its own
    modality, and how well the model and its heads tell where these differ.
    """
    own = unimodal.truth(p.table, p.task, p.labels)
    found = {}
    for m, pred in heads.items():
        if m in own:
            rows = splits.labelled(own[m])
            head = replace(p, pred=pred, true=own[m])
            found[m] = OwnScores(
                n=int(rows.sum()), without=int((~rows).sum()), figures={**head.figures(rows)}
            )
    told: dict[str, Any] = {"own_labels": found or None}
    told["unlike_labels"] = unimodal.told_by(p.table["disagreement"].to_pylist(), own)
    if len(heads) > 1:
        among = {m: heads[m] for m in own if m in heads}
        if len(among) > 1:
            differ = _differ(p, among).astype(float)
            told["unlike_heads"] = unimodal.told_by(differ.tolist(), own)
    return told


def _calibration(p: Predicted, scaling: Scaling | None) -> Calibration | None:
    """How well the probability of the chosen class is calibrated."""
    if p.task != "single":
        return None
    scores = np.stack([p.table[f"p_{label}"].to_numpy() for label in p.labels], axis=1)
    right = p.pred == p.true
    before = None
    if scaling is not None:  # 1 / T undoes what T has done
        plain = calibration.scaled(scores, 1 / scaling.temperature)
        before = metrics.ece(plain.max(1, initial=0), right)
    return Calibration(metrics.ece(scores.max(1, initial=0), right), before)


def _soft_scores(table: pa.Table, scores: Sequence[str]) -> SoftScores | None:
    """How far the probabilities of a predictions table are from the shares of the raters, those
    without a label among them.
    """
    if "shares" not in table.column_names:
        return None
    table = table.filter(table["shares"].is_valid())
    if not len(table):
        return None
    shares = np.array(table["shares"].to_pylist())
    answers = np.stack([table[name].to_numpy() for name in scores], axis=1)
    js = metrics.jensen_shannon(shares, answers).mean()
    return SoftScores(n=len(table), ties=table["label"].null_count, js=float(js))


def _inconsistent(p: Predicted) -> TwoWay | None:
    """How well the model's disagreement tells utterances that are tagged as inconsistent; None
    without such utterances, or such a model.
    """
    tagged = np.array([UNEQUAL in (tags or ()) for tags in p.table["tags"].to_pylist()], dtype=bool)
    column = p.table["disagreement"].to_pylist()
    said = np.array([np.nan if v is None else v for v in column], dtype=float)
    known = ~np.isnan(said)
    if not tagged[known].any():
        return None
    return TwoWay(
        n=int(tagged[known].sum()),
        auc=metrics.auc(tagged[known], said[known]),
        balanced_accuracy=metrics.balanced_accuracy(tagged[known], said[known] > 0.5),
    )


def discrimination(
    run: Run, p: Predicted, store: FeatureStore, device: torch.device | str
) -> dict[str, TwoWay]:
    """ED on re-paired utterances: for every pair of modalities (m, n), m of utterance i with n of
    another utterance j, one j of the same emotion and one of another, drawn with a fixed seed. The
    reference is whether the labels differ.

    The two classes are unequal, so it is reported as AUC and as balanced accuracy at 0.5, never as
    accuracy.
    """
    spec = run.spec
    place = {name: row for row, name in enumerate(store.table()["id"].to_pylist())}
    rows = np.array([place[name] for name in p.table["id"].to_pylist()], dtype=np.int64)
    # pairs of two utterances stand in no dialogue
    part = _part(run, store, rows, device, pool=np.zeros(0, dtype=np.int64))
    same, _ = same_emotion(torch.from_numpy(spec.scaled(p.true)), task=spec.task)
    first, second, differs = _pairs(same.numpy(), np.random.default_rng(PAIR_SEED))
    model = run.model(device)
    found = {}
    for m, n in combinations(spec.modalities, 2):
        keep = (part.n[m][first] > 0) & (part.n[n][second] > 0)
        i, j, truth = first[keep], second[keep], differs[keep]
        said = []
        with torch.inference_mode():
            for at in range(0, len(i), infer.BATCH):
                a, b = (part.batch(index[at : at + infer.BATCH]) for index in (i, j))
                said.append(_disagreement(model, _mixed(a, b, m, n)))
        score = np.concatenate(said) if said else np.zeros(0)
        found[f"{m}-{n}"] = TwoWay(
            pairs=len(i),
            auc=metrics.auc(truth, score),
            balanced_accuracy=metrics.balanced_accuracy(truth, score > 0.5),
        )
    return found


def _disagreement(model: FusionModel, batch: Batch) -> np.ndarray:
    """(B,) of a model that answers it."""
    answer = model(batch).disagreement
    assert answer is not None
    return answer.float().cpu().numpy()


def _pairs(same: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i, j, differs): for every i one other row of the same emotion and one of another, where
    there are such rows.
    """
    first, second, differs = [], [], []
    for i, row in enumerate(same):
        for kind, wanted in ((row, False), (~row, True)):
            others = np.flatnonzero(kind)
            others = others[others != i]
            if len(others):
                first.append(i)
                second.append(int(rng.choice(others)))
                differs.append(wanted)
    return (
        np.array(first, dtype=np.int64),
        np.array(second, dtype=np.int64),
        np.array(differs, dtype=bool),
    )


def _mixed(a: Batch, b: Batch, m: str, n: str) -> Batch:
    """Modality m of batch a with modality n of batch b; other modalities and context absent."""
    x = {k: v[:, :1] * 0 for k, v in a.x.items()} | {m: a.x[m], n: b.x[n]}
    lengths = {k: v * 0 for k, v in a.lengths.items()} | {m: a.lengths[m], n: b.lengths[n]}
    return Batch(x, lengths, a.target, a.row)


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
    whole = pa.concat_tables([_of_child(one.run, one.table) for one in results])
    by_seed = _by_seed(results, whole, shared)
    name, groups = unit(by_seed[0].table)
    rows = [_row(one) for one in results]
    over = "folds" if info.folds else "seeds"
    spread = _spread(rows, over)
    there = [one.metrics for one in results]
    seeds = {one.run.single.seed for one in results}
    means = {name: _mean(values) for name, values in spread.items()}
    deviations = {name: _deviation(values) for name, values in spread.items()}
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
        interval=_intervals(by_seed, groups),
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
        unmet[name] = _mean([one.mapped.unmet[name] for one in results if one.mapped is not None])
    return replace(first, unmet=unmet)


def _folds_of(rows: list[GroupRow]) -> tuple[str, ...]:
    """The names of the folds, each once."""
    return tuple(dict.fromkeys(row.fold for row in rows if row.fold))


def _unseen_of(results: list[SingleMetrics]) -> tuple[str, ...]:
    """Labels that nobody had in the training of some run."""
    return tuple(sorted(set().union(*(one.unseen or () for one in results))))


def _of_child(run: Run, table: pa.Table) -> pa.Table:
    """A run's predictions with its fold and its seed as columns."""
    fold, size = run.fold, len(table)
    folds = pa.array([fold.name if fold else None] * size, pa.string())
    seeds = pa.array([run.single.seed] * size, pa.int64())
    return table.append_column("fold", folds).append_column("seed", seeds)


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
            found.setdefault(name, []).append(_mean(mine))
    return found


def _mean_confusion(by_seed: Sequence[Predicted]) -> Confusion | None:
    """The confusion matrix, averaged over the seeds."""
    if by_seed[0].task != "single":
        return None
    matrices = [metrics.confusion(p.true, p.pred, len(p.labels)) for p in by_seed]
    return np.mean(matrices, axis=0).tolist()


def mean_parts(results: Sequence[Metrics]) -> dict[str, Any]:
    """What metrics.json has beside the metrics, averaged over runs; by the names of its keys."""
    found: dict[str, Any] = {}
    for part in (
        "own_labels",
        "unlike_labels",
        "unlike_heads",
        "unimodal",
        "discrimination",
        "inconsistent",
        "attention",
        "calibration",
        "soft",
    ):
        records = [getattr(one, part) for one in results]
        if None not in records:
            kind = typed.hints(Metrics)[part]
            found[part] = convert(kind, _mean_tree([typed.tree(record) for record in records]))
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
    figures = _mean_tree([subset.figures for subset in there or subsets])
    sizes = [subset.n for subset in subsets]
    shares = [subset.share for subset in subsets]
    return Subset(
        n=_mean(sizes),
        share=_mean(shares),
        figures=figures,
        without=len(subsets) - len(there),
    )


def of_children(run: Run, tables: Sequence[pa.Table], measures: Measures) -> list[Predicted]:
    """The predictions of each seed of a run, from those of its children; the rows in one order."""
    children = run.children
    parts = [_of_child(child, table) for child, table in zip(children, tables, strict=True)]
    spec = children[0].spec
    return seeds_of(from_table(pa.concat_tables(parts), spec.task, spec.labels, measures))


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


def mean_figures(
    by_seed: Sequence[Predicted], index: np.ndarray | slice = slice(None)
) -> dict[str, float]:
    """Every metric on the same rows, averaged over the seeds."""
    return _mean_tree([p.figures(index) for p in by_seed])


def _mean(values: Sequence[float | None]) -> float:
    """NaN for no values, and where one of them is undefined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else float("nan")


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _mean_tree(trees: list[Any]) -> Any:
    """The mean of every leaf; a key that some lack, over those that have it."""
    if not isinstance(trees[0], dict):
        return _mean(trees)
    made = {}
    for key in trees[0]:
        made[key] = _mean_tree([one[key] for one in trees if key in one])
    return made


def write(folder: Path, stem: str, found: Metrics, table: pa.Table) -> None:
    """Write predictions, and the metrics with their sha256."""
    sha256 = write_parquet(table, folder / f"predictions{stem}.parquet")
    sealed = replace(found, predictions_sha256=sha256)
    files.write_json(folder / f"metrics{stem}.json", typed.tree(sealed))


def write_parquet(table: pa.Table, path: Path) -> str:
    """Returns the sha256 of the file."""
    made = io.BytesIO()  # a full disk is then met by us, not inside Arrow
    pq.write_table(table, made, compression="zstd")
    files.write_bytes(path, made.getvalue())
    return hashlib.sha256(made.getvalue()).hexdigest()
