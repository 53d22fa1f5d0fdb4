"""A near name was offered for models and settings, but for hardly a path, column or label: a file
`feast.h5` beside `feats.h5` was no more than not there.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import models
from mer.fusion.data import feature_sets
from mer.fusion.evaluation import opening_rows
from mer.fusion.training import space
from mer.pipeline.datasets import corpora
from mer.pipeline.encoders import loading
from mer.pipeline.errors import MerError
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.terminal import did_you_mean

THERE = ("feats.h5", "manifest.parquet", "table.csv", "space.toml", "arrays.npz", "clips.wav")
FOLDERS = ("meld", "folder", "runs/emotion", "features", "lists")
# what is typed, and what is there
PATHS = [
    (["inspect", "feast.h5"], "feats.h5"),
    (["verify", "Feats.H5"], "feats.h5"),
    (["export", "feats.h6", "x.parquet", "--to", "parquet"], "feats.h5"),
    (["layers", "feast.h5"], "feats.h5"),
    (["train", "feast.h5"], "feats.h5"),
    (["tune", "feast.h5"], "feats.h5"),
    (["join", "feast.h5", "feast.h5", "--out", "all.h5"], "feats.h5"),
    (["extract", "--manifest", "manifset.parquet"], "manifest.parquet"),
    (["prepare", "table", "--from", "tabel.csv"], "table.csv"),
    (["prepare", "folder", "--root", "foldr", "--pattern", "{label}.wav"], "folder"),
    (["prepare", "emobox", "--root", "foldr", "--meta", "lists"], "folder"),
    (["prepare", "emobox", "--root", "folder", "--meta", "lsits"], "lists"),
    (["prepare", "meld", "--root", "mled"], "meld"),
    (["import", "npz", "array.npz", "--out", "y.h5"], "arrays.npz"),
    (["import", "npy-dir", "featurs", "--out", "y.h5"], "features"),
    (["import", "parquet", "manifset.parquet", "--out", "y.h5"], "manifest.parquet"),
    (["evaluate", "runs/emotoin"], "emotion"),
    (["evaluate", "rnus/emotion"], "runs"),
    (["compare", "runs/emotoin", "runs/emotoin"], "emotion"),
    (["report", "runs/emotoin"], "emotion"),
    (["runs", "rnus"], "runs"),
    (["train", "feats.h5", "--preset", "spaec.toml"], "space.toml"),
]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a file of each kind, by name."""
    monkeypatch.chdir(tmp_path)
    for name in THERE:
        (tmp_path / name).touch()
    for name in FOLDERS:
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("words", "meant"), PATHS, ids=[" ".join(words) for words, _ in PATHS])
def test_a_path_that_is_not_there(desk, words, meant):
    done = CliRunner().invoke(main, words)
    assert done.exit_code != 0
    assert f"(did you mean '{meant}'?)" in done.stderr, done.stderr
    assert all(len(line) <= 300 for line in done.stderr.splitlines())


def test_paths_that_python_code_gives(desk):
    class Trained:
        class info:
            features = "feast.h5"

    with pytest.raises(MerError, match="did you mean 'feats.h5'"):
        opening_rows.scored_store(Trained, "feast.h5", print)
    with pytest.raises(MerError, match="no such directory .did you mean 'features'"):
        loading.resolve("audio", "./featurs", offline=True)
    with pytest.raises(MerError, match="no such built-in .did you mean 'builtin:tiny-wav2vec2'"):
        loading.resolve("audio", "builtin:tiny-wav2vec", offline=True)
    with pytest.raises(MerError, match="no such file .did you mean 'space.toml'"):
        space.spaces_of(["concat"], [Path("spcae.toml")])
    with pytest.raises(MerError, match="--labels emotoin: .* .did you mean 'emotion'"):
        corpora.corpus("meld").label_set("emotoin")


def test_a_name_of_somebody_elses_is_safe_and_short(tmp_path):
    (tmp_path / "feats\x1b[2J.h5").touch()
    assert near(tmp_path / "feats.h5") == r" (did you mean 'feats\x1b[2J.h5'?)"
    (tmp_path / ("a" * 250)).touch()
    assert len(near(tmp_path / ("a" * 200))) <= 80 + len(" (did you mean ''?)")
    (tmp_path / os.fsdecode(b"b\xff.h5")).touch()
    near(tmp_path / "b.h5").encode("utf-8", "surrogateescape")


