from __future__ import annotations

import pickle
import string
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.pipeline.errors import DataError
from mer.pipeline.manifest import SCHEMA, Utterance
from mer.pipeline.store import FeatureStore, ModalityInfo, Shard, ShardWriter, build_index
from mer.pipeline.store.schema import COLUMNS

from tests.store.build import DIMS, arrays, assert_holds, make_store

AWKWARD = [
    "a/b",
    ".",
    "..",
    "-6rXp3zJ3kc_1",
    "vid$_$3",
    "=1+1",
    "😀🏳️‍🌈",
    "سلام",
    "a\x00b",
    "a\nb",
    " ",
    "x" * 3000,
]

ids = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)
names = st.text(string.ascii_lowercase, min_size=1, max_size=6).filter(
    lambda n: n not in ("ids", "flags", "meta")
)


@st.composite
def corpora(draw):
    """(modalities, rows, shard of each row): any modality set, lengths from 0, some modalities not
    given at all.
    """
    dims = draw(st.dictionaries(names, st.integers(1, 5), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = []
    for id in draw(st.lists(ids, max_size=8, unique=True)):
        x = {
            m: rng.normal(size=(draw(st.integers(0, 6)), d)).astype(np.float16)
            for m, d in dims.items()
            if draw(st.booleans())
        }
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        row = {
            "id": id,
            "split": draw(st.sampled_from(["train", "dev", "test", ""])),
            "label": draw(st.sampled_from([None, "a", "b"])),
            "text": draw(st.none() | text),
            "position": draw(st.none() | st.integers(0, 2**31 - 1)),
            "tags": draw(st.lists(text, max_size=3)),
            "targets": draw(
                st.none() | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=1)
            ),
            "speaker": draw(st.none() | text),
            "dialogue": None,
            "session": draw(st.none() | text),
        }
        rows.append((row, x, draw(st.integers(0, 2)), draw(st.floats(0, 100))))
    return dims, rows


@given(corpora())
@settings(max_examples=15, deadline=None)
def test_anything_written_is_read_back(corpus):
    dims, rows = corpus
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"s{i}.h5" for i in range(3)]
        for i, path in enumerate(paths):
            with ShardWriter(path, dims) as writer:
                for row, x, shard, duration in rows:
                    if shard == i:
                        writer.add(row["id"], x, duration=duration)
        store = build_index(
            Path(folder) / "f.h5",
            paths,
            [r[0] for r in rows],
            dataset="d",
            task="single",
            labels=["a", "b"],
        )
        got = store.table().to_pylist()
        assert [{c: r[c] for c in COLUMNS.names} for r in got] == [r[0] for r in rows]
        assert [r["duration"] for r in got] == [r[3] for r in rows]
        for m, d in dims.items():
            expected = [x.get(m, np.empty((0, d), np.float16)) for _, x, _, _ in rows]
            assert (
                store.lengths(m).tolist()
                == [len(x) for x in expected]
                == [r[f"n_{m}"] for r in got]
            )
            for i, x in enumerate(expected):
                np.testing.assert_array_equal(store.features(m, i, dtype="stored"), x)
                np.testing.assert_allclose(
                    store.pooled(m)[i],
                    x.astype(np.float64).mean(0) if len(x) else 0,
                    rtol=1e-6,
                    atol=1e-7,
                )
            packed, offsets = store.packed(m)
            np.testing.assert_array_equal(
                packed, np.concatenate([np.empty((0, d), np.float16), *expected])
            )
            assert np.diff(offsets).tolist() == store.lengths(m).tolist()
        store.verify()


