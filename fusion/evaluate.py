"""Run + store -> predictions.parquet and metrics.json.

The only place that opens the test split, and it keeps a log of that.

Every figure is computed from the columns of predictions.parquet, so that it can be checked,
compared and pooled without the store.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from mer.fusion import checkpoint, data, files, infer, metrics, shapes, splits
from mer.fusion.batch import Batch
from mer.fusion.checkpoint import Run
from mer.fusion.data import Part
from mer.fusion.losses.supervised import same_emotion
from mer.fusion.models import model_class
from mer.fusion.train import measures_of
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import SPLIT_JSON_BYTES
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
METRICS, PREDICTIONS, TEST_LOG = "metrics.json", "predictions.parquet", "test_log.jsonl"
UNITS = ("dialogue", "session", "speaker")
FEWEST_UNITS = 8  # below this a bootstrap over groups means little
RESAMPLES = 1000
PAIR_SEED = 0
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
    measures: str = "mosi"  # by whose definitions a regression is scored

    def figures(self, index: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """The scalar metrics on some of the rows."""
        found = infer.score(
            self.pred[index], self.true[index], self.task, self.labels, self.measures
        )
        return {k: v for k, v in found.items() if isinstance(v, float)}


def evaluate(
    run: Run | str | os.PathLike,
    features: str | os.PathLike | None = None,
    split: str = "test",
    *,
    device: torch.device | str = "cpu",
    predictions: str | os.PathLike | None = None,
    note: Note = print,
) -> dict[str, Any]:
    """Predict `split`, write metrics and predictions into the run folder, return the metrics (the
    content of metrics.json).

    `features` is the store the run was trained on unless given; a store of another recipe or other
    labels raises KeyMismatchError. Another split, or a store with other clips, writes beside the
    run's own figures (metrics-dev.json, metrics-test-<dataset>.json).
    """
    run = (run if isinstance(run, Run) else Run.open(run)).trained()
    if split not in ("train", "dev", "test"):
        raise DataError(f"--split {split}: expected train, dev or test")
    path = Path(features if features is not None else run.info["features"])
    if not path.exists():
        raise DataError(f"{path}: no such store; name the one to evaluate on with --features")
    with FeatureStore(path) as store:
        for line in checkpoint.check_store(run.children[0], store):
            note(line)
        stem = "" if split == "test" else f"-{split}"
        if checkpoint.store_key(store) != run.info["store_key"]:
            stem = f"-{split}-{store.header.dataset}"
        results = []
        for child in run.children:
            table = _predict_split(child, store, split, device)
            figures = _describe_predictions(child, table, split, device=device, store=store)
            results.append((child, table, figures))
            if run.info["kind"] == "group":
                _write(child.path, stem, figures, table)
    if run.info["kind"] == "group":
        found, table = _aggregate(run, results, split)
    else:
        _, table, found = results[0]
    _write(run.path, stem, found, table)
    if predictions is not None:
        _write_parquet(table, Path(predictions))
    return found


def stored_metrics(run: Run) -> dict[str, Any] | None:
    """The test figures of an earlier evaluate, if there are any."""
    path = run.path / METRICS
    if not path.exists():
        return None
    shape = shapes.METRICS_OF_GROUP if run.info["kind"] == "group" else shapes.METRICS_OF_ONE
    found = files.read_json(path, shape, f"run `mer evaluate {run.path}` again")
    for matrix in filter(None, (found.get("confusion"), found["metrics"].get("confusion"))):
        if [len(row) for row in matrix] != [len(found["labels"])] * len(found["labels"]):
            raise DataError(
                f"{path}: damaged (confusion is not a row and a column a label); run `mer "
                f"evaluate {run.path}` again"
            )
    return found


def has_test(run: Run, store: FeatureStore) -> bool:
    """Whether there is a test part to open; reads the table's split column only."""
    return run.children[0].fold is not None or "test" in store.table()["split"].to_pylist()


