"""Knowledge fusion (KF) of DRKF: the fusion encoder, what an ablation has in its place, and the
pairs on which emotion discrimination (ED) is trained.
"""

from __future__ import annotations

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mer.fusion.modules.dropout import LockedDropout
from mer.fusion.modules.pooling import masked_mean
from mer.pipeline.errors import DataError


class FusionEncoder(nn.Module):
    """z = FE([cls; H_1 + e_1; sep; H_2 + e_2; sep; ...])[0]: a pre-norm transformer read at [CLS].

    Padded steps are never attended to; positions start anew in every modality, so that they depend
    on nothing but the step itself; a modality that a row lacks takes its [SEP] with it. As only
    [CLS] is read, the last layer computes only its row, and no keys and values.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        d: int,
        *,
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        positions: str,
        max_positions: int,
    ) -> None:
        super().__init__()
        if positions not in ("sinusoidal", "learned"):
            raise DataError(f"positions {positions!r}: known are sinusoidal, learned")
        if d % heads:
            raise DataError(
                f"model width {d} does not divide by {heads} heads; set model_args.d to a multiple "
                "of model_args.heads"
            )
        self.cls = nn.Parameter(0.02 * torch.randn(d))
        self.sep = nn.Parameter(0.02 * torch.randn(d))
        self.modality = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(d)) for name in names}
        )
        # A tenth of the layer-normed features' scale, and learned: order matters less than content
        # in frozen features.
        self.position_scale = nn.Parameter(torch.tensor(0.1)) if positions == "sinusoidal" else None
        self.position = (
            nn.Parameter(0.02 * torch.randn(max_positions, d)) if positions == "learned" else None
        )
        self.blocks = nn.ModuleList(Block(d, heads, ffn, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.dropout = LockedDropout(dropout)

    def forward(
        self,
        h: dict[str, Tensor],
        mask: dict[str, Tensor],
        *,
        attention: bool = False,
        turns: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """h[m] (B, T_m, d), mask[m] (B, T_m): any subset of the modalities; `turns`: tokens (B, W,
        d) of neighbours, and which are there (B, W).

        Returns z (B, d) and, if asked for, the share (B, M) of the last layer's [CLS] attention
        (mean over heads) that falls on each modality of `h`; rows sum to 1.
        """
        first = next(iter(h.values()))
        b, d = len(first), first.shape[2]
        real = [torch.ones(b, 1, dtype=torch.bool, device=first.device)]
        parts = [self.cls.expand(b, 1, d).to(first.dtype)]
        for name, x in h.items():
            parts += [
                x + (self.modality[name] + self.positions(x)),
                (self.sep + self.modality[name]).expand(b, 1, d).to(x.dtype),
            ]
            real += [mask[name], mask[name].any(1, keepdim=True)]
        if turns is not None:
            parts.append(turns[0].to(first.dtype))
            real.append(turns[1])
        x, keys = self.dropout(torch.cat(parts, 1)), torch.cat(real, 1)
        for block in self.blocks[:-1]:
            x = block(x, keys)
        z = self.norm(self.blocks[-1](x, keys, first=True)[:, 0])
        return z, self.share(x, keys, h) if attention else None

    def positions(self, x: Tensor) -> Tensor:
        """(T, d) embeddings of the steps 0..T-1."""
        steps, d = x.shape[1:]
        if self.position_scale is not None:
            scale = self.position_scale
            return scale * sinusoids(steps, d, device=x.device, dtype=scale.dtype)
        assert self.position is not None  # one of the two is there
        if steps > len(self.position):
            raise DataError(
                f"a sequence of {steps} steps is longer than max_positions = "
                f"{len(self.position)}; raise it or pool more"
            )
        return self.position[:steps]

    def share(self, x: Tensor, keys: Tensor, h: dict[str, Tensor]) -> Tensor:
        """The attention of the last layer materialised for [CLS] alone."""
        last = self.blocks[-1]
        assert isinstance(last, Block)
        row = last.attention_row(x, keys)
        # position of each [SEP]; its modality's steps lie before it
        steps = [each.shape[1] for each in h.values()]
        ends = accumulate(n + 1 for n in steps)
        shares = [row[:, end - n : end].sum(1) for end, n in zip(ends, steps, strict=True)]
        on = torch.stack(shares, 1)
        total = on.sum(1, keepdim=True)
        return torch.where(total > 0, on / total.clamp(min=torch.finfo(on.dtype).tiny), 1 / len(h))


def fusion_encoder(names: tuple[str, ...], config) -> FusionEncoder:
    """The fusion encoder of some modalities, by the fields of a model's configuration."""
    return FusionEncoder(
        names,
        config.d,
        layers=config.layers,
        heads=config.heads,
        ffn=config.ffn,
        dropout=config.dropout,
        positions=config.positions,
        max_positions=config.max_positions,
    )


