"""Import of MMSA pickles: the published forms, odd ones, and hostile ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import mmsa
from mer.pipeline.store import FeatureStore

from tests.interchange.doors import imported, mer


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
