"""Every door in: what comes out of a store goes in again unchanged; foreign files of the real
shapes; hostile ones.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.cli import main
from mer.pipeline.errors import DataError
from mer.pipeline.interchange import indexcsv, mmsa, npydir, npz, parquet
from mer.pipeline.interchange.export import export
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.importing import write_store
from mer.pipeline.store import FeatureStore, ShardWriter, build_index

from tests.store.build import make_store
from tests.store.test_export import awkward

DOORS = {"npy": npydir, "parquet": parquet, "mmsa": mmsa}


def mer(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    return result.exit_code, result.stdout, result.stderr


def imported(door, path: Path, out: Path, **options) -> FeatureStore:
    options = ImportOptions(**options)
    return write_store(door.read(path, options), out, options)[0]


def comparable(store: FeatureStore, *without: str) -> dict[str, dict]:
    """id -> row of the table, without where it is stored."""
    rows = store.table().drop_columns(["shard", "shard_row", *without]).to_pylist()
    return {r["id"]: {k: (v if v == v else None) for k, v in r.items()} for r in rows}


def assert_same(a: FeatureStore, b: FeatureStore, *without: str) -> None:
    assert comparable(a, *without) == comparable(b, *without)
    assert (a.header.task, a.header.labels, a.header.dataset) == (
        b.header.task,
        b.header.labels,
        b.header.dataset,
    )
    there = {id: row for row, id in enumerate(b.table()["id"].to_pylist())}
    for m, info in a.header.modalities.items():
        assert b.header.modalities[m] == info
        for row, id in enumerate(a.table()["id"].to_pylist()):
            np.testing.assert_array_equal(
                a.features(m, row, "stored"), b.features(m, there[id], "stored")
            )


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


# --- MMSA


def mmsa_file(path: Path, *, aligned: bool, n: int = 5, seed: int = 0, **changes) -> dict:
    """A pickle of MMSA's form: text 50 steps, others 50 (aligned) or longer, padded with zeros
    behind.
    """
    rng = np.random.default_rng(seed)
    steps = {"text": 50, "audio": 50 if aligned else 80, "vision": 50 if aligned else 60}
    dims = {"text": 12, "audio": 5, "vision": 20}
    content = {}
    for split in ("train", "valid", "test"):
        lengths = {m: rng.integers(1, t + 1, n) for m, t in steps.items()}
        if aligned:
            lengths = dict.fromkeys(steps, lengths["text"])
        arrays = {m: rng.normal(size=(n, t, dims[m])).astype(np.float32) for m, t in steps.items()}
        for m, x in arrays.items():
            for i, length in enumerate(lengths[m]):
                x[i, length:] = 0
        mask = (np.arange(50) < lengths["text"][:, None]).astype(np.float32)
        y = rng.choice([-2.4, -0.5, 0.0, 1.5, 3.0], n).astype(np.float32)
        part = {
            **arrays,
            "id": [f"{split}_-v$_${i + 1}" for i in range(n)],
            "raw_text": np.array([f"TEXT {i}" for i in range(n)], dtype=object),
            "text_bert": np.stack([mask * 7, mask, mask * 0], axis=1),
            "annotations": [("Negative", "Neutral", "Positive")[int(np.sign(v)) + 1] for v in y],
            "classification_labels": np.sign(y) + 1,
            "regression_labels": y,
        }
        if not aligned:
            part |= {
                "audio_lengths": lengths["audio"].tolist(),
                "vision_lengths": lengths["vision"].tolist(),
            }
        content[split] = {**part, **changes}
    path.write_bytes(pickle.dumps(content, protocol=4))
    return content


@pytest.mark.parametrize("aligned", [True, False])
def test_mmsa_pickle_of_the_published_form(tmp_path, aligned):
    content = mmsa_file(tmp_path / "x.pkl", aligned=aligned)
    store = imported(mmsa, tmp_path / "x.pkl", tmp_path / "feats.h5")
    assert store.header.task == "regression" and store.header.labels == ("sentiment",)
    assert list(store.header.modalities) == ["audio", "text", "vision"]
    rows = store.table().to_pylist()
    assert [r["split"] for r in rows] == ["train"] * 5 + ["dev"] * 5 + ["test"] * 5
    assert [rows[6][c] for c in ("id", "dialogue", "position", "text")] == [
        "valid_-v$_$2",
        "valid_-v",
        2,
        "TEXT 1",
    ]
    for row, (split, i) in enumerate((s, i) for s in ("train", "valid", "test") for i in range(5)):
        part = content[split]
        assert rows[row]["targets"] == [part["regression_labels"][i]]
        for m in ("audio", "text", "vision"):
            n = (
                int(part["text_bert"][i, 1].sum())
                if aligned or m == "text"
                else part[f"{m}_lengths"][i]
            )
            np.testing.assert_array_equal(store.features(m, row), part[m][i, :n])
    notes = store.header.provenance["notes"]
    assert f"lengths of audio: {'the BERT mask' if aligned else 'audio_lengths'}" in notes and any(
        "text_bert" in n for n in notes
    )
    assert any("none of the published MMSA files" in n for n in notes)


def test_mmsa_as_classification(tmp_path):
    content = mmsa_file(tmp_path / "x.pkl", aligned=True)
    store = imported(mmsa, tmp_path / "x.pkl", tmp_path / "feats.h5", task="single")
    assert store.header.labels == ("Negative", "Neutral", "Positive")
    assert store.table()["label"].to_pylist() == [
        a for part in content.values() for a in part["annotations"]
    ]


def test_infinite_and_nan_are_zeroed_and_counted(tmp_path):
    content = mmsa_file(tmp_path / "x.pkl", aligned=False)
    content["train"]["audio"][0, 0, :3] = [-np.inf, np.nan, np.inf]
    content["valid"]["vision"][:, 0, 0] = np.nan
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    code, out, err = mer("import", "mmsa", tmp_path / "x.pkl", "--out", tmp_path / "feats.h5")
    assert code == 0 and out == f"{tmp_path / 'feats.h5'}\n"
    assert (
        "audio: 3 values were NaN or infinite and are 0 now" in err
        and "vision: 5 values" in err
        and "text: 0" not in err
    )
    store = FeatureStore(tmp_path / "feats.h5")
    assert store.features("audio", 0)[0, :3].tolist() == [0, 0, 0]
    assert store.header.provenance["replaced_non_finite"] == {"audio": 3, "text": 0, "vision": 5}


def test_published_checksum_is_recognised(tmp_path, monkeypatch):
    mmsa_file(tmp_path / "x.pkl", aligned=True)
    monkeypatch.setattr(mmsa, "sha256_file", lambda path: "45eccfb7" + "0" * 56)
    store = imported(mmsa, tmp_path / "x.pkl", tmp_path / "feats.h5")
    assert (
        store.header.dataset == "mosei"
        and store.header.provenance["published_as"] == "MOSEI aligned_50.pkl"
    )


def test_mmsa_vectors_of_whole_utterances_and_ids_that_repeat(tmp_path):
    same = {"id": [f"v$_${i}" for i in range(5)], "audio": np.ones((5, 7))}
    mmsa_file(tmp_path / "x.pkl", aligned=True, **same)
    store = imported(mmsa, tmp_path / "x.pkl", tmp_path / "feats.h5")
    assert store.table()["id"].to_pylist()[::5] == ["train/v$_$0", "dev/v$_$0", "test/v$_$0"]
    assert set(store.table()["dialogue"].to_pylist()) == {"v"}
    assert store.lengths("audio").tolist() == [1] * 15


def test_lengths_from_zeros_when_nothing_says(tmp_path):
    content = mmsa_file(tmp_path / "x.pkl", aligned=False)
    for part in content.values():
        del part["audio_lengths"], part["text_bert"]
        part["audio"][0] = 0
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    store = imported(mmsa, tmp_path / "x.pkl", tmp_path / "feats.h5")
    assert (
        store.lengths("audio")[0] == 0
        and "lengths of audio: up to the last step that is not zero"
        in store.header.provenance["notes"]
    )
    assert (
        store.lengths("audio")[1]
        == np.flatnonzero(content["train"]["audio"][1].any(axis=1))[-1] + 1
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not an MMSA pickle"),
        ({}, "not an MMSA pickle"),
        ({"train": {"audio": 1}}, "not an MMSA pickle"),
        ({"training data": {"id": []}}, "split 'training data' is not one of"),
        ({"train": {"id": ["a"]}}, "no features found"),
        (
            {"train": {"id": ["a"], "audio": np.ones((1, 3)), "regression_labels": [1.0, 2.0]}},
            "regression_labels has 2 values for 1",
        ),
        (
            {"train": {"id": ["a"], "audio": np.ones((2, 3)), "regression_labels": [1.0]}},
            r"should be an array \(N=1, T, D\)",
        ),
        (
            {"train": {"id": ["a"], "audio": np.ones((1, 3, 2)), "audio_lengths": [4]}},
            "lengths of audio do not fit",
        ),
        (
            {"train": {"id": ["a"], "audio": np.ones((1, 3, 2)), "audio_lengths": [-1]}},
            "lengths of audio do not fit",
        ),
        ({"train": {"id": ["a"], "audio": np.ones((1, 3))}}, "train has no annotations"),
        (
            {
                "train": {
                    "id": ["a", "a"],
                    "audio": np.ones((2, 3)),
                    "regression_labels": [1.0, 2.0],
                }
            },
            "'train/a' twice",
        ),
        ({"train": {"id": [""], "audio": np.ones((1, 3)), "regression_labels": [1.0]}}, "empty id"),
        (
            {"train": {"id": ["a"], "audio": np.ones((1, 3)), "regression_labels": ["much"]}},
            "a: targets is 'much', not a number",
        ),
        ({"train": {"id": [], "audio": np.ones((0, 3)), "regression_labels": []}}, "no utterances"),
    ],
)
def test_odd_mmsa_content_is_one_line(tmp_path, content, message):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        imported(mmsa, tmp_path / "x.pkl", tmp_path / "feats.h5")
    assert "\n" not in str(caught.value) and not (tmp_path / "feats.h5").exists()


odd = st.one_of(
    st.none(),
    st.integers(-2, 9),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-2, 9) | st.text(max_size=2), max_size=3),
    st.sampled_from(
        [
            np.ones((2, 3)),
            np.ones((2, 4, 3)),
            np.ones((2, 3, 4)),
            np.array(["a", 1], object),
            np.array([1, 2]),
            np.float32(1),
        ]
    ),
)
KEYS = [
    "audio_lengths",
    "text_bert",
    "raw_text",
    "annotations",
    "classification_labels",
    "regression_labels",
]


parts = st.fixed_dictionaries(
    {"id": odd | st.just(["a", "b"]), "audio": odd}, optional={k: odd for k in KEYS}
)


@given(part=parts, mer=st.none() | odd)
@settings(max_examples=100, deadline=None)
def test_any_mmsa_content_is_a_store_or_one_line(tmp_path_factory, part, mer):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "x.pkl").write_bytes(
        pickle.dumps({"train": part, **({} if mer is None else {"mer": mer})})
    )
    try:
        imported(mmsa, folder / "x.pkl", folder / "feats.h5").verify()
    except DataError as error:
        assert "\n" not in str(error) and not (folder / "feats.h5").exists()


# --- npz


def arrays_file(path: Path, **changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    data = {
        "id": np.array(["a/1", "-b", "c"]),
        "label": np.array([1, 0, 1]),
        "split": np.array(["train", "valid", "test"]),
        "transcript": np.array(["one", "", "three"]),
        "audio": rng.normal(size=(3, 4)),
        "text": rng.normal(size=(3, 6, 2)),
        "text_lengths": np.array([6, 0, 2]),
        "video": rng.normal(size=(10, 3)),
        "video_offsets": np.array([0, 4, 4, 10]),
        **changes,
    }
    np.savez(path, **{k: v for k, v in data.items() if v is not None})
    return data


def test_npz_of_vectors_padded_and_end_to_end(tmp_path):
    data = arrays_file(tmp_path / "x.npz", label=np.array([1, 0, -1]))
    store = imported(
        npz,
        tmp_path / "x.npz",
        tmp_path / "feats.h5",
        labels=("sad", "happy"),
        frame_rates={"vision": 30.0},
        dataset="mine",
    )
    rows = store.table().to_pylist()
    assert [(r["id"], r["label"], r["split"], r["text"]) for r in rows] == [
        ("a/1", "happy", "train", "one"),
        ("-b", "sad", "dev", None),
        ("c", None, "test", "three"),
    ]
    assert store.lengths("audio").tolist() == [1, 1, 1] and store.lengths("text").tolist() == [
        6,
        0,
        2,
    ]
    assert (
        store.lengths("vision").tolist() == [4, 0, 6]
        and store.header.modalities["vision"].frame_rate == 30.0
    )
    np.testing.assert_array_equal(store.features("vision", 2), data["video"][4:].astype(np.float32))
    np.testing.assert_array_equal(store.features("text", 2), data["text"][2, :2].astype(np.float32))
    assert store.header.modalities["audio"].encoder == "imported" and store.header.dataset == "mine"


def test_what_of_a_file_was_used_is_said(tmp_path):
    """Two splits and two kinds of labels in one file, as in the published utterance-level CMU-MOSI
    features: nothing is left aside without a word.
    """
    arrays_file(
        tmp_path / "x.npz",
        split=None,
        split_a=np.array(["train"] * 3),
        label_reg=np.array([0.5, -1, 2]),
        raw=np.ones((3, 2)),
    )
    features = "audio features = audio, text features = text, vision features = video"
    told = {
        (): f"id = id, label = label, text = transcript, {features}; not used: split_a (3,) <U5, "
        "label_reg (3,) float64, "
        "raw (3, 2) float64",
        ("--task", "regression", "--column", "split=split_a"): (
            f"id = id, targets = label_reg, text = transcript, split = split_a, {features}; not "
            "used: label (3,) int64, raw (3, 2) float64"
        ),
    }
    for i, (options, line) in enumerate(told.items()):
        code, _, err = mer(
            "import", "npz", tmp_path / "x.npz", "--out", tmp_path / f"{i}.h5", *options
        )
        assert code == 0 and err.splitlines()[0] == line


def test_npz_of_targets_side_by_side(tmp_path):
    rows = np.array([[0.5, 2], [-1, 3], [1, 1]])
    arrays_file(tmp_path / "x.npz", label=None, targets=rows)
    store = imported(npz, tmp_path / "x.npz", tmp_path / "f.h5", labels=("valence", "arousal"))
    assert store.header.task == "regression"
    assert store.table()["targets"].to_pylist() == rows.tolist()
    arrays_file(tmp_path / "y.npz", label=None, targets=rows[:, :1])
    store = imported(npz, tmp_path / "y.npz", tmp_path / "g.h5", task="regression")
    assert store.table()["targets"].to_pylist() == [[0.5], [-1], [1]]


def test_npz_with_other_names(tmp_path):
    other = {
        "mfcc": np.ones((3, 13)),
        "utt": np.array([10, 11, 12]),
        "score": np.array([0.5, -1, np.nan]),
    }
    arrays_file(tmp_path / "x.npz", id=None, label=None, split=None, **other)
    with pytest.raises(
        DataError, match="no column that names the utterances; say which with --column id=NAME"
    ):
        npz.read(tmp_path / "x.npz", ImportOptions())
    options = [
        "--column",
        "id=utt",
        "--column",
        "targets=score",
        "--feature",
        "audio=mfcc",
        "--task",
        "regression",
        "--labels",
        "arousal",
    ]
    code, _, err = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "f.h5", *options)
    assert code == 0, err
    store = FeatureStore(tmp_path / "f.h5")
    assert store.table()["id"].to_pylist() == ["10", "11", "12"] and store.table()[
        "targets"
    ].to_pylist() == [[0.5], [-1.0], None]
    assert list(store.header.modalities) == ["audio"] and store.header.labels == ("arousal",)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"label": np.array([0, 1])}, {}, "label has 2 values for 3"),
        (
            {"label": np.array([0.5, 1, 2])},
            {},
            "labels are not whole numbers; import them with --task regression",
        ),
        (
            {"label": np.array([0, 1, 5])},
            {"labels": ("a", "b")},
            "labels go up to 5, --labels names 2",
        ),
        ({"label": np.array([0, 1, 10**5])}, {}, "these are not classes"),
        (
            {"label": np.array(["x", "y", "z"])},
            {"labels": ("x", "y")},
            "label 'z' is not among x, y",
        ),
        ({"split": np.array(["train", "left out", "test"])}, {}, "-b has split 'left out'"),
        ({"audio": np.ones((4, 2))}, {}, r"audio \(4, 2\) and its lengths do not fit 3"),
        ({"text_lengths": np.array([7, 0, 0])}, {}, "text .* and its lengths do not fit"),
        ({"video_offsets": np.array([0, 4, 3, 10])}, {}, "video .* and its lengths do not fit"),
        ({"audio": np.array([["a"], ["b"], ["c"]])}, {}, "audio holds <U1, not numbers"),
        ({"id": np.array(["a", "a", "b"])}, {}, "id 'a' twice"),
        ({}, {"columns": {"id": "nope"}}, "no column 'nope' for id; it has"),
        ({}, {"columns": {"colour": "id"}}, "no such field; fields are id"),
        ({}, {"features": {"audio": "nope"}}, "no features 'nope' for audio; it has"),
        ({}, {"features": {"Audio!": "audio"}}, "cannot name a modality"),
        ({"id": np.array([b"x", None, 1], dtype=object)}, {}, "id.npy holds Python objects"),
    ],
)
def test_odd_npz_is_one_line(tmp_path, changes, options, message):
    arrays_file(tmp_path / "x.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        imported(npz, tmp_path / "x.npz", tmp_path / "feats.h5", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "feats.h5").exists()


def npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def test_npz_bombs_are_refused_before_they_unfold(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "UNPACKED_FREE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("audio.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (3, 1_000_000)}
            )
            for _ in range(11):
                member.write(bytes(1 << 20))
            member.write(bytes(12_000_000 - (11 << 20)))
        archive.writestr("id.npy", npy(np.array(["a", "b", "c"])))
    with pytest.raises(
        DataError, match=r"unpacks [0-9,]+ bytes to 12,000,\d+; more than 200 times"
    ):
        npz.read(tmp_path / "x.npz", ImportOptions())
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive, archive.open("id.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f8", "fortran_order": False, "shape": (10**10,)}
        )
        member.write(b"x" * 8)
    with pytest.raises(
        DataError, match=r"id.npy claims shape \(10000000000,\) of float64 but holds 8 bytes"
    ):
        npz.read(tmp_path / "y.npz", ImportOptions())


# --- Parquet


def test_parquet_of_another_hand(tmp_path):
    table = pa.table(
        {
            "filename": ["a", "b", "c"],
            "emotion": ["joy", None, "fear"],
            "partition": ["train", "validation", "test"],
            "speech": pa.array([[1.0, 2.0], None, [5.0, 6.0]]),
            "visual": pa.array([[[1, 2, 3], [4, 5, 6]], [], [[7, 8, 9]]]),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    code, _, err = mer("import", "parquet", tmp_path / "x.parquet", "--out", tmp_path / "f.h5")
    assert (
        code == 0
        and "audio: absent in 1 utterance\n" in err
        and "3 utterances (train 1, dev 1, test 1); single task: fear, joy" in err
    )
    store = FeatureStore(tmp_path / "f.h5")
    assert store.lengths("audio").tolist() == [1, 0, 1] and store.lengths("vision").tolist() == [
        2,
        0,
        1,
    ]
    assert store.features("vision", 0).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"id": ["a"], "audio": [[[1.0, 2.0], [3.0]]]},
            "audio has steps of unequal width; expected 2",
        ),
        (
            {"id": ["a", "b"], "audio": [[1.0, 2.0], [3.0]]},
            r"b: audio has shape \(1,\), expected \(T, 2\)",
        ),
        (
            {"id": ["a"], "audio": pa.array([[]], pa.list_(pa.float32()))},
            "audio is empty in every row",
        ),
        ({"id": ["a"], "audio": ["x"]}, "no features found"),
        ({"id": [None], "audio": [[1.0]]}, "empty id"),
        ({"audio": [[1.0]]}, "no column that names the utterances"),
    ],
)
def test_odd_parquet_is_one_line(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message):
        imported(parquet, tmp_path / "x.parquet", tmp_path / "feats.h5")
    assert not (tmp_path / "feats.h5").exists()


# --- npy-dir


def folder_of_arrays(
    folder: Path, csv: bytes | str = "name,emotion,split\nu1,joy,train\nu2,fear,test\n"
) -> Path:
    """As MERBench leaves it: a folder an encoder, an array an utterance."""
    for name, shape in (("wav2vec", (5, 4)), ("roberta", (3,))):
        (folder / name).mkdir(parents=True)
        for k, id in enumerate(("u1", "u2")):
            np.save(folder / name / f"{id}.npy", np.full(shape, k + 1.0))
    (folder / "labels.csv").write_bytes(csv if isinstance(csv, bytes) else csv.encode())
    return folder


def test_npy_folder_of_another_hand(tmp_path):
    folder_of_arrays(
        tmp_path / "x", "\ufeffname,emotion,split\nu1,joy,train\nu2,fear,test\nu3,joy,test\n"
    )
    options = ["--feature", "audio=wav2vec", "--feature", "text=roberta"]
    code, _, err = mer("import", "npy-dir", tmp_path / "x", "--out", tmp_path / "f.h5", *options)
    assert code == 0 and "audio: absent in 1 utterance\n" in err, err
    store = FeatureStore(tmp_path / "f.h5")
    assert store.lengths("audio").tolist() == [5, 5, 0] and store.lengths("text").tolist() == [
        1,
        1,
        0,
    ]
    assert store.features("audio", 1).tolist() == [[2.0] * 4] * 5 and store.table()[
        "label"
    ].to_pylist() == ["joy", "fear", "joy"]


@pytest.mark.parametrize(
    ("labels", "names", "expected", "classes"),
    [
        (["1", "0"], ("sad", "glad"), ["glad", "sad"], ("sad", "glad")),
        (["-1", "2"], ("sad", "so", "glad"), [None, "glad"], ("sad", "so", "glad")),
        (["10", "2"], (), ["10", "2"], ("2", "10")),
        (["2", "1"], ("1", "2"), ["2", "1"], ("1", "2")),
        (["", "joy"], (), [None, "joy"], ("joy",)),
    ],
)
def test_labels_of_a_csv(tmp_path, labels, names, expected, classes):
    folder_of_arrays(tmp_path / "x", f"name,sentiment\nu1,{labels[0]}\nu2,{labels[1]}\n")
    store = imported(
        npydir, tmp_path / "x", tmp_path / "f.h5", features={"audio": "wav2vec"}, labels=names
    )
    assert (
        store.table()["label"].to_pylist() == expected
        and store.header.labels == classes
        and store.header.task == "single"
    )


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        (b"name,emotion\nu1,tr\xe8s\n", r"not UTF-8 \(byte 0xe8 at 18\); save it as UTF-8"),
        ("name,emotion\nu1,joy\n".encode("utf-16"), "not UTF-8"),
        (b"name,emotion\nu1,joy,more\n", "line 2 has 3 cells, the header 2"),
        (b"name,name\nu1,joy\n", "two columns of the same name"),
        (b"name,emotion\n", "no rows"),
        (b"", "no rows"),
        (b'name,emotion\n"u1,joy\n', "line 2"),
        (
            b"name,emotion\n../../secret,joy\n",
            r"'\.\./\.\./secret' leads out of the folder; refused",
        ),
        (b"name,emotion\n/etc/passwd,joy\n", "'/etc/passwd' leads out of the folder; refused"),
        (b"name,emotion\nu1\x00,joy\n", "leads out of the folder; refused"),
        (b"name,emotion\nnobody,joy\n", "no file of wav2vec for audio belongs to a row"),
        (b"name,split\nu1,somewhere\n", "u1 has split 'somewhere'"),
    ],
)
def test_odd_csv_is_one_line(tmp_path, csv, message):
    np.save(tmp_path / "secret.npy", np.ones(4))
    folder_of_arrays(tmp_path / "x", csv)
    with pytest.raises(DataError, match=message) as caught:
        imported(npydir, tmp_path / "x", tmp_path / "feats.h5", features={"audio": "wav2vec"})
    assert "\n" not in str(caught.value) and not (tmp_path / "feats.h5").exists()


def test_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    folder_of_arrays(tmp_path / "x")
    np.save(tmp_path / "secret.npy", np.ones(4))
    (tmp_path / "x/wav2vec/u1.npy").unlink()
    (tmp_path / "x/wav2vec/u1.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(DataError, match="'u1' leads out of the folder"):
        imported(npydir, tmp_path / "x", tmp_path / "feats.h5", features={"audio": "wav2vec"})


@pytest.mark.parametrize("kind", ["pickled", "truncated", "garbage", "claims"])
def test_npy_file_that_is_not_an_array(tmp_path, kind):
    path = folder_of_arrays(tmp_path / "x") / "wav2vec/u1.npy"
    if kind == "pickled":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "claims":
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (10**10, 4)}
            )
    else:
        path.write_bytes({"truncated": path.read_bytes()[:40], "garbage": b"hello"}[kind])
    with pytest.raises(
        DataError, match=r"u1\.npy: (not a readable array|holds object|claims shape|a |an )"
    ):
        imported(npydir, tmp_path / "x", tmp_path / "feats.h5", features={"audio": "wav2vec"})


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    from mer.pipeline.interchange.rows import interpret

    with open(tmp_path / "index.csv", "w") as file:
        file.write(
            "id,label,split\n"
            + "".join(f"u{i},{('joy', 'fear')[i % 2]},train\n" for i in range(1_000_000))
        )
    columns = indexcsv.read_csv(tmp_path / "index.csv")
    found = interpret(tmp_path, columns, ImportOptions())
    assert len(found.rows) == 1_000_000
    assert found.labels == ("fear", "joy") and found.task == "single"


# --- the command itself


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