def predict_rows(
    run: Run,
    store: FeatureStore,
    rows: Sequence[int] | np.ndarray,
    *,
    device: torch.device | str = "cpu",
) -> pa.Table:
    """A row an utterance, in the order of `rows`: id, dialogue, speaker, session, tags, label or
    targets (null: unlabelled), pred, p_<label>... (regression: value), attention_<modality>,
    disagreement, pred_<modality>; columns a model has no answer for are null.
    """
    model = run.model(device)
    return _predict(run, model, _part(run, store, np.asarray(rows, dtype=np.int64), device))


def read_predictions(run: Run) -> Predicted:
    """The test predictions of an earlier evaluate, held against the checksum that metrics.json has.

    Raises:
        DataError: There are none, or they are damaged.
    """
    spec, path = run.children[0].spec, run.path / PREDICTIONS
    task, labels = spec.task, spec.labels
    try:
        with files.opened(
            path, f"run `mer evaluate {run.path}` first", missing="no predictions"
        ) as file:
            raw = file.read()
        figures = stored_metrics(run)
        if figures is None:
            raise ValueError(f"{METRICS} is missing")
        if figures.get("predictions_sha256") not in (None, hashlib.sha256(raw).hexdigest()):
            raise ValueError(f"{METRICS} is of other predictions")
        table = pq.read_table(io.BytesIO(raw))
        missing = {"id", "pred", *UNITS, "label" if task == "single" else "targets"} - set(
            table.column_names
        )
        if missing:
            raise ValueError(f"no column {min(missing)}")
        if table["id"].null_count:
            raise ValueError("a row without an id")
        return from_table(table, task, labels, figures.get("measures", run.children[0].measures))
    except DataError as error:
        if str(error).startswith(str(run.path)):
            raise
        raise files.damaged(path, error, f"run `mer evaluate {run.path}` again") from None
    except UNREADABLE as error:
        raise files.damaged(path, error, f"run `mer evaluate {run.path}` again") from None


def from_table(
    table: pa.Table, task: str, labels: Sequence[str], measures: str = "mosi"
) -> Predicted:
    true = splits.targets(table, task, labels)
    kept = splits.labelled(true)
    table = table.filter(pa.array(kept))
    return Predicted(
        table, true[kept], _decisions(table["pred"], task, labels), task, tuple(labels), measures
    )


def unit(table: pa.Table) -> tuple[str, np.ndarray]:
    """What the bootstrap resamples: the first of dialogue, session, speaker with at least eight
    groups, else single utterances.
    """
    name = next((g for g in UNITS if _groups(table, g) >= FEWEST_UNITS), "id")
    return ("utterance" if name == "id" else name), np.array(table[name].to_pylist())


def _groups(table: pa.Table, by: str) -> int:
    values = set(table[by].to_pylist())
    return 0 if None in values or "" in values else len(values)


def _part(run: Run, store: FeatureStore, rows: np.ndarray, device: torch.device | str) -> Part:
    spec = run.spec
    target = splits.targets(store.table(), spec.task, spec.labels)[rows]
    summary = model_class(run.config.model)[0].summary
    return data.part(store, spec, run.config.data, rows, target, device=device, summary=summary)


def _predict_split(
    run: Run, store: FeatureStore, split: str, device: torch.device | str
) -> pa.Table:
    table = store.table()
    if split == "test":
        rows = splits.held_out(table, run.fold)
        _log_test(run, store, len(rows))
        path = run.verified(checkpoint.SPLIT)
        used = files.read_json(path, shapes.SPLIT, checkpoint.AGAIN, most=SPLIT_JSON_BYTES)
        if store.header.dataset == run.info["store"]["dataset"]:
            ids = table["id"].to_pylist()
            leaked = {ids[r] for r in rows} & {*used["train"], *used["dev"]}
            if leaked:
                some = f"{len(leaked)} test rows (first: {min(leaked)})"
                raise DataError(
                    f"{store.path}: {some} were used in training {run.path}; train again on the "
                    "splits as they are now"
                )
    else:
        plan = splits.plan(
            table, splits.targets(table, run.spec.task, run.spec.labels), run.config.data, run.fold
        )
        rows = getattr(plan, split)
    if not len(rows):
        raise DataError(
            f"{store.path}: no {split} "
            f"rows{'; evaluate another split, or train with --folds' if split == 'test' else ''}"
        )
    return predict_rows(run, store, rows, device=device)


