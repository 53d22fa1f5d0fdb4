"""Noise on a pooled model moved the deviations over steps, too, which an offset that is the same on
all steps leaves as they are (found by reading).
"""

from __future__ import annotations

import pytest
import torch

from mer.fusion.batch import Batch, DataSpec, FeatureSet
from mer.fusion.evaluation import alterations
from mer.fusion.modules.pooling import masked_mean_std


def noise(x, lengths, numbers):
    """A batch under each level of noise."""
    batch = Batch({"audio": x}, {"audio": lengths}, torch.zeros(9), torch.arange(9))
    moments = alterations.Moments()
    moments.count(batch)
    made = alterations.alterations(("audio",), [moments], {"audio": numbers})
    return [one.changes[0](batch).x["audio"] for one in made if one.what == "noise"]


def test_a_summary_is_moved_as_its_steps_are():
    """By arithmetic: mean and deviation of moved steps, against the moved mean and deviation."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 6, (9,))
    mask = torch.arange(5) < lengths[:, None]
    steps = torch.randn(9, 5, 4).where(mask[..., None], 0)
    summary = masked_mean_std(steps, mask)[:, None]
    by_steps = noise(steps, lengths, 4)
    by_summary = noise(summary, torch.ones(9, dtype=torch.int64), 4)
    for moved, found in zip(by_steps, by_summary, strict=True):
        torch.testing.assert_close(found[:, 0], masked_mean_std(moved, mask), rtol=1e-4, atol=1e-4)
        assert torch.equal(found[:, 0, 4:], summary[:, 0, 4:])
        assert not torch.equal(found[:, 0, :4], summary[:, 0, :4])


@pytest.mark.parametrize(
    ("one", "summary", "numbers"),
    [
        (FeatureSet("audio", 4), False, 4),
        (FeatureSet("audio", 4), True, 4),  # of 8: four deviations
        (FeatureSet("audio", 4, means=3), True, 12),  # layer means have none
        (FeatureSet("audio", 4, stack=(1, 2)), True, 8),  # of 16
        (FeatureSet("audio", 4, stack=(1, 2)), False, 8),
    ],
)
def test_which_numbers_are_no_deviations(one, summary, numbers):
    spec = DataSpec({"audio": 4}, {"audio": None}, "single", ("a", "b"), {"audio": (one,)})
    assert spec.numbers_of_means("audio", summary=summary) == numbers
