"""What both implementations are tried on: sizes, terms, temperatures, and inputs that have broken
others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import mer.fusion.ops.limits as limits
from mer.fusion.ops import Term, contrastive_terms

from tests.ops import oracle

# name -> (terms, number of paired views, rows of a view that holds negatives only)
TERMS = {
    "drkf": (oracle.DRKF, 4, 0),
    "symmetric+one-way": ((Term((0, 1), (0, 1), mask_self=False), Term((0,), (1,))), 2, 0),
    "queue": (
        (Term((0, 1), (0, 1, 2)), Term((0,), (1, 2)), Term((0, 1), (0, 1, 2), mask_self=False)),
        2,
        7,
    ),
    "one way": ((Term((0,), (1,)),), 2, 0),
    "one way with queue": ((Term((1,), (0, 2)),), 2, 7),
}
# the paths of plain PyTorch that serve any terms; chunked gives way to strips where those serve
PATHS = ("eager", "dense", "chunked")
EXTREMES = (
    "duplicates",
    "zero row",
    "scale 1e4",
    "scale 1e-4",
    "identical views",
    "opposite views",
)


@contextmanager
def forced(path: str) -> Iterator[str]:
    """The `impl` with which a call on a CPU takes this path: the dense one by its border moved."""
    with pytest.MonkeyPatch.context() as patch:
        if path == "dense":
            patch.setattr(limits, "DENSE_ROWS", 1 << 30)
        yield "auto" if path == "dense" else path


def nt_xent(x: Tensor, y: Tensor, tau: Tensor | float, **options) -> Tensor:
    """One NT-Xent of two views, a scalar."""
    return contrastive_terms((x, y), tau, (Term((0, 1), (0, 1)),), **options).squeeze(0)


def info_nce(
    x: Tensor, y: Tensor, tau: Tensor | float, *, symmetric: bool = False, **options
) -> Tensor:
    """One InfoNCE of two views, a scalar."""
    term = Term((0, 1), (0, 1), mask_self=False) if symmetric else Term((0,), (1,))
    return contrastive_terms((x, y), tau, (term,), **options).squeeze(0)


def drkf(*views: Tensor, tau: Tensor | float, symmetric: bool = True, **options) -> Tensor:
    """(3,) DRKF's terms of text, augmented text, audio, augmented audio."""
    cross = Term((2, 0), (2, 0), mask_self=False) if symmetric else Term((2,), (0,))
    return contrastive_terms(views, tau, (*oracle.DRKF[:2], cross), **options)


def make(
    name: str, rows: int, d: int, *, dtype=torch.float32, seed: int = 0
) -> tuple[list[Tensor], tuple, list[Tensor]]:
    """(views, terms, labels per view with some unlabelled)."""
    terms, paired, queue = TERMS[name]
    g = torch.Generator().manual_seed(seed)
    views = [
        torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
        for n in [rows] * paired + [queue] * (queue > 0)
    ]
    shared = torch.randint(-1, 3, (rows,), generator=g)
    labels = [shared] * paired + ([torch.randint(-1, 3, (queue,), generator=g)] if queue else [])
    return views, terms, labels


def extreme(views: list[Tensor], kind: str) -> list[Tensor]:
    views = [v.clone() for v in views]
    match kind:
        case "duplicates":
            for v in views:
                v[1:] = v[:1]
        case "zero row":
            views[0][1] = 0
        case "scale 1e4":
            views = [v * 1e4 for v in views]
        case "scale 1e-4":
            views = [v * 1e-4 for v in views]
        case "identical views":
            views = [views[0].clone() for _ in views]
        case "opposite views":
            views = [views[0] * (-1) ** i for i in range(len(views))]
    return views


def errors(
    got: list[Tensor],
    want: list[Tensor],
    floor: float,
    tau: float = 1.0,
    scales: list[float] | None = None,
) -> list[float]:
    """Largest difference of each tensor over its own largest entry, or over `floor` where that is
    smaller (a gradient that is zero by symmetry has no relative error), or over its entry of
    `scales`. The last is the gradient to tau, a difference of mean logits over tau: its floor is
    0.1/tau^2.
    """
    floors = [floor] * (len(want) - 1) + [max(floor, 0.1 / tau**2)]
    return [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(max(f, s)))
        for a, b, f, s in zip(got, want, floors, scales or [0.0] * len(want), strict=True)
    ]


def no_worse(
    run,
    views,
    tau: Tensor,
    terms,
    labels=None,
    mode="none",
    *,
    weights,
    eps: float,
    factor=4.0,
) -> None:
    """`run(views, tau, weights)` -> [losses, d views..., d tau] against float64: no quantity is off
    by more than `factor` times what PyTorch's own eager code is off in that dtype, or than `factor`
    roundings of a logit (1/tau eps), where eager PyTorch happens to be luckier than its dtype
    allows it to be.

    The gradient of a row x is dz less its part along z, over |x|, and rounds with the size of what
    is subtracted, dz / |x|. For D = 1 nothing is left (exactly 0, and eager PyTorch multiplies by z
    = +-1 without rounding), so roundings are counted in units of dz / |x| wherever that is larger
    than the gradient itself.
    """

    def dense(v, t, **more):
        return oracle.dense(v, t, terms, labels, mode, **more)

    wide, least = [v.double() for v in views], float(tau.min())
    exact, eager = (
        oracle.gradients(dense, wide, tau.double(), weights),
        oracle.gradients(dense, views, tau, weights),
    )
    unprojected = oracle.gradients(
        lambda v, t: dense(v, t, normalise=False),
        [oracle.unit(v) for v in wide],
        tau.double(),
        weights,
    )[1:-1]
    scales = [
        float((dz / v.norm(dim=1, keepdim=True).clamp_min(1e-12)).abs().max())
        for dz, v in zip(unprojected, wide, strict=True)
    ]
    got, scales = run(views, tau, weights), [0.0, *scales, 0.0]
    mine, theirs = (errors(x, exact, 1e-3, least, scales) for x in (got, eager))
    allowed = [factor * max(t, eps * max(1.0, 1.0 / least)) for t in theirs]
    assert all(torch.isfinite(x).all() for x in got)
    assert all(m <= a for m, a in zip(mine, allowed, strict=True)), (
        f"errors {mine}, eager {theirs}, allowed {allowed}"
    )
