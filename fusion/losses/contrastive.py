"""Contrastive estimates of mutual information: NT-Xent (Chen et al. 2020, eq. 1) and InfoNCE (van
den Oord et al. 2018, eq. 4).

With cosine similarity s and temperature tau, the loss of an anchor i with positive p(i) among the
candidates C(i) is

    L_i = log sum_{k in C(i)} exp(s_ik / tau)  -  s_{i,p(i)} / tau

and log |C| - mean(L) is a lower bound of the mutual information of the two views, in nats, never
above log |C|.
"""

from __future__ import annotations

import math
from importlib import import_module
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from mer.fusion.losses.precision import widened
from mer.pipeline.errors import DataError, DependencyError

IMPLEMENTATIONS = ("auto", "eager", "chunked", "triton")


def nt_xent(x: Tensor, y: Tensor, *, temperature: float | Tensor, impl: str = "auto") -> Tensor:
    """Mean over all 2B anchors of two views x, y (B, D): the positive is the other view of the same
    row, the candidates are the 2B - 1 other rows of both views. Rows are normalised inside.
    `temperature` is a float or a 0-d tensor, which may need grad.

    Orthonormal rows, equal views: every anchor has one candidate at cosine 1 and 2B - 2 at cosine
    0.

    >>> round(nt_xent(torch.eye(2), torch.eye(2), temperature=1.0, impl="eager").item(), 6) ==
        round(math.log(math.e + 2) - 1, 6)
    True
    """
    check(x, y)
    ops = fused(impl)
    if ops is not None:
        return ops.nt_xent(x, y, temperature, impl=impl)
    with full_precision(x):
        z = torch.cat([unit_rows(x), unit_rows(y)])
        b = len(x)
        logits = (z @ z.T) / temperature
        # Divided first, masked after: the other order has a NaN gradient for the temperature.
        logits = logits.masked_fill(torch.eye(2 * b, dtype=torch.bool, device=z.device), -torch.inf)
        positive = torch.cat([logits.diagonal(b), logits.diagonal(-b)])
        return (logits.logsumexp(1) - positive).mean()


def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor,
    symmetric: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Mean over the B anchors in x (B, D): the positive is the same row of y (B, D), the candidates
    are all rows of y. `symmetric` averages this with the direction y to x. Rows are normalised
    inside.

    >>> round(info_nce(torch.eye(2), torch.eye(2), temperature=1.0, impl="eager").item(), 6) ==
        round(math.log(math.e + 1) - 1, 6)
    True
    """
    check(x, y)
    ops = fused(impl)
    if ops is not None:
        return ops.info_nce(x, y, temperature, symmetric=symmetric, impl=impl)
    with full_precision(x):
        logits = (unit_rows(x) @ unit_rows(y).T) / temperature
        forward = (logits.logsumexp(1) - logits.diagonal()).mean()
        if not symmetric:
            return forward
        return (forward + (logits.logsumexp(0) - logits.diagonal()).mean()) / 2


def mi_lower_bound(loss: Tensor, candidates: int) -> Tensor:
    """Nats of mutual information that a contrastive loss over `candidates` candidates vouches for:
    log N - L.
    """
    return math.log(candidates) - loss


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


def check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or x.shape != y.shape or len(x) == 0:
        raise DataError(
            "contrastive loss: needs two views of equal shape (B, D) with B >= 1, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )


def fused(impl: str) -> ModuleType | None:
    """`mer.fusion.ops` where it is installed and wanted; None says that the equations of this file
    are to be used.
    """
    if impl not in IMPLEMENTATIONS:
        raise DataError(f"impl={impl!r}: known are {', '.join(IMPLEMENTATIONS)}")
    if impl == "eager":
        return None
    try:
        ops = import_module("mer.fusion.ops")
    except ModuleNotFoundError as missing:
        if missing.name != "mer.fusion.ops":
            raise
        ops = None
    if hasattr(ops, "nt_xent"):  # an empty folder imports, too
        return ops
    if impl == "auto":
        return None
    raise DependencyError(
        f"impl={impl!r} needs fusion.ops, which is not installed; use impl='eager'"
    )
