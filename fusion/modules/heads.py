"""Vectors to predictions."""

from __future__ import annotations

from torch import nn


def mlp(width: int, hidden: int, out: int, *, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout, Linear."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out)
    )
