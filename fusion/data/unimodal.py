"""Unimodal labels, where a corpus has them (CH-SIMS rates words, voice and face apart): learnt by
the unimodal heads of a model with `data.unimodal_labels`. What is measured by them, learnt or not,
is in inconsistency.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mer.fusion.batch import DataSpec
from mer.fusion.config import TrainConfig
from mer.fusion.data.splits import Split, labelled
from mer.fusion.models.base import FusionModel
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import listed, plural
from mer.pipeline.runtime.unimodal import COLUMN, label_of
from mer.pipeline.store import FeatureStore


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
                found[modality] = unlabelled(len(table), task)
            found[modality][row] = index[value] if task == "single" else float(value)
    return found


def unlabelled(rows: int, task: str) -> np.ndarray:
    """Targets for so many rows without a label, in the form that `targets` gives."""
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
    """Raise DataError where unimodal labels are to be learnt, but no modality that the model reads
    has any, or the model has no head for them; or where the model needs them and they are not read.
    """
    core = model.core
    if not config.data.unimodal_labels:
        if core.pairs_by_own_labels:
            raise DataError(
                "model_args.ed_labels=own pairs by unimodal labels, which are not read; set "
                "data.unimodal_labels=true, too"
            )
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
    if not (core.unimodal_heads or core.pairs_by_own_labels):
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
    by_modality = targets(store.table(), spec.task, spec.labels)
    lines = []
    for m in spec.modalities:
        if m not in by_modality:
            lines.append(f"no unimodal labels of {m}: its head learns the common label")
            continue
        known = labelled(by_modality[m][split.train])
        if lacking := int((~known).sum()):
            rows = plural(len(known), "training row")
            lines.append(
                f"{m}: {lacking:,} of {rows} without a unimodal label, left out of its head"
            )
        values = np.unique(by_modality[m][split.train][known])
        if len(values) == 1:
            value = spec.labels[int(values[0])] if spec.task == "single" else f"{values[0]:g}"
            lines.append(
                f"all train's unimodal labels of {m} are {value}: nothing to learn from them"
            )
    if others := [m for m in by_modality if m not in spec.modalities]:
        lines.append(
            f"unimodal labels of {listed(others)} are not used: the model does not read it"
        )
    return lines
