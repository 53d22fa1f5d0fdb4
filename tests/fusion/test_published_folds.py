"""`--folds published`: the rows of each fold are those that the store says, in every command."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import config
from mer.fusion.config import DataConfig
from mer.fusion.data import splits
from mer.fusion.data.splits import Fold
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore, build_index

from tests.fusion.stores import make_store
from tests.fusion.test_splits import of, table


def with_folds(t: pa.Table, folds: list[list[str]]) -> pa.Table:
    return t.append_column("folds", pa.array(folds, pa.list_(pa.string())))


def published(name: str) -> Fold:
    return Fold(name, "published", (name,))


def test_folds_are_those_of_the_table_numbers_in_their_order():
    t = with_folds(table(4), [["10=test", "2=train"], ["10=train", "2=test"]] * 2)
    made, notes = splits.folds(t, of(t), "published")
    assert made == [published("2"), published("10")] and not notes


def test_parts_are_taken_as_they_are_and_dev_is_carved_where_there_is_none():
    speakers = [f"s{i // 5}" for i in range(60)]
    parts = ["test"] * 20 + ["train"] * 35 + [""] * 5
    folds = [[f"1={part}"] if part else [] for part in parts]
    t = with_folds(table(60, speaker=speakers), folds)
    plan = splits.assign(t, of(t), DataConfig(dev_share=0.2), published("1"))
    assert splits.held_out(t, published("1")).tolist() == list(range(20))
    assert sorted([*plan.train, *plan.dev]) == list(range(20, 55))
    heard = {speakers[row] for row in plan.train}
    assert not heard & {speakers[row] for row in plan.dev}
    assert "5 rows in no part of fold 1 left out" in plan.notes
    own = [["1=dev"] if 20 <= i < 25 else entries for i, entries in enumerate(folds)]
    t = with_folds(table(60, speaker=speakers), own)
    plan = splits.assign(t, of(t), DataConfig(), published("1"))
    assert plan.dev.tolist() == list(range(20, 25)) and plan.train.tolist() == list(range(25, 55))


def test_without_groups_dev_is_carved_by_utterance_which_a_note_says():
    t = with_folds(table(60), [["1=test"] if i < 20 else ["1=train"] for i in range(60)])
    plan = splits.assign(t, of(t), DataConfig(dev_share=0.25), published("1"))
    assert len(plan.dev) == 10 and len(plan.train) == 30
    assert any("carved from train by utterance" in n and "voice" in n for n in plan.notes)


def test_a_speaker_on_both_sides_is_noted():
    t = table(60, speaker=[f"s{i % 4}" for i in range(60)])
    t = with_folds(t, [["1=test"] if i < 21 else ["1=train"] for i in range(60)])
    plan = splits.assign(t, of(t), DataConfig(), published("1"))
    told = "fold 1 is not speaker-independent: 4 speakers of its test part (21 rows) are in train"
    assert any(note.startswith(told) for note in plan.notes)


def test_folds_that_cannot_be_trained_are_named():
    t = table(6, speaker=list("aabbcc"))
    with pytest.raises(DataError, match="the store has none; .*or --folds speaker makes some"):
        splits.folds(t, of(t), "published")
    t = with_folds(table(4), [["1=train"], ["1=train"], ["1=train"], ["2=test"]])
    with pytest.raises(DataError, match="fold '1' has no labelled test rows"):
        splits.folds(t, of(t), "published")
    labels = ["a", "b", "a", None]
    t = with_folds(table(4, label=labels), [["1=train"]] * 3 + [["1=test"]])
    with pytest.raises(DataError, match="fold '1' has no labelled test rows"):
        splits.folds(t, of(t), "published")


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    """Three folds by dialogue, of which the second has a dev part of its own."""
    made = make_store(tmp_path, n=96)
    rows = made.table().to_pylist()
    for number, row in enumerate(rows):
        parts = {}
        for fold in (1, 2, 3):
            parts[fold] = "test" if number // 4 % 3 == fold - 1 else "train"
        if parts[2] == "train" and number < 20:
            parts[2] = "dev"
        row["folds"] = [f"{fold}={part}" for fold, part in parts.items()]
    h = made.header
    return build_index(
        made.path,
        sorted((tmp_path / "feats.shards").glob("*.h5")),
        rows,
        dataset=h.dataset,
        task=h.task,
        labels=h.labels,
        modalities=h.modalities,
    )


def test_a_run_trains_and_tests_these_rows(store, tmp_path):
    out = tmp_path / "run"
    words = ["train", str(store.path), "--model", "concat", "--folds", "published"]
    settings = ["--set", "train.epochs=1", "--out", str(out), "--device", "cpu", "--json"]
    done = CliRunner().invoke(main, [*words, *settings])
    assert done.exit_code == 0, done.stderr
    rows = {row["id"]: row["folds"] for row in store.table().to_pylist()}
    found = json.loads((out / "metrics.json").read_text())
    assert found["folds"] == ["1", "2", "3"] and found["over"] == "folds"
    for fold in ("1", "2", "3"):
        split = json.loads((out / f"fold-{fold}" / "split.json").read_text())
        test = {id for id, entries in rows.items() if f"{fold}=test" in entries}
        dev = {id for id, entries in rows.items() if f"{fold}=dev" in entries}
        assert {*split["train"], *split["dev"]} == rows.keys() - test
        assert not dev or set(split["dev"]) == dev
    means = [row["metrics"]["ua"] for row in found["runs"]]
    np.testing.assert_allclose(found["metrics"]["ua"], np.mean(means), atol=1e-6)
    again = CliRunner().invoke(main, [*words, *settings])
    assert again.exit_code == 0
    assert json.loads(again.stdout)["runs"] == json.loads(done.stdout)["runs"]
    done = CliRunner().invoke(main, ["evaluate", str(out), "--split", "dev", "--device", "cpu"])
    assert done.exit_code == 0, done.stderr


def test_folds_go_with_the_store(store, tmp_path):
    """One file, Parquet and back, and a join keep them; other folds make another run."""
    wanted = {row["id"]: row["folds"] for row in store.table().to_pylist()}

    def run(*words) -> None:
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == 0, done.stderr

    run("export", store.path, tmp_path / "one.h5", "--to", "single")
    run("export", store.path, tmp_path / "t.parquet", "--to", "parquet")
    run("import", "parquet", tmp_path / "t.parquet", "--out", tmp_path / "back.h5")
    other = make_store(tmp_path / "other", n=96, modalities={"vision": 4})
    run("join", store.path, other.path, "--out", tmp_path / "joined.h5")
    for name in ("one.h5", "back.h5", "joined.h5"):
        with FeatureStore(tmp_path / name) as there:
            assert {r["id"]: r["folds"] for r in there.table().to_pylist()} == wanted, name


def test_stores_without_folds_are_written_as_before(tmp_path):
    made = make_store(tmp_path, n=12)
    assert made.header.version == 2 and "folds" not in made.table().column_names


def test_folds_whose_names_make_one_folder_have_one_each():
    """As names of speakers do that have no Latin letter in them."""
    names = ("张三", "李四", "a/b", "a-b", "a-b-2", "c")
    made = experiment._members(config.load(model="concat"), 2, [published(name) for name in names])
    of_first_seed = [one.name for one in made if one.name.endswith("seed-0")]
    assert of_first_seed == [
        f"fold-{name}-seed-0" for name in ("x", "x-2", "a-b", "a-b-2", "a-b-2-2", "c")
    ]
    assert len({one.name for one in made}) == 2 * len(names)
