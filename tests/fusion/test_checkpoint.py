from __future__ import annotations

import hashlib
import json

import pytest
import torch

from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime.typed import tree
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError, KeyMismatchError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    store = make_store(folder)
    return store, experiment.train(store, settings("train.epochs=1"), folder / "run", note=quiet)


def test_a_run_reopens_as_it_was(trained):
    _, run = trained
    again = Run.open(run.path)
    assert again.info == run.info and again.config == settings("train.epochs=1") and again.finished
    assert again.spec.modalities == {"audio": 8, "text": 6} and again.spec.frame_rates == {
        "audio": 12.5,
        "text": None,
    }
    a, b = run.model(), again.model()
    assert not a.training and all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_tensors_round_trip(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(2.5)}
    checkpoint.save_tensors(
        tmp_path / "x.safetensors", tensors, {"epoch": 3, "rank": [float("-inf"), 1.0]}
    )
    loaded, meta = checkpoint.load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(tensors[k], loaded[k]) for k in tensors)
    assert meta == {"epoch": 3, "rank": [float("-inf"), 1.0]}


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"not a checkpoint at all"]
)
def test_a_damaged_checkpoint_is_one_line(trained, tmp_path, damage):
    _, run = trained
    for name in ("run.json", "config.toml"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(
        damage((run.path / "model.safetensors").read_bytes())
    )
    with pytest.raises(DataError, match="damaged checkpoint") as raised:
        Run.open(tmp_path).model()
    assert "\n" not in str(raised.value)


def test_what_is_not_a_run(tmp_path, trained):
    with pytest.raises(DataError, match="not a run folder"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": "mer-run", "version": 99}))
    with pytest.raises(
        DataError,
        match="run.json: mer-run of version 99, this mer reads mer-run of version 1; .*train again",
    ):
        Run.open(tmp_path)
    _, run = trained
    for name in ("config.toml", "run.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    with pytest.raises(DataError, match="no such checkpoint"):
        Run.open(tmp_path).model()
    (tmp_path / "model.safetensors").write_bytes((run.path / "model.safetensors").read_bytes())
    config = (run.path / "config.toml").read_text()
    changed = config.replace("hidden = 16", "hidden = 17")
    # each valid TOML, with defaults for what it lacks
    for text in ("", config[: config.index("[train]")], changed):
        (tmp_path / "config.toml").write_text(text)
        with pytest.raises(
            DataError, match="config.toml: not the configuration that this training wrote"
        ):
            Run.open(tmp_path).model()
        with pytest.raises(DataError, match="config.toml: not the configuration"):
            Run.open(tmp_path).trained()
    info = json.loads((tmp_path / "run.json").read_text())
    del info["config_sha256"], info["sha256"]  # as an older mer left it
    (tmp_path / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="does not fit concat"):
        Run.open(tmp_path).model()


def test_stores_of_another_kind_are_refused(trained, tmp_path):
    store, run = trained
    assert checkpoint.check_store(run, store) == []
    other = make_store(tmp_path / "clips", seed=9)
    assert "other clips, labels or splits" in checkpoint.check_store(run, other)[0]
    with pytest.raises(KeyMismatchError, match="labels"):
        checkpoint.check_store(
            run, make_store(tmp_path / "labels", labels=("calm", "glad", "angry"))
        )
    with pytest.raises(KeyMismatchError, match="audio.dim: 8 -> 9"):
        checkpoint.check_store(
            run, make_store(tmp_path / "dim", modalities={"audio": 9, "text": 6})
        )
    with pytest.raises(KeyMismatchError, match="frame_rate"):
        checkpoint.check_store(run, make_store(tmp_path / "rate", rate=25.0))
    with pytest.raises(KeyMismatchError, match="has no text"):
        checkpoint.check_store(run, make_store(tmp_path / "text", modalities={"audio": 8}))
    object.__setattr__(
        other,
        "header",
        type(other.header)(**{**other.header.__dict__, "recipe": {"precision": "bf16"}}),
    )
    with pytest.raises(KeyMismatchError, match="recipe.precision: absent -> bf16"):
        checkpoint.check_store(run, other)
    assert KeyMismatchError.exit_code == 4


def test_the_store_key_sees_labels_and_splits(tmp_path):
    key = checkpoint.store_key(make_store(tmp_path / "a"))
    assert checkpoint.store_key(make_store(tmp_path / "b")) == key  # where it lies does not matter
    assert checkpoint.store_key(make_store(tmp_path / "c", unlabelled=1)) != key
    assert checkpoint.store_key(make_store(tmp_path / "d", splits=False)) != key


@pytest.mark.parametrize("chunk", [1, 7, 120, 1000])
def test_the_key_of_a_store_is_hashed_in_pieces(trained, monkeypatch, chunk):
    """The same digest as that of whole columns; a store of ten million rows has no room
    for these.
    """
    store, _ = trained
    monkeypatch.setattr(checkpoint, "CHUNK", chunk)
    h = hashlib.sha256(json.dumps(tree(checkpoint.describe_store(store)), sort_keys=True).encode())
    for name in (
        "id",
        "split",
        "label",
        "targets",
        "dialogue",
        "speaker",
        "session",
        "n_audio",
        "n_text",
    ):
        h.update(json.dumps([name, store.table()[name].to_pylist()], ensure_ascii=False).encode())
    assert checkpoint.store_key(store) == h.hexdigest()
