"""Model and rows -> predictions as arrays, and their figures.

Used on dev by the trainer and on anything by `mer.fusion.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mer.fusion import metrics
from mer.fusion.data import Part
from mer.fusion.losses.supervised import task_loss

BATCH = 64


@dataclass(frozen=True)
class Outputs:
    """In the order of `rows` (N,).

    `scores` (N, C): probabilities (single: rows sum to 1; multi: one a label), or the value (N, 1).
    `unimodal[m]` the same from one modality; `attention` (N, M) in the order of the model's
    modalities; `disagreement` (N,). `loss`: the task's own loss over the labelled rows.
    """

    rows: np.ndarray
    scores: np.ndarray
    unimodal: dict[str, np.ndarray] | None
    attention: np.ndarray | None
    disagreement: np.ndarray | None
    loss: float


def infer(model: nn.Module, part: Part) -> Outputs:
    """Predict every row of `part`, in fp32 and eval mode."""
    task = part.spec.task
    place, kept = [], []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        order = part.in_order(BATCH)
        for index, batch in zip(order, part.batches(order), strict=True):
            p = model(batch)
            place.append(index)
            kept.append((p.logits, p.unimodal, p.attention, p.disagreement))
    model.train(was_training)
    back = (
        np.argsort(np.concatenate(place), kind="stable") if place else np.zeros(0, dtype=np.int64)
    )

    def join(pieces: list) -> torch.Tensor | None:
        return (
            None
            if not pieces or pieces[0] is None
            else torch.cat(pieces).float().cpu()[torch.from_numpy(back)]
        )

    logits = join([k[0] for k in kept])
    if logits is None:
        logits = torch.zeros(0, part.spec.outputs)
    heads = kept[0][1] if kept else None
    unimodal = (
        None if heads is None else {m: _scores(join([k[1][m] for k in kept]), task) for m in heads}
    )
    attention, disagreement = join([k[2] for k in kept]), join([k[3] for k in kept])
    return Outputs(
        part.rows,
        _scores(logits, task),
        unimodal,
        None if attention is None else attention.numpy(),
        None if disagreement is None else disagreement.numpy(),
        float(task_loss(logits, part.target.cpu(), task=task)),
    )


def _scores(logits: torch.Tensor, task: str) -> np.ndarray:
    logits = logits.double()
    return {
        "single": lambda: logits.softmax(1),
        "multi": logits.sigmoid,
        "regression": lambda: logits,
    }[task]().numpy()


def decide(scores: np.ndarray, task: str, thresholds: Sequence[float] | None) -> np.ndarray:
    """single (N,) int class; multi (N, C) bool; regression (N,) value."""
    if task == "single":
        return scores.argmax(1) if len(scores) else np.zeros(0, dtype=np.int64)
    return scores >= np.asarray(thresholds) if task == "multi" else scores[:, 0]


def score(
    pred: np.ndarray, target: np.ndarray, task: str, labels: Sequence[str], measures: str = "mosi"
) -> dict[str, Any]:
    """The metrics of the task (fusion.metrics) for decisions as `decide` makes them, over labelled
    rows. `measures`: by whose definitions a regression is scored."""
    if task == "single":
        return metrics.classification(target, pred, labels)
    if task == "multi":
        return metrics.multilabel(target, pred.astype(float), labels, [0.5] * len(labels))
    return metrics.REGRESSIONS[measures](target[:, 0], pred)


def scalars(task: str, labels: Sequence[str], measures: str = "mosi") -> list[str]:
    """Names of the task's figures that are one number."""
    shape = {"single": 0, "multi": (0, len(labels)), "regression": (0, 1)}[task]
    none = np.zeros(shape, dtype=np.int64)
    found = score(none[:, 0] if task == "regression" else none, none, task, labels, measures)
    return [k for k, v in found.items() if isinstance(v, float)]


def headline(task: str) -> str:
    """The metric that selects an epoch unless `train.select_metric` names another."""
    return {"single": "wf1", "multi": "weighted_f1", "regression": "mae"}[task]
