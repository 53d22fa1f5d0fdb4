"""-1, 0, 1 lost its negative class, and with --labels the others moved
(LeonCrashCode/AttentionTargetSentiment#4, A2Zadeh/CMU-MultimodalSDK#18).

The right classes follow from the order of the numbers.
"""

from __future__ import annotations

import numpy as np
import pytest

from mer.pipeline.errors import DataError

from tests.cases.imports import imported, mer

SIGNS = ("negative", "neutral", "positive")
NONE = "-"  # in the tables: unlabelled


@pytest.mark.parametrize("spelled", [False, True], ids=["numbers", "text"])
@pytest.mark.parametrize(
    ("values", "labels", "unlabelled", "expected"),
    [
        ([-1, 0, 1], SIGNS, None, [*SIGNS]),
        ([-1, 0, 1], ("sad", "glad"), None, [NONE, "sad", "glad"]),
        ([-1, 0, 1], SIGNS, "-1", [NONE, "negative", "neutral"]),
        ([-1, 0, 1], (), "none", ["-1", "0", "1"]),
        ([-1, 0, 1], (), "-1", [NONE, "0", "1"]),
        ([-1, 1, 1], (), None, ["-1", "1", "1"]),
        ([-1, 1, 1], ("no", "yes"), "none", ["no", "yes", "yes"]),
        ([-1, 0, 2], (), None, [NONE, "0", "2"]),
        ([-1, 0, 2], SIGNS, None, [NONE, "negative", "positive"]),
        ([-2, -1, 0], (), None, ["-2", "-1", "0"]),
        ([-2, -1, 0], SIGNS, None, [*SIGNS]),
        ([0, 1, 2], SIGNS, None, [*SIGNS]),
    ],
)
def test_every_number_is_its_class_or_said_to_be_none(
    tmp_path, values, labels, unlabelled, expected, spelled
):
    given = np.array([str(v) for v in values]) if spelled else np.array(values)
    np.savez(tmp_path / "x.npz", id=["a", "b", "c"], label=given, audio=np.ones((3, 2)))
    store = imported(
        "npz", tmp_path / "x.npz", tmp_path / "f.h5", labels=labels, unlabelled=unlabelled
    )
    assert [label or NONE for label in store.table()["label"].to_pylist()] == expected


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([-1, 0, 1], ()),
        ([-1, 0, 0], SIGNS),
        ([-1, 1, 1], SIGNS),
        ([-1, 1, 1], ("a", "b")),
        ([-2, 0, 1], SIGNS),
        ([-100, 0, 1], ()),
        ([-1, 1, 2], ()),
        ([-1, -1, -1], ()),
        ([-2, -1, 0], ("a", "b")),
    ],
)
def test_what_may_be_a_class_or_none_is_asked_about(tmp_path, values, labels, as_text):
    np.savez(
        tmp_path / "x.npz",
        id=["a", "b", "c"],
        label=np.array(values).astype(str if as_text else int),
        audio=np.ones((3, 2)),
    )
    with pytest.raises(DataError, match="may be a class or mean none.*--unlabelled=-1") as caught:
        imported("npz", tmp_path / "x.npz", tmp_path / "f.h5", labels=labels)
    assert len(str(caught.value).removeprefix(str(tmp_path))) <= 300


def test_floats_that_are_whole_are_numbers_of_classes(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        id=["a", "b", "c"],
        label=np.array([-1.0, 0.0, 1.0]),
        audio=np.ones((3, 2)),
    )
    store = imported("npz", tmp_path / "x.npz", tmp_path / "f.h5", labels=SIGNS)
    assert store.table()["label"].to_pylist() == [*SIGNS]


def test_unlabelled_rows_are_counted(tmp_path):
    np.savez(
        tmp_path / "x.npz", id=["a", "b", "c"], label=np.array([-1, 0, 2]), audio=np.ones((3, 2))
    )
    code, _, err = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "f.h5")
    assert (
        code == 0
        and "unlabelled: 1 of 3 utterances" in err
        and "-1 = unlabelled" in err
        and "no utterance has label 1" in err
    )
    np.savez(
        tmp_path / "y.npz",
        id=["a", "b", "c"],
        targets=np.array([np.nan, -1, 2]),
        audio=np.ones((3, 2)),
    )
    code, _, err = mer("import", "npz", tmp_path / "y.npz", "--out", tmp_path / "g.h5")
    assert code == 0 and "unlabelled: 1 of 3 utterances" in err and "targets from -1 to 2" in err


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([[1, 0], [0, 1], [-1, -1]], [[1, 0], [0, 1], None]),
        ([[1, 0], [np.nan, np.nan], [0, 1]], [[1, 0], None, [0, 1]]),
    ],
)
def test_multi_takes_a_row_of_minus_ones_for_none(tmp_path, targets, expected):
    np.savez(tmp_path / "x.npz", id=["a", "b", "c"], y=np.array(targets), audio=np.ones((3, 2)))
    store = imported(
        "npz",
        tmp_path / "x.npz",
        tmp_path / "f.h5",
        task="multi",
        columns={"targets": "y"},
        labels=("joy", "fear"),
    )
    assert store.table()["targets"].to_pylist() == expected


@pytest.mark.parametrize(
    ("targets", "task", "message"),
    [
        ([[1, -1], [-1, 1], [1, 1]], "multi", "has target -1; a multi task takes 0 or 1"),
        ([[-1, -1], [1, 1], [1, 1]], "multi", "has target -1"),
        ([[0, 1], [-1, 1], [1, 1]], "multi", "has target -1"),
        ([[0, 1], [3, 1], [1, 1]], "multi", "has target 3"),
        ([[0, 1], [np.nan, 1], [1, 1]], "multi", "of which some are missing"),
        ([0.5, np.inf, 1], "regression", "targets is 'is inf|not a number"),
        ([[0, 1], [1, 1], [1, 1]], "regression", "targets have 2 values each"),
    ],
)
def test_targets_of_another_kind_are_an_error(tmp_path, targets, task, message):
    np.savez(tmp_path / "x.npz", id=["a", "b", "c"], y=np.array(targets), audio=np.ones((3, 2)))
    with pytest.raises(DataError, match=message):
        imported("npz", tmp_path / "x.npz", tmp_path / "f.h5", task=task, columns={"targets": "y"})
