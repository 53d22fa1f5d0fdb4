from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from mer.fusion.measures import metrics

C = 4
labels_strategy = st.lists(
    st.tuples(st.integers(0, C - 1), st.integers(0, C - 1)), min_size=1, max_size=40
)


def nan(value) -> bool:
    return isinstance(value, float) and np.isnan(value)


def test_hand_worked_single():
    """Reference a a a b b c, prediction a a b b c c: recalls 2/3, 1/2, 1; F1 4/5, 1/2, 2/3."""
    found = metrics.classification(
        np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2]), ["a", "b", "c"]
    )
    assert found["n"] == 6
    assert found["wa"] == pytest.approx(4 / 6)
    assert found["ua"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["wf1"] == pytest.approx((3 * 0.8 + 2 * 0.5 + 1 * 2 / 3) / 6)
    assert found["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["per_class"]["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None)
@given(labels_strategy)
def test_single_equals_scikit_learn(pairs):
    true, pred = np.array(pairs).T
    found = metrics.classification(true, pred, [str(c) for c in range(C)])
    assert found["wa"] == pytest.approx(oracle.accuracy_score(true, pred))
    assert found["ua"] == pytest.approx(oracle.balanced_accuracy_score(true, pred))
    assert found["wf1"] == pytest.approx(
        oracle.f1_score(true, pred, average="weighted", zero_division=0)
    )
    assert found["macro_f1"] == pytest.approx(
        oracle.f1_score(true, pred, average="macro", zero_division=0)
    )


def test_absent_class_is_left_out_of_ua_and_has_no_recall():
    found = metrics.classification(np.array([0, 0]), np.array([0, 1]), ["a", "b", "c"])
    assert found["ua"] == 0.5
    assert nan(found["per_class"]["b"]["recall"]) and nan(found["per_class"]["c"]["f1"])
    assert metrics.jsonable(found)["per_class"]["b"]["recall"] is None


def test_empty_and_single_sample():
    empty = np.zeros(0, dtype=int)
    assert all(
        nan(metrics.classification(empty, empty, ["a", "b"])[k])
        for k in ("wa", "ua", "wf1", "macro_f1")
    )
    assert all(nan(v) for k, v in metrics.regression(np.zeros(0), np.zeros(0)).items() if k != "n")
    assert nan(
        metrics.multilabel(np.zeros((0, 2)), np.zeros((0, 2)), ["a", "b"], [0.5, 0.5])["micro_f1"]
    )
    assert metrics.classification(np.array([1]), np.array([1]), ["a", "b"])["ua"] == 1.0
    assert nan(metrics.regression(np.array([1.0]), np.array([0.5]))["pearson"])
    assert nan(metrics.ece(np.zeros(0), np.zeros(0)))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_multilabel_equals_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    true, scores = rng.integers(2, size=(n, 3)), rng.random((n, 3))
    thresholds = rng.random(3)
    found = metrics.multilabel(true, scores, ["a", "b", "c"], thresholds)
    pred = (scores >= thresholds).astype(int)
    assert found["subset_accuracy"] == pytest.approx(oracle.accuracy_score(true, pred))
    for kind in ("micro", "macro"):
        assert found[f"{kind}_f1"] == pytest.approx(
            oracle.f1_score(true, pred, average=kind, zero_division=0)
        )
    if true.any():
        assert found["weighted_f1"] == pytest.approx(
            oracle.f1_score(true, pred, average="weighted", zero_division=0)
        )
    else:
        assert nan(found["weighted_f1"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_thresholds_are_the_best_there_are(seed, n):
    """No threshold anywhere gives a better F1 than the chosen one: all distinct scores tried one by
    one.
    """
    rng = np.random.default_rng(seed)
    true, scores = rng.integers(2, size=(n, 1)), rng.integers(0, 6, size=(n, 1)) / 5
    chosen = metrics.choose_thresholds(true, scores)
    if not true.any():
        assert chosen == [0.5]
        return

    def f1(threshold):
        return oracle.f1_score(true[:, 0], (scores[:, 0] >= threshold).astype(int), zero_division=0)

    assert f1(chosen[0]) == pytest.approx(max(f1(t) for t in [*scores[:, 0], 2.0]))


def test_regression_by_hand():
    """Both conventions of Acc-2 with zeros, half-to-even rounding at .5, clipping beyond 3."""
    true, pred = (
        np.array([-3.0, -0.5, 0.0, 0.0, 0.5, 2.5]),
        np.array([-4.0, -0.4, -0.1, 0.2, 0.6, 3.5]),
    )
    found = metrics.regression(true, pred)
    assert found["acc2_has0"] == pytest.approx(5 / 6)  # only the zero predicted as -0.1 is wrong
    assert found["acc2_non0"] == 1.0
    # rounded: true -3 -0 0 0 0 2, pred -3 -0 -0 0 1 3
    assert found["acc7"] == pytest.approx(4 / 6)
    # clipped to 2: the last two become 2 and 2
    assert found["acc5"] == pytest.approx(5 / 6)
    assert found["mae"] == pytest.approx((1 + 0.1 + 0.1 + 0.2 + 0.1 + 1) / 6)


def test_all_zero_reference_has_no_non0_figures():
    found = metrics.regression(np.zeros(3), np.array([0.3, -0.2, 0.0]))
    assert nan(found["acc2_non0"]) and nan(found["f1_non0"]) and nan(found["pearson"])
    assert found["acc2_has0"] == pytest.approx(2 / 3)


GOLDEN = {
    "mae": "mae",
    "pearson": "corr",
    "acc7": "mult_a7",
    "acc5": "mult_a5",
    "acc2_has0": "acc2",
    "f1_has0": "f_score",
    "acc2_non0": "non_zeros_acc2",
    "f1_non0": "non_zeros_f1_score",
}


def test_regression_equals_published_metric_code(test_data):
    """The unrounded internals of MMSA's MOSI metrics, as the DMD code runs them."""
    golden = np.load(test_data / "golden" / "metrics.npz", allow_pickle=False)
    cases = {k.split("/")[1] for k in golden if k.startswith("regression/")}
    assert "mixed20" in cases and "constant_prediction" in cases
    for case in cases:
        found = metrics.regression(
            golden[f"regression/{case}/true"], golden[f"regression/{case}/pred"]
        )
        for ours, theirs in GOLDEN.items():
            key = f"regression/{case}/unrounded/{theirs}"
            if key in golden:
                assert found[ours] == pytest.approx(float(golden[key]), abs=1e-6, nan_ok=True), (
                    case,
                    ours,
                )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_auc_equals_scikit_learn_with_ties(seed, n):
    rng = np.random.default_rng(seed)
    true, score = rng.integers(2, size=n), rng.integers(4, size=n) / 3
    if true.min() == true.max():
        assert nan(metrics.auc(true, score)) and nan(metrics.balanced_accuracy(true, score > 0.5))
    else:
        assert metrics.auc(true, score) == pytest.approx(oracle.roc_auc_score(true, score))
        assert metrics.balanced_accuracy(true, score > 0.5) == pytest.approx(
            oracle.balanced_accuracy_score(true, score > 0.5)
        )


def test_ece_by_hand():
    """Two bins of ten: 0.95 confident and always right, 0.65 confident and half right."""
    confidence, correct = np.array([0.95, 0.95, 0.65, 0.65]), np.array([1, 1, 1, 0])
    assert metrics.ece(confidence, correct, bins=10) == pytest.approx(0.5 * 0.05 + 0.5 * 0.15)


def test_bootstrap_resamples_whole_groups():
    """Within a group the values cancel, so that the mean of any draw of whole groups is 0; drawn
    one by one it would vary.
    """
    groups = np.repeat(np.arange(10), 2)
    values = np.tile([1.0, -1.0], 10)
    whole = metrics.bootstrap(lambda i: {"mean": values[i].mean()}, groups, resamples=50)
    single = metrics.bootstrap(lambda i: {"mean": values[i].mean()}, np.arange(20), resamples=50)
    assert whole["mean"] == [0.0, 0.0]
    assert single["mean"][0] < 0 < single["mean"][1]


def test_bootstrap_matches_the_normal_interval_of_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    low, high = metrics.bootstrap(
        lambda i: {"mean": values[i].mean()}, np.arange(400), resamples=2000
    )["mean"]
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(
        values.mean() + half, abs=0.02
    )


def test_bootstrap_of_one_group_is_undefined():
    assert all(nan(v) for v in metrics.bootstrap(lambda i: {"n": float(len(i))}, np.zeros(5))["n"])
