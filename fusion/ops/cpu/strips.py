"""The strips path: one one-directional term. A block of anchors meets all its candidates at once,
so that its log-sum-exp is complete before the block is left and the gradient is made in the forward
pass: three matrix products, none of them twice, and the backward pass is a multiplication by what
arrives. Memory is O(R·D) and a strip of at most STRIP entries.

Terms of two directions are not served: a similarity's share seen from its column needs all rows
first (chunked.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mer.fusion.ops.cpu import chunked
from mer.fusion.ops.terms import Strip, TermLayout

STRIP = 16 << 20  # entries: 64 MiB of float32
# anchors in a block; below, adding each block's share to all candidates costs more than it saves
ROWS, FEWEST_ROWS = 256, 64


def serves(layout: TermLayout, mode: str) -> bool:
    """Whether the layout is one term without labels whose anchors are nobody's candidates in
    return, over not too many candidates.
    """
    return (
        mode == "none"
        and len(layout.terms) == 1
        and not any(block.both for block in layout.blocks)
        and _widest(layout) * FEWEST_ROWS <= STRIP
    )


def _widest(layout: TermLayout) -> int:
    return max(strip.width for strip in layout.strips)


class _Place(NamedTuple):
    """Candidates c0:c1 (flat) of one view, and their columns low:high in the strip."""

    view: int
    c0: int
    c1: int
    low: int
    high: int


def _places(strip: Strip) -> list[_Place]:
    places, low = [], 0
    for view, c0, c1 in strip.ranges:
        places.append(_Place(view, c0, c1, low, low + c1 - c0))
        low += c1 - c0
    return places


class _Similarities:
    """The logits of a block of anchors against all their candidates, in one scratch."""

    def __init__(self, z: Tensor, tau: Tensor, size: int):
        self.z, self.scratch = z, z.new_empty(size)
        # on the host the temperature is a factor of the product, elsewhere of (R, D) once
        on_host = tau.device.type == "cpu"
        self.scaled = z if on_host else z / tau
        self.alpha = 1.0
        if on_host:
            self.alpha = 1 / float(tau) if tau else torch.inf
        self.simple = chunked.unshifted(tau, z.dtype)

    def logits(self, strip: Strip, places: list[_Place], a0: int, a1: int) -> tuple[Tensor, Tensor]:
        """(a1 - a0, width) with -inf where a row meets itself, and its entries at the positives."""
        rows = self.scratch[: (a1 - a0) * strip.width].view(a1 - a0, strip.width)
        for _, c0, c1, low, high in places:
            candidates = self.z[c0:c1].T
            rows[:, low:high].addmm_(self.scaled[a0:a1], candidates, beta=0, alpha=self.alpha)
            if c0 <= a0 < c1:
                rows.diagonal(a0 - c0 + low).fill_(-torch.inf)
            if c0 <= a0 + strip.rel < c1:
                positive = rows.diagonal(a0 + strip.rel - c0 + low)
        return rows, positive

    def exponentials(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, 1) sums of the exponentials that take the logits' place, and log-sum-exp."""
        if self.simple:
            mass = rows.exp_().sum(1, keepdim=True)
            return mass, mass.log()
        top = rows.amax(1, keepdim=True)
        mass = rows.sub_(top).exp_().sum(1, keepdim=True)
        return mass, mass.log() + top


class _Gradient:
    """dL/dx of all rows (R, D), made block by block, and the sum of G_ij s_ij / tau."""

    def __init__(
        self, layout: TermLayout, z: Tensor, norm: Tensor, need: tuple[bool, ...], height: int
    ):
        self.z, self.norm, self.need, self.rows_of = z, norm, need, layout
        self.dz, self.radial_sum = torch.zeros_like(z), z.new_zeros(())
        self.mine = z.new_empty(height, z.shape[1])
        self.candidates: set[int] = set()
        for strip in layout.strips:
            self.candidates.update(view for view, _, _ in strip.ranges)

    def add(self, strip: Strip, places: list[_Place], a0: int, a1: int, g: Tensor) -> None:
        """Both products with the coefficients g = G / tau of one block of anchors."""
        a = self.z[a0:a1]
        if self.need[strip.view] or self.need[-1]:
            self._add_anchors(strip, places, a0, a1, g)
        for view, c0, c1, low, high in places:
            if self.need[view]:
                self.dz[c0:c1].addmm_(g[:, low:high].T, a)

    def _add_anchors(self, strip: Strip, places: list[_Place], a0: int, a1: int, g: Tensor) -> None:
        met_again = strip.view in self.candidates
        own = self.mine[: a1 - a0] if met_again else self.dz[a0:a1]
        for number, (_, c0, c1, low, high) in enumerate(places):
            own.addmm_(g[:, low:high], self.z[c0:c1], beta=min(number, 1))
        inward = chunked.radial(own, self.z[a0:a1])
        self.radial_sum += inward.sum()
        if met_again:
            self.dz[a0:a1] += own
        else:  # these rows are done
            chunked.project(own, self.z[a0:a1], self.norm[a0:a1], inward)

    def finished(self) -> Tensor:
        """The rows of candidate views, which are complete only now, are projected; all rows."""
        for view in self.candidates:
            first = self.rows_of.base[view]
            rows = slice(first, first + self.rows_of.rows[view])
            dz, z = self.dz[rows], self.z[rows]
            chunked.project(dz, z, self.norm[rows], chunked.radial(dz, z))
        return self.dz


def forward(
    layout: TermLayout, views: Sequence[Tensor], tau: Tensor, need: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(1,) mean loss, its gradient to the rows of all views (R, D), and to the temperature in its
    shape, in compute dtype. `need`: each view's, then the temperature's; rows of views that need
    none are left wrong.
    """
    z, norm = chunked.normalised(views)
    tau = tau.to(z.dtype)
    weight = layout.shares[0]
    share = weight / tau.reshape(())
    width = _widest(layout)
    height = min(ROWS, STRIP // width)
    similarities = _Similarities(z, tau, height * width)
    gradient = _Gradient(layout, z, norm, need, height)
    loss = z.new_zeros(1)
    for strip in layout.strips:
        places = _places(strip)
        for a0 in range(strip.r0, strip.r1, height):
            a1 = min(a0 + height, strip.r1)
            rows, positive = similarities.logits(strip, places, a0, a1)
            pull = positive.clone().sum()
            mass, logsumexp = similarities.exponentials(rows)
            loss += logsumexp.sum() - pull
            if any(need):
                rows.mul_(share / mass)
                positive.sub_(share)
                gradient.add(strip, places, a0, a1, rows)
    dtau = (gradient.radial_sum / -tau).reshape(tau.shape)
    return loss.mul_(weight) + tau * 0, gradient.finished(), dtau


def backward(saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients that the forward pass made, times what arrives (1,)."""
    dx, dtau = saved
    grad = grad.to(dx.dtype)
    return dx * grad, dtau * grad.reshape(dtau.shape)
