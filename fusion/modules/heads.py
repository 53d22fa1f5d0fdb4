"""Vectors to predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mer.fusion.modules.dropout import Dropout


def mlp(width: int, hidden: int, out: int, *, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout, Linear."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, out)
    )


class PerTarget(nn.Module):
    """An MLP of its own for each of several targets, (B, width) -> (B, outputs): what one target
    needs is not bought from another's hidden units.
    """

    def __init__(self, width: int, hidden: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        each = [mlp(width, hidden, 1, dropout=dropout) for _ in range(outputs)]
        self.heads = nn.ModuleList(each)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], 1)
