"""Losses are computed in float32 at least, whatever the autocast of the network gave them."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """float32 for anything narrower, float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
