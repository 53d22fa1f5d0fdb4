"""Counts of one have their noun in the singular, whatever prints them (reported by a new user)."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from mer.fusion.config import DataConfig
from mer.fusion.data import splits
from mer.fusion.evaluation import layers
from mer.fusion.training.watch import chosen
from mer.pipeline.errors import DataError
from mer.pipeline.extraction.outcome import ExtractReport
from mer.pipeline.interchange.joining import join
from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index

from tests.store.test_cli import mer

# "1 rows", "1 utterances are"; not "0.1 s", "11 rows" or "1 of 3 rows"
ONE_OF_SEVERAL = re.compile(r"(?<![\d.,])1 (?!is |was |has |does |second\b)[a-z]+s\b")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("1 rows left out", True),
        ("1 row left out", False),
        ("11 rows", False),
        ("1 of 3 rows", False),
    ],
)
def test_the_search_finds_them(text, wrong):
    assert bool(ONE_OF_SEVERAL.search(text)) == wrong


def alone(path, ids=("u",), **more) -> FeatureStore:
    """A store of one utterance of one step, of one number."""
    shard = path.with_suffix(".shards") / "shard-00000.h5"
    with ShardWriter(shard, {"text": 1}) as writer:
        for name in ids:
            writer.add(name, {"text": np.ones((1, 1), np.float32)}, duration=1.0)
    rows = [{"id": name, "split": "train", **more} for name in ids]
    infos = {"text": ModalityInfo(1)}
    return build_index(
        path, [shard], rows, dataset="demo", task="regression", labels=["y"], modalities=infos
    )


def said_of(*args) -> str:
    code, out, err = mer(*args)
    assert code in (0, 5), err
    return out + err


def test_stores(tmp_path):
    store = alone(tmp_path / "one.h5", targets=[0.5])
    said = said_of("inspect", store.path) + said_of("verify", store.path)
    assert "demo, 1 utterance, " in said and "1 label: y" in said and "in 1 shard;" in said
    assert "1 utterance in 1 shard, every byte" in said
    shard = store.shards[0].path
    with h5py.File(shard) as file:
        place = file["text/x"].id.get_offset()
    raw = bytearray(shard.read_bytes())
    raw[place] ^= 1
    shard.write_bytes(raw)
    broken = said_of("verify", store.path)
    assert "1 of 1 utterance differs from its checksums" in broken
    assert "1 of 1 shard is damaged, and it was" in broken
    shard.write_bytes(b"x")
    short = said_of("verify", store.path)
    assert "shard has 1 byte, " in short
    for text in (said, broken, short):
        assert not ONE_OF_SEVERAL.search(text), text


def test_joins(tmp_path):
    first = alone(tmp_path / "a.h5", ["u", "v"], text="said")
    second = alone(tmp_path / "b.h5", ["u"], text="heard")
    names = {"b.h5:text": "text.other"}
    _, notes, _ = join(
        [first.path, second.path], tmp_path / "c.h5", renamed=names, keep_first=["text"]
    )
    assert any("1 utterance has another text" in note for note in notes)
    other = alone(tmp_path / "d.h5", ["x"])
    with pytest.raises(DataError, match="none of its 1 id is in the other stores"):
        join([other.path, first.path], tmp_path / "e.h5", renamed={"d.h5:text": "text.other"})


def test_rows_without_something():
    split = ["train"] * 8 + ["dev"] * 2 + [""]
    table = pa.table({"split": split, "id": [str(n) for n in range(11)]})
    target = np.array([0, 1] * 5 + [0])
    target[0] = -1
    notes = splits.assign(table, target, DataConfig()).notes
    assert notes == (
        "1 row without a split left out",
        "1 row without a label left out of train and dev",
    )


@pytest.mark.parametrize(
    ("action", "begin"),
    [
        ("extracted", "1 utterance extracted, 0 reused; "),
        ("dry-run", "dry run: 1 utterance to extract, 0 reused; "),
        ("nothing", "nothing to do: the one utterance is there; "),
        (
            "head",
            "labels or splits changed: only the head file is written again, the one utterance",
        ),
    ],
)
def test_extractions(action, begin):
    done = ExtractReport(Path("feats.h5"), "key", action, utterances=1, extracted=1, shards=1)
    assert done.lines()[0].startswith(begin)


def test_trainings():
    assert chosen(3, 4, 40, "wf1", 0.5).endswith("stopped early: 1 epoch without a better one")


def test_layers():
    made = (layers.Layer(0, 0.5, (0.4, 0.6)), layers.Layer(1, 0.6, (0.5, 0.7)))
    found = layers.Curve("audio", "wf1", "speaker", 1, 90, 60, 1, 1.0, made, 1, 1, 1)
    told = layers.lines(found, "--audio-layer")
    assert "95 % interval over 1 speaker;" in told[0]
    assert told[1] == "  1 utterance has no audio and is left out"
