"""One-directional terms on the chunked path: a block of anchors meets all its candidates at once,
so that its log-sum-exp is complete before the block is left and the gradient is made in the forward
pass: three matrix products, none of them twice. With one term the backward pass is a multiplication
by what arrives. Memory is O(R·D) and a strip of at most STRIP entries.

Terms of two directions are not served: a similarity's share seen from its column needs all rows
first (chunked.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mer.fusion.ops import chunked
from mer.fusion.ops.plan import Plan

STRIP = 16 << 20  # entries: 64 MiB of float32
# anchors in a block; below, adding each block's share to all candidates costs more than it saves
ROWS, FEWEST_ROWS = 256, 64


def serves(plan: Plan, mode: str) -> bool:
    """Whether the plan is one term without labels whose anchors are nobody's candidates in return,
    over not too many candidates.
    """
    return (
        mode == "none"
        and len(plan.terms) == 1
        and not any(p.both for p in plan.pairs)
        and _width(plan) * FEWEST_ROWS <= STRIP
    )


def _width(plan: Plan) -> int:
    return max(sum(c1 - c0 for _, c0, c1 in strip.ranges) for strip in plan.strips)


def forward(
    plan: Plan, views: tuple[Tensor, ...], tau: Tensor, need: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(1,) mean loss, its gradient to the rows of all views (R, D), and to the temperature in its
    shape, in compute dtype. `need`: each view's, then the temperature's; rows of views that need
    none are left wrong.
    """
    z, norm = chunked.normalised(views)
    tau = tau.to(z.dtype)
    on_host, simple = tau.device.type == "cpu", chunked.unshifted(tau, z.dtype)
    alpha, scaled = (1 / float(tau) if tau else torch.inf, z) if on_host else (1.0, z / tau)
    # where the positive is the only candidate the loss is 0
    weight = 1 / plan.anchors[0] if plan.candidates[0] > 1 else 0.0
    share = weight / tau.reshape(())
    width, dz = _width(plan), torch.zeros_like(z)
    height = min(ROWS, STRIP // width)
    loss, radial_sum = z.new_zeros(1), z.new_zeros(())
    candidates = {view for strip in plan.strips for view, _, _ in strip.ranges}
    scratch, mine = z.new_empty(height * width), z.new_empty(height, z.shape[1])
    for strip in plan.strips:
        ends = [0]
        for _, c0, c1 in strip.ranges:
            ends.append(ends[-1] + c1 - c0)
        places = list(zip(strip.ranges, ends[:-1], ends[1:], strict=True))
        for a0 in range(strip.r0, strip.r1, height):
            a1 = min(a0 + height, strip.r1)
            a, rows = z[a0:a1], scratch[: (a1 - a0) * ends[-1]].view(a1 - a0, ends[-1])
            for (_, c0, c1), low, high in places:
                rows[:, low:high].addmm_(scaled[a0:a1], z[c0:c1].T, beta=0, alpha=alpha)
                if c0 <= a0 < c1:  # rows that meet themselves
                    rows.diagonal(a0 - c0 + low).fill_(-torch.inf)
                if c0 <= a0 + strip.rel < c1:
                    positive = rows.diagonal(a0 + strip.rel - c0 + low)
            pull = positive.clone()
            if simple:
                mass = rows.exp_().sum(1, keepdim=True)
                loss += mass.log().sum() - pull.sum()
            else:
                top = rows.amax(1, keepdim=True)
                mass = rows.sub_(top).exp_().sum(1, keepdim=True)
                loss += (mass.log() + top).sum() - pull.sum()
            rows.mul_(share / mass)  # G / tau
            positive.sub_(share)
            if need[strip.view] or need[-1]:
                own = mine[: a1 - a0] if strip.view in candidates else dz[a0:a1]
                for k, ((_, c0, c1), low, high) in enumerate(places):
                    own.addmm_(rows[:, low:high], z[c0:c1], beta=min(k, 1))
                inward = chunked.radial(own, a)
                radial_sum += inward.sum()  # of G_ij s_ij / tau
                if strip.view in candidates:
                    dz[a0:a1] += own
                else:  # these rows are done
                    chunked.project(own, a, norm[a0:a1], inward)
            for (view, c0, c1), low, high in places:
                if need[view]:
                    dz[c0:c1].addmm_(rows[:, low:high].T, a)
    for view in candidates:
        rows = slice(plan.base[view], plan.base[view] + plan.rows[view])
        chunked.project(dz[rows], z[rows], norm[rows], chunked.radial(dz[rows], z[rows]))
    return loss.mul_(weight) + tau * 0, dz, (radial_sum / -tau).reshape(tau.shape)


def backward(saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients that the forward pass made, times what arrives (1,)."""
    dx, dtau = saved
    grad = grad.to(dx.dtype)
    return dx * grad, dtau * grad.reshape(dtau.shape)
