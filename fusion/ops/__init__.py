"""Contrastive mutual-information losses in one pass: any number of NT-Xent and InfoNCE terms over
shared views.

    loss = contrastive_terms([x, y], tau, [Term((0, 1), (0, 1)), Term((0,), (1,), mask_self=False)],
    reduction="sum")

Normalisation, similarities, masks, temperature and log-sum-exp happen inside; gradients reach every
view and the temperature; no matrix of all similarities is ever stored beyond a bounded scratch.
`docs/kernels.md` has the maths, the tiers and the limits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from mer.fusion.ops.chunked import compute_dtype
from mer.fusion.ops.function import Contrastive, contrastive_op, encode, values
from mer.fusion.ops.negatives import FeatureQueue, gather_views
from mer.fusion.ops.paths import Impl, available, path_for
from mer.fusion.ops.plan import Term, make_plan

__all__ = [
    "FeatureQueue",
    "Term",
    "available",
    "contrastive_terms",
    "drkf_contrastive",
    "gather_views",
    "info_nce",
    "mi_lower_bounds",
    "nt_xent",
    "path_for",
]

Precision = Literal["auto", "ieee", "tf32", "fast"]
LabelMode = Literal["none", "exclude", "supcon"]
Reduction = Literal["none", "sum", "mean"]

NT_XENT = (Term((0, 1), (0, 1)),)
INFO_NCE = (Term((0,), (1,), mask_self=False),)
INFO_NCE_SYMMETRIC = (Term((0, 1), (0, 1), mask_self=False),)

log = logging.getLogger(__name__)


def contrastive_terms(
    views: Sequence[Tensor],
    tau: Tensor | float,
    terms: Sequence[Term | tuple],
    labels: Tensor | Sequence[Tensor] | None = None,
    label_mode: LabelMode = "none",
    *,
    precision: Precision = "auto",
    reduction: Reduction = "none",
    impl: Impl = "auto",
    anchor_rows: tuple[int, int] | None = None,
) -> Tensor:
    """(T,) mean loss of every term in nats; with `reduction` one scalar, sum_t w_t L_t ("sum") or
    that over sum_t w_t ("mean").

    views        (B_v, D) each; rows are normalised inside (norm floored at 1e-12). float64 runs on
                 the chunked path.
    tau          temperature > 0: a float, a 0-d tensor, or (T,) one per term; may need grad and is
                 never read by the host on a GPU
    terms        what is contrasted with what: `Term(anchors, candidates, weight, mask_self)`
    labels       (B,) integers shared by all views, or one (B_v,) per view; a negative one is unlike
                 every other
    label_mode   "exclude": same-label candidates other than the positive leave the denominator
                 (false negatives);
                 "supcon": all same-label candidates are positives (L_out of Khosla et al., arXiv
                 2004.11362)
    precision    how similarities are multiplied on a GPU (docs/kernels.md); the chunked path
                 computes in float32 or float64
    anchor_rows  (start, stop): only these rows of the anchor views are anchors (one rank's share of
                 gathered views)
    """
    views, terms = (
        tuple(views),
        tuple(
            Term(tuple(anchors), tuple(candidates), *more) for anchors, candidates, *more in terms
        ),
    )
    _check(views, labels, label_mode, precision, reduction)
    if not isinstance(tau, Tensor) and not 0 < tau < math.inf:
        raise ValueError(f"contrastive_terms: tau = {tau}; a temperature is above 0 and finite")
    # filled on the device: a copy from the host would wait for it, and break graph capture
    if not isinstance(tau, Tensor):
        tau = torch.full((), float(tau), dtype=compute_dtype(views), device=views[0].device)
    if tau.ndim > 1 or (tau.ndim == 1 and len(tau) != len(terms)):
        raise ValueError(
            f"contrastive_terms: tau has shape {tuple(tau.shape)}; give one temperature or one "
            f"for each of {len(terms)} terms"
        )
    if tau.device != views[0].device:
        if tau.requires_grad:
            raise ValueError(
                f"contrastive_terms: tau is on {tau.device}, the views on {views[0].device}"
            )
        tau = tau.to(views[0].device)
    flat = _flat_labels(views, labels)
    # plan and path are found inside the operator, where the compiler does not follow
    if torch.compiler.is_compiling():
        need = [torch.is_grad_enabled() and x.requires_grad for x in (*views, tau)]
        losses, _ = contrastive_op(
            list(views), tau, flat, encode(terms, anchor_rows), label_mode, precision, impl, need
        )
    else:
        plan = make_plan(terms, tuple(int(v.shape[0]) for v in views), anchor_rows)
        path = path_for(views, impl)
        _announce(path, impl, len(terms))
        if torch.is_grad_enabled() and (tau.requires_grad or any(v.requires_grad for v in views)):
            losses = Contrastive.apply(plan, flat, label_mode, precision, path, tau, *views)
        else:
            losses = values(plan, flat, label_mode, precision, path, tau, views)
    if reduction == "none":
        return losses
    weights = [t.weight for t in terms]
    scale = sum(weights) if reduction == "mean" else 1.0
    if not scale:
        raise ValueError(
            f"contrastive_terms: weights {weights} sum to 0, so there is no mean; use "
            "reduction='sum'"
        )
    if len(set(weights)) > 1:
        return sum(w / scale * loss for w, loss in zip(weights, losses.unbind(), strict=True))
    total = losses.sum() if len(weights) > 1 else losses.squeeze(0)
    return total if weights[0] == scale else total * (weights[0] / scale)


def nt_xent(
    x: Tensor,
    y: Tensor,
    tau: Tensor | float,
    *,
    impl: Impl = "auto",
    precision: Precision = "auto",
    queue: Tensor | None = None,
) -> Tensor:
    """NT-Xent of two views (B, D) (Chen et al., arXiv 2002.05709): 2B anchors, 2B-1 candidates
    each; `queue` (K, D) adds K negatives, none while it is empty.

    >>> import torch
    >>> round(nt_xent(torch.eye(2), torch.eye(2), 1.0).item(), 4)  # log(e + 2) - 1
    0.5514
    """
    if queue is not None and len(queue):
        return contrastive_terms(
            (x, y, queue),
            tau,
            (Term((0, 1), (0, 1, 2)),),
            precision=precision,
            reduction="sum",
            impl=impl,
        )
    return contrastive_terms((x, y), tau, NT_XENT, precision=precision, reduction="sum", impl=impl)


def info_nce(
    x: Tensor,
    y: Tensor,
    tau: Tensor | float,
    *,
    symmetric: bool = False,
    impl: Impl = "auto",
    precision: Precision = "auto",
    queue: Tensor | None = None,
) -> Tensor:
    """InfoNCE from x (B, D) to y (B, D) (van den Oord et al., arXiv 1807.03748): B candidates each,
    plus `queue` (K, D) negatives; `symmetric` averages both directions.
    """
    if queue is not None and len(queue):
        term = (
            Term((0, 1), (0, 1, 2), mask_self=False)
            if symmetric
            else Term((0,), (1, 2), mask_self=False)
        )
        return contrastive_terms(
            (x, y, queue), tau, (term,), precision=precision, reduction="sum", impl=impl
        )
    terms = INFO_NCE_SYMMETRIC if symmetric else INFO_NCE
    return contrastive_terms((x, y), tau, terms, precision=precision, reduction="sum", impl=impl)


def drkf_contrastive(
    raw_text: Tensor,
    aug_text: Tensor,
    raw_audio: Tensor,
    aug_audio: Tensor,
    tau: Tensor | float,
    *,
    symmetric: bool = True,
    impl: Impl = "auto",
    precision: Precision = "auto",
) -> Tensor:
    """(3,) DRKF's contrastive terms (arXiv 2508.01644): NT-Xent of the two text views, of the two
    audio views, InfoNCE between raw audio and raw text. `symmetric=False` is the authors' code:
    audio to text only.
    """
    cross = (
        Term((2, 0), (2, 0), mask_self=False) if symmetric else Term((2,), (0,), mask_self=False)
    )
    terms = (Term((0, 1), (0, 1)), Term((2, 3), (2, 3)), cross)
    return contrastive_terms(
        (raw_text, aug_text, raw_audio, aug_audio), tau, terms, precision=precision, impl=impl
    )


def mi_lower_bounds(losses: Tensor, terms: Sequence[Term | tuple], rows: Sequence[int]) -> Tensor:
    """(T,) lower bounds of mutual information in nats, log N - L, N candidates per anchor (van den
    Oord et al., arXiv 1807.03748, eq. 13). It can never exceed log N, and holds for losses without
    labels only. `rows`: of each view.
    """
    plan = make_plan(tuple(Term(*t) for t in terms), tuple(rows))
    return torch.stack(
        [
            math.log(n) - loss
            for n, loss in zip(plan.candidates, losses.detach().unbind(), strict=True)
        ]
    )


@lru_cache(maxsize=64)
def _announce(path: str, impl: str, terms: int) -> None:
    """Once for each kind of call."""
    log.info("contrastive loss: %d term(s) on path %s (impl=%s)", terms, path, impl)


# --- arguments


def _check(
    views: tuple[Tensor, ...], labels, label_mode: str, precision: str, reduction: str
) -> None:
    if not views:
        raise ValueError("contrastive_terms: no views given")
    for i, v in enumerate(views):
        if v.ndim != 2 or v.shape[1] != views[0].shape[1] or v.shape[1] < 1:
            raise ValueError(
                f"contrastive_terms: view {i} has shape {tuple(v.shape)}; every view is (rows, D) "
                "with the same D >= 1"
            )
        if not v.is_floating_point():
            raise ValueError(
                f"contrastive_terms: view {i} is {v.dtype}; give floating-point embeddings"
            )
        if v.device != views[0].device:
            raise ValueError(
                f"contrastive_terms: view {i} is on {v.device}, view 0 on {views[0].device}"
            )
    if (
        label_mode not in ("none", "exclude", "supcon")
        or precision not in ("auto", "ieee", "tf32", "fast")
        or reduction not in ("none", "sum", "mean")
    ):
        raise ValueError(
            f"contrastive_terms: label_mode={label_mode!r}, precision={precision!r} or "
            f"reduction={reduction!r} is not an option"
        )
    if (labels is None) != (label_mode == "none"):
        raise ValueError(
            f"contrastive_terms: label_mode={label_mode!r} "
            f"{'needs' if labels is None else 'ignores'} labels"
        )


def _flat_labels(
    views: tuple[Tensor, ...], labels: Tensor | Sequence[Tensor] | None
) -> Tensor | None:
    """(R,) one label a row of all views."""
    if labels is None:
        return None
    each = [labels] * len(views) if isinstance(labels, Tensor) else list(labels)
    if [tuple(x.shape) for x in each] != [(v.shape[0],) for v in views]:
        raise ValueError(
            f"contrastive_terms: labels of shapes {[tuple(x.shape) for x in each]} for views of "
            f"{[v.shape[0] for v in views]} rows"
        )
    return torch.cat(each).to(views[0].device)
