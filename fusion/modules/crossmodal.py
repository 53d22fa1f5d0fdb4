"""Cross-modal transformers (MulT, Tsai et al. 2019; DMD section 3.3): pre-norm layers whose queries
come from one modality and whose keys and values come from another. Without a source they are plain
self-attention encoders.

Symbols: B batch, T steps, d width, n true lengths. Everything is batch-first, (B, T, d), and
padding is carried as a mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mer.fusion.losses.precision import widened
from mer.fusion.modules.dropout import (
    Dropout,
    first_kept,
    kept_scale,
    plus_dropout,
    random_levels,
    relu_dropout,
)


def sinusoids(steps: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """(steps, width) table of MulT's positions: sines in the first half, cosines in the second, an
    odd last column 0.

    Step t holds position t + 1, because position 0 is reserved (all zero) in the original.
    """
    half = width // 2
    rate = torch.exp(
        torch.arange(half, device=device, dtype=torch.float32)
        * -(math.log(10000) / max(half - 1, 1))
    )
    angle = torch.arange(1, steps + 1, device=device, dtype=torch.float32)[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width % 2))


def band_mask(queries: int, keys: int, *, device: torch.device | str | None = None) -> Tensor:
    """(Tq, Tk) bool, True where attention is allowed, as MulT's code has it: key - query <= |Tq -
    Tk|. Causal only for Tq = Tk.
    """
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(abs(queries - keys))


def causal_mask(query_mask: Tensor, key_mask: Tensor) -> Tensor:
    """(B, Tq, Tk) bool: a key is seen once it has begun before the query step ends, both clocks
    running from 0 to 1 over the utterance, k / n_k < (q + 1) / n_q. For equal lengths that is k <=
    q.
    """
    n_q, n_k = (m.sum(1)[:, None, None] for m in (query_mask, key_mask))
    q = torch.arange(query_mask.shape[1], device=query_mask.device)[:, None]
    k = torch.arange(key_mask.shape[1], device=key_mask.device)
    return k * n_q < (q + 1) * n_k


def all_real(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T) mask of x (B, T, d), by which every step is real where none is given."""
    return torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask


@dataclass(frozen=True)
class Allowed:
    """Which keys a query may see: `mask` bool, broadcastable to (B, 1, Tq, Tk), with at least one
    key for every query, and `any` (…, 1), False for those queries whose keys are not meant; None
    where all are, which a CPU finds out and a GPU would have to be waited for.
    """

    mask: Tensor
    any: Tensor | None

    @classmethod
    def of(cls, mask: Tensor) -> Allowed:
        some = mask.any(-1, keepdim=True)
        if mask.device.type == "cpu" and bool(some.all()):
            return cls(mask, None)
        return cls(mask | ~some, some)


# Up to so many pairs of query and key in a sequence, attention without dropout is computed in steps
# in training, too: that is faster than PyTorch's, which keeps nothing of the size of the pairs.
SHORT_PAIRS = 128 * 128


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """softmax(q k' / sqrt(d)) v, weights dropped with probability `p`: (B, H, Tq, d), (B, H, Tk, d)
    twice, bool mask broadcastable to (B, H, Tq, Tk) -> (B, H, Tq, d).

    With dropout PyTorch computes it in such steps on a CPU, too, but draws the mask slowly.
    """
    if p >= 1:  # no weight is left, as with PyTorch
        return v.new_zeros(*q.shape[:3], v.shape[3])
    learns = torch.is_grad_enabled() and q.requires_grad
    in_steps = p > 0 or (learns and q.shape[2] * k.shape[2] <= SHORT_PAIRS)
    if q.device.type != "cpu" or not in_steps:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    with torch.autocast("cpu", enabled=False):  # of a few numbers per head
        return _Attend.apply(widened(q), widened(k), widened(v), mask, p)


