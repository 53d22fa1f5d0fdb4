"""Intervals that hold what they say with few groups, and comparisons that count seeds: a small part
of `python -m tests.bench intervals`, and what can be said by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mer.fusion.measures import intervals, metrics
from mer.fusion.measures.intervals import Sampled

from tests.bench.intervals import CORPORA, called, coverage


@pytest.mark.parametrize("dof", [1, 1.5, 2, 4.7, 7, 30, 279, 1e5, 1e7])
def test_student_equals_scipy(dof):
    for t in (0.0, 0.3, 1.0, 2.365, 6.0, 40.0):
        wanted = stats.t.sf(t, dof)
        # beyond LARGE_DOF the normal distribution stands for it
        assert intervals.student_tail(t, dof) == pytest.approx(wanted, rel=1e-4, abs=1e-300)
        assert intervals.student_tail(-t, dof) == pytest.approx(1 - wanted)
    for share in (0.8, 0.975, 0.9995):
        wanted = stats.t.ppf(share, dof)
        assert intervals.student_quantile(share, dof) == pytest.approx(wanted, rel=1e-6)


def test_the_expanded_percentiles_by_hand():
    """Ten even groups: t with 9 degrees of freedom is 2.2622, times sqrt(10 / 9) 2.3845; Phi(-that)
    is 0.00855.
    """
    draws = np.linspace(0, 1, 100_001)
    low, high = intervals.bounds(draws, 10)
    assert low == pytest.approx(0.00855, abs=1e-5) and high == pytest.approx(1 - 0.00855, abs=1e-5)
    # one long dialogue and nine single utterances are worth 1.2 groups
    count = intervals.effective(np.repeat(np.arange(10), [91, *[1] * 9]))
    assert count == pytest.approx(100**2 / (91**2 + 9))
    assert intervals.bounds(draws, count)[0] < 1e-4


def test_two_groups_are_widened_and_one_says_nothing():
    draws = np.linspace(0, 1, 11)
    assert intervals.bounds(draws, 2.0) == [pytest.approx(0, abs=1e-9), pytest.approx(1)]
    assert all(math.isnan(end) for end in intervals.bounds(draws, 1.0))
    assert all(math.isnan(end) for end in intervals.bounds(np.full(3, math.nan), 9.0))


def test_coverage_with_few_dialogues():
    """Two hundred test parts of eight dialogues: the percentile interval holds too
    seldom, the widened one does not.
    """
    found = coverage(CORPORA[1], 8, parts=200, resamples=300, whole=10_000)
    for name in ("wa", "ua", "wf1"):
        assert found["coverage"][name] >= 0.91, found
        assert found["plain"][name] <= 0.91, found


def test_runs_of_one_setting_are_seldom_called_different():
    """Three seeds each, 50 pairs; drawn over dialogues alone a third of them would be."""
    found = called(CORPORA[1], 60, 3, 0.3, pairs=50, resamples=150)
    assert found["called"] <= 0.07
    single = called(CORPORA[1], 60, 1, 0.3, pairs=50, resamples=150)
    assert single["called"] > 0.2, "one seed cannot show it: the test above could fail"


def sampled(values, noise=0.01, groups=100.0, seed=0) -> Sampled:
    rng = np.random.default_rng(seed)
    values = np.asarray(values, dtype=float)
    shared = rng.normal(0, noise, size=(2000, 1))
    return Sampled(values, values + shared, groups)


def test_seeds_are_drawn_along():
    """The groups cancel; what is left is the seeds: half a width of t_dof sqrt(s²/3 + s²/3) with
    s = 1 in both, and 4 degrees of freedom.
    """
    a, b = sampled([0.0, 1.0, 2.0], noise=0.0), sampled([5.0, 6.0, 7.0], noise=0.0)
    found = intervals.difference(a, b)
    assert found.difference == 5
    half = stats.t.ppf(0.975, 4) * math.sqrt(2 / 3)
    # percentiles of nine outcomes of each are coarse
    assert found.low == pytest.approx(5 - half, abs=0.35)
    assert found.high == pytest.approx(5 + half, abs=0.35)
    assert found.p == pytest.approx(2 * stats.t.sf(5 / math.sqrt(2 / 3), 4), rel=0.1)


def test_of_a_weighted_sum_each_figure_has_its_own_seeds():
    """Three seeds of one figure, two of another that counts a quarter: by Welch and Satterthwaite,
    not as six pairs that would be six independent seeds.
    """
    a, b = sampled([0.0, 1.0, 2.0], noise=0.0), sampled([0.0, 12.0], noise=0.0)
    low, high = intervals.interval_of_sum([a, b], [1.0, -0.25])
    of_a, of_b = 1 / 3, 0.25**2 * 72 / 2
    dof = (of_a + of_b) ** 2 / (of_a**2 / 2 + of_b**2 / 1)
    half = stats.t.ppf(0.975, dof) * math.sqrt(of_a + of_b)
    spread = intervals._spread([a, b], [1.0, -0.25])
    assert spread.dof == pytest.approx(dof)
    assert spread.draws.std() == pytest.approx(math.sqrt(of_a + of_b), rel=0.05)
    # draws of two and three seeds have ends of their own, which the widened quantiles reach
    assert -0.5 - half < low < -1.5 and 0.5 < high < -0.5 + half


def test_one_seed_has_no_spread_of_seeds():
    a, b = sampled([0.0], noise=0.01), sampled([0.5], noise=0.01, seed=1)
    found = intervals.difference(a, b)
    assert 0.45 < found.low < 0.5 < found.high < 0.55 and found.p < 1e-6


def test_p_is_the_level_at_which_the_interval_reaches_zero():
    for shift in (0.5, 1.0, 1.9, 2.5, 3.5):
        rng = np.random.default_rng(3)
        zero = Sampled(np.zeros(1), np.zeros((4000, 1)), 20.0)
        one = Sampled(np.array([shift]), shift + rng.normal(size=(4000, 1)), 20.0)
        p = intervals.difference(zero, one).p
        low, _ = intervals.bounds(one.draws[:, 0], 20.0, level=1 - p)
        # where hardly a draw is below 0 the value is that of the normal
        assert low == pytest.approx(0, abs=0.05 if shift < 3 else 0.8), (shift, p)


def test_the_same_answers_do_not_differ():
    one = sampled([0.3, 0.5])
    found = intervals.difference(one, one)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_holm_by_hand():
    """Of four the smallest is taken four times, the next three times, and none below the one
    before it.
    """
    found = intervals.holm([0.02, 0.01, math.nan, 0.5, 0.021])
    assert found[0] == pytest.approx(0.06) and found[1] == pytest.approx(0.04)
    assert found[3] == 0.5 and found[4] == pytest.approx(0.06) and math.isnan(found[2])
    assert intervals.holm([]) == [] and intervals.holm([0.9, 0.8]) == [1.0, 1.0]


def test_draws_of_figures_do_not_depend_on_how_they_are_made():
    """The quick way over confusion matrices and the plain one are the same draws."""
    rng = np.random.default_rng(0)
    true, pred = rng.integers(3, size=60), rng.integers(3, size=60)
    groups = rng.integers(9, size=60)
    quick = metrics.resampled_classification(true, pred, 3, groups, resamples=50)
    plain = metrics.resampled(
        lambda i: metrics.from_confusion(metrics.confusion(true[i], pred[i], 3)),
        groups,
        resamples=50,
    )
    np.testing.assert_allclose(np.stack(list(quick.values()), axis=1), plain)