def _log_test(run: Run, store: FeatureStore, rows: int) -> None:
    """Append to test_log.jsonl before the split is read: how often it was opened is part of the
    result.
    """
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "store": str(Path(store.path).resolve()),
        "fingerprint": store.header.fingerprint,
        "rows": rows,
    }
    files.append_line(run.path / TEST_LOG, json.dumps(entry))


def _predict(run: Run, model: nn.Module, part: Part) -> pa.Table:
    spec, thresholds = run.spec, run.info["thresholds"]
    out = infer.infer(model, part)
    source = part.store.table().take(pa.array(out.rows))
    columns: dict[str, Any] = {
        k: source[k] for k in ("id", "dialogue", "speaker", "session", "tags")
    }
    columns["label" if spec.task == "single" else "targets"] = source[
        "label" if spec.task == "single" else "targets"
    ]
    columns["pred"] = _named(
        infer.decide(out.scores, spec.task, thresholds), spec.task, spec.labels
    )
    names = ["value"] if spec.task == "regression" else [f"p_{name}" for name in spec.labels]
    columns.update({name: out.scores[:, c] for c, name in enumerate(names)})
    for k, m in enumerate(spec.modalities):
        columns[f"attention_{m}"] = (
            pa.nulls(len(part), pa.float32()) if out.attention is None else out.attention[:, k]
        )
    columns["disagreement"] = (
        pa.nulls(len(part), pa.float32())
        if out.disagreement is None
        else _null_nan(out.disagreement)
    )
    for m in spec.modalities:
        head = None if out.unimodal is None else out.unimodal.get(m)
        if head is not None:
            columns[f"pred_{m}"] = _named(
                infer.decide(head, spec.task, [0.5] * len(spec.labels)), spec.task, spec.labels
            )
    return pa.table(columns)


def _named(pred: np.ndarray, task: str, labels: Sequence[str]) -> pa.Array:
    if task == "single":
        return pa.array([labels[c] for c in pred], pa.string())
    if task == "multi":
        return pa.array(
            [[n for n, holds in zip(labels, row, strict=True) if holds] for row in pred],
            pa.list_(pa.string()),
        )
    return pa.array(pred, pa.float64())


def _decisions(column: pa.ChunkedArray, task: str, labels: Sequence[str]) -> np.ndarray:
    """Inverse of `_named`."""
    index = {name: c for c, name in enumerate(labels)}
    values = column.to_pylist()
    if task == "single":
        return np.array([index[v] for v in values], dtype=np.int64)
    if task == "multi":
        return np.array([[name in v for name in labels] for v in values], dtype=bool).reshape(
            len(values), len(labels)
        )
    return np.array(values, dtype=float)


def _null_nan(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))


