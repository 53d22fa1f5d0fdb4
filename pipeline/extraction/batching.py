"""Which utterances are computed together: sort by length, cut by padded length. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cut(lengths: Sequence[int], budget: int) -> list[np.ndarray]:
    """Indices of `lengths` in batches, longest first, so that (items × longest) of a batch stays
    within `budget`.

    Lengths and budget are in one unit (samples, tokens). An item longer than the budget is a batch
    of its own. Ties keep their order, so the same lengths always give the same batches. Over a
    whole corpus this wastes about 1 % (MELD, 160 s: 1.008 padded/valid), because neighbours in a
    sorted list are nearly equal.
    """
    of = np.asarray(lengths, np.int64)
    order = np.argsort(-of, kind="stable")
    batches, start = [], 0
    while start < len(order):
        take = max(1, budget // max(1, int(of[order[start]])))
        batches.append(order[start : start + take])
        start += take
    return batches


def padded(lengths: Sequence[int], batches: Sequence[np.ndarray]) -> tuple[int, int]:
    """(padded, valid) length over all batches, in the unit of `lengths`."""
    of = np.asarray(lengths, np.int64)
    whole = sum(len(batch) * int(of[batch].max()) for batch in batches)
    valid = sum(int(of[batch].sum()) for batch in batches)
    return whole, valid


def group(
    lengths: Sequence[int], batches: Sequence[np.ndarray], size: int
) -> list[list[np.ndarray]]:
    """Consecutive batches in parts of about `size` of valid length: what is lost at most when a run
    is killed.
    """
    of = np.asarray(lengths, np.int64)
    parts: list[list[np.ndarray]] = []
    held = size
    for batch in batches:
        if held >= size:
            parts.append([])
            held = 0
        parts[-1].append(batch)
        held += int(of[batch].sum())
    return parts
