"""A split by group for rows that come without one: whoever is in training is in no other part."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SHARES = {"train": 0.7, "dev": 0.15, "test": 0.15}  # of the utterances
GROUPS = ("dialogue", "speaker")  # what a split is made by


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


def group_field(columns: Mapping[str, Sequence[str | None]]) -> str | None:
    """What rows are grouped by: the first of GROUPS that every row has, else the one that fewest
    rows lack; None where no row has any.

    Args:
        columns: (N,) the names of each of GROUPS.

    Returns:
        One of GROUPS.
    """
    lacking = {}
    for field in GROUPS:
        if any(columns[field]):
            lacking[field] = sum(not name for name in columns[field])
    return min(lacking, key=lambda field: lacking[field], default=None)


def groups_of(names: Sequence[str | None]) -> list[str]:
    """(N,) the group of each row by its dialogue or speaker; a row without one is a group of its
    own.
    """
    # no name has a zero byte, so that a row without one is in nobody's group
    return [name or f"\0{i}" for i, name in enumerate(names)]
