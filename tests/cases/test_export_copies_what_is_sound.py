"""One flipped bit of a shard went into the copy, which got fresh checksums: `mer verify` called it
sound.

Also: exported CSV whose cells a spreadsheet runs, a header that tells host and folders, and exports
and imports asked for again.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from mer.pipeline.errors import StoreError
from mer.pipeline.interchange.copying import portable
from mer.pipeline.interchange.export import export
from mer.pipeline.interchange.formats import EXPORTS
from mer.pipeline.runtime.cells import TRIGGERS, guarded, unguarded
from mer.pipeline.store import FeatureStore, ShardWriter, build_index

from tests.cases.imports import imported, mer, split_of
from tests.store.build import make_store


def flip(store: FeatureStore, modality: str = "audio") -> Path:
    """One bit in the frames of the second shard."""
    path = store.shards[1].path
    store.close()
    with h5py.File(path, "r") as file:
        x = file[f"{modality}/x"]
        at = x.id.get_offset() + x.nbytes // 2
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("subset", [None, "dev"])
@pytest.mark.parametrize("to", EXPORTS)
def test_a_flipped_bit_is_not_passed_on(tmp_path, to, subset):
    damaged = flip(make_store(tmp_path, n=24))
    before = sorted(tmp_path.rglob("*"))
    options = ["--subset", subset] if subset else []
    code, _, err = mer(
        "export", tmp_path / "feats.h5", "--to", to, tmp_path / "new/folder/out", *options
    )
    assert code == 5 and damaged.name in err and "does not match its checksum" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", EXPORTS)
def test_an_export_asked_for_again_says_so(tmp_path, to):
    make_store(tmp_path)
    arguments = ("export", tmp_path / "feats.h5", "--to", to, tmp_path / "out")
    assert mer(*arguments)[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, out, err = mer(*arguments)
    assert code == 0 and "byte for byte; nothing to do" in err and out == f"{tmp_path / 'out'}\n"
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    code, _, err = mer(*arguments, "--subset", "dev")
    assert code == 1 and "exists already, and is not this export" in err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


FORMULAS = [
    "=1+1",
    "+x",
    "-6rXp3zJ3kc",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "'=1",
    "'tis",
    "plain",
    "a=b",
    '=cmd|"/c calc"!A0',
    "\uff1d1",
]


def formulas(folder: Path) -> FeatureStore:
    with ShardWriter(folder / "s.h5", {"audio": 2}) as writer:
        for k in range(len(FORMULAS)):
            writer.add(f"{FORMULAS[k]}.{k}", {"audio": np.full((1, 2), k)})
    table = [
        {
            "id": f"{text}.{k}",
            "split": "train",
            "text": text,
            "speaker": text,
            "label": "-joy",
            "tags": ["=a"],
        }
        for k, text in enumerate(FORMULAS)
    ]
    return build_index(
        folder / "f.h5", [folder / "s.h5"], table, dataset="d", task="single", labels=["-joy"]
    )


def test_cells_that_a_spreadsheet_runs_are_guarded_and_come_back(tmp_path):
    store = formulas(tmp_path)
    export(store, "npy", tmp_path / "out")
    with open(tmp_path / "out/index.csv", encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell and cell[0] in TRIGGERS.replace("-", "")]
    assert not [cell for cell in cells if cell.startswith("-")]
    again = imported("npy-dir", tmp_path / "out", tmp_path / "again.h5")
    for column in (
        "id",
        "text",
        "label",
        "tags",
    ):  # names lose blanks at their ends, a transcript keeps them
        assert (
            again.table()[column].to_pylist() == store.table()[column].to_pylist() or column == "id"
        )
    assert [id.strip() for id in store.table()["id"].to_pylist()] == again.table()["id"].to_pylist()
    export(store, "npy", tmp_path / "plain", plain_cells=True)
    with open(tmp_path / "plain/index.csv", encoding="utf-8", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == FORMULAS


def test_the_guard_is_taken_back_exactly():
    for text in [
        *FORMULAS,
        "",
        "'",
        "''",
        "'''=",
        "''a",
        *(f"{quote}{c}x" for quote in ("", "'", "''") for c in "=+-@\t\r\n"),
    ]:
        assert unguarded(guarded(text)) == text and (
            not guarded(text) or guarded(text)[0] not in "=+-@\t\r\n"
        )


def test_a_csv_of_another_hand_keeps_its_apostrophes(tmp_path):
    (tmp_path / "x/audio").mkdir(parents=True)
    (tmp_path / "x/index.csv").write_text("id,label,transcript\nu1,'=x,'-y\n")
    np.save(tmp_path / "x/audio/u1.npy", np.ones((2, 3)))
    row = imported("npy-dir", tmp_path / "x", tmp_path / "f.h5").table().to_pylist()[0]
    assert (row["label"], row["text"]) == ("'=x", "'-y")


MADE = {
    "host": "lab-7",
    "created": "2026-01-01",
    "file": "x.pkl",
    "device": "cuda:0",
    "extract": {
        "manifest": "/home/me/data/manifest.parquet",
        "root": "C:\\Users\\me\\data",
        "manifest_hash": "ab",
        "options": {"text_encoder": None},
        "failures": [{"id": "u", "reason": "decode: /home/me/data/a.wav: no such file"}],
    },
}


@pytest.mark.parametrize("to", ["single", "npy", "parquet", "mmsa", "kaldi"])
@pytest.mark.parametrize("with_provenance", [False, True])
def test_an_export_leaves_the_machine_out_unless_asked(tmp_path, to, with_provenance):
    store = make_store(tmp_path)
    store.header = replace(store.header, provenance=MADE)
    export(store, to, tmp_path / "out", with_provenance=with_provenance)
    files = (
        [tmp_path / "out"]
        if (tmp_path / "out").is_file()
        else [p for p in (tmp_path / "out").rglob("*") if p.suffix != ".scp" and p.is_file()]
    )
    raw = b"".join(path.read_bytes() for path in files)
    for secret in (b"lab-7", b"/home/me", b"Users"):
        assert (secret in raw) == with_provenance


def test_what_stays_of_the_provenance():
    kept = portable(MADE)
    assert (
        kept["created"] == "2026-01-01"
        and kept["extract"]["manifest_hash"] == "ab"
        and kept["extract"]["manifest"] is None
    )
    assert kept["extract"]["failures"][0]["reason"] == "decode: …/a.wav: no such file"
    assert (
        portable("see https://example.org/a/b") == "see https://example.org/a/b"
        and portable("facebook/wav2vec2") == "facebook/wav2vec2"
    )


class Full:
    """Writing to any file whose name has `word` in its path ends as on a full disk."""

    def __init__(self, monkeypatch, word: str) -> None:
        self.word = word
        real = os.fsync

        def fsync(descriptor):
            if word in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("to", ["single", "parquet", "mmsa"])
def test_a_full_disk_names_the_export(tmp_path, monkeypatch, to):
    make_store(tmp_path)
    Full(monkeypatch, "out")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = mer("export", tmp_path / "feats.h5", "--to", to, tmp_path / "out")
    assert code == 1 and err.strip().endswith(
        f"{tmp_path / 'out'}: No space left on device; free some space and run the same command "
        "again"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_names_the_shard_of_an_import(tmp_path, monkeypatch):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": split_of("train")}))
    Full(monkeypatch, "shard-00000")
    code, _, err = mer("import", "mmsa", tmp_path / "x.pkl", "--out", tmp_path / "new/f.h5")
    assert code == 1 and "new/f.shards/shard-00000.h5: No space left on device" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pkl"]


# --------------------------------------------------------------------------------------------------
# --- import, again


def example(folder: Path, kind: str) -> Path:
    store = make_store(folder / "source")
    export(store, {"npy-dir": "npy"}.get(kind, kind), folder / f"x.{kind}")
    return folder / f"x.{kind}"


@pytest.mark.parametrize("kind", ["mmsa", "parquet", "npy-dir"])
def test_an_import_asked_for_again_says_so(tmp_path, kind):
    path, out = example(tmp_path, kind), tmp_path / "f.h5"
    assert mer("import", kind, path, "--out", out)[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, said, err = mer("import", kind, path, "--out", out)
    assert code == 0 and said == f"{out}\n" and "nothing to do" in err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    code, _, err = mer("import", kind, path, "--out", out, "--dataset", "another")
    assert code == 1 and "from other content or options" in err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_one_changed_number_is_another_source(tmp_path):
    path, out = example(tmp_path, "npy-dir"), tmp_path / "f.h5"
    assert mer("import", "npy-dir", path, "--out", out)[0] == 0
    file = next((path / "audio").iterdir())
    np.save(file, np.load(file) + 1)
    code, _, err = mer("import", "npy-dir", path, "--out", out)
    assert code == 1 and "from other content or options" in err


def test_a_damaged_import_is_made_again_from_the_same_source(tmp_path):
    path, out = example(tmp_path, "parquet"), tmp_path / "f.h5"
    assert mer("import", "parquet", path, "--out", out)[0] == 0
    store = FeatureStore(out)
    shard = store.shards[0].path
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    code, _, err = mer("import", "parquet", path, "--out", out)
    assert code == 0 and "damaged, and is made again" in err and shard.read_bytes() == sound
    FeatureStore(out).verify()


def test_an_import_takes_the_hold_of_an_extraction(tmp_path):
    path, out = example(tmp_path, "parquet"), tmp_path / "f.h5"
    (tmp_path / "f.shards").mkdir()
    with open(tmp_path / "f.shards/.hold", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(json.dumps({"pid": 1, "host": "lab", "started": "now"}))
        other.flush()
        code, _, err = mer("import", "parquet", path, "--out", out)
    assert code == 1 and "is writing there" in err and not out.exists()


def test_somebody_elses_folder_behind_a_link_is_left_alone(tmp_path):
    path, out = example(tmp_path, "parquet"), tmp_path / "f.h5"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/shard-00007.h5").write_text("theirs")
    (tmp_path / "f.shards").symlink_to(tmp_path / "theirs")
    code, _, err = mer("import", "parquet", path, "--out", out)
    assert code == 1 and "a symbolic link (to" in err
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["shard-00007.h5"]


def test_reading_without_a_check_still_reads(tmp_path):
    """`features` checks only when asked: a damaged row can be looked at."""
    store = make_store(tmp_path, n=24)
    flip(store)
    store = FeatureStore(store.path)
    rows = [row for row in range(24) if store.features("audio", row).shape[0]]
    assert len(rows) > 10
    with pytest.raises(StoreError, match="does not match its checksum"):
        for row in rows:
            store.features("audio", row, check=True)
