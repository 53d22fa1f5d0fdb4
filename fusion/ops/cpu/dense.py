"""The dense path: for so few rows that the calls cost more than the arithmetic.

All similarities at once, all terms in one batch and the gradient in closed form (chunked.py has
it): about 30 operations where autograd runs 50 to 180. Memory is T·R·R, so `limits.DENSE_ROWS`
bounds R. The same masks serve the eager path, `equation`, which autograd differentiates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mer.fusion.ops.cpu.chunked import EPS, compute_dtype, normalised, project
from mer.fusion.ops.terms import TermLayout

LOW = -1e30  # logit of what is no candidate; finite, so that rows without candidates have no NaN


@lru_cache(maxsize=64)
def _masks(
    layout: TermLayout, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """(T, R, R) bool what is no candidate; (T, R, 1) weight of each anchor's loss, 0 elsewhere and
    where the positive is the only candidate; (T, R, R) that weight at positives by index.
    """
    blocked = torch.ones(len(layout.terms), layout.total, layout.total, dtype=torch.bool)
    positive = torch.zeros(blocked.shape, dtype=dtype)
    weight = torch.zeros(len(layout.terms), layout.total, 1, dtype=dtype)
    for s in layout.strips:
        for _, c0, c1 in s.ranges:
            blocked[s.term, s.r0 : s.r1, c0:c1] = False
        rows = torch.arange(s.r0, s.r1)
        blocked[s.term, rows, rows] = True
        positive[s.term, rows, rows + s.rel] = 1
        weight[s.term, s.r0 : s.r1] = layout.shares[s.term]
    return blocked.to(device), weight.to(device), (positive * weight).to(device)


def _labelled(
    layout: TermLayout, labels: Tensor | None, mode: str, z: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`_masks`, with false negatives blocked ("exclude") or an anchor's weight shared by all its
    positives ("supcon").
    """
    blocked, weight, target = _masks(layout, z.dtype, z.device)
    if labels is None:
        return blocked, weight, target
    alike = (labels[:, None] == labels) & (labels >= 0)
    if mode == "exclude":
        return blocked | (alike & (target == 0)), weight, target
    several = (target > 0) | (alike & ~blocked)
    return blocked, weight, several * (weight / several.sum(2, keepdim=True).clamp_min(1))


def _log_softmax(z: Tensor, tau: Tensor, blocked: Tensor) -> Tensor:
    """(T, R, R) log-probabilities of each row's candidates."""
    logits = z @ z.T / tau[:, None, None] if tau.ndim else (z / tau) @ z.T
    return torch.where(blocked, LOW, logits).log_softmax(2)


def equation(
    layout: TermLayout, views: Sequence[Tensor], tau: Tensor, labels: Tensor | None, mode: str
) -> Tensor:
    """(T,) mean losses as autograd records them: the eager path, for second derivatives and as the
    truth that the others are held to.
    """
    dtype = compute_dtype(views)
    with torch.autocast(views[0].device.type, enabled=False):
        z = F.normalize(torch.cat([view.to(dtype) for view in views]), dim=1, eps=EPS)
        blocked, _, target = _labelled(layout, labels, mode, z)
        return -(_log_softmax(z, tau.to(dtype), blocked) * target).sum((1, 2))


def forward(
    layout: TermLayout, views: Sequence[Tensor], tau: Tensor, labels: Tensor | None, mode: str
) -> tuple[Tensor, ...]:
    """(T,) mean losses; then for the backward pass (R, D) unit rows, (R, 1) norms, (T, R, R)
    log-probabilities of the candidates.
    """
    z, norm = normalised(views)
    blocked, _, target = _labelled(layout, labels, mode, z)
    logp = _log_softmax(z, tau.to(z.dtype), blocked)
    return (logp * target).sum((1, 2)).neg_(), z, norm, logp


def backward(
    layout: TermLayout,
    tau: Tensor,
    labels: Tensor | None,
    mode: str,
    saved: tuple[Tensor, ...],
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """(R, D) gradient of sum_t grad_t loss_t to the rows of all views, and to the temperature in
    its shape, in compute dtype.
    """
    z, norm, logp = saved
    tau = tau.to(z.dtype)
    _, weight, target = _labelled(layout, labels, mode, z)
    # (T, R, R) dL/ds
    g = logp.exp().mul_(weight).sub_(target).mul_((grad.to(z.dtype) / tau)[:, None, None])
    both = g[0] if len(g) == 1 else g.sum(0)
    dz = (both + both.T) @ z
    radial = (dz * z).sum(1, keepdim=True)
    dtau = (g * (z @ z.T)).sum((1, 2)) / -tau if tau.ndim else radial.sum() / (-2 * tau)
    return project(dz, z, norm, radial), dtau