def test_any_selection_in_any_order(tmp_path):
    store = make_store(tmp_path, n=40, shards=4)
    data = arrays(40)[::-1]
    rng = np.random.default_rng(1)
    for rows in (
        [],
        [0],
        [39, 0, 39],
        list(range(40)),
        list(range(39, -1, -1)),
        *(rng.integers(0, 40, 17).tolist() for _ in range(20)),
    ):
        packed, lengths = store.batch("audio", rows)
        assert packed.dtype == np.float32 and packed.shape == (lengths.sum(), 6)
        assert lengths.tolist() == [len(data[i]["audio"]) for i in rows]
        np.testing.assert_array_equal(
            packed, np.concatenate([np.empty((0, 6)), *(data[i]["audio"] for i in rows)])
        )
        out = np.full((lengths.sum(), 6), np.nan, np.float64)
        same, offsets = store.packed("audio", rows, out=out)
        assert (
            same is out
            and np.array_equal(out, packed)
            and np.array_equal(np.diff(offsets), lengths)
        )
    with pytest.raises(DataError, match="out has shape"):
        store.packed("audio", [0, 1], out=np.empty((1, 6)))
    with pytest.raises(IndexError):
        store.batch("audio", [40])
    with pytest.raises(IndexError):
        store.features("audio", 40)


def test_stored_view_is_read_only_and_not_a_copy(tmp_path):
    store = make_store(tmp_path)
    row = int(np.argmax(store.lengths("audio")))
    view = store.features("audio", row, dtype="stored")
    assert view.dtype == np.float16 and not view.flags.writeable and not view.flags.owndata
    copy = store.features("audio", row)
    assert copy.dtype == np.float32 and copy.flags.writeable


def test_values_beyond_float16_make_that_modality_float32(tmp_path):
    big = np.array([[1e5, 0.1], [65519.9, -7e4]], np.float32)
    with ShardWriter(tmp_path / "a.h5", {"audio": 2, "text": 2}) as writer:
        writer.add("first", {"audio": [[0.1, 0.2]], "text": [[0.1, 0.2]]})
        writer.add("second", {"audio": big})
    with ShardWriter(tmp_path / "b.h5", {"audio": 2, "text": 2}) as writer:
        writer.add("third", {"audio": [[65519.9, 1.0]]})
    assert writer.overflow == {"audio": 0, "text": 0}
    store = build_index(
        tmp_path / "f.h5",
        [tmp_path / "a.h5", tmp_path / "b.h5"],
        [{"id": i} for i in ("third", "second", "first")],
        dataset="d",
        task="single",
        labels=[],
    )
    assert [Shard(tmp_path / f"{s}.h5").modalities["audio"]["dtype"] for s in "ab"] == [
        "float32",
        "float16",
    ]
    assert store.header.modalities["audio"].dtype == "float32" and store.header.modalities[
        "audio"
    ].extra == {"overflow": 2}
    assert (
        store.header.modalities["text"].dtype == "float16"
        and store.header.modalities["text"].extra == {}
    )
    np.testing.assert_array_equal(store.features("audio", 1), big)
    # not rounded by way of float16
    np.testing.assert_array_equal(store.features("audio", 2), np.float32([[0.1, 0.2]]))
    packed, _ = store.packed("audio")
    assert packed.dtype == np.float32 and packed[0].tolist() == [65504.0, 1.0]


def test_float32_is_kept_when_asked_for(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3))
    with ShardWriter(tmp_path / "a.h5", {"vision": 3}, dtype="float32") as writer:
        writer.add("u", {"vision": x})
    store = build_index(
        tmp_path / "f.h5",
        [tmp_path / "a.h5"],
        [{"id": "u"}],
        dataset="d",
        task="regression",
        labels=["valence"],
    )
    np.testing.assert_array_equal(store.features("vision", 0), x.astype(np.float32))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"audio": np.full((2, 6), np.nan)}, "u: audio has 12 values that are NaN or infinite"),
        ({"audio": [[np.inf] * 6]}, "u: audio has 6 values that are NaN or infinite"),
        ({"audio": np.full((1, 6), 1e300)}, "u: audio has 6 values that are NaN or infinite"),
        ({"audio": np.zeros((2, 5))}, r"u: audio has shape \(2, 5\), expected \(T, 6\)"),
        ({"audio": np.zeros((1, 2, 6))}, r"u: audio has shape \(1, 2, 6\)"),
        ({"audio": np.array([["a"] * 6])}, "u: audio has dtype"),
        ({"audio": np.zeros((1, 6), complex)}, "u: audio has dtype"),
        ({"vision": np.zeros((1, 6))}, "u has modality 'vision', the shard holds audio, text"),
    ],
)
def test_what_is_not_a_feature_is_refused_by_name(tmp_path, features, message):
    with pytest.raises(DataError, match=message), ShardWriter(tmp_path / "a.h5", DIMS) as writer:
        writer.add("u", features)
    assert list(tmp_path.iterdir()) == []


