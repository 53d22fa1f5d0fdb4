"""Training and scoring on a joined store: the same as on one store that holds everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.runs.checkpoint import store_key
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import make_store

WIDTH = {"audio": 8, "text": 6, "vision": 5}
# what makes a run of each model a quick one
SMALL = {
    "concat": ("train.epochs=1",),
    "drkf": ("train.epochs=1", "model_args.d=32", "model_args.layers=1", "model_args.ffn=64"),
    "dmd": ("train.epochs=1",),
}


def mer(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[FeatureStore, FeatureStore]:
    """(one store of three modalities, the same joined of a text store, an audio store and imported
    vision vectors that know nothing but ids)
    """
    folder = tmp_path_factory.mktemp("joined")
    whole = make_store(folder, modalities=WIDTH, n=80)
    for name in ("text", "audio"):
        others = [f"--as=feats.h5:{m}=" for m in WIDTH if m != name]
        helper = make_store(folder, modalities={"nothing": 1}, n=80, name="other.h5")
        args = ("join", whole.path, helper.path, *others, "--as=other.h5:nothing=")
        assert mer(*args, "--copy", "--out", folder / f"{name}.h5")[0] == 0
    ids = whole.table()["id"].to_pylist()[::-1]
    steps = [whole.features("vision", row) for row in range(80)][::-1]
    np.savez(
        folder / "vision.npz",
        id=ids,
        vision=np.concatenate(steps),
        vision_lengths=[len(x) for x in steps],
    )
    code, _, err = mer("import", "npz", folder / "vision.npz", "--out", folder / "vision.h5")
    assert code == 0, err
    parts = [folder / f"{name}.h5" for name in ("text", "audio", "vision")]
    code, _, err = mer("join", *parts, "--out", folder / "all.h5")
    assert code == 0, err
    return whole, FeatureStore(folder / "all.h5")


@pytest.mark.parametrize("model", SMALL)
def test_models_train_on_a_joined_store(stores, tmp_path, model):
    """Scores and predictions are those of a run on the store that holds everything."""
    scores, predictions = [], []
    for store in stores:
        out = tmp_path / store.path.stem
        small = [*(f"--set={one}" for one in SMALL[model]), "--device", "cpu", "--model", model]
        code, _, err = mer("train", "--features", store.path, "--out", out, *small)
        assert code == 0, err
        found = json.loads((out / "metrics.json").read_text())
        scores.append(found["metrics"])
        predictions.append(pq.read_table(out / "predictions.parquet"))
        code, _, err = mer("evaluate", out, "--features", store.path)
        assert code == 0, err
    assert len(scores) == 2 and scores[0] == scores[1]
    assert predictions[0].num_rows > 0 and predictions[0].equals(predictions[1])


def test_the_key_of_a_run_changes_with_the_members(stores, tmp_path):
    whole, joined = stores
    assert store_key(joined) == store_key(FeatureStore(joined.path)) != store_key(whole)
    text = Path(joined.path).with_name("text.h5")
    other = make_store(tmp_path, modalities=WIDTH, n=80, signal=2.0, name="b.h5")
    args = ("--as=b.h5:text=", "--as=b.h5:vision=")
    assert mer("join", text, other.path, *args, "--out", tmp_path / "c.h5")[0] == 0
    args = ("--as=feats.h5:text=", "--as=feats.h5:vision=")
    assert mer("join", text, whole.path, *args, "--out", tmp_path / "d.h5")[0] == 0
    keys = [store_key(FeatureStore(tmp_path / name)) for name in ("c.h5", "d.h5")]
    assert keys[0] != keys[1]


def test_exports_of_a_joined_store(stores, tmp_path):
    whole, joined = stores
    for kind in ("npy", "parquet", "single", "mmsa", "kaldi"):
        code, _, err = mer("export", joined.path, tmp_path / kind, "--to", kind)
        assert code == 0, (kind, err)
    single = FeatureStore(tmp_path / "single")
    for m in WIDTH:
        assert np.array_equal(single.packed(m)[0], whole.packed(m)[0])
