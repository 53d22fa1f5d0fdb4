"""Length-sorted batches under a padded budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mer.pipeline.extraction.batching import cut, group, padded

RATE = 16_000
# 201 quantiles, in seconds, of the lengths of MELD's 13,706 clips (EmoBox's metadata), without the
# two wrongly cut ones of 235 and 305 s.
QUANTILES = Path(__file__).with_name("meld_quantiles.json")


def meld_like(count: int = 13_706) -> np.ndarray:
    """Lengths in samples with MELD's quantiles and its two outliers."""
    table = np.array(json.loads(QUANTILES.read_text()))
    seconds = np.interp(np.linspace(0, 1, count - 2), np.linspace(0, 1, len(table)), table)
    return np.round(np.append(seconds, [235, 305]) * RATE).astype(np.int64)


def waste(lengths: np.ndarray, seconds: float) -> float:
    total, valid = padded(lengths, cut(lengths, round(seconds * RATE)))
    return total / valid


@given(st.lists(st.integers(1, 5_000), max_size=200), st.integers(1, 20_000))
def test_every_item_once_within_the_budget_longest_first(lengths, budget):
    batches = cut(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(
        len(batch) * most <= budget or len(batch) == 1
        for batch, most in zip(batches, longest, strict=True)
    )


@given(st.lists(st.integers(1, 50), max_size=100), st.integers(1, 200))
def test_ties_keep_their_order(lengths, budget):
    order = [i for batch in cut(lengths, budget) for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@given(st.lists(st.integers(1, 500), max_size=100), st.integers(1, 2_000), st.integers(1, 3_000))
def test_parts_are_consecutive_batches(lengths, budget, size):
    batches = cut(lengths, budget)
    parts = group(lengths, batches, size)
    assert [b.tolist() for part in parts for b in part] == [b.tolist() for b in batches]
    assert all(sum(int(np.asarray(lengths)[b].sum()) for b in part[:-1]) < size for part in parts)


def test_waste_by_hand():
    assert padded([3, 1, 2, 2], cut([3, 1, 2, 2], 4)) == (3 + 4 + 1, 8)


def test_waste_on_melds_quantiles():
    """Random batches of 16 pad to about 3 times the valid length on this list, lhotse's order with
    a budget to 2.7.
    """
    lengths = meld_like()
    assert abs(lengths.sum() / RATE / 3600 - 12.14) < 0.3
    assert waste(lengths, 160) <= 1.02
    assert waste(lengths, 40) <= 1.02
    random = np.random.default_rng(0).permutation(len(lengths))
    total, valid = padded(lengths, [random[i : i + 16] for i in range(0, len(random), 16)])
    assert total / valid > 2


def test_waste_on_melds_lengths(test_data):
    lengths = np.round(np.load(test_data / "meld" / "durations_seconds.npy") * RATE).astype(
        np.int64
    )
    assert len(lengths) == 13_706
    assert waste(lengths, 160) <= 1.02
    assert waste(lengths, 320) <= 1.02