def test_ids_must_be_there_and_be_unique(tmp_path):
    for bad, message in (("u", "twice"), ("", "empty id"), ("\ud800", "is not text")):
        with (
            pytest.raises(DataError, match=message),
            ShardWriter(tmp_path / "a.h5", DIMS) as writer,
        ):
            writer.add("u", {})
            writer.add(bad, {})


@pytest.mark.parametrize(
    "name", ["", "Audio", "a/b", "../x", "ids", "crc32", "n_audio", "a.b.c", "1a", "a" * 33]
)
def test_modality_names_are_plain(tmp_path, name):
    with pytest.raises(DataError, match="cannot name a modality"):
        ShardWriter(tmp_path / "a.h5", {name: 3})


def test_build_index_names_what_does_not_fit(tmp_path):
    for name, who in (("a", "u"), ("b", "u"), ("c", "v")):
        with ShardWriter(tmp_path / f"{name}.h5", {"audio": 2}) as writer:
            writer.add(who, {"audio": [[1, 2]]})
    with ShardWriter(tmp_path / "d.h5", {"audio": 3}) as writer:
        writer.add("w", {})

    def build(shards, table, **options):
        options = {"dataset": "d", "task": "single", "labels": ["x"], **options}
        return build_index(
            tmp_path / "f.h5", [tmp_path / f"{s}.h5" for s in shards], table, **options
        )

    for shards, table, options, message in (
        ("ab", [{"id": "u"}], {}, "id 'u' is in two shards, a.h5 and b.h5"),
        ("a", [{"id": "u"}, {"id": "u"}], {}, "id 'u' twice in the table"),
        ("a", [{"id": "u"}, {"id": "z"}], {}, "1 of 2 utterances are in no shard, first 'z'"),
        ("a", [{"id": "u", "label": "y"}], {}, "u has unknown label 'y'; known: x"),
        ("a", [{"id": "u", "split": "valid"}], {}, "u has split 'valid'"),
        (
            "a",
            [{"id": "u", "targets": [1.0, 2.0]}],
            {"task": "multi"},
            "u has 2 targets, expected 1",
        ),
        (
            "a",
            [{"id": "u", "targets": [1.0, 2.0]}],
            {"task": "regression"},
            "u has 2 targets, expected 1",
        ),
        ("a", [{"id": "u"}], {"task": "ranking"}, "task 'ranking'"),
        ("a", [{"name": "u"}], {}, "every row needs an 'id'"),
        ("a", [{"id": 5}], {}, "table: "),
        ("a", [{"id": "u", "position": 1.5}], {}, "table: position 1.5 is no whole number"),
        ("a", [{"id": "u", "position": np.float32("nan")}], {}, "table: position nan is no whole"),
        ("a", [{"id": "u"}], {"modalities": {"text": {}}}, "modality 'text' is in no shard"),
        (
            "a",
            [{"id": "u"}],
            {"modalities": {"audio": {"dim": 9}}},
            "said to have dim 9, its shards have 2",
        ),
        ("ad", [{"id": "u"}], {}, "d.h5 holds other modalities than a.h5"),
        ("", [], {}, "at least one shard"),
        ("q", [{"id": "u"}], {}, "no such shard"),
        ("a", [{"id": "u"}], {"recipe": {"x": float("nan")}}, "JSON"),
        ("a", [{"id": "u"}], {"recipe": {"x": {1, 2}}}, "JSON"),
        ("a", [{"id": "u", "text": "\udfff"}], {}, "table: "),
    ):
        with pytest.raises(DataError, match=message):
            build(shards, table, **options)
        assert not (tmp_path / "f.h5").exists()
    # utterances left out of the table are not reachable
    assert len(build("ac", [{"id": "v"}])) == 1
    assert len(build("ac", [])) == 0


