"""Contrastive estimates of mutual information: NT-Xent (Chen et al. 2020, eq. 1) and InfoNCE (van
den Oord et al. 2018, eq. 4).

With cosine similarity s and temperature tau, the loss of an anchor i with positive p(i) among the
candidates C(i) is

    L_i = log sum_{k in C(i)} exp(s_ik / tau)  -  s_{i,p(i)} / tau

and log |C| - mean(L) is a lower bound of the mutual information of the two views, in nats, never
above log |C|.

`impl` says what computes it: "eager", the equation as it stands in this file; "auto", "chunked" or
"triton", its fused twin in `mer.fusion.ops` ("auto" where that is not installed: the equation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mer.fusion.losses.precision import widened
from mer.pipeline.errors import DataError, DependencyError

Impl = Literal["auto", "eager", "chunked", "triton"]


@dataclass(frozen=True)
class Contrast:
    """Two of several views, and the loss between them."""

    x: str
    y: str
    loss: Literal["nt_xent", "info_nce"]
    symmetric: bool = False  # InfoNCE in both directions, averaged; NT-Xent is always symmetric

    @property
    def views(self) -> tuple[str, str]:
        return self.x, self.y

    def candidates(self, rows: int) -> int:
        """Candidates per anchor in a batch of `rows` rows."""
        return 2 * rows - 1 if self.loss == "nt_xent" else rows


def nt_xent(x: Tensor, y: Tensor, *, temperature: float | Tensor, impl: Impl = "auto") -> Tensor:
    """NT-Xent of two views: every row of both views is an anchor, its positive the same row of the
    other view, its candidates the 2B - 1 other rows of both views.

    Args:
        x: (B, D) one view; rows are normalised inside.
        y: (B, D) the other one.
        temperature: tau > 0, a float or a tensor of no dimension, which may need a gradient.
        impl: what computes it: auto | eager | chunked | triton.

    Returns:
        The mean over the 2B anchors, in nats: a scalar in float32, or in float64 for such views.

    Raises:
        DataError: the views differ in shape or are empty, or `impl` is unknown.
        DependencyError: `impl` is chunked or triton and cannot run here.

    Orthonormal rows, equal views: every anchor has one candidate at cosine 1 and 2B - 2 at cosine
    0.

    >>> loss = nt_xent(torch.eye(2), torch.eye(2), temperature=1.0, impl="eager")
    >>> round(loss.item(), 6) == round(math.log(math.e + 2) - 1, 6)
    True
    """
    contrast = Contrast("x", "y", "nt_xent")
    return contrastive_losses({"x": x, "y": y}, {"": contrast}, temperature=temperature, impl=impl)[
        ""
    ]


def nt_xent_apart(x: Tensor, y: Tensor, same: Tensor, *, temperature: float | Tensor) -> Tensor:
    """NT-Xent whose negatives are of other emotions: of the rows with the anchor's own emotion only
    its positive is a candidate.

    Args:
        x: (B, D) one view; rows are normalised inside.
        y: (B, D) the other one.
        same: (B, B) bool: row i and row j carry the same emotion (`same_emotion`); no unlabelled
            row does.
        temperature: tau > 0, a float or a tensor of no dimension, which may need a gradient.

    Returns:
        As `nt_xent`. Anchors have as many candidates as there are rows of other emotions, so that
        it bounds no mutual information. By the equation only; there is no fused twin.

    Two rows of one emotion: each anchor has its positive alone, and nothing to tell it from.

    >>> nt_xent_apart(torch.eye(2), torch.eye(2), torch.ones(2, 2).bool(), temperature=1.0).item()
    0.0
    """
    demand_two_views(x, y)
    with full_precision(x):
        return _nt_xent(unit_rows(x), unit_rows(y), temperature, same)


def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor,
    symmetric: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """InfoNCE from x to y: every row of x is an anchor, its positive the same row of y, its
    candidates all B rows of y.

    Args:
        x: (B, D) the anchors' view; rows are normalised inside.
        y: (B, D) the candidates' view.
        temperature: tau > 0, a float or a tensor of no dimension, which may need a gradient.
        symmetric: average this with the direction from y to x.
        impl: what computes it: auto | eager | chunked | triton.

    Returns:
        The mean over the B anchors (of both directions), in nats: a scalar in float32, or in
        float64 for such views.

    Raises:
        DataError: the views differ in shape or are empty, or `impl` is unknown.
        DependencyError: `impl` is chunked or triton and cannot run here.

    Orthonormal rows, equal views: every anchor has one candidate at cosine 1 and B - 1 at cosine 0.

    >>> loss = info_nce(torch.eye(2), torch.eye(2), temperature=1.0, impl="eager")
    >>> round(loss.item(), 6) == round(math.log(math.e + 1) - 1, 6)
    True
    """
    contrast = Contrast("x", "y", "info_nce", symmetric)
    return contrastive_losses({"x": x, "y": y}, {"": contrast}, temperature=temperature, impl=impl)[
        ""
    ]


def contrastive_losses(
    views: Mapping[str, Tensor],
    contrasts: Mapping[str, Contrast],
    *,
    temperature: float | Tensor,
    impl: Impl = "auto",
) -> dict[str, Tensor]:
    """Any number of NT-Xent and InfoNCE losses over shared views, in one call of
    `mer.fusion.ops.contrastive_terms` where that is used.

    Args:
        views: (B, D) each, by name.
        contrasts: the losses, by name.
        temperature: tau > 0, a float or a tensor of no dimension, which may need a gradient.
        impl: what computes them: auto | eager | chunked | triton.

    Returns:
        The scalar loss of every contrast, by its name.

    Raises:
        DataError: contrasted views differ in shape or are empty, or `impl` is unknown.
        DependencyError: `impl` is chunked or triton and cannot run here.
    """
    for each in contrasts.values():
        demand_two_views(views[each.x], views[each.y])
    ops = fused(impl)
    if ops is None:
        return {
            name: _equation(each, views[each.x], views[each.y], temperature)
            for name, each in contrasts.items()
        }
    place = {name: number for number, name in enumerate(views)}
    terms = [_term(ops, each, place[each.x], place[each.y]) for each in contrasts.values()]
    losses = ops.contrastive_terms(list(views.values()), temperature, terms, impl=impl)
    return dict(zip(contrasts, losses.unbind(), strict=True))


def mi_lower_bound(loss: Tensor, candidates: int) -> Tensor:
    """Nats of mutual information that a contrastive loss over `candidates` candidates vouches for:
    log N - L (van den Oord et al. 2018, eq. 13).
    """
    return math.log(candidates) - loss


# --- the equations


def _equation(contrast: Contrast, x: Tensor, y: Tensor, temperature: float | Tensor) -> Tensor:
    with full_precision(x):
        u, v = unit_rows(x), unit_rows(y)
        if contrast.loss == "nt_xent":
            return _nt_xent(u, v, temperature)
        return _info_nce(u, v, temperature, contrast.symmetric)


def _nt_xent(u: Tensor, v: Tensor, tau: float | Tensor, same: Tensor | None = None) -> Tensor:
    z, b = torch.cat([u, v]), len(u)
    logits = (z @ z.T) / tau
    itself = torch.eye(2 * b, dtype=torch.bool, device=z.device)
    apart = itself if same is None else itself | (same.repeat(2, 2) & ~itself.roll(b, 1))
    # Divided first, masked after: the other order has a NaN gradient for the temperature.
    logits = logits.masked_fill(apart, -torch.inf)
    positive = torch.cat([logits.diagonal(b), logits.diagonal(-b)])
    return (logits.logsumexp(1) - positive).mean()


def _info_nce(u: Tensor, v: Tensor, tau: float | Tensor, symmetric: bool) -> Tensor:
    logits = (u @ v.T) / tau
    forward = (logits.logsumexp(1) - logits.diagonal()).mean()
    if not symmetric:
        return forward
    return (forward + (logits.logsumexp(0) - logits.diagonal()).mean()) / 2


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, at least in float32; a row shorter than 1e-12 is divided by 1e-12
    instead.
    """
    return F.normalize(widened(x), dim=1, eps=1e-12)


