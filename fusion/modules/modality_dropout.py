"""Modality dropout (Neverova et al. 2016): a training row loses whole modalities, so that the model
learns to do without any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mer.fusion.batch import Batch


def drop_modalities(batch: Batch, p: float, modalities: Sequence[str]) -> Batch:
    """A batch in which each row has lost each of its modalities with probability `p`, but never all
    that it had: where all would go, one of them stays, each as likely.

    Args:
        batch: Its labels stay as they are.
        p: In [0, 1).
        modalities: Those that may go; of a single one none does.

    Returns:
        The batch; a modality that a row has lost has length 0 there, and zeros.
    """
    if p == 0 or len(modalities) < 2:
        return batch
    there = torch.stack([batch.lengths[m] > 0 for m in modalities], 1)
    draw = torch.rand(there.shape, device=there.device).masked_fill(~there, -1)
    stays = torch.zeros_like(there).scatter_(1, draw.argmax(1, keepdim=True), True)
    kept = there & (stays | (draw >= p))
    x, lengths = dict(batch.x), dict(batch.lengths)
    for place, m in enumerate(modalities):
        x[m] = x[m].where(kept[:, place, None, None], 0)
        lengths[m] = lengths[m] * kept[:, place]
    return replace(batch, x=x, lengths=lengths)
