"""Vectors to predictions."""

from __future__ import annotations

from torch import nn

from mer.fusion.modules.dropout import Dropout


def mlp(width: int, hidden: int, out: int, *, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout, Linear."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, out)
    )
