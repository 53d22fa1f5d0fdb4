"""A modality as a list, a ragged object array or a dict was left out of the store without a word
(thuiar/Self-MM#8).

The right values are the arrays that the pickles are made of.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mer.pipeline.errors import DataError

from tests.cases.imports import LENGTHS, imported, mer, split_of

RAGGED = {
    "object array": lambda arrays, ids: _objects(arrays),
    "list of arrays": lambda arrays, ids: list(arrays),
    "tuple of arrays": lambda arrays, ids: tuple(arrays),
    "lists of lists": lambda arrays, ids: [x.tolist() for x in arrays],
    "list of lists of arrays": lambda arrays, ids: [list(x) for x in arrays],
    "object array of lists": lambda arrays, ids: _objects([x.tolist() for x in arrays]),
    "dict by id": lambda arrays, ids: dict(zip(ids, arrays, strict=True)),
}


def _objects(items) -> np.ndarray:
    out = np.empty(len(items), object)
    for i, item in enumerate(items):
        out[i] = item
    return out


@pytest.mark.parametrize("modality", ["audio", "text", "vision"])
@pytest.mark.parametrize("form", RAGGED)
def test_a_ragged_modality_in_any_form_is_read(tmp_path, form, modality):
    content, arrays = {}, []
    for name in ("train", "valid", "test"):
        part = split_of(name)
        ragged = [x[:n].astype(np.float64) for x, n in zip(part[modality], LENGTHS, strict=True)]
        part[modality] = RAGGED[form](ragged, part["id"])
        arrays += ragged
        content[name] = part
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    store = imported("mmsa", tmp_path / "x.pkl", tmp_path / "f.h5")
    assert sorted(store.header.modalities) == ["audio", "text", "vision"]
    assert store.lengths(modality).tolist() == LENGTHS * 3
    for row, x in enumerate(arrays):
        np.testing.assert_array_equal(store.features(modality, row), x.astype(np.float32))


def test_a_list_of_padded_arrays_is_the_padded_array(tmp_path):
    content = {name: split_of(name, pad=True) for name in ("train", "valid", "test")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    for part in content.values():
        part["audio"] = list(part["audio"])
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(content))
    a, b = (imported("mmsa", tmp_path / f"{n}.pkl", tmp_path / f"{n}.h5") for n in "ab")
    assert a.lengths("audio").tolist() == b.lengths("audio").tolist() == LENGTHS * 3
    np.testing.assert_array_equal(a.packed("audio")[0], b.packed("audio")[0])


def test_an_absent_item_is_absent(tmp_path):
    part = split_of("train")
    part["audio"] = [x if i else None for i, x in enumerate(part["audio"])]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": part}))
    store = imported("mmsa", tmp_path / "x.pkl", tmp_path / "f.h5")
    assert store.lengths("audio").tolist() == [0, 6, 6, 6]


def test_what_is_left_aside_is_named_with_its_shape(tmp_path):
    part = split_of("train")
    part |= {
        "vision": ["a", "b", "c", "d"],
        "glove": np.ones((4, 300)),
        "words": [["x"]] * 4,
        "regression_labels_T": np.ones(4),
        "classification_labels_T": np.ones(4),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": part, "meta": {"made": "by hand"}}))
    code, _, err = mer("import", "mmsa", tmp_path / "x.pkl", "--out", tmp_path / "f.h5")
    assert code == 0
    for said in (
        "vision (list of 4 str)",
        "glove (4, 300) float64",
        "words (list of 4 list)",
        "meta (dict of 1 str)",
        "unimodal labels: text = regression_labels_T",
        "labels of single modalities, not used: classification_labels_T (4,) float64",
    ):
        assert said in err, (said, err)


def test_a_modality_that_one_split_has_otherwise_is_an_error(tmp_path):
    content = {name: split_of(name) for name in ("train", "valid")}
    content["valid"]["audio"] = "lost"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="valid: audio is .*not features as in the other splits"):
        imported("mmsa", tmp_path / "x.pkl", tmp_path / "f.h5")


def test_the_older_form_of_the_multimodal_transformer(tmp_path):
    """`labels` (N, 1, 1), ids of three columns, zeros in front
    (yaohungt/Multimodal-Transformer)."""
    x, y = np.zeros((2, 5, 3), np.float32), np.array([[[0.5]], [[-2.0]]])
    x[0, 3:], x[1, 1:] = 1, 2
    part = {
        "id": np.array([[b"vid", b"0.5", b"1.5"], [b"vid", b"1.5", b"2.5"]]),
        "audio": x,
        "labels": y,
    }
    (tmp_path / "mosi_data.pkl").write_bytes(pickle.dumps({"train": part}))
    store = imported("mmsa", tmp_path / "mosi_data.pkl", tmp_path / "f.h5")
    assert store.table()["id"].to_pylist() == ["vid_0.5_1.5", "vid_1.5_2.5"]
    assert (
        store.table()["targets"].to_pylist() == [[0.5], [-2.0]] and store.header.dataset == "mosi"
    )
    assert store.lengths("audio").tolist() == [2, 4] and (store.features("audio", 0) == 1).all()


def test_emotions_as_pairs_are_a_multi_task(tmp_path):
    y = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]])
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps({"train": {"audio": np.ones((2, 3, 2)), "labels": y}})
    )
    with pytest.raises(DataError, match=r"pairs \(no, yes\) of 2 emotions: --task multi --labels"):
        imported("mmsa", tmp_path / "x.pkl", tmp_path / "f.h5")
    store = imported(
        "mmsa", tmp_path / "x.pkl", tmp_path / "f.h5", task="multi", labels=("happy", "sad")
    )
    assert store.table()["targets"].to_pylist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("name", "extra", "options", "dataset", "language"),
    [
        ("unaligned_39", {"regression_labels_T": np.ones(4)}, [], "sims", "zh"),
        ("SIMS_v2", {}, [], "simsv2", "zh"),
        ("mosei_aligned", {}, [], "mosei", "en"),
        ("mine", {}, [], "mine", "en"),
        ("mine", {}, ["--dataset", "CH-SIMS"], "CH-SIMS", "zh"),
    ],
)
def test_the_corpus_is_named_and_a_guess_is_said(tmp_path, name, extra, options, dataset, language):
    (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps({"train": split_of("train") | extra}))
    code, _, err = mer(
        "import", "mmsa", tmp_path / f"{name}.pkl", "--out", tmp_path / "f.h5", *options
    )
    from mer.pipeline.store import FeatureStore

    header = FeatureStore(tmp_path / "f.h5").header
    assert code == 0 and (header.dataset, header.language) == (dataset, language)
    assert ("guessed" in err) == (not options and dataset != name) and "targets from" in err
