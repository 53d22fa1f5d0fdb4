from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.store import FeatureStore, ShardWriter, build_index

from tests.store.build import assert_holds, make_store


def mer(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def odd(tmp_path):
    """A store with an absent modality, an all-zero row, an untrained encoder, every kind of task
    number.
    """
    with ShardWriter(tmp_path / "s.h5", {"audio": 4}) as writer:
        writer.add("none", {}, duration=1.0)
        writer.add("zero", {"audio": np.zeros((3, 4))}, duration=2.0)
        writer.add("sum to zero", {"audio": [[1, 1, 1, 1], [-1, -1, -1, -1]]})
        writer.add("usual", {"audio": np.ones((40, 4))}, duration=3597.0)
    table = [
        {"id": i, "split": s, "targets": t}
        for i, s, t in (
            ("none", "train", [1, 0]),
            ("zero", "train", [1, 1]),
            ("sum to zero", "test", None),
            ("usual", "", [0, 1]),
        )
    ]
    audio = {"frame_rate": 49.95, "encoder": "tiny-audio", "trained": False, "layer": "last"}
    build_index(
        tmp_path / "feats.h5",
        [tmp_path / "s.h5"],
        table,
        dataset="odd",
        task="multi",
        labels=["joy", "fear"],
        fingerprint="a" * 64,
        modalities={"audio": audio},
    )
    return tmp_path / "feats.h5"


def test_inspect_counts_what_is_there(odd):
    code, out, _ = mer("inspect", odd, "--json")
    d = json.loads(out)
    assert (
        code == 0
        and d["utterances"] == 4
        and d["hours"] == 1.0
        and d["unknown_durations"] == 1
        and d["untrained"] == ["audio"]
    )
    assert d["splits"] == {
        "train": {"utterances": 2, "labels": {}, "targets": {"joy": 2, "fear": 1}},
        "test": {"utterances": 1, "labels": {}},
        "": {"utterances": 1, "labels": {}, "targets": {"joy": 0, "fear": 1}},
    }
    audio = d["modalities"]["audio"]
    assert (audio["steps"], audio["absent"], audio["zero_rows"], audio["nan_rows"]) == (45, 1, 1, 0)
    assert [b for b in audio["histogram"] if b[2]] == [[2, 3, 2], [32, 63, 1]] and audio["length"][
        "max"
    ] == 40
    assert d["bytes"] == odd.stat().st_size + (odd.parent / "s.h5").stat().st_size


def test_inspect_as_text(odd):
    code, out, _ = mer("inspect", odd)
    assert code == 0
    parts = [
        "odd, 4 utterances, 1.00 h (1 of unknown duration)",
        "multi task, 2 labels: joy, fear",
        "key aaaa",
        "no split",
    ]
    parts += [
        "49.95 Hz, tiny-audio layer last",
        "rows: 1 absent, 1 all zero",
        "WARNING: audio made by untrained encoders",
    ]
    for part in parts:
        assert part in out, part
    assert max(map(len, out.splitlines())) < 160


def test_inspect_of_single_label_store(tmp_path):
    make_store(tmp_path)
    d = json.loads(mer("inspect", tmp_path / "feats.h5", "--json")[1])
    assert list(d["splits"]) == ["train", "dev", "test"] and d["splits"]["train"] == {
        "utterances": 4,
        "labels": {"joy": 2, "anger": 2},
    }


def test_verify_says_what_is_wrong_and_exits_5(tmp_path):
    make_store(tmp_path)
    whole = f"{tmp_path / 'feats.h5'}: 12 utterances in 3 shards, every byte is as written\n"
    assert mer("verify", tmp_path / "feats.h5")[:2] == (0, whole)
    (tmp_path / "feats.shards/shard-00001.h5").write_bytes(b"x")
    (tmp_path / "feats.shards/shard-00002.h5").unlink()
    code, out, err = mer("verify", tmp_path / "feats.h5")
    assert (code, out) == (5, "") and len(err.splitlines()) == 3
    assert (
        "shard-00001.h5: shard has 1 byte, " in err
        and "shard-00002.h5: shard is missing" in err
        and "2 of 3 shards are damaged" in err
    )
    code, _, err = mer("verify", "--repair", tmp_path / "feats.h5")
    # no fingerprint: nothing says how these were made
    assert code == 5 and "it was written by another program than `mer extract`" in err


def test_repair_is_handed_to_extraction(tmp_path, monkeypatch):
    made = {"recipe": {"text": {}}, "provenance": {"extract": {"manifest": "manifest.parquet"}}}
    store = make_store(tmp_path, key="k" * 64, **made)
    path = store.shards[1].path
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    code, _, err = mer("verify", tmp_path / "feats.h5")
    assert code == 5 and "run it with --repair" in err
    calls = []

    def repair(head, *, root=None, progress=None, gentle=False, where=None):
        calls.append((head, root))
        path.write_bytes(raw)

    # extraction has its own tests of repairing
    monkeypatch.setattr("mer.pipeline.extraction.repair", repair)
    code, out, _ = mer("verify", "--repair", "--root", tmp_path, tmp_path / "feats.h5")
    assert (
        code == 0
        and "1 of 3 shards extracted again" in out
        and calls == [(tmp_path / "feats.h5", tmp_path)]
    )
    code, out, _ = mer("verify", "--repair", tmp_path / "feats.h5")
    assert code == 0 and len(calls) == 1  # nothing damaged: nothing to do


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["export", "--to", "single"]])
@pytest.mark.parametrize(("content", "expected"), [(None, 1), (b"", 5), (b"hello\n" * 1000, 5)])
def test_bad_file_is_one_line(tmp_path, command, content, expected):
    path = tmp_path / "feats.h5"
    if content is not None:
        path.write_bytes(content)
    code, out, err = mer(*command, path, *([tmp_path / "out"] if command[0] == "export" else []))
    assert (
        (code, out) == (expected, "")
        and err.startswith(f"mer: {path}: ")
        and len(err.splitlines()) == 1
    )
    assert not (tmp_path / "out").exists()


def test_export_command(tmp_path):
    make_store(tmp_path)
    code, out, err = mer("export", tmp_path / "feats.h5", "--to", "single", tmp_path / "one.h5")
    assert (code, out, err) == (0, f"{tmp_path / 'one.h5'}\n", "12 utterances\n")
    assert_holds(FeatureStore(tmp_path / "one.h5"))
    code, _, err = mer("export", tmp_path / "feats.h5", "--to", "npy", tmp_path / "one.h5")
    assert code == 1 and "exists already" in err
    assert mer("export", tmp_path / "feats.h5", "--to", "docx", tmp_path / "x")[0] == 2
