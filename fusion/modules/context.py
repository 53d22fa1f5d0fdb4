"""The neighbours of an utterance as tokens, and attention over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mer.fusion.batch import UNKNOWN, Context, ContextSpec
from mer.fusion.modules.dropout import Dropout
from mer.fusion.modules.pooling import Standardise, zero_padding

SPEAKERS = 3  # UNKNOWN, SAME, OTHER
HEADS = (4, 2, 1)  # of the attention: the first that divides its width


class TurnTokens(nn.Module):
    """c_k = LN(sum_m Linear_m(x_k,m) + o_k + s_k): one token (B, W, d) per neighbour, from its
    modalities that are there, its place o_k and whether it has the same speaker s_k.

    `dropout` is on the features of the neighbours; in training each neighbour is hidden with
    probability `hidden`, as is good against overfitting, and for turns whose neighbours fail.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        d: int,
        spec: ContextSpec,
        *,
        dropout: float,
        hidden: float,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.standardise = nn.ModuleDict({m: Standardise(n) for m, n in widths.items()})
        self.linear = nn.ModuleDict({m: nn.Linear(n, d) for m, n in widths.items()})
        self.reach = spec.width
        # by offset, from -reach to reach
        self.place = nn.Parameter(0.02 * torch.randn(2 * spec.width + 1, d))
        self.speaker = nn.Parameter(0.02 * torch.randn(SPEAKERS, d))
        self.norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)

    def forward(self, context: Context) -> tuple[Tensor, Tensor]:
        """Tokens (B, W, d), zero where there is nobody, and which are there (B, W) bool."""
        there = torch.stack([context.there[m] for m in self.linear]).any(0)
        if self.training and self.hidden:
            there = there & (torch.rand(there.shape, device=there.device) >= self.hidden)
        offset = context.offset.where(there, 0) + self.reach
        total = self.place[offset] + self.speaker[context.speaker.where(there, UNKNOWN)]
        for m, linear in self.linear.items():
            mask = context.there[m] & there
            x = zero_padding(context.x[m], mask).to(cast(nn.Linear, linear).weight.dtype)
            total = total + zero_padding(linear(self.dropout(self.standardise[m](x))), mask)
        return zero_padding(self.norm(total), there), there


class TurnAttention(nn.Module):
    """What an utterance takes from its neighbours: (B, n) of its own attends over their tokens and
    over one that stands for nobody, so that a row without neighbours has an answer, too.
    """

    def __init__(
        self,
        own: int,
        widths: Mapping[str, int],
        d: int,
        spec: ContextSpec,
        *,
        dropout: float,
        hidden: float,
    ) -> None:
        super().__init__()
        self.tokens = TurnTokens(widths, d, spec, dropout=dropout, hidden=hidden)
        self.nobody = nn.Parameter(0.02 * torch.randn(d))
        self.heads = next(heads for heads in HEADS if d % heads == 0)
        self.query, self.key_value = nn.Linear(own, d), nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)

    @property
    def standardise(self) -> nn.ModuleDict:
        """The scale of the features of each modality."""
        return self.tokens.standardise

    def forward(self, own: Tensor, context: Context | None) -> Tensor:
        """own (B, n) -> (B, d); without a context as with one in which nobody is there."""
        b, d = len(own), len(self.nobody)
        tokens, keys = self.nobody.expand(b, 1, d), own.new_ones(b, 1, dtype=torch.bool)
        if context is not None:
            turns, there = self.tokens(context)
            tokens, keys = (
                torch.cat([tokens.to(turns.dtype), turns], 1),
                torch.cat([keys, there], 1),
            )
        q = self.query(own).view(b, 1, self.heads, -1).transpose(1, 2)
        k, v = (
            x.view(b, tokens.shape[1], self.heads, -1).transpose(1, 2)
            for x in self.key_value(tokens).chunk(2, -1)
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None])
        return self.out(found.transpose(1, 2).flatten(1))