def test_a_manifests_rows_go_in_as_they_are(tmp_path):
    assert set(COLUMNS.names) < set(SCHEMA.names)
    rows = [
        Utterance("u1", audio="a.wav", text="hi", split="train", label="x", tags=("t",)),
        Utterance("u2", speaker="s", position=3),
    ]
    table = pa.Table.from_pylist(
        [{f.name: getattr(r, f.name) for f in SCHEMA} for r in rows], schema=SCHEMA
    )
    with ShardWriter(tmp_path / "a.h5", {"audio": 2}) as writer:
        for r in rows:
            writer.add(r.id, {"audio": np.ones(2)})
    info = {
        "audio": ModalityInfo(
            2, frame_rate=49.95, encoder="e", revision="r", layer="last", trained=False
        )
    }
    store = build_index(
        tmp_path / "f.h5",
        [tmp_path / "a.h5"],
        table,
        dataset="d",
        task="single",
        labels=("x",),
        modalities=info,
        language="zh",
        fingerprint="f" * 64,
        recipe={"k": [1, "é"]},
        provenance={"host": "h"},
    )
    got = FeatureStore(tmp_path / "f.h5")
    assert got.header == store.header and got.table().drop_columns(
        "duration"
    ) == store.table().drop_columns("duration")
    assert (
        got.header.modalities["audio"] == info["audio"]
        and got.header.language == "zh"
        and got.header.recipe == {"k": [1, "é"]}
    )
    assert got.table()["tags"].to_pylist() == [["t"], []] and got.table()[
        "position"
    ].to_pylist() == [None, 3]
    assert np.isnan(got.table()["duration"].to_numpy()).all() and got.lengths("audio").tolist() == [
        1,
        1,
    ]


def test_store_moves_with_its_folder_and_through_a_symlink(tmp_path):
    (tmp_path / "old").mkdir()
    make_store(tmp_path / "old").close()
    (tmp_path / "old").rename(tmp_path / "new")
    assert_holds(FeatureStore(tmp_path / "new/feats.h5"))
    (tmp_path / "link.h5").symlink_to("new/feats.h5")
    assert_holds(FeatureStore(tmp_path / "link.h5"))


def test_pickled_store_reads_from_anywhere(tmp_path, monkeypatch):
    make_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    with FeatureStore("feats.h5") as store:
        store.features("audio", 0)
        raw = pickle.dumps(store)
    assert len(raw) < 500
    monkeypatch.chdir("/")
    assert_holds(pickle.loads(raw))


def test_rewriting_gives_the_same_bytes(tmp_path):
    first = make_store(tmp_path / "a")
    time.sleep(1.1)  # HDF5 would put the time, in seconds, into object headers
    second = make_store(tmp_path / "b")
    for x, y in zip(first.shards, second.shards, strict=True):
        assert x.path.read_bytes() == y.path.read_bytes() and x.sha256 == y.sha256
    assert first.path.read_bytes() == second.path.read_bytes()
    assert make_store(tmp_path / "c", seed=1).shards[0].sha256 != first.shards[0].sha256


def test_other_tools_see_one_tree(tmp_path):
    import h5py

    make_store(tmp_path)
    with h5py.File(tmp_path / "feats.h5", "r") as file:
        x = file["shards/00001/audio/x"]
        assert x.chunks is None and x.dtype == "<f2" and x.compression is None
        assert sum(len(file[f"shards/0000{i}/audio/x"]) for i in range(3)) == sum(
            len(r["audio"]) for r in arrays(12)
        )
