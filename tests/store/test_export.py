from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import struct
import subprocess

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.interchange.export import export
from mer.pipeline.interchange.formats import EXPORTS
from mer.pipeline.runtime import limits
from mer.pipeline.store import FeatureStore, Header, ShardWriter, build_index, verify_shards
from mer.pipeline.store.schema import COLUMNS

from tests.store.build import DIMS, arrays, assert_holds, make_store


def same(a: FeatureStore, b: FeatureStore, rows: list[int] | None = None) -> None:
    """b holds the rows of a: table, lengths, values, means."""
    rows = list(range(len(a))) if rows is None else rows
    columns = [*COLUMNS.names, "duration", *(f"n_{m}" for m in a.header.modalities)]
    assert b.table().select(columns).to_pylist() == a.table().select(columns).take(rows).to_pylist()
    for m in a.header.modalities:
        np.testing.assert_array_equal(b.packed(m)[0], a.packed(m, rows)[0])
        np.testing.assert_array_equal(b.pooled(m), a.pooled(m)[rows])


def test_single_is_a_store_by_itself(tmp_path):
    store = make_store(tmp_path / "a", key="k" * 64)
    export(store, "single", tmp_path / "one.h5")
    shutil.rmtree(tmp_path / "a/feats.shards")
    one = FeatureStore(tmp_path / "one.h5")
    assert_holds(one)
    assert one.header == store.header and one.flags.tolist() == store.flags.tolist()
    one.verify()
    (tmp_path / "one.h5").rename(tmp_path / "moved.h5")
    assert_holds(FeatureStore(tmp_path / "moved.h5"))
    export(FeatureStore(tmp_path / "moved.h5"), "single", tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "moved.h5").read_bytes()


def test_single_finds_every_flipped_byte_of_its_arrays(tmp_path):
    export(make_store(tmp_path, n=4, shards=1), "single", tmp_path / "one.h5")
    raw = (tmp_path / "one.h5").read_bytes()
    with h5py.File(tmp_path / "one.h5", "r") as file:
        spans = [
            (d.id.get_offset(), d.nbytes)
            for m in DIMS
            for d in (file[f"data/{m}/x"], file[f"data/{m}/pooled"])
        ]
    rng = np.random.default_rng(0)
    for start, size in spans:
        for at in (start + rng.integers(0, size, 5)).tolist():
            flipped = bytearray(raw)
            flipped[at] ^= 4
            (tmp_path / "one.h5").write_bytes(flipped)
            assert [d.shard for d in verify_shards(tmp_path / "one.h5")] == [0]
    (tmp_path / "one.h5").write_bytes(raw[:-1])
    with pytest.raises(StoreError):
        FeatureStore(tmp_path / "one.h5").verify()


def test_single_of_shards_of_both_dtypes(tmp_path):
    with ShardWriter(tmp_path / "a.h5", {"audio": 2}) as writer:
        writer.add("u", {"audio": [[1e6, 1]]}, duration=1)
    with ShardWriter(tmp_path / "b.h5", {"audio": 2}) as writer:
        writer.add("v", {"audio": [[0.1, 2], [3, 4]]}, duration=2)
    shards, table = [tmp_path / "a.h5", tmp_path / "b.h5"], [{"id": "v"}, {"id": "u"}]
    store = build_index(tmp_path / "f.h5", shards, table, dataset="d", task="single", labels=[])
    export(store, "single", tmp_path / "one.h5")
    one = FeatureStore(tmp_path / "one.h5")
    same(store, one)
    one.verify()
    assert one.header == store.header