class LinearFusion(nn.Module):
    """z = LN(sum_m W_m mean H_m + W_turns mean c): what takes the place of the fusion encoder when
    an ablation asks what it is worth. Same arguments, same z; no step sees another one.
    """

    def __init__(self, names: tuple[str, ...], d: int, *, turns: bool) -> None:
        super().__init__()
        self.linear = nn.ModuleDict({name: nn.Linear(d, d) for name in names})
        self.turns = nn.Linear(d, d) if turns else None
        self.norm = nn.LayerNorm(d)

    def forward(
        self,
        h: dict[str, Tensor],
        mask: dict[str, Tensor],
        *,
        attention: bool = False,
        turns: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, None]:
        """As `FusionEncoder.forward`, with no attention to show."""
        seen = [(self.linear[name], x, mask[name]) for name, x in h.items()]
        if turns is not None and self.turns is not None:
            seen.append((self.turns, *turns))
        parts = []
        for linear, x, real in seen:
            there = real.any(1, keepdim=True)
            parts.append(linear(masked_mean(x, real)).where(there, 0))
        return self.norm(torch.stack(parts).sum(0)), None


class Block(nn.Module):
    """x + attention(LN x), then x + FFN(LN x)."""

    def __init__(self, d: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_ffn = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key_value = nn.Linear(d, d), nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)
        self.ffn = nn.Sequential(nn.Linear(d, ffn), nn.GELU(), nn.Linear(ffn, d))
        self.dropout = LockedDropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, *, first: bool = False) -> Tensor:
        """x (B, S, d), keys (B, S) bool -> (B, S, d); `first`: of position 0 alone, (B, 1, d)."""
        y = self.norm_attention(x)
        if first:
            x, a = x[:, :1], self.seen_first(y, self.first_row(y, keys))
        else:
            q, (k, v) = self.split(self.query(y), 1)[0], self.split(self.key_value(y), 2)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None])
        x = x + self.dropout(self.out(a.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))

    def attention_row(self, x: Tensor, keys: Tensor) -> Tensor:
        """(B, S) attention of position 0 over all positions, mean over heads."""
        return self.first_row(self.norm_attention(x), keys).mean(1)

    def first_row(self, y: Tensor, keys: Tensor) -> Tensor:
        """(B, heads, S) attention of position 0 of y (B, S, d).

        No key is computed: q'(W y_t + b) is (W'q)'y_t and a number that is the same for all t,
        which a softmax does not see. For one query that is a product of d numbers per step and head
        instead of one of d x d per step.
        """
        q = self.query(y[:, 0]).unflatten(1, (self.heads, -1)).transpose(0, 1)
        key = self.key_value.weight.chunk(2)[0].unflatten(0, (self.heads, -1))
        looked_for = torch.bmm(q * q.shape[2] ** -0.5, key.to(q.dtype)).transpose(0, 1)
        scores = torch.bmm(looked_for, y.transpose(1, 2).to(q.dtype))
        return scores.masked_fill(~keys[:, None], -torch.inf).softmax(2)

    def seen_first(self, y: Tensor, share: Tensor) -> Tensor:
        """(B, heads, 1, d / heads) the values of y (B, S, d), weighed by `share` (B, heads, S).

        As the shares sum to 1 it is the value of the weighted mean: again without one per step.
        """
        mean = torch.bmm(share.to(y.dtype), y).transpose(0, 1)
        value = self.key_value.weight.chunk(2)[1].unflatten(0, (self.heads, -1)).transpose(1, 2)
        bias = self.key_value.bias.chunk(2)[1].unflatten(0, (self.heads, 1, -1))
        return (torch.bmm(mean, value.to(mean.dtype)) + bias).transpose(0, 1)[:, :, None]

    def split(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        """(B, S, n d) to n tensors (B, heads, S, d / heads)."""
        b, s, width = x.shape
        return (
            x.view(b, s, n, self.heads, width // (n * self.heads)).permute(2, 0, 3, 1, 4).unbind(0)
        )


def sinusoids(steps: int, d: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(T, d) of Vaswani et al. 2017: sines in the first half of the channels, cosines in the second
    (its first d - ceil(d/2)).
    """
    half = (d + 1) // 2
    rate = torch.exp(torch.arange(half, device=device, dtype=dtype) * (-math.log(10000.0) / half))
    angle = torch.arange(steps, device=device, dtype=dtype)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :d]


def label_pairs(same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All ordered pairs i != j of a (B, B) bool matrix: (i, j, same[i, j]), row by row.

    >>> [t.tolist() for t in label_pairs(torch.tensor([[True, False], [False, True]]))]
    [[0, 1], [1, 0], [False, False]]
    """
    i, j = (~torch.eye(len(same), dtype=torch.bool, device=same.device)).nonzero(as_tuple=True)
    return i, j, same[i, j]


def sample_pairs(
    same: Tensor,
    allowed: Tensor,
    *,
    positives: int,
    negatives: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """For each of N anchors, up to `positives` partners with same[n, j] and `negatives` without,
    drawn without replacement among the `allowed`; same, allowed (N, B) bool. Returns partners (N,
    K) int64, target (N, K) and valid (N, K) bool with K = positives + negatives; where an anchor
    has too few partners of a kind, `valid` is False (shapes never depend on the labels, so that
    nothing waits for the device).
    """
    noise = torch.rand(same.shape, device=same.device, generator=generator)
    partners, target, valid = [], [], []
    for kind, count in ((same, positives), (~same, negatives)):
        value, j = noise.masked_fill(~(kind & allowed), -1.0).topk(min(count, same.shape[1]), dim=1)
        partners.append(j)
        valid.append(value >= 0)
        target.append(torch.full_like(valid[-1], kind is same))
    return torch.cat(partners, 1), torch.cat(target, 1), torch.cat(valid, 1)