def full_precision(x: Tensor) -> torch.autocast:
    """Similarities over tau keep float32 under autocast: bfloat16 has 8 bits, and s / tau reaches 1
    / tau.
    """
    return torch.autocast(x.device.type, enabled=False)


# --- arguments, and the fused twin


def demand_two_views(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or x.shape != y.shape or len(x) == 0:
        raise DataError(
            "contrastive loss: needs two views of equal shape (B, D) with B >= 1, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )


def fused(impl: str) -> ModuleType | None:
    """`mer.fusion.ops` where it is installed and wanted; None says that the equations of this file
    are to be used.
    """
    if impl not in get_args(Impl):
        raise DataError(f"impl={impl!r}: known are {', '.join(get_args(Impl))}")
    if impl == "eager":
        return None
    try:
        ops = import_module("mer.fusion.ops")
    except ModuleNotFoundError as missing:
        if missing.name != "mer.fusion.ops":
            raise
        ops = None
    if hasattr(ops, "contrastive_terms"):  # an empty folder imports, too
        return ops
    if impl == "auto":
        return None
    raise DependencyError(
        f"impl={impl!r} needs mer.fusion.ops, which is not installed; use impl='eager'"
    )


def _term(ops: ModuleType, contrast: Contrast, x: int, y: int) -> tuple:
    """The contrast in the terms of `mer.fusion.ops`."""
    if contrast.loss == "nt_xent":
        return ops.Term((x, y), (x, y))
    if contrast.symmetric:
        return ops.Term((x, y), (x, y), mask_self=False)
    return ops.Term((x,), (y,), mask_self=False)
