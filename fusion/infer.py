"""Model and rows -> predictions as arrays, and their figures.

Used on dev by the trainer and on anything by `mer.fusion.evaluation.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mer.fusion.batch import Batch
from mer.fusion.data.sources import BatchSource
from mer.fusion.losses.supervised import task_loss
from mer.fusion.measures import metrics
from mer.fusion.models.base import FusionModel
from mer.pipeline.runtime.progress import Advance

BATCH = 64
Change = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Answers:
    """What a model says of the rows of a part, in the order of `rows` (N,).

    `scores` (N, C): probabilities (single: rows sum to 1; multi: one per label), or the values
    (N, K) of K targets. `unimodal[m]` the same from one modality; of rows that lack it, which
    `there[m]` (N,) bool tells, it says nothing. `attention` (N, M) in the order of the modalities
    of the model; `disagreement` (N,). `loss`: the task's own loss over the labelled rows.
    """

    rows: np.ndarray
    scores: np.ndarray
    unimodal: dict[str, np.ndarray] | None
    attention: np.ndarray | None
    disagreement: np.ndarray | None
    loss: float
    there: dict[str, np.ndarray] = field(default_factory=dict)


def infer(
    model: FusionModel,
    part: BatchSource,
    advance: Advance | None = None,
    change: Change | None = None,
) -> Answers:
    """Predict every row of `part`, in fp32 and eval mode; `advance` is told of every batch, and
    `change` is made to it before the model sees it.
    """
    task = part.spec.task
    order = part.in_order(BATCH)
    if not order:
        return _no_answers(part)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        kept, lengths = [], []
        for batch in part.batches(order):
            seen = batch if change is None else change(batch)
            kept.append(model(seen))
            lengths.append(seen.lengths)
            if advance is not None:
                advance(len(batch))
    model.train(was_training)
    back = torch.from_numpy(np.argsort(np.concatenate(order), kind="stable"))

    def join(pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces).float().cpu()[back]

    def join_if_any(pieces: list[Tensor | None]) -> np.ndarray | None:
        there = [piece for piece in pieces if piece is not None]
        return join(there).numpy() if there else None

    logits = join([p.logits for p in kept])
    heads = [p.unimodal for p in kept if p.unimodal is not None]
    unimodal, there = {}, {}
    for m in heads[0] if heads else ():
        alone = _scores(join([head[m] for head in heads]), task)
        unimodal[m] = part.spec.unscaled(alone)
        there[m] = join([n[m] for n in lengths]).numpy() > 0
    attention = join_if_any([p.attention for p in kept])
    disagreement = join_if_any([p.disagreement for p in kept])
    loss = float(task_loss(logits, part.target.cpu(), task=task, soft=_soft_of(part)))
    scores = part.spec.unscaled(_scores(logits, task))
    alone_or_none = unimodal if heads else None
    return Answers(part.rows, scores, alone_or_none, attention, disagreement, loss, there)


def _soft_of(part: BatchSource) -> Tensor | None:
    return None if part.soft is None else part.soft.cpu()


def _no_answers(part: BatchSource) -> Answers:
    """For a part without rows."""
    logits = torch.zeros(0, part.spec.outputs)
    loss = float(task_loss(logits, part.target.cpu(), task=part.spec.task))
    return Answers(part.rows, _scores(logits, part.spec.task), None, None, None, loss)


def _scores(logits: Tensor, task: str) -> np.ndarray:
    logits = logits.double()
    if task == "single":
        return logits.softmax(1).numpy()
    return (logits.sigmoid() if task == "multi" else logits).numpy()


def decide(scores: np.ndarray, task: str, thresholds: Sequence[float] | None) -> np.ndarray:
    """single (N,) int class; multi (N, C) bool; regression (N,) value, or (N, K) of K
    targets."""
    if task == "single":
        return scores.argmax(1) if len(scores) else np.zeros(0, dtype=np.int64)
    if task == "multi":
        return scores >= np.asarray(thresholds)
    return scores[:, 0] if scores.shape[1] == 1 else scores


def score(
    pred: np.ndarray,
    target: np.ndarray,
    task: str,
    labels: Sequence[str],
    measures: str = "mosi",
    among: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The metrics of the task (fusion.metrics) for decisions as `decide` makes them, over labelled
    rows. `measures`: by whose definitions a regression is scored; `among`: the classes that a
    reference may have."""
    if task == "single":
        return metrics.classification(target, pred, labels, among)
    if task == "multi":
        return metrics.multilabel(target, pred.astype(float), labels, [0.5] * len(labels))
    if measures == "ccc":
        return metrics.dimensional(target, pred, labels)
    return metrics.REGRESSIONS[measures](target[:, 0], pred)


def figures(
    pred: np.ndarray,
    target: np.ndarray,
    task: str,
    labels: Sequence[str],
    measures: str = "mosi",
    among: Sequence[int] | None = None,
) -> dict[str, float]:
    """The figures of `score` that are a single number."""
    found = score(pred, target, task, labels, measures, among)
    return {name: value for name, value in found.items() if isinstance(value, float)}


def names_of_figures(task: str, labels: Sequence[str], measures: str = "mosi") -> list[str]:
    """Names of the task's figures that are one number."""
    target = np.zeros((0, max(len(labels), 1)), dtype=np.int64)
    if task == "single":
        target = target[:, 0]
    pred = target[:, 0] if task == "regression" and target.shape[1] == 1 else target
    return list(figures(pred, target, task, labels, measures))
