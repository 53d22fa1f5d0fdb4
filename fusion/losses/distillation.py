"""Kullback-Leibler terms that pull the posterior of one view towards a label or towards the
posterior of another view.

What a posterior is depends on the task: a categorical over C classes (single), C independent
Bernoullis (multi, the mean over the labels), a normal of unit variance around the predicted value
(regression, where KL = (mu_p - mu_q)^2 / 2). Every term is a mean over rows, never negative, and
zero only where the two posteriors are equal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mer.fusion.losses.precision import widened


def kl_to_label(
    logits: Tensor,
    target: Tensor,
    *,
    task: str,
    smoothing: float = 0.1,
    class_weights: Tensor | None = None,
) -> Tensor:
    """KL(y~ || q) with q the posterior of `logits` (B, C) and y~ the label, smoothed by `smoothing`
    over the C classes (single) or over present and absent (multi). Rows without a label do not
    count. target: see `mer.fusion.batch.Batch`.

    `class_weights` (C,) weigh as in `task_loss`: single: a weighted mean over rows; multi: the
    labels that are present.
    """
    logits = widened(logits)
    if task == "regression":
        return mean_over(
            (logits - target.nan_to_num()).square().div(2).mean(1), ~target.isnan().any(1)
        )
    if task == "single":
        label = F.one_hot(target.clamp(min=0), logits.shape[1]).to(logits.dtype)
        rows = categorical_kl(smooth(label, smoothing, logits.shape[1]), logits.log_softmax(1))
        if class_weights is None:
            return mean_over(rows, target >= 0)
        weight = class_weights.to(rows.dtype)[target.clamp(min=0)].where(target >= 0, 0)
        return (rows * weight).sum() / weight.sum().clamp(min=torch.finfo(rows.dtype).tiny)
    label = target.nan_to_num().to(logits.dtype)
    present = None
    if class_weights is not None:
        present = class_weights.to(logits.dtype).where(label > 0.5, 1)
    rows = bernoulli_kl(smooth(label, smoothing, 2), logits, present)
    return mean_over(rows, ~target.isnan().any(1))


def kl_to_posterior(teacher: Tensor, student: Tensor, *, task: str) -> Tensor:
    """KL(sg(p) || q) with p, q the posteriors of the logits `teacher` and `student` (B, C).

    The teacher gets no gradient.
    """
    teacher, student = widened(teacher).detach(), widened(student)
    if task == "regression":
        return (student - teacher).square().div(2).mean()
    if task == "single":
        return categorical_kl(teacher.softmax(1), student.log_softmax(1)).mean()
    return bernoulli_kl(teacher.sigmoid(), student).mean()


def smooth(label: Tensor, amount: float, outcomes: int) -> Tensor:
    return label * (1 - amount) + amount / outcomes


def categorical_kl(p: Tensor, log_q: Tensor) -> Tensor:
    """(B,) sum_c p (log p - log q), with 0 log 0 = 0."""
    return (torch.xlogy(p, p) - p * log_q).sum(1)


def bernoulli_kl(p: Tensor, logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,) mean over labels of KL(Bernoulli(p) || Bernoulli(sigmoid(logits))), each times its
    `weight` (B, C) where there is one.
    """
    entropy = torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)
    each = entropy - p * F.logsigmoid(logits) - (1 - p) * F.logsigmoid(-logits)
    return (each if weight is None else each * weight).mean(1)


def mean_over(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` (B,) over the rows where `valid`; 0 where there is none."""
    return values.where(valid, 0).sum() / valid.sum().clamp(min=1)
