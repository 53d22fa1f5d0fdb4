from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mer.fusion.config import DataConfig
from mer.fusion.data import splits
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store


def table(n: int = 60, **columns) -> pa.Table:
    base = {
        "id": [f"u{i}" for i in range(n)],
        "split": ["train"] * n,
        "label": ["a" if i % 3 else "b" for i in range(n)],
        "dialogue": [None] * n,
        "speaker": [None] * n,
        "session": [None] * n,
    }
    return pa.table({k: pa.array(v, pa.string()) for k, v in (base | columns).items()})


def of(t: pa.Table) -> np.ndarray:
    return splits.targets(t, "single", ("a", "b"))


def groups(t: pa.Table, by: str, rows: np.ndarray) -> set:
    return {t[by][int(r)].as_py() for r in rows}


def test_stored_splits_are_taken_as_they_are():
    t = table(6, split=["train", "dev", "test", "train", "", "dev"])
    plan = splits.assign(t, of(t), DataConfig())
    assert plan.train.tolist() == [0, 3] and plan.dev.tolist() == [1, 5]
    assert splits.held_out(t).tolist() == [2]
    assert plan.notes == ("1 row without a split left out",)


@pytest.mark.parametrize("by", ["dialogue", "speaker", "session"])
def test_dev_is_carved_by_the_first_group_there_is(by):
    t = table(60, **{by: [f"g{i // 5}" for i in range(60)]})
    plan = splits.assign(t, of(t), DataConfig(dev_share=0.2))
    assert not groups(t, by, plan.train) & groups(t, by, plan.dev)
    assert sorted([*plan.train, *plan.dev]) == list(range(60))
    assert len(plan.dev) == 10  # 12 are wanted; groups of 5 give 10 or 15
    assert f"by {by}: 2 of 12 groups, 10 rows; 50 rows remain (seed 0)" in plan.notes[0]
    again = splits.assign(t, of(t), DataConfig(dev_share=0.2))
    assert again.dev.tolist() == plan.dev.tolist()
    other = splits.assign(t, of(t), DataConfig(dev_share=0.2, split_seed=3))
    assert other.dev.tolist() != plan.dev.tolist()


def test_carved_dev_has_labels_like_train():
    """Half of the dialogues hold one label only; dev gets of both kinds."""
    t = table(
        80,
        dialogue=[f"g{i // 4}" for i in range(80)],
        label=["a" if i < 40 else "b" for i in range(80)],
    )
    for seed in range(5):
        plan = splits.assign(t, of(t), DataConfig(dev_share=0.2, split_seed=seed))
        assert abs((of(t)[plan.dev] == 0).mean() - 0.5) <= 0.1


def test_never_by_utterance_unless_asked():
    t = table(20)
    with pytest.raises(DataError, match="data.dev_by=utterance"):
        splits.assign(t, of(t), DataConfig())
    plan = splits.assign(t, of(t), DataConfig(dev_by="utterance", dev_share=0.25))
    assert len(plan.dev) == 5
    with pytest.raises(DataError, match="not every training row has a speaker"):
        splits.assign(t, of(t), DataConfig(dev_by="speaker"))
    half = table(
        20, dialogue=[None, *["x"] * 9, *["y"] * 10], speaker=[f"s{i % 4}" for i in range(20)]
    )
    # a column with gaps is not used
    assert "by speaker" in splits.assign(half, of(half), DataConfig()).notes[0]


def test_unlabelled_rows_are_counted():
    t = table(
        6,
        label=["a", None, "b", "a", None, "b"],
        split=["train", "train", "train", "dev", "dev", "test"],
    )
    plan = splits.assign(t, of(t), DataConfig())
    assert plan.train.tolist() == [0, 2] and plan.dev.tolist() == [3]
    assert plan.notes == ("2 rows without a label left out of train and dev",)


def test_no_training_rows():
    with pytest.raises(DataError, match="--folds session"):
        t = table(6, split=[""] * 6, session=["1", "2", "3"] * 2)
        splits.assign(t, of(t), DataConfig())
    with pytest.raises(DataError, match="split column"):
        splits.assign(table(6, split=["test"] * 6), of(table(6)), DataConfig())
    with pytest.raises(DataError, match="no labelled training rows"):
        t = table(2, label=[None, None])
        splits.assign(t, of(t), DataConfig())


@pytest.mark.parametrize("by", ["session", "speaker", "dialogue"])
def test_folds_hold_out_every_row_once_and_share_no_group(tmp_path, by):
    t = make_store(tmp_path, n=160).table()
    y = splits.targets(t, "single", ("calm", "glad", "sad"))
    made, notes = splits.folds(t, y, by)
    assert any("not used" in n for n in notes)
    held = np.concatenate([splits.held_out(t, f) for f in made])
    assert sorted(held) == list(range(160))
    for fold in made:
        plan, test = splits.assign(t, y, DataConfig(), fold), splits.held_out(t, fold)
        rows = [set(plan.train), set(plan.dev), set(test)]
        assert (
            all(rows) and not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
        )
        assert not groups(t, by, test) & (groups(t, by, plan.train) | groups(t, by, plan.dev))
        inner = "speaker" if by == "speaker" else "dialogue"  # nested: dev is carved by group, too
        assert not groups(t, inner, plan.train) & groups(t, inner, plan.dev)


def test_many_groups_are_bundled_and_said_so():
    t = table(120, dialogue=[f"g{i // 2}" for i in range(120)], split=[""] * 120)
    made, notes = splits.folds(t, of(t), "dialogue")
    assert len(made) == splits.BUNDLES and "60 dialogue groups bundled into 10 folds" in notes[0]
    assert {len(splits.held_out(t, f)) for f in made} == {12}


def test_folds_need_three_groups_and_count_rows_without_one():
    with pytest.raises(DataError, match="2 labelled groups"):
        t = table(4, speaker=["a", "b", "a", "b"])
        splits.folds(t, of(t), "speaker")
    t = table(9, speaker=["a", "b", "c"] * 2 + [None, "", "a"], split=[""] * 9)
    with pytest.raises(
        DataError,
        match=r"--folds session: the store has 0 labelled groups; .*by speaker .* --folds speaker",
    ):
        splits.folds(t, of(t), "session")
    made, _ = splits.folds(t, of(t), "speaker")
    plan = splits.assign(t, of(t), DataConfig(), made[0])
    assert "2 rows without a speaker left out" in plan.notes
    assert not {6, 7} & {*plan.train, *plan.dev, *splits.held_out(t, made[0])}


def test_targets_of_every_task():
    t = pa.table(
        {
            "label": pa.array(["a", None]),
            "targets": pa.array([[1.0, 0.0], None], pa.list_(pa.float32())),
        }
    )
    assert splits.targets(t, "single", ("a",)).tolist() == [0, -1]
    multi = splits.targets(t, "multi", ("x", "y"))
    assert multi[0].tolist() == [1, 0] and np.isnan(multi[1]).all()
    assert splits.labelled(multi).tolist() == [True, False]
    with pytest.raises(DataError, match="2 targets, its header says 1"):
        splits.targets(t, "regression", ("v",))
    with pytest.raises(DataError, match="has label 'a'"):
        splits.targets(t, "single", ("b",))