@pytest.mark.parametrize("to", EXPORTS)
def test_subset_by_split_and_by_file(tmp_path, to):
    store = make_store(tmp_path)
    (tmp_path / "ids.txt").write_text("\ufeffu3\nu1\n\n", encoding="utf-8")
    assert export(store, to, tmp_path / "a", subset="dev") == (4, True)
    assert export(store, to, tmp_path / "b", subset=str(tmp_path / "ids.txt")) == (2, True)
    (tmp_path / "ids.txt").write_text("u3\nnobody\n")
    for subset, message in (
        (str(tmp_path / "ids.txt"), "1 of 2 ids are not in .* first 'nobody'"),
        ("valid", "neither a split"),
    ):
        with pytest.raises(DataError, match=message):
            export(store, to, tmp_path / "c", subset=subset)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfeu\x001\x00", "ids.txt: not UTF-8 .byte 0xff"),
        (b"x" * 1_000_000, "ids.txt: 1 of 1 id is not in"),
        (b"u1\n\0\x1b[31m\n", r"1 of 2 ids are not in .*first '\\x00"),
        (None, "ids.txt: more than 268,435,456 bytes"),
        (b"\n\r\n", "ids.txt: no id in it"),
    ],
)
def test_a_subset_that_is_no_list_of_ids_is_one_line(tmp_path, content, words):
    """Bytes that are no text were an internal error, a large file took all memory."""
    store, path = make_store(tmp_path), tmp_path / "ids.txt"
    path.write_bytes(content or b"")
    if content is None:
        os.truncate(path, limits.SUBSET_BYTES + 1)
    with pytest.raises(DataError, match=words) as raised:
        export(store, "npy", tmp_path / "out", subset=str(path))
    said = str(raised.value).replace(str(tmp_path), "")
    assert len(said) <= 300 and said.isprintable()


def test_single_subset_keeps_the_stores_order(tmp_path):
    store = make_store(tmp_path)
    export(store, "single", tmp_path / "dev.h5", subset="dev")
    rows = [i for i, s in enumerate(store.table()["split"].to_pylist()) if s == "dev"]
    same(store, FeatureStore(tmp_path / "dev.h5"), rows)


AWKWARD = [
    "a/b",
    "../x",
    "u",
    "U",
    "row.0000003",
    "-6rXp",
    "vid$_$1",
    ".",
    "..",
    "=1+1",
    "😀",
    "x" * 300,
    "a\x00b",
    "a b",
]


def awkward(folder):
    with ShardWriter(folder / "s.h5", {"audio": 2, "vision": 3}) as writer:
        for k, id in enumerate(AWKWARD):
            writer.add(id, {"audio": np.full((k % 3, 2), k), "vision": np.full(3, k + 0.5)})
    text = 'he said "no",\r\n=then\nleft'
    table = [
        {"id": id, "split": "train", "text": text, "tags": ["a,b"], "targets": [k / 4]}
        for k, id in enumerate(AWKWARD)
    ]
    return build_index(
        folder / "f.h5",
        [folder / "s.h5"],
        table,
        dataset="d",
        task="regression",
        labels=["valence"],
    )


