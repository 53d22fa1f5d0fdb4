"""The public function: arguments are looked at once, then handed to the path that serves them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from mer.fusion.ops.cpu.chunked import compute_dtype
from mer.fusion.ops.cpu.dense import equation
from mer.fusion.ops.function import Contrastive, Settings, contrastive_op, encode, values
from mer.fusion.ops.paths import Impl, LabelMode, as_terms, mendable, path_of_layout
from mer.fusion.ops.terms import Term, lay_out

Precision = Literal["auto", "ieee", "tf32", "fast"]

# told to whoever listens to the room, whichever of its files does the telling
log = logging.getLogger("mer.fusion.ops")


def contrastive_terms(
    views: Sequence[Tensor],
    tau: Tensor | float,
    terms: Sequence[Term | tuple],
    labels: Tensor | Sequence[Tensor] | None = None,
    label_mode: LabelMode = "none",
    *,
    precision: Precision = "auto",
    impl: Impl = "auto",
) -> Tensor:
    """Mean loss of every term over its anchor rows, in nats.

    With cosine similarity s, the loss of an anchor i with positive p(i) among the candidates C(i)
    is log sum_{k in C(i)} exp(s_ik / tau) - s_{i,p(i)} / tau.

    Args:
        views: (B_v, D) each, floating point; rows are normalised inside, their norm floored at
            1e-12. float64 is computed in plain PyTorch.
        tau: temperature above 0: a float, a tensor of no dimension, or (T,), one per term. A tensor
            may need a gradient, and is never read by the host on a GPU.
        terms: T of them: what is contrasted with what, `Term(anchors, candidates, mask_self)`, by
            positions in `views`.
        labels: (B,) integers shared by all views, or one (B_v,) per view; a negative one is unlike
            every other.
        label_mode: "exclude": same-label candidates other than the positive leave the denominator
            (false negatives). "supcon": all same-label candidates are positives (L_out of Khosla et
            al., arXiv 2004.11362).
        precision: how similarities are multiplied on a GPU: "ieee", "tf32", "fast", or "auto", as
            PyTorch would (docs/kernels.md). Plain PyTorch computes in float32 or float64.
        impl: "auto", the quickest that runs here; "eager", the equation under autograd; "chunked",
            plain PyTorch without a matrix of all similarities; "triton", the kernels or an error.

    Returns:
        (T,) losses in float32, or in float64 where a view is float64.

    Raises:
        ValueError: shapes, dtypes, devices or options that define no loss.
        DependencyError: `impl="triton"` where kernels cannot run.

    Orthonormal rows, equal views: every anchor has one candidate at cosine 1 and two at cosine 0.

    >>> same = torch.eye(2)
    >>> loss = contrastive_terms([same, same], 1.0, [Term((0, 1), (0, 1))])
    >>> round(loss.item(), 4) == round(math.log(math.e + 2) - 1, 4)
    True
    """
    views, terms = tuple(views), as_terms(terms)
    _demand_views(views)
    _demand_options(labels, label_mode, precision)
    tau = _temperature(tau, views, len(terms))
    flat = _flat_labels(views, labels)
    # layout and path are found inside the operator, where the compiler does not follow
    if torch.compiler.is_compiling() and impl != "eager":
        need = [torch.is_grad_enabled() and x.requires_grad for x in (*views, tau)]
        options = (encode(terms), label_mode, precision, impl)
        losses, _ = contrastive_op(list(views), tau, flat, *options, need)
        return losses
    layout = lay_out(terms, tuple(int(view.shape[0]) for view in views))
    path = path_of_layout(views, layout, impl, label_mode)
    _announce(path, impl, len(terms), mendable(views, impl))
    if path == "eager":
        return equation(layout, views, tau, flat, label_mode)
    settings = Settings(layout, label_mode, precision, path)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (tau, *views)):
        return Contrastive.apply(settings, flat, tau, *views)
    return values(settings, flat, tau, views)


@lru_cache(maxsize=64)
def _announce(path: str, impl: str, terms: int, obstacle: str) -> None:
    """Once for each kind of call."""
    noun = "term" if terms == 1 else "terms"
    why = f", not on the GPU kernels: {obstacle}" if obstacle else ""
    log.info("contrastive loss: %d %s on path %s (impl=%s)%s", terms, noun, path, impl, why)


# --- arguments


def _demand_views(views: tuple[Tensor, ...]) -> None:
    if not views:
        raise ValueError("contrastive_terms: no views given")
    first = views[0]
    for number, view in enumerate(views):
        place = f"contrastive_terms: view {number}"
        if view.ndim != 2 or view.shape[1] != first.shape[1] or view.shape[1] < 1:
            raise ValueError(
                f"{place} has shape {tuple(view.shape)}; every view is (rows, D) with the same "
                "D >= 1"
            )
        if not view.is_floating_point():
            raise ValueError(f"{place} is {view.dtype}; give floating-point embeddings")
        if view.device != first.device:
            raise ValueError(f"{place} is on {view.device}, view 0 on {first.device}")


def _demand_options(
    labels: Tensor | Sequence[Tensor] | None, label_mode: str, precision: str
) -> None:
    if label_mode not in get_args(LabelMode) or precision not in get_args(Precision):
        raise ValueError(
            f"contrastive_terms: label_mode={label_mode!r} or precision={precision!r} is not an "
            "option"
        )
    if (labels is None) != (label_mode == "none"):
        verb = "needs" if labels is None else "ignores"
        raise ValueError(f"contrastive_terms: label_mode={label_mode!r} {verb} labels")


def _temperature(tau: Tensor | float, views: tuple[Tensor, ...], terms: int) -> Tensor:
    """() or (T,) on the device of the views."""
    device = views[0].device
    if not isinstance(tau, Tensor):
        if not 0 < tau < math.inf:
            raise ValueError(f"contrastive_terms: tau = {tau}; a temperature is above 0 and finite")
        # filled on the device: a copy from the host would wait for it, and break graph capture
        return torch.full((), float(tau), dtype=compute_dtype(views), device=device)
    if tau.ndim > 1 or (tau.ndim == 1 and len(tau) != terms):
        raise ValueError(
            f"contrastive_terms: tau has shape {tuple(tau.shape)}; give one temperature or one "
            f"for each of {terms} terms"
        )
    if tau.device == device:
        return tau
    if tau.requires_grad:
        raise ValueError(f"contrastive_terms: tau is on {tau.device}, the views on {device}")
    return tau.to(device)


def _flat_labels(
    views: tuple[Tensor, ...], labels: Tensor | Sequence[Tensor] | None
) -> Tensor | None:
    """(R,) one label per row of all views."""
    if labels is None:
        return None
    each = [labels] * len(views) if isinstance(labels, Tensor) else list(labels)
    rows = [view.shape[0] for view in views]
    shapes = [tuple(x.shape) for x in each]
    if shapes != [(n,) for n in rows]:
        raise ValueError(f"contrastive_terms: labels of shapes {shapes} for views of {rows} rows")
    return torch.cat(each).to(views[0].device)
