"""Terms that read the labels, for single-label, multi-label and regression targets
(`mer.fusion.batch.Batch`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mer.fusion.losses.precision import widened
from mer.pipeline.errors import DataError


def task_loss(
    logits: Tensor,
    target: Tensor,
    *,
    task: str,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    regression: str = "l1",
    soft: Tensor | None = None,
) -> Tensor:
    """The loss of the task itself over the labelled rows; 0 where no row has a label.

    single: cross-entropy, weighted mean with `class_weights` (C,); `soft` (B, C) are the shares of
    raters, to be learnt as in `soft_cross_entropy`. multi: binary cross-entropy, `class_weights`
    (C,) weighs the positives. regression: absolute (`l1`) or squared (`mse`) error,
    or 1 - CCC over the rows of the batch, averaged over the targets (`ccc`; Lin 1989).
    """
    logits = widened(logits)
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    if task == "single" and soft is not None:
        return soft_cross_entropy(
            logits, target, soft, class_weights=class_weights, smoothing=smoothing
        )
    if task == "single":
        total = F.cross_entropy(
            logits,
            target,
            weight=class_weights,
            ignore_index=-1,
            reduction="sum",
            label_smoothing=smoothing,
        )
        weight = (
            torch.ones_like(logits[:, 0])
            if class_weights is None
            else class_weights[target.clamp(min=0)]
        )
        return total / weight.where(target >= 0, 0).sum().clamp(min=torch.finfo(logits.dtype).tiny)
    labelled = ~target.isnan().any(1)
    known = target.nan_to_num().to(logits.dtype)
    if task == "regression" and regression == "ccc":
        return _discordance(logits, known, labelled)
    if task == "multi":
        rows = F.binary_cross_entropy_with_logits(
            logits,
            known * (1 - smoothing) + smoothing / 2,
            pos_weight=class_weights,
            reduction="none",
        ).mean(1)
    elif regression in ("l1", "mse"):
        rows = ((logits - known).abs() if regression == "l1" else (logits - known).square()).mean(1)
    else:
        raise DataError(f"regression loss {regression!r}: known are l1, mse, ccc")
    return rows.where(labelled, 0).sum() / labelled.sum().clamp(min=1)


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    soft: Tensor,
    *,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """-sum_c w_c q_c log p_c of each row, summed over the rows and divided by sum w_c q_c: q are
    the shares `soft` (B, C), and of a row without them its label alone. Of shares that are all 0
    and 1 it is what `task_loss` gives of the labels. 0 where no row has either.

    Args:
        logits: (B, C).
        target: (B,) classes, -1 unlabelled.
        soft: (B, C) shares that sum to 1, NaN where nobody knows.
        class_weights: (C,) w; None: 1.
        smoothing: The part of every q that is spread evenly over the classes.
    """
    classes = logits.shape[1]
    label = F.one_hot(target.clamp(min=0), classes).to(logits.dtype)
    rated = ~soft.isnan().any(1)
    known = (rated | (target >= 0))[:, None]
    q = torch.where(rated[:, None], soft.nan_to_num().to(logits.dtype), label) * known
    w = logits.new_ones(classes) if class_weights is None else class_weights
    smooth = q * (1 - smoothing) + known * (smoothing / classes)
    total = -(w * smooth * logits.log_softmax(1)).sum()
    return total / (w * q).sum().clamp(min=torch.finfo(logits.dtype).tiny)


def _discordance(logits: Tensor, known: Tensor, labelled: Tensor) -> Tensor:
    """1 - CCC of each target over the labelled rows, averaged over the targets; of one row, which
    has no correlation, its squared error.
    """
    rows = labelled[:, None].to(logits.dtype)
    n = rows.sum().clamp(min=1)
    x, y = logits.where(rows > 0, 0), known * rows
    mean_x, mean_y = x.sum(0) / n, y.sum(0) / n
    dx, dy = (x - mean_x) * rows, (y - mean_y) * rows
    apart = (mean_x - mean_y).square()
    whole = (dx.square() + dy.square()).sum(0) / n + apart
    smallest = torch.finfo(logits.dtype).eps
    concordance = 2 * (dx * dy).sum(0) / n / whole.clamp(min=smallest)
    terms = torch.where(labelled.sum() < 2, apart, 1 - concordance)
    return terms.mean() * labelled.any()


def same_emotion(target: Tensor, *, task: str, jaccard: float = 1.0) -> tuple[Tensor, Tensor]:
    """(same (B, B), labelled (B,)), both bool: do rows i and j carry the same emotion?

    single: equal labels. multi: overlap |A and B| / |A or B| of the label sets of at least
    `jaccard` (1: equal sets; two empty sets are equal). regression: the same integer bin of every
    target, so that everything within half a point of 0 is neutral.

    >>> same_emotion(torch.tensor([0, 1, 0]), task="single")[0].int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    if task == "single":
        return target[:, None] == target[None], target >= 0
    labelled = ~target.isnan().any(1)
    known = target.nan_to_num()
    if task == "regression":
        bins = known.round()
        return (bins[:, None] == bins[None]).all(2), labelled
    sets = known.gt(0.5).float()
    both = sets @ sets.T
    either = sets.sum(1)[:, None] + sets.sum(1)[None] - both
    return both >= jaccard * either, labelled


def same_label(first: Tensor, second: Tensor, *, task: str) -> tuple[Tensor, Tensor]:
    """(same, known), both (N, B) bool: do one modality of each of N rows and another of each of B
    carry the same emotion by the labels of their own?

    single: equal classes. regression: the same sign, negative, 0 or positive, by which `mer
    evaluate` says what is inconsistent.

    Args:
        first: Labels of the one modality, (N,) classes or (N, 1) numbers, -1 or NaN unlabelled.
        second: Those of the other, likewise.
        task: single or regression.

    >>> same, known = same_label(torch.tensor([0, 1]), torch.tensor([1, -1]), task="single")
    >>> same.tolist(), known.tolist()
    ([[False, False], [True, False]], [[True, False], [True, False]])
    """
    if task == "single":
        there = first >= 0, second >= 0
    else:
        there = ~first.isnan()[:, 0], ~second.isnan()[:, 0]
        first, second = (values.nan_to_num().sign()[:, 0] for values in (first, second))
    return first[:, None] == second[None], there[0][:, None] & there[1][None]


def balanced_bce(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of (N,) logits in which positives and negatives weigh one half each,
    however many there are. 0 where one of the two is missing: a batch of one class would only teach
    the constant answer.
    """
    logits = widened(logits)
    positive, negative = valid & (target > 0.5), valid & (target <= 0.5)
    n_pos, n_neg = positive.sum(), negative.sum()
    weight = (
        (positive / n_pos.clamp(min=1) + negative / n_neg.clamp(min=1))
        / 2
        * ((n_pos > 0) & (n_neg > 0))
    )
    return (
        F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        * weight.to(logits.dtype)
    ).sum()