def _describe_predictions(
    run: Run, table: pa.Table, split: str, *, device: torch.device | str, store: FeatureStore
) -> dict[str, Any]:
    """The content of metrics.json for one run."""
    spec = run.spec
    every = splits.targets(store.table(), spec.task, spec.labels)
    measures = measures_of(store, every)
    p = from_table(table, spec.task, spec.labels, measures)
    name, groups = unit(p.table)
    found: dict[str, Any] = {
        "format": "mer-metrics",
        "version": 1,
        "kind": "single",
        "run": run.path.name,
        "model": run.info["model"],
        "dataset": store.header.dataset,
        "split": split,
        "task": spec.task,
        "labels": list(spec.labels),
        "select_metric": run.info["select_metric"],
        "modalities": list(spec.modalities),
        "fold": run.info["fold"],
        "seed": run.info["seed"],
        "untrained_encoders": [
            m for m in spec.modalities if not store.header.modalities[m].trained
        ],
        "unlabelled": len(table) - len(p.table),
        "metrics": infer.score(p.pred, p.true, spec.task, spec.labels, measures),
        "interval": metrics.bootstrap(p.figures, groups, resamples=RESAMPLES),
        "bootstrap": {
            "unit": name,
            "groups": len(np.unique(groups)),
            "resamples": RESAMPLES,
            "level": 0.95,
        },
        "thresholds": run.info["thresholds"],
        "unseen": _unseen(run, p),
    }
    if spec.task == "regression":
        found["measures"] = measures
    heads = {
        m: _decisions(p.table[f"pred_{m}"], spec.task, spec.labels)
        for m in spec.modalities
        if f"pred_{m}" in p.table.column_names
    }
    if heads:
        scored = {
            m: infer.score(pred, p.true, spec.task, spec.labels, measures)
            for m, pred in heads.items()
        }
        found["unimodal"] = {
            m: {k: v for k, v in s.items() if isinstance(v, float)} for m, s in scored.items()
        }
    if len(heads) > 1:
        differ = _heads_differ(list(heads.values()), spec.task)
        for part, rows in (("heads_agree", ~differ), ("heads_disagree", differ)):
            found[part] = {
                "n": int(rows.sum()),
                "share": float(rows.mean()) if len(rows) else float("nan"),
                **p.figures(rows),
            }
    attention = {m: p.table[f"attention_{m}"] for m in spec.modalities}
    if all(column.null_count == 0 for column in attention.values()):
        found["attention"] = {
            m: float(np.mean(column.to_numpy())) if len(column) else float("nan")
            for m, column in attention.items()
        }
    if p.table["disagreement"].null_count < len(p.table):
        found.update(_disagreement(run, p, store, device))
    if spec.task == "single":
        scores = np.stack([p.table[f"p_{label}"].to_numpy() for label in spec.labels], axis=1)
        found["calibration"] = {"ece": metrics.ece(scores.max(1, initial=0), p.pred == p.true)}
    return metrics.jsonable(found)


def _unseen(run: Run, p: Predicted) -> list[str]:
    """Labels that some of these utterances have and none that trained had."""
    learnt = run.info.get("label_counts") or {}
    there = splits.label_counts(p.true, p.task, p.labels)
    return [name for name, count in there.items() if count and not learnt.get(name, 1)]


def _heads_differ(heads: list[np.ndarray], task: str) -> np.ndarray:
    """(N,) bool: not all unimodal heads say the same. Regression: they differ in sign."""
    heads = [h > 0 for h in heads] if task == "regression" else heads
    rows = [(h != heads[0]) if h.ndim == 1 else (h != heads[0]).any(1) for h in heads[1:]]
    return np.any(rows, axis=0)


def _disagreement(
    run: Run, p: Predicted, store: FeatureStore, device: torch.device | str
) -> dict[str, Any]:
    """How well the model's disagreement tells mismatched emotions: on shuffled pairs by label, and
    on utterances tagged as inconsistent.

    Emotion discrimination has two unequal classes, so it is reported as AUC and balanced accuracy
    at 0.5, never as accuracy.
    """
    found: dict[str, Any] = {"discrimination": discrimination(run, p, store, device)}
    tagged = np.array([UNEQUAL in (t or ()) for t in p.table["tags"].to_pylist()])
    said = np.array(
        [np.nan if v is None else v for v in p.table["disagreement"].to_pylist()], dtype=float
    )
    known = ~np.isnan(said)
    if tagged[known].any():
        found["inconsistent"] = {
            "n": int(tagged[known].sum()),
            "auc": metrics.auc(tagged[known], said[known]),
            "balanced_accuracy": metrics.balanced_accuracy(tagged[known], said[known] > 0.5),
        }
    return found


