"""What goes out of a store comes in again unchanged by every door; what the command itself says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mer.pipeline.interchange import mmsa, npydir, npz, parquet
from mer.pipeline.interchange.export import export
from mer.pipeline.store import FeatureStore, ShardWriter, build_index

from tests.interchange.doors import arrays_file, assert_same, imported, mer
from tests.store.build import make_store
from tests.store.test_export import awkward

DOORS = {"npy": npydir, "parquet": parquet, "mmsa": mmsa}


@pytest.mark.parametrize("to", DOORS)
def test_what_goes_out_comes_in_again(tmp_path, to):
    store = make_store(tmp_path, key="k" * 64)
    export(store, to, tmp_path / "out")
    again = imported(DOORS[to], tmp_path / "out", tmp_path / "again.h5")
    assert_same(store, again, *(["duration"] if to == "mmsa" else []))
    assert again.header.fingerprint == "" and again.header.provenance["imported"] == {
        "npy": "npy-dir"
    }.get(to, to)
    assert again.header.provenance["exported_from"] == "k" * 64
    again.verify()


@pytest.mark.parametrize("to", DOORS)
def test_awkward_ids_and_text_survive(tmp_path, to):
    store = awkward(tmp_path)
    export(store, to, tmp_path / "out")
    again = imported(DOORS[to], tmp_path / "out", tmp_path / "again.h5")
    assert_same(
        store, again, *(["duration", "tags", "dialogue", "position"] if to == "mmsa" else [])
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.h5",
        "again.shards",
        "f.h5",
        "out",
        "s.h5",
    ]


@pytest.mark.parametrize("to", DOORS)
def test_multi_label_three_modalities_and_absent_ones(tmp_path, to):
    rng = np.random.default_rng(0)
    dims = {"audio": 4, "text": 2, "vision": 3}
    with ShardWriter(tmp_path / "s.h5", dims, dtype="float32") as writer:
        for k in range(9):
            writer.add(
                f"u{k}",
                {
                    m: rng.normal(size=(k % 3 + 1, d))
                    for j, (m, d) in enumerate(dims.items())
                    if k % 4 != j
                },
            )
    table = [
        {"id": f"u{k}", "split": ("train", "dev", "test")[k % 3], "targets": [k % 2, 1]}
        for k in range(9)
    ]
    store = build_index(
        tmp_path / "f.h5",
        [tmp_path / "s.h5"],
        table,
        dataset="d",
        task="multi",
        labels=["joy", "fear"],
    )
    export(store, to, tmp_path / "out")
    assert_same(store, imported(DOORS[to], tmp_path / "out", tmp_path / "again.h5"))


def test_import_replaces_only_when_told(tmp_path):
    arrays_file(tmp_path / "x.npz")
    out = tmp_path / "f.h5"
    assert mer("import", "npz", tmp_path / "x.npz", "--out", out)[0] == 0
    before = out.read_bytes()
    arrays_file(tmp_path / "y.npz", label=np.array([0, 0, 1]))
    code, _, err = mer("import", "npz", tmp_path / "y.npz", "--out", out)
    assert code == 1 and out.read_bytes() == before
    assert (
        "exists already, from other content or options; name another --out, or replace it with "
        "--force" in err
    )
    (tmp_path / "f.shards/shard-00007.h5").write_bytes(b"of an import that was stopped")
    assert mer("import", "npz", tmp_path / "x.npz", "--out", out, "--force")[0] == 0
    assert out.read_bytes() == before and sorted(
        p.name for p in (tmp_path / "f.shards").iterdir()
    ) == [".hold", "shard-00000.h5"]


def test_several_shards_hold_what_one_holds(tmp_path, monkeypatch):
    store = make_store(tmp_path, n=20)
    export(store, "parquet", tmp_path / "x.parquet")
    monkeypatch.setattr("mer.pipeline.interchange.importing.SHARD_BYTES", 300)
    again = imported(parquet, tmp_path / "x.parquet", tmp_path / "again.h5")
    assert len(again.shards) > 3
    assert_same(store, again)
    again.verify()


@pytest.mark.parametrize("kind", ["mmsa", "npz", "parquet", "npy-dir"])
@pytest.mark.parametrize("content", [None, b"", b"hello\n" * 100, "folder"])
def test_bad_file_is_one_line(tmp_path, kind, content):
    path = tmp_path / "x"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    code, out, err = mer("import", kind, path, "--out", tmp_path / "f.h5")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1 and str(path) in err, err
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    "option",
    [["--column", "id"], ["--feature", "=x"], ["--frame-rate", "audio=fast"], ["--dtype", "int8"]],
)
def test_bad_option_is_a_usage_error(tmp_path, option):
    arrays_file(tmp_path / "x.npz")
    assert mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "f.h5", *option)[0] == 2


def test_damaged_import_cannot_be_repaired_and_says_so(tmp_path):
    arrays_file(tmp_path / "x.npz")
    assert mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "f.h5")[0] == 0
    shutil.rmtree(tmp_path / "f.shards")
    code, _, err = mer("verify", "--repair", tmp_path / "f.h5")
    assert code == 5 and "it was imported: import it again" in err


def test_real_mosi_features(test_data, tmp_path):
    """The utterance-level MOSI features: both tasks, all three modalities, every value."""
    path = test_data / "mosi/mosi_utt.npz"
    if not path.is_file():
        pytest.skip("MER_TEST_DATA has no mosi/mosi_utt.npz")
    source = np.load(path)
    common = ["--column", "split=split_bclstm", "--dataset", "mosi"]
    assert (
        mer(
            "import",
            "npz",
            path,
            "--out",
            tmp_path / "c.h5",
            "--labels",
            "negative,non-negative",
            *common,
        )[0]
        == 0
    )
    assert (
        mer("import", "npz", path, "--out", tmp_path / "r.h5", "--task", "regression", *common)[0]
        == 0
    )
    one, two = FeatureStore(tmp_path / "c.h5"), FeatureStore(tmp_path / "r.h5")
    names = np.array(["negative", "non-negative"])
    assert one.table()["label"].to_pylist() == names[source["label"]].tolist()
    assert np.array_equal(
        np.array(two.table()["targets"].to_pylist(), np.float32)[:, 0], source["label_reg"]
    )
    assert one.table()["split"].to_pylist() == source["split_bclstm"].tolist()
    assert one.table()["dialogue"].to_pylist() == source["video_id"].tolist()
    assert one.table()["text"].to_pylist() == source["transcript"].tolist()
    for m, name in (("audio", "audio"), ("text", "text"), ("vision", "video")):
        np.testing.assert_array_equal(two.packed(m)[0], source[name])
    one.verify()
    export(two, "mmsa", tmp_path / "r.pkl")
    assert_same(
        two,
        imported(mmsa, tmp_path / "r.pkl", tmp_path / "again.h5"),
        "dialogue",
        "position",
        "duration",
    )
    assert (
        json.loads(mer("inspect", tmp_path / "r.h5", "--json")[1])["splits"]["test"]["utterances"]
        == 752
    )


def test_the_npz_of_the_docs(tmp_path):
    store = make_store(tmp_path)
    packed, offsets = store.packed("audio")
    ids, labels = (store.table()[c].to_pylist() for c in ("id", "label"))
    np.savez(tmp_path / "f.npz", id=ids, label=labels, audio=packed, audio_offsets=offsets)
    again = imported(npz, tmp_path / "f.npz", tmp_path / "again.h5")
    np.testing.assert_array_equal(again.packed("audio")[0], packed)
    assert (
        again.table()["label"].to_pylist() == labels
        and again.lengths("audio").tolist() == store.lengths("audio").tolist()
    )