class _Attend(torch.autograd.Function):
    """`apply(q, k, v, mask, p)`, see `attend`.

    Beside what autograd does for these steps this saves: hidden keys are an addend, because filling
    by a mask takes as long as the rest, and twice, though no gradient passes there; products whose
    result has a few columns are computed transposed, as many rows; and of the shares, which are
    most of what a layer keeps for its gradient, one copy is kept, negative where a share is
    dropped.
    """

    @staticmethod
    def forward(ctx: Any, q, k, v, mask, p):
        shape = q.shape[:2]
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q * q.shape[3] ** -0.5, k, v))
        share = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:
            share.unflatten(0, shape).add_(mask.to(share.dtype).log_())  # 0, or -inf where hidden
        share = share.softmax(-1)
        if p:
            share.copysign_(random_levels(share.shape).ge_(first_kept(p)).sub_(1))
        ctx.save_for_backward(q, k, v, share)
        ctx.scale = kept_scale(p)
        y = torch.bmm((v * ctx.scale).transpose(1, 2), share.relu().transpose(1, 2))
        return y.transpose(1, 2).unflatten(0, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        shape = grad.shape[:2]
        q, k, v, share = ctx.saved_tensors
        grad = grad.reshape(-1, *grad.shape[2:]) * ctx.scale
        to_v = torch.bmm(grad.transpose(1, 2), share.relu())
        to_share = torch.bmm(grad, v.transpose(1, 2))
        to_share = torch.ops.aten.threshold_backward(to_share, share, 0)  # 0 where it is dropped
        to_scores = torch._softmax_backward_data(to_share, share.abs(), -1, share.dtype)
        to_q = torch.bmm(k.transpose(1, 2), to_scores.transpose(1, 2)).mul_(q.shape[2] ** -0.5)
        to_k = torch.bmm(q.transpose(1, 2), to_scores)
        found = (x.transpose(1, 2).unflatten(0, shape) for x in (to_q, to_k, to_v))
        return *found, None, None


class Attention(nn.Module):
    """Multi-head attention with one input matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        for linear in (self.qkv, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Allowed | None) -> Tensor:
        """query (B, Tq, d), key and value (B, Tk, d) -> (B, Tq, d).

        A query that may see no key at all (its source modality is absent) gets the output bias
        instead of NaN.
        """
        if query is key:
            parts = self.qkv(query).unflatten(-1, (3, self.heads, -1))
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            each = map(
                F.linear, (query, key, value), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
            )
            q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in each)
        mask = None if allowed is None else allowed.mask
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        if allowed is not None and allowed.any is not None:
            y = y * allowed.any
        return self.out(y.transpose(1, 2).flatten(2))


class CrossModalLayer(nn.Module):
    """x + Attention(LN x, LN source), then x + FFN(LN x).

    Query and source share the first layer norm, as in MulT.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        attention_dropout: float,
        hidden_dropout: float,
        residual_dropout: float,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, attention_dropout)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.hidden_dropout, self.residual_dropout = (
            Dropout(hidden_dropout),
            Dropout(residual_dropout),
        )

    def forward(
        self, x: Tensor, key: Tensor | None, value: Tensor | None, allowed: Allowed | None
    ) -> Tensor:
        query = self.norm1(x)
        if key is None:
            attended = self.attention(query, query, query, allowed)
        else:
            k = self.norm1(key)
            attended = self.attention(query, k, k if value is key else self.norm1(value), allowed)
        x = self.residual(x, attended)
        units = self.fc1(self.norm2(x))
        hidden = relu_dropout(units, self.hidden_dropout.p, self.training)
        return self.residual(x, self.fc2(hidden))

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, y dropped out."""
        return plus_dropout(x, y, self.residual_dropout.p, self.training)


class CrossModalEncoder(nn.Module):
    """`layers` cross-modal layers over position-coded inputs, and a last layer norm.

    causal           hide later steps (proportionally for unequal lengths)
    band             instead of that, MulT's mask as coded
    zero_positions   as coded: a step whose channel 0 is exactly 0 gets no position
    """

    positions: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        *,
        attention_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        causal: bool = False,
        band: bool = False,
        zero_positions: bool = False,
    ):
        super().__init__()
        self.causal, self.band, self.zero_positions = causal, band, zero_positions
        self.layers = nn.ModuleList(
            CrossModalLayer(
                width,
                heads,
                attention_dropout=attention_dropout,
                hidden_dropout=hidden_dropout,
                residual_dropout=residual_dropout,
            )
            for _ in range(layers)
        )
        self.dropout = Dropout(embedding_dropout)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sinusoids(64, width), persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        """sqrt(d) x + position, before dropout."""
        if len(self.positions) < x.shape[1]:
            # the table outlives this pass, and a later one may train
            with torch.inference_mode(False):
                self.positions = sinusoids(2 * x.shape[1], x.shape[2], device=x.device).to(
                    self.positions.dtype
                )
        position = self.positions[: x.shape[1]].to(x.dtype)
        if self.zero_positions:
            position = position * (x[..., :1] != 0)
        return torch.add(position, x, alpha=math.sqrt(x.shape[2]))

    def allowed(
        self, x: Tensor, source: Tensor, mask: Tensor | None, source_mask: Tensor | None
    ) -> Allowed | None:
        """None: every query sees every key."""
        seen = None if source_mask is None else source_mask[:, None, None, :]
        if self.band:
            order = band_mask(x.shape[1], source.shape[1], device=x.device)
        elif self.causal:
            order = causal_mask(all_real(x, mask), all_real(source, source_mask))[:, None]
        else:
            return None if seen is None else Allowed.of(seen)
        return Allowed.of(order if seen is None else order & seen)

    def forward(
        self, x: Tensor, source: Tensor | None = None, value: Tensor | None = None, *,
        mask: Tensor | None = None, source_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x (B, Tq, d); source (B, Tk, d), None for self-attention; value the source's values where
        they differ from its keys; mask (B, Tq) and source_mask (B, Tk) bool, True on real steps,
        None: everything is real. -> (B, Tq, d).
        """
        if source is None:
            allowed, key, value = self.allowed(x, x, mask, mask), None, None
        else:
            allowed, seen = self.allowed(x, source, mask, source_mask), self.embed(source)
            key = self.dropout(seen)
            # Keys and values are dropped out independently, as in MulT; without dropout they are
            # one tensor and cost one layer norm.
            if value is not None or (self.training and self.dropout.p):
                value = self.dropout(seen if value is None else self.embed(value))
            else:
                value = key
        x = self.dropout(self.embed(x))
        for layer in self.layers:
            x = layer(x, key, value, allowed)
        return self.norm(x)