def discrimination(
    run: Run, p: Predicted, store: FeatureStore, device: torch.device | str
) -> dict[str, Any]:
    """ED on re-paired utterances: for every pair of modalities (m, n), m of utterance i with n of
    another utterance j, one j of the same emotion and one of another, drawn with a fixed seed. The
    reference is whether the labels differ.
    """
    spec = run.spec
    place = {name: r for r, name in enumerate(store.table()["id"].to_pylist())}
    rows = np.array([place[name] for name in p.table["id"].to_pylist()], dtype=np.int64)
    part = _part(run, store, rows, device)
    same, _ = same_emotion(torch.from_numpy(p.true), task=spec.task)
    first, second, differs = _pairs(same.numpy(), np.random.default_rng(PAIR_SEED))
    model = run.model(device)
    found = {}
    for m, n in combinations(spec.modalities, 2):
        keep = (part.n[m][first] > 0) & (part.n[n][second] > 0)
        i, j, truth = first[keep], second[keep], differs[keep]
        said = []
        with torch.inference_mode():
            for k in range(0, len(i), infer.BATCH):
                a, b = part.batch(i[k : k + infer.BATCH]), part.batch(j[k : k + infer.BATCH])
                said.append(model(_mixed(a, b, m, n)).disagreement.float().cpu().numpy())
        score = np.concatenate(said) if said else np.zeros(0)
        balanced = metrics.balanced_accuracy(truth, score > 0.5)
        found[f"{m}-{n}"] = {
            "pairs": len(i),
            "auc": metrics.auc(truth, score),
            "balanced_accuracy": balanced,
        }
    return found


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
    """Modality m of batch a with modality n of batch b; other modalities absent."""
    x = {k: v[:, :1] * 0 for k, v in a.x.items()} | {m: a.x[m], n: b.x[n]}
    lengths = {k: v * 0 for k, v in a.lengths.items()} | {m: a.lengths[m], n: b.lengths[n]}
    return Batch(x, lengths, a.target, a.row)


def _aggregate(
    run: Run, results: list[tuple[Run, pa.Table, dict]], split: str
) -> tuple[dict[str, Any], pa.Table]:
    """Figures over the children: mean and deviation over folds (of the seeds' means) or over seeds;
    with folds also pooled over all held-out predictions. The interval resamples groups of the
    pooled predictions, each figure averaged over the seeds.
    """
    first = results[0][0]
    tables = [
        table.append_column(
            "fold", pa.array([child.fold.name if child.fold else None] * len(table), pa.string())
        ).append_column("seed", pa.array([child.info["seed"]] * len(table), pa.int64()))
        for child, table, _ in results
    ]
    whole = pa.concat_tables(tables)
    measures = results[0][2].get("measures", "mosi")
    p = from_table(whole, first.spec.task, first.spec.labels, measures)
    by_seed = seeds_of(p)
    name, groups = unit(by_seed[0].table)
    scalars = [
        k
        for k, v in results[0][2]["metrics"].items()
        if k != "n" and not isinstance(v, dict | list)
    ]
    runs = [
        {
            "run": c.path.name,
            "fold": f["fold"] and f["fold"]["name"],
            "seed": f["seed"],
            "best_epoch": c.info["best_epoch"],
            "metrics": {k: f["metrics"][k] for k in scalars},
        }
        for c, _, f in results
    ]
    folds = list(dict.fromkeys(r["fold"] for r in runs))
    over = "folds" if run.info["folds"] else "seeds"
    key = "fold" if over == "folds" else "seed"
    values = {
        k: [
            _mean([r["metrics"][k] for r in runs if r[key] == g])
            for g in dict.fromkeys(r[key] for r in runs)
        ]
        for k in scalars
    }
    pooled = {k: _mean([q.figures()[k] for q in by_seed]) for k in scalars}
    common = (
        "format",
        "version",
        "model",
        "dataset",
        "split",
        "task",
        "labels",
        "select_metric",
        "modalities",
        "untrained_encoders",
    )
    found = {
        **{k: results[0][2][k] for k in common},
        "kind": "group",
        "run": run.path.name,
        "over": over,
        "seeds": sorted({r["seed"] for r in runs}),
        "folds": [f for f in folds if f],
        "n": len(by_seed[0].table),
        "unlabelled": sum(f["unlabelled"] for _, _, f in results) // run.info["seeds"],
        "metrics": {k: _mean(v) for k, v in values.items()},
        "sd": {k: _deviation(v) for k, v in values.items()},
        "pooled": pooled if over == "folds" else None,
        "interval": metrics.bootstrap(
            lambda index: mean_figures(by_seed, index), groups, resamples=RESAMPLES
        ),
        "bootstrap": {
            "unit": name,
            "groups": len(np.unique(groups)),
            "resamples": RESAMPLES,
            "level": 0.95,
        },
        "runs": runs,
    }
    if first.spec.task == "single":
        found["confusion"] = np.mean(
            [infer.score(q.pred, q.true, "single", q.labels)["confusion"] for q in by_seed], axis=0
        )
    if first.spec.task == "regression":
        found["measures"] = measures
    found["unseen"] = sorted({name for _, _, f in results for name in f["unseen"]})
    found |= mean_parts([f for _, _, f in results])
    return metrics.jsonable(found), whole


