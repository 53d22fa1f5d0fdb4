"""A split by group for rows that come without one: whoever is in training is in no other part."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

SHARES = {"train": 0.7, "dev": 0.15, "test": 0.15}  # of the utterances
GROUPS = ("dialogue", "speaker")  # what a split is made by: the first that every row has


def split_groups(groups: Iterable[str], seed: int) -> list[str]:
    """A split for each row so that no group is in two: groups in seeded random order, each to the
    split that lacks most of its share.

    Args:
        groups: (N,) the group of each row.
        seed: Of the order.

    Returns:
        (N,) train, dev or test; each has a group where there are as many.
    """
    groups = list(groups)
    sizes = Counter(groups)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    lack = {split: share * len(groups) for split, share in SHARES.items()}
    # One group each, whatever the sizes.
    chosen = dict(zip(order, ("test", "dev", "train"), strict=False))
    for group in order:
        split = chosen.setdefault(group, max(lack, key=lambda name: lack[name]))
        lack[split] -= sizes[group]
    return [chosen[group] for group in groups]