def test_one_ending_makes_no_near_name(tmp_path):
    (tmp_path / "manifest.parquet").touch()
    assert near(tmp_path / "absent.parquet") == near(tmp_path / "x.parquet") == ""
    assert near(tmp_path / "Manifset.PARQUET") == " (did you mean 'manifest.parquet'?)"
    assert near(tmp_path / "manifest.parqet") == " (did you mean 'manifest.parquet'?)"
    assert near(tmp_path / "manifest") == " (did you mean 'manifest.parquet'?)"


def test_what_is_meant_is_of_that_kind(tmp_path):
    """The folder of a store's shards is no store."""
    (tmp_path / "audio.shards").mkdir()
    assert near(tmp_path / "audio.h5") == ""
    assert near(tmp_path / "audio.h5", "any") == " (did you mean 'audio.shards'?)"
    (tmp_path / "audio2.h5").touch()
    assert near(tmp_path / "audio.h5") == " (did you mean 'audio2.h5'?)"
    assert near(tmp_path / "audio.shrads", "folder") == " (did you mean 'audio.shards'?)"
    assert near(tmp_path / "audio.shrads" / "x.h5") == " (did you mean 'audio.shards'?)"


def test_what_is_there_or_cannot_be_told_is_no_guess(tmp_path):
    (tmp_path / "one.h5").touch()
    (tmp_path / ".one.h4").touch()
    assert near(tmp_path / "one.h5") == "" and near(tmp_path / "one.h5" / "two") == ""
    assert near("") == near("/") == "" and near("a\0b") == near("/\0") == ""
    assert near(tmp_path / "nothing.like" / "it") == ""
    assert near(tmp_path / "one.h4") == " (did you mean 'one.h5'?)", "a hidden file is not meant"


def table(folder, *columns: str) -> str:
    path = folder / "words.csv"
    path.write_text(f"{','.join(columns)}\na,hello,angry\nb,no,sad\n")
    return str(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("text=utterence", "no column 'utterence' (for text) (did you mean 'utterance'?)"),
        ("txet=utterance", "no such field (did you mean 'text'?)"),
        ("text=utterance --column label=emotion --labels angry,sda", "'sad' (did you mean 'sda'?)"),
        ("text=utterance --targets emotoin", "(did you mean 'emotion'?)"),
        ("text=utterance --soft-labels emotion,utterence", "(did you mean 'utterance'?)"),
        ("text=utterance --unimodal text=emotoin", "(did you mean 'emotion'?)"),
    ],
)
def test_columns_and_labels_of_a_table(tmp_path, options, says):
    words = ["prepare", "table", "--from", table(tmp_path, "id", "utterance", "emotion")]
    words += ["--out", str(tmp_path / "m.parquet"), "--column", *options.split()]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and says in done.stderr, done.stderr


def test_columns_and_features_of_an_import(tmp_path):
    np.savez(
        tmp_path / "f.npz",
        name=np.array(["a", "b"]),
        emotion=np.array(["x", "y"]),
        acoustic_mean=np.ones((2, 3), np.float32),
    )
    for options, says in (
        (["--column", "id=nmae"], "no column 'nmae' for id (did you mean 'name'?)"),
        (["--column", "idd=name"], "no such field (did you mean 'id'?)"),
        (
            ["--column", "id=name", "--feature", "audio=acoustic_maen"],
            "no features 'acoustic_maen' for audio (did you mean 'acoustic_mean'?)",
        ),
    ):
        words = ["import", "npz", str(tmp_path / "f.npz"), "--out", str(tmp_path / "y.h5")]
        done = CliRunner().invoke(main, [*words, *options])
        assert done.exit_code == 1 and says in done.stderr, done.stderr
        assert len(done.stderr.replace(str(tmp_path), "").strip()) <= 300


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prepare", "mled"], "did you mean 'meld'"),
        (["train", "feats.h5", "--model", "drfk"], "did you mean 'drkf'"),
        (["tune", "feats.h5", "--model", "drfk"], "did you mean 'drkf'"),
        (["train", "feats.h5", "--preset", "dkrf-paper"], "did you mean 'drkf-paper'"),
        (["extract", "--dataset", "synthetik"], "did you mean 'synthetic'"),
    ],
)
def test_corpora_labels_models_and_encoders(desk, words, says):
    done = CliRunner().invoke(main, words)
    assert done.exit_code != 0 and says in done.stderr, done.stderr
    assert all(len(line) <= 300 for line in done.stderr.splitlines())


def test_names_in_python_code():
    with pytest.raises(MerError, match="unknown .did you mean 'drkf'"):
        models.model_class("drfk")
    assert "did you mean 'audio'" in str(feature_sets._no_such("audoi", ["audio", "text"]))
    assert "did you mean 'audio'" in str(feature_sets._no_such("text, audoi", ["audio", "text"]))
    assert did_you_mean("x", []) == ""