def mean_parts(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What metrics.json has beside the metrics, averaged over runs.

    Where the heads agree, or disagree: over the runs that have such utterances; `without` counts
    the others.
    """
    found: dict[str, Any] = {}
    for part in (
        "unimodal",
        "heads_agree",
        "heads_disagree",
        "discrimination",
        "inconsistent",
        "attention",
        "calibration",
    ):
        if all(part in f for f in results):
            found[part] = _mean_tree([f[part] for f in results])
            if part.startswith("heads_"):
                there = [f[part] for f in results if f[part]["n"]]
                found[part] |= {
                    k: v
                    for k, v in (_mean_tree(there) if there else {}).items()
                    if k not in ("n", "share")
                }
                found[part]["without"] = len(results) - len(there)
    return found


def seeds_of(p: Predicted) -> list[Predicted]:
    """One `Predicted` a seed (all folds together), with the rows of all seeds in the same order."""
    if "seed" not in p.table.column_names:
        return [p]
    seed = np.array(p.table["seed"].to_pylist())
    ids = np.array(p.table["id"].to_pylist())
    parts = []
    for s in np.unique(seed):
        rows = np.flatnonzero(seed == s)
        rows = rows[np.argsort(ids[rows], kind="stable")]
        parts.append(
            Predicted(
                p.table.take(pa.array(rows)),
                p.true[rows],
                p.pred[rows],
                p.task,
                p.labels,
                p.measures,
            )
        )
    return parts


def mean_figures(
    by_seed: Sequence[Predicted], index: np.ndarray | slice = slice(None)
) -> dict[str, float]:
    """Every metric on the same rows, averaged over the seeds."""
    figures = [q.figures(index) for q in by_seed]
    return {k: float(np.mean([f[k] for f in figures])) for k in figures[0]}


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean(values)) if values and None not in values else float("nan")


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _mean_tree(trees: list[Any]) -> Any:
    if isinstance(trees[0], dict):
        return {k: _mean_tree([t[k] for t in trees if k in t]) for k in trees[0]}
    return _mean(trees)


def _write(folder: Path, stem: str, found: dict[str, Any], table: pa.Table) -> None:
    sha256 = _write_parquet(table, folder / f"predictions{stem}.parquet")
    files.write_json(folder / f"metrics{stem}.json", {**found, "predictions_sha256": sha256})


def _write_parquet(table: pa.Table, path: Path) -> str:
    """Returns the sha256 of the file."""
    made = io.BytesIO()  # a full disk is then met by us, not inside Arrow
    pq.write_table(table, made, compression="zstd")
    files.write_bytes(path, made.getvalue())
    return hashlib.sha256(made.getvalue()).hexdigest()