def test_npy_folder_names_are_safe_whatever_the_ids(tmp_path):
    export(awkward(tmp_path), "npy", tmp_path / "out", plain_cells=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.h5", "out", "s.h5"]
    with open(tmp_path / "out/index.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == AWKWARD and len({r["file"].lower() for r in rows}) == len(
        rows
    )
    assert (
        rows[2]["file"] == "u"
        and rows[3]["file"] != "U"
        and all(r["text"] == 'he said "no",\r\n=then\nleft' for r in rows)
    )
    for k, row in enumerate(rows):
        path = tmp_path / "out/audio" / f"{row['file']}.npy"
        assert path.resolve().parent == (
            tmp_path / "out/audio"
        ).resolve() and path.exists() == bool(k % 3)
        np.testing.assert_array_equal(
            np.load(tmp_path / "out/vision" / f"{row['file']}.npy"), np.full((1, 3), k + 0.5)
        )
        assert json.loads(row["targets"]) == [k / 4] and json.loads(row["tags"]) == ["a,b"]
    assert Header.from_json((tmp_path / "out/header.json").read_text()).task == "regression"


def test_parquet_is_read_by_anyone(tmp_path):
    store = make_store(tmp_path)
    export(store, "parquet", tmp_path / "out.parquet")
    file = pq.ParquetFile(tmp_path / "out.parquet")
    rows = file.read().to_pylist()
    assert [r["id"] for r in rows] == store.table()["id"].to_pylist() and rows[0]["label"] in (
        "joy",
        "anger",
    )
    for i, r in enumerate(rows):
        assert r["text"] == store.table()["text"][i].as_py()
        for m, dim in DIMS.items():
            np.testing.assert_array_equal(
                np.array(r[f"{m}_features"], np.float32).reshape(-1, dim), store.features(m, i)
            )
    assert Header.from_json(file.schema_arrow.metadata[b"mer"].decode()) == store.header


def test_parquet_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("mer.pipeline.interchange.parquet.GROUP_ROWS", 5)
    store = make_store(tmp_path, n=23)
    export(store, "parquet", tmp_path / "out.parquet")
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [
        5,
        5,
        5,
        5,
        3,
    ]
    assert file.read(["id"])["id"].to_pylist() == store.table()["id"].to_pylist()


def test_mmsa_pickle_has_the_known_form(tmp_path):
    store = make_store(tmp_path)
    export(store, "mmsa", tmp_path / "out.pkl")
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    data, dev = arrays(12), content["valid"]
    assert dev["id"] == ["u10", "u7", "u4", "u1"] and dev["raw_text"].tolist()[0] == "text 10"
    longest = max(len(x["audio"]) for x in data)
    assert dev["audio"].shape == (4, longest, 6) and dev["audio"].dtype == np.float32
    for id, x, n in zip(dev["id"], dev["audio"], dev["audio_lengths"], strict=True):
        np.testing.assert_array_equal(x[:n], data[int(id[1:])]["audio"])
        assert not x[n:].any()
    assert dev["annotations"] == ["joy", "anger", "joy", "anger"] and dev[
        "classification_labels"
    ].tolist() == [0, 1, 0, 1]
    export(awkward(tmp_path), "mmsa", tmp_path / "reg.pkl")
    train = pickle.loads((tmp_path / "reg.pkl").read_bytes())["train"]
    assert train["regression_labels"].tolist()[:2] == [0.0, 0.25] and train["annotations"][:2] == [
        "Neutral",
        "Positive",
    ]


def test_mmsa_refuses_what_it_cannot_hold(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    monkeypatch.setattr("mer.pipeline.interchange.mmsa.PADDED_BYTES", 100)
    with pytest.raises(DataError, match="padded to the longest utterance"):
        export(store, "mmsa", tmp_path / "out.pkl")
    monkeypatch.undo()
    store = build_index(
        tmp_path / "f.h5",
        [r.path for r in store.shards],
        [{"id": "u1"}, {"id": "u2", "split": "dev"}],
        dataset="d",
        task="single",
        labels=[],
    )
    with pytest.raises(DataError, match="1 utterance has no split"):
        export(store, "mmsa", tmp_path / "out.pkl")
    assert not (tmp_path / "out.pkl").exists()


def test_kaldi_archive_by_the_letter_of_its_format(tmp_path):
    store = make_store(tmp_path)
    export(store, "kaldi", tmp_path / "out")
    raw = (tmp_path / "out/audio.ark").read_bytes()
    ids = store.table()["id"].to_pylist()
    lines = (tmp_path / "out/audio.scp").read_text().splitlines()
    assert len(lines) == int((store.lengths("audio") > 0).sum())
    for line in lines:
        id, place = line.split(" ", 1)
        name, at = place.rsplit(":", 1)
        assert name == str(tmp_path / "out/audio.ark")
        at = int(at)
        assert raw[at : at + 5] == b"\0BFM "
        size_rows, rows, size_columns, columns = struct.unpack("<bibi", raw[at + 5 : at + 15])
        assert (size_rows, size_columns, columns) == (4, 4, 6)
        x = np.frombuffer(raw, "<f4", rows * columns, at + 15).reshape(rows, columns)
        np.testing.assert_array_equal(x, store.features("audio", ids.index(id)))
    with pytest.raises(
        DataError, match=r"2 ids have white space, first 'a\\x00b'; Kaldi cannot name them"
    ):
        export(awkward(tmp_path), "kaldi", tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("to", EXPORTS)
def test_failed_export_leaves_nothing(tmp_path, to):
    store = make_store(tmp_path)
    store.shards[2].path.unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match="shard is missing"):
        export(store, to, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", EXPORTS)
def test_export_again_after_one_that_was_killed(tmp_path, to):
    store = make_store(tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".out.tmp-{dead.pid}"
    (left / "audio").mkdir(parents=True) if to in ("npy", "kaldi") else left.write_bytes(b"half")
    export(store, to, tmp_path / "out")
    assert not left.exists() and (tmp_path / "out").exists()
