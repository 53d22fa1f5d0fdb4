"""Negatives beyond the batch: a memory bank of past embeddings, and the other ranks' embeddings.

A bound on mutual information never exceeds log N, N candidates per anchor (van den Oord et al.,
arXiv 1807.03748): a batch of 4 can show at most 1.95 nats. Both ways here raise N without a larger
batch on one device.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """The last `size` embeddings, first in first out, detached (MoCo, He et al., arXiv 1911.05722);
    saved with the model.

    `queue.rows()` (K, D) goes to `nt_xent(..., queue=...)`, or into `views` as a candidate view
    that is nobody's positive; `push` the batch after the loss is taken. Until it is full K grows
    with every push, so warm it up before capturing a CUDA graph; from then on a push moves no data
    to the host and K is constant.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"FeatureQueue: size {size} and dim {dim} must be positive")
        self.register_buffer("data", torch.zeros(size, dim))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))
        self.filled = 0

    def get_extra_state(self) -> int:
        return self.filled

    def set_extra_state(self, state: int) -> None:
        self.filled = int(state)

    def rows(self) -> Tensor:
        """(K, D) embeddings pushed so far, at most `size`, in no particular order; K = 0 before the
        first push. A copy: the next push must not change what a pending backward pass needs.
        """
        return self.data[: self.filled].clone()

    @torch.no_grad()
    def push(self, x: Tensor) -> None:
        """Add x (B, D); of a batch larger than the queue its last rows."""
        size = len(self.data)
        x = x.detach()[-size:].to(self.data)
        where = (self.next + torch.arange(len(x), device=self.data.device)) % size
        self.data.index_copy_(0, where, x)
        self.next.copy_((self.next + len(x)) % size)
        self.filled = min(size, self.filled + len(x))


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; backward sums every rank's gradient for the own rows."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group, ctx.rows = group, x.shape[0]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("gather_views: second derivatives are not implemented")
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)  # gloo has no reduce_scatter
        start = dist.get_rank(ctx.group) * ctx.rows
        return total[start : start + ctx.rows], None


def gather_views(
    *views: Tensor, group: dist.ProcessGroup | None = None
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """((W·B, D) of every view from all W ranks, anchor_rows of this rank):
    `contrastive_terms(views, ..., anchor_rows=rows)` is this rank's loss, its B anchors against
    everybody's candidates. The mean of the ranks' losses is the loss of one process with the whole
    batch, and so are the gradients once data parallelism has averaged them. Every rank must have
    the same B. Without an initialised process group the views come back as they are.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return views, (0, views[0].shape[0])
    rows = views[0].shape[0]
    start = dist.get_rank(group) * rows
    return tuple(_Gather.apply(v, group) for v in views), (start, start + rows)
