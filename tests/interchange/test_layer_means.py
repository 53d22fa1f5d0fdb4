"""Layer means and feature sets on their way out of a store and in again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index

IDS = [f"u{k}" for k in range(7)]
ABSENT = 3  # has no audio
FORMS = {"npy": "npy-dir", "parquet": "parquet"}


def mer(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def means(k: int, width: int = 2) -> np.ndarray:
    return (np.arange(3 * width).reshape(3, width) + k + 0.5).astype(np.float32)


def make(folder: Path) -> FeatureStore:
    """audio with a stack of two layers and the means of three, a set of it, and plain text."""
    dims = {"audio": 4, "audio.egemaps": 2, "text": 3}
    with ShardWriter(folder / "s.h5", dims, layers={"audio": 3, "audio.egemaps": 1}) as writer:
        for k, row_id in enumerate(IDS):
            there = k != ABSENT
            features = {"audio.egemaps": np.full(2, k + 1), "text": np.full((2, 3), k + 1)}
            layers = {"audio.egemaps": np.full((1, 2), k + 1)}
            if there:
                features["audio"], layers["audio"] = np.full((k + 1, 4), k + 1), means(k)
            writer.add(row_id, features, duration=1.0, layer_means=layers)
    rows = [{"id": row_id, "split": "train", "label": "joy"} for row_id in IDS]
    return build_index(
        folder / "feats.h5",
        [folder / "s.h5"],
        rows,
        dataset="demo",
        task="single",
        labels=["joy"],
        modalities={"audio": ModalityInfo(4, 50.0, "some/encoder", stack=(1, 2))},
    )


def same(a: FeatureStore, b: FeatureStore) -> None:
    assert a.header.modalities.keys() == b.header.modalities.keys()
    for m, info in a.header.modalities.items():
        other = b.header.modalities[m]
        assert (info.layers, info.stack, info.dim) == (other.layers, other.stack, other.dim)
        assert np.array_equal(a.packed(m)[0], b.packed(m)[0])
        assert np.array_equal(a.lengths(m), b.lengths(m))
        if info.layers:
            assert np.array_equal(a.layer_means(m), b.layer_means(m))


@pytest.mark.parametrize("form", FORMS)
def test_out_and_in_again(tmp_path, form):
    store = make(tmp_path)
    code, _, err = mer("export", store.path, tmp_path / "x", "--to", form)
    assert code == 0 and "left out" not in err
    if form == "parquet":
        column = pq.read_table(tmp_path / "x")["audio.layers"].to_pylist()
        assert column == [[] if k == ABSENT else means(k).tolist() for k in range(7)]
    else:
        found = sorted(path.name for path in (tmp_path / "x" / "audio.layers").iterdir())
        assert found == [f"u{k}.npy" for k in range(7) if k != ABSENT]
        assert np.array_equal(np.load(tmp_path / "x" / "audio.layers" / "u2.npy"), means(2))
    for _ in range(2):
        code, _, err = mer("import", FORMS[form], tmp_path / "x", "--out", tmp_path / "y.h5")
        assert code == 0, err
    assert "nothing to do" in err
    same(store, FeatureStore(tmp_path / "y.h5"))


@pytest.mark.parametrize("form", ["mmsa", "kaldi"])
def test_what_a_form_cannot_hold_is_said(tmp_path, form):
    store = make(tmp_path)
    code, _, err = mer("export", store.path, tmp_path / "x", "--to", form)
    assert (
        code == 0
        and (
            f"the layer means of audio, audio.egemaps are left out: {form} has no place for them; "
            "single, npy, parquet have"
        )
        in err.splitlines()
    )


def test_an_mmsa_pickle_comes_in_without_them(tmp_path):
    store = make(tmp_path)
    mer("export", store.path, tmp_path / "x", "--to", "mmsa")
    code, _, err = mer("import", "mmsa", tmp_path / "x", "--out", tmp_path / "y.h5")
    assert code == 0, err
    info = FeatureStore(tmp_path / "y.h5").header.modalities["audio"]
    assert info.layers == 0 and info.stack == (1, 2)


def arrays() -> dict:
    return {
        "id": IDS,
        "audio": np.arange(14.0).reshape(7, 2),
        "audio.layers": np.stack([means(k) for k in range(7)]),
        "audio.egemaps": np.arange(21.0).reshape(7, 3) + 1,
    }


def test_an_npz_brings_them(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays())
    code, _, err = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "y.h5")
    assert code == 0 and "audio.layers features = audio.layers" in err and "not used" not in err
    store = FeatureStore(tmp_path / "y.h5")
    assert list(store.header.modalities) == ["audio", "audio.egemaps"]
    assert np.array_equal(store.layer_means("audio"), arrays()["audio.layers"])
    assert store.features("audio.egemaps", 6).tolist() == [[19, 20, 21]]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (np.ones((7, 2)), "audio.layers is (7, 2) float64, not numbers (7, layers, width)"),
        (np.ones((6, 3, 2)), "audio.layers is (6, 3, 2) float64, not numbers (7, layers, width)"),
        (np.ones((7, 3, 5)), "u0: audio.layers has shape (3, 5), expected (3, 2)"),
        (np.full((7, 3, 2), "x"), "not numbers"),
    ],
)
def test_odd_layer_means_are_one_line(tmp_path, layers, message):
    np.savez(tmp_path / "x.npz", **(arrays() | {"audio.layers": layers}))
    code, _, err = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "y.h5")
    assert code == 1 and message in err.splitlines()[-1] and not (tmp_path / "y.h5").exists()


def test_values_that_are_no_numbers_are_counted(tmp_path):
    odd = arrays()
    odd["audio.layers"][2, 1] = np.nan
    np.savez(tmp_path / "x.npz", **odd)
    code, _, err = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "y.h5")
    assert code == 0 and "audio.layers: 2 values were NaN or infinite and are 0 now" in err
    assert FeatureStore(tmp_path / "y.h5").layer_means("audio")[2, 1].tolist() == [0, 0]


def test_layer_means_of_an_utterance_without_frames(tmp_path):
    store = make(tmp_path)
    mer("export", store.path, tmp_path / "x", "--to", "npy")
    (tmp_path / "x" / "audio" / "u2.npy").unlink()
    code, _, err = mer("import", "npy-dir", tmp_path / "x", "--out", tmp_path / "y.h5")
    assert code == 1 and "u2 has audio or audio.layers without the other" in err.splitlines()[-1]
