"""The peers of `python -m tests.bench contrastive`: the contrastive losses as plain PyTorch, ours,
Inf-CL's algorithm, and those of published packages, where they are installed.

A peer that lacks a term (no mask) is left out of that workload and not credited with skipping it.
pytorch-metric-learning and lightly take the temperature as a number and skip its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mer.fusion.ops import Term, contrastive_terms

TAU = 0.1
EAGER_LIMIT = 20e9  # bytes of a CPU's memory that eager may take


class Workload(NamedTuple):
    """What a loss needs at batch B and width D."""

    views: int
    # fewest matrix operations over B*B*D: similarities once, by symmetry half, and both products
    # with G
    operations: int
    entries: float  # float32 numbers that eager holds, over B*B


WORKLOADS = {
    "nt_xent": Workload(2, 12, 25.2),
    "info_nce": Workload(2, 6, 6.3),
    "clip": Workload(2, 6, 8.0),
    "drkf": Workload(4, 30, 58.4),
}


class Eager:
    """The losses as plain PyTorch, at their best: masks and targets are made once for a size."""

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.same = torch.arange(rows, device=device)
        self.positive = torch.cat([self.same + rows, self.same])

    @cached_property
    def mask(self) -> Tensor:
        """Of NT-Xent alone; 69 GB at B = 131,072, where only peers without it are left."""
        return torch.eye(2 * self.rows, dtype=torch.bool, device=self.same.device)

    def nt_xent(self, x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        z = torch.cat([F.normalize(x), F.normalize(y)])
        return F.cross_entropy((z @ z.T / tau).masked_fill(self.mask, -torch.inf), self.positive)

    def info_nce(self, x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        return F.cross_entropy(F.normalize(x) @ F.normalize(y).T / tau, self.same)

    def clip(self, x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        logits = F.normalize(x) @ F.normalize(y).T / tau
        return (F.cross_entropy(logits, self.same) + F.cross_entropy(logits.T, self.same)) / 2

    def drkf(self, t: Tensor, gt: Tensor, a: Tensor, ga: Tensor, tau: Tensor) -> Tensor:
        return self.nt_xent(t, gt, tau) + self.nt_xent(a, ga, tau) + self.clip(a, t, tau)


TERMS = {
    "nt_xent": (Term((0, 1), (0, 1)),),
    "info_nce": (Term((0,), (1,)),),
    "clip": (Term((0, 1), (0, 1), mask_self=False),),
    # of text, augmented text, audio, augmented audio
    "drkf": (
        Term((0, 1), (0, 1)),
        Term((2, 3), (2, 3)),
        Term((2, 0), (2, 0), mask_self=False),
    ),
}


def ours(workload: str) -> Callable:
    def function(*inputs: Tensor) -> Tensor:
        *views, tau = inputs
        return contrastive_terms(views, tau, TERMS[workload]).sum()

    return function


class _InfCL(torch.autograd.Function):
    """Mean of log-sum-exp minus positive by the published algorithm of Inf-CL (Cheng et al., arXiv
    2410.17243): tiles of the similarities with a running log-sum-exp, recomputed in the backward
    pass for dq and dk. Its kernel has no self-mask; it is added here, as its algorithm allows, to
    make it a peer at all. On a CPU: the same tiles in PyTorch.
    """

    TILE = 1024

    @staticmethod
    def forward(ctx, q, k, positive, masked):
        lse = q.new_full((len(q),), -torch.inf)
        for i in range(0, len(q), _InfCL.TILE):
            rows = slice(i, i + _InfCL.TILE)
            for j in range(0, len(k), _InfCL.TILE):
                lse[rows] = torch.logaddexp(lse[rows], _InfCL.tile(q, k, i, j, masked).logsumexp(1))
        ctx.save_for_backward(q, k, positive, lse)
        ctx.masked = masked
        return (lse - (q * k[positive]).sum(1)).mean()

    @staticmethod
    def tile(q, k, i, j, masked):
        s = q[i : i + _InfCL.TILE] @ k[j : j + _InfCL.TILE].T
        return s.fill_diagonal_(-torch.inf) if masked and i == j else s

    @staticmethod
    def backward(ctx, grad):
        q, k, positive, lse = ctx.saved_tensors
        dq, dk = -k[positive], torch.zeros_like(k).index_add_(0, positive, -q)
        for i in range(0, len(q), _InfCL.TILE):
            for j in range(0, len(k), _InfCL.TILE):
                p = _InfCL.tile(q, k, i, j, ctx.masked).sub_(lse[i : i + _InfCL.TILE, None]).exp_()
                dq[i : i + _InfCL.TILE].addmm_(p, k[j : j + _InfCL.TILE])
                dk[j : j + _InfCL.TILE].addmm_(p.T, q[i : i + _InfCL.TILE])
        share = grad / len(q)
        return dq.mul_(share), dk.mul_(share), None, None


def inf_cl(workload: str, eager: Eager) -> Callable:
    def one_way(x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        return _InfCL.apply(x / tau, y, eager.same, False)

    def function(x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        x, y = F.normalize(x), F.normalize(y)
        if workload == "nt_xent":
            z = torch.cat([x, y])
            return _InfCL.apply(z / tau, z, eager.positive, True)
        there = one_way(x, y, tau)
        return there if workload == "info_nce" else (there + one_way(y, x, tau)) / 2

    return function


def on_gpu(function: Callable, path: str | None = None, tile: str | None = None) -> Callable:
    """Ours with the launcher's own table, or on another path, or with other tiles on that path:
    where the table's borders and sizes should be is what this shows. What is set at a call holds
    until the next, as its backward pass needs it, too.
    """
    import mer.fusion.ops.gpu.launch as launch
    import mer.fusion.ops.paths as paths

    table = [(paths, "kernel_path"), (launch, "mid_tile"), (launch, "large_tile")]
    chosen = {}
    for module, name in table:
        kept = vars(module).setdefault("_of_bench", {})
        chosen[module, name] = kept.setdefault(name, getattr(module, name))
    if path:
        chosen[paths, "kernel_path"] = lambda rows, d: path
    if tile:
        sizes = launch.KernelTile(*map(int, tile.split("x")))
        chosen[launch, f"{path}_tile"] = lambda *a: sizes

    def call(*inputs: Tensor) -> Tensor:
        for (module, name), value in chosen.items():
            setattr(module, name, value)
        return function(*inputs)

    return call


def new_step(function: Callable) -> Callable:
    """Tells reduce-overhead that earlier results may be overwritten."""

    def call(*inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return function(*inputs)

    return call


@cache
def absent(name: str, missing: str) -> None:
    print(f"{name} left out: {missing}", flush=True)


def packages(workload: str, rows: int, device: torch.device) -> dict[str, Callable]:
    """Published losses of the same value, where they are installed."""
    found: dict[str, Callable] = {}
    if workload == "nt_xent" and rows <= 256:  # O(B^3) memory
        try:
            from pytorch_metric_learning.losses import NTXentLoss

            metric, labels = NTXentLoss(TAU), torch.arange(rows, device=device).repeat(2)
            found["pytorch-metric-learning"] = lambda x, y, tau: metric(torch.cat([x, y]), labels)
        except ImportError as missing:
            absent("pytorch-metric-learning", str(missing))
    if workload == "nt_xent":
        try:
            from lightly.loss import NTXentLoss as LightlyNTXent

            lightly = LightlyNTXent(TAU)
            found["lightly"] = lambda x, y, tau: lightly(x, y)
        except ImportError as missing:
            absent("lightly", str(missing))
    if workload == "clip":
        try:
            from open_clip.loss import ClipLoss

            clip = ClipLoss(cache_labels=True)
            found["open_clip"] = lambda x, y, tau: clip(F.normalize(x), F.normalize(y), 1 / tau)
        except ImportError as missing:
            absent("open_clip", str(missing))
    return found


DISTRIBUTIONS = {
    "pytorch-metric-learning": "pytorch-metric-learning",
    "lightly": "lightly",
    "open_clip": "open_clip_torch",
}


def peers(
    workload: str,
    rows: int,
    device: torch.device,
    *,
    compile_peers: bool,
    paths: bool,
    tiles: tuple[str, ...],
) -> dict[str, Callable]:
    """name -> function of (views..., tau). `mer` is ours; `eager` is what the ratios are of."""
    eager = Eager(rows, device)
    cuda = device.type == "cuda"
    limit = torch.cuda.get_device_properties(device).total_memory if cuda else EAGER_LIMIT
    fits = WORKLOADS[workload].entries * 4 * rows * rows < limit
    plain = getattr(eager, workload)
    # first: it makes the mask that torch.compile finds
    out: dict[str, Callable] = {"eager": plain} if fits else {}
    # beyond, its loop in Python is what would be timed
    if workload != "drkf" and (not cuda or rows <= 4096):
        out["inf-cl's tiles in PyTorch" if cuda else "inf-cl"] = inf_cl(workload, eager)
    if fits:
        out |= packages(workload, rows, device)
    if compile_peers and fits:
        out["torch.compile"] = torch.compile(plain, dynamic=False)
        if cuda:
            out["torch.compile reduce-overhead"] = new_step(
                torch.compile(plain, dynamic=False, mode="reduce-overhead")
            )
    out["mer"] = on_gpu(ours(workload)) if cuda else ours(workload)
    if cuda:
        flat = rows * WORKLOADS[workload].views
        for path, most in (("tiny", 64), ("mid", 32768), ("large", 1 << 20)):
            if paths and flat <= most:
                out[f"mer, {path} path"] = on_gpu(ours(workload), path)
        for name in tiles:
            out[f"mer, {name}"] = on_gpu(ours(workload), *name.split(":"))
    return out
