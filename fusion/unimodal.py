"""Unimodal labels, where a corpus has them (CH-SIMS rates words, voice and face apart): learnt by
the unimodal heads of a model with `data.unimodal_labels`, and what these heads and DRKF's emotion
discrimination are measured by, learnt or not.

Utterances whose modalities are labelled with different classes are *inconsistent*: there it is
known, and not guessed from tags or pairs, that they disagree. Of numbers the class is their sign:
negative, 0 or positive, as MMSA makes classes of sentiment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from mer.fusion import metrics
from mer.fusion.batch import DataSpec
from mer.fusion.config import TrainConfig
from mer.fusion.models.base import FusionModel
from mer.fusion.records import TwoWay
from mer.fusion.splits import Split, labelled
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import listed, plural
from mer.pipeline.runtime.unimodal import COLUMN, label_of
from mer.pipeline.store import FeatureStore

TRUTH = "unimodal_"  # begins the columns of a predictions table, `unimodal_text`


def targets(table: pa.Table, task: str, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Modality -> its own labels, as `splits.targets` gives the common ones: (N,) int64 class, -1
    unlabelled; of a regression (N, 1) float32, NaN unlabelled. Empty: the table has none.
    """
    if COLUMN not in table.column_names or task == "multi":
        return {}
    index = {name: c for c, name in enumerate(labels)}
    found: dict[str, np.ndarray] = {}
    for row, entries in enumerate(table[COLUMN].to_pylist()):
        for modality, value in map(label_of, entries):
            if modality not in found:
                found[modality] = _unlabelled(len(table), task)
            found[modality][row] = index[value] if task == "single" else float(value)
    return found


def _unlabelled(rows: int, task: str) -> np.ndarray:
    if task == "single":
        return np.full(rows, -1, dtype=np.int64)
    return np.full((rows, 1), np.nan, dtype=np.float32)


def key(store: FeatureStore, config: TrainConfig) -> list[str]:
    """What belongs to the identity of a run that learns unimodal labels beside the key of its
    store; nothing for others, which none of them changes.
    """
    table = store.table()
    if not config.data.unimodal_labels or COLUMN not in table.column_names:
        return []
    pairs = [table["id"].to_pylist(), table[COLUMN].to_pylist()]
    return [hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()]


def check(store: FeatureStore, spec: DataSpec, config: TrainConfig, model: FusionModel) -> None:
    """Raise DataError where unimodal labels are to be learnt, and there are none of what the model
    reads, or no head that could.
    """
    if not config.data.unimodal_labels:
        return
    there = targets(store.table(), spec.task, spec.labels)
    where = f"data.unimodal_labels: {store.path}"
    if not there:
        raise DataError(
            f"{where} has no unimodal labels; prepare it with --unimodal (ch_sims has them), or "
            "leave the setting out"
        )
    if not there.keys() & spec.modalities.keys():
        raise DataError(
            f"{where} has those of {listed(there)}, and the model reads {listed(spec.modalities)}; "
            "leave the setting out"
        )
    if not model.core.unimodal_heads:
        raise DataError(
            f"data.unimodal_labels: {config.model} has no unimodal heads that learn, as drkf, dmd "
            "and dhmd have; leave the setting out"
        )


def notes(store: FeatureStore, spec: DataSpec, config: TrainConfig, split: Split) -> list[str]:
    """What the unimodal heads learn: how many rows lack a label of their own, which heads have
    none, and what cannot be learnt.
    """
    if not config.data.unimodal_labels:
        return []
    there = targets(store.table(), spec.task, spec.labels)
    said = []
    for m in spec.modalities:
        if m not in there:
            said.append(f"no unimodal labels of {m}: its head learns the common label")
            continue
        known = labelled(there[m][split.train])
        if lacking := int((~known).sum()):
            rows = plural(len(known), "training row")
            said.append(
                f"{m}: {lacking:,} of {rows} without a unimodal label, left out of its head"
            )
        values = np.unique(there[m][split.train][known])
        if len(values) == 1:
            of = spec.labels[int(values[0])] if spec.task == "single" else f"{values[0]:g}"
            said.append(f"all train's unimodal labels of {m} are {of}: nothing to learn from them")
    if others := [m for m in there if m not in spec.modalities]:
        said.append(f"unimodal labels of {listed(others)} are not used: the model does not read it")
    return said


# ---- Evaluation


def columns(table: pa.Table, spec: DataSpec) -> dict[str, pa.Array]:
    """What a predictions table says of each modality that the model reads: its own label, null
    where it has none. `table` is the store's, the rows of the predictions.
    """
    if COLUMN not in table.column_names or spec.task == "multi":
        return {}
    rows = [dict(map(label_of, entries)) for entries in table[COLUMN].to_pylist()]
    found = {}
    for m in spec.modalities:
        said = [row.get(m) for row in rows]
        if any(value is not None for value in said):
            array = pa.array(said, pa.string())
            found[f"{TRUTH}{m}"] = array if spec.task == "single" else array.cast(pa.float64())
    return found


def truth(table: pa.Table, task: str, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Modality -> its own labels from a predictions table, as of `targets`."""
    found = {}
    index = {name: c for c, name in enumerate(labels)}
    for name in table.column_names:
        if not name.startswith(TRUTH):
            continue
        values = _unlabelled(len(table), task)
        for row, value in enumerate(table[name].to_pylist()):
            if value is not None:
                values[row] = index[value] if task == "single" else value
        found[name.removeprefix(TRUTH)] = values
    return found


def inconsistent(own: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(which rows are inconsistent, of which rows it is known), (N,) bool each: those of which two
    modalities or more are labelled.

    >>> inconsistent({"text": np.array([0, 1, 1]), "audio": np.array([0, 0, -1])})
    (array([False,  True, False]), array([ True,  True, False]))
    """
    known = np.stack([labelled(values) for values in own.values()])
    classes = []
    for values in own.values():
        classes.append(values if values.ndim == 1 else np.sign(np.nan_to_num(values[:, 0])))
    several = known.sum(0) > 1
    least = np.where(known, np.stack(classes), np.inf).min(0)
    largest = np.where(known, np.stack(classes), -np.inf).max(0)
    return several & (least != largest), several


def told_by(score: Iterable[float | None], own: Mapping[str, np.ndarray]) -> TwoWay | None:
    """How well a score in 0 … 1, high where modalities disagree, tells the inconsistent rows; None
    where nobody knows of any row, or the model has no such score of one.
    """
    if len(own) < 2:
        return None
    said = np.array([np.nan if value is None else value for value in score], dtype=float)
    differ, known = inconsistent(own)
    rows = known & ~np.isnan(said)
    if not rows.any():
        return None
    return TwoWay(
        n=int(differ[rows].sum()),
        of=int(rows.sum()),
        auc=metrics.auc(differ[rows], said[rows]),
        balanced_accuracy=metrics.balanced_accuracy(differ[rows], said[rows] > 0.5),
    )
