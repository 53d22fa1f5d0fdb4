"""What is known of utterances whose modalities are labelled apart: the unimodal heads and DRKF's
emotion discrimination are measured by it, whether they have learnt these labels or not.

Utterances whose modalities are labelled with different classes are *inconsistent*: there it is
known, and not guessed from tags or pairs, that they disagree. Of numbers the class is their sign:
negative, 0 or positive, as MMSA makes classes of sentiment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from mer.fusion.batch import DataSpec
from mer.fusion.data.splits import labelled
from mer.fusion.data.unimodal import unlabelled
from mer.fusion.measures import metrics
from mer.fusion.runs.records import TwoWay
from mer.pipeline.runtime.unimodal import COLUMN, label_of

TRUTH = "unimodal_"  # begins the columns of a predictions table, `unimodal_text`


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
    """Modality -> its own labels from a predictions table, as of `unimodal.targets`."""
    found = {}
    index = {name: c for c, name in enumerate(labels)}
    for name in table.column_names:
        if not name.startswith(TRUTH):
            continue
        values = unlabelled(len(table), task)
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
    """How well a score in 0 to 1, high where modalities disagree, tells the inconsistent rows; None
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
