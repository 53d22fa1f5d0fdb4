"""A mistyped --out costs nobody a file: what lies there is replaced only by its own kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.outputs import STORE, check_replaceable
from mer.pipeline.store import shards_of

from tests.whole_way.mer import TINY, mer, refused

TABLE = "clip,words,feeling\ndia0000_utt00.wav,hello,joy\n"
# what a user may have, and a beginning that tells it
THINGS = {
    "clips.csv": TABLE.encode(),
    "notes.txt": b"do not lose me",
    "clip.wav": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "picture.png": b"\x89PNG\r\n\x1a\nand so on",
    "picture.svg": b"not an svg",
    "features.parquet": b"PAR1 of somebody else",
    "run.json": b'{"format": "mer-run"}',
    "clips.jsonl": b'{"id": "a", "audio": "a.wav", "label": "joy"}\n',
    "page.html": b"<!doctype html>\n<title>My thesis</title>",
}
PICTURES = ("picture.svg", "page.html")  # as `mer layers` may name its picture
HDF5 = ("theirs.h5", "theirs.hdf5", "theirs")  # files of somebody else, whatever they are called


def commands(desk) -> dict[str, list]:
    clips = ["--from", "table.csv", "--audio-dir", desk.clip.parent]
    manifest = desk.folder / "data" / "synthetic" / "manifest.parquet"
    columns = ["audio=clip", "text=words", "label=feeling"]
    return {
        "report": ["report", desk.run, "--out"],
        "prepare": ["prepare", "synthetic", "--root", "corpus", "--size", "12", "--out"],
        "table": [
            *("prepare", "table", *clips, "--split", "none"),
            *(part for column in columns for part in ("--column", column)),
            "--out",
        ],
        "predict": ["predict", desk.run, desk.clip, "--csv", "--out"],
        "lines": ["predict", desk.run, desk.clip, "--json", "--out"],
        "evaluate": ["evaluate", desk.run, "--split", "dev", "--predictions"],
        "layers": ["layers", desk.features, "--out"],
        "extract": ["extract", "--manifest", manifest, *TINY, "--force", "--out"],
        "join": ["join", desk.features, "second.h5", "--force", "--out"],
        "import": ["import", "npy-dir", "arrays", "--force", "--out"],
        "train": ["train", desk.features, "--out"],
        "tune": ["tune", desk.features, "--model", "concat", "--trials", "1", "--out"],
        "export": ["export", desk.features, "--to", "parquet"],
    }


@pytest.fixture
def place(desk, tmp_path):
    (tmp_path / "table.csv").write_text(TABLE)
    for name, content in THINGS.items():
        (tmp_path / name).write_bytes(content)
    shutil.copy(desk.features, tmp_path / "other.h5")
    for name in HDF5:
        with h5py.File(tmp_path / name, "w") as file:
            file["features"] = np.ones((3, 4))
            file.attrs["format"] = "somebody else's"
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("report", "prepare", "table", "predict", "lines", "evaluate", "layers"),
        *("extract", "join", "import", "train", "tune", "export"),
    ],
)
def test_what_is_something_else_stays(desk, place, name):
    words = commands(desk)[name]
    for thing in [*THINGS, "other.h5", *HDF5]:
        if name == "evaluate" and thing in ("clips.csv", "notes.txt", "run.json", "clips.jsonl"):
            continue  # refused by the ending of the name
        if name == "layers" and thing not in PICTURES:
            continue  # likewise
        if thing == "other.h5" and name in ("extract", "join", "import"):
            continue  # a store: what they do with one is told elsewhere
        before = (place / thing).read_bytes()
        outcome = mer(*words, thing, cwd=place, code=None)
        assert outcome.code in (1, 2), (thing, outcome)
        assert thing in outcome.err and (place / thing).read_bytes() == before, (thing, outcome)


def test_its_own_kind_is_replaced_and_so_is_an_empty_file(desk, place):
    for name in ("report", "prepare", "table", "predict", "lines"):
        words = commands(desk)[name]
        (place / "new").write_bytes(b"")
        mer(*words, "new", cwd=place)
        first = (place / "new").read_bytes()
        mer(*words, "new", cwd=place)
        assert first and (place / "new").read_bytes()[:64] == first[:64]


def test_what_is_read_is_not_replaced_by_what_is_made_of_it(desk, place):
    mer("predict", desk.run, desk.clip, "--out", "earlier.csv", cwd=place)
    table = (place / "earlier.csv").read_text()
    refused(
        *("predict", desk.run, "earlier.csv", "--column", "audio=file", "--out", "earlier.csv"),
        says=["earlier.csv", "is what is read"],
        cwd=place,
    )
    assert (place / "earlier.csv").read_text() == table


def test_predictions_may_be_written_again_but_not_over_those_of_a_run(desk, tmp_path):
    words = ("evaluate", desk.run, "--split", "dev", "--predictions")
    for _ in range(2):
        mer(*words, "mine.parquet", cwd=tmp_path)
    sealed = desk.run / "predictions.parquet"
    before = sealed.read_bytes()
    refused(*words, sealed, says=["predictions.parquet", "--predictions"])
    assert sealed.read_bytes() == before


def test_a_store_of_ours_may_be_replaced_however_damaged_it_is(desk, tmp_path):
    """`--force` makes anew what can no longer be read; a shard is no head."""
    whole, path = desk.features.read_bytes(), tmp_path / "mine"
    half, beginning = whole[: len(whole) // 2], whole[:4096]
    for damaged in (whole, half, beginning, bytes(len(whole)), b"\0" * 8 + whole[8:]):
        path.write_bytes(damaged)
        check_replaceable(path, STORE)
    path.with_suffix(".h5").write_bytes(b"what was one, perhaps")
    check_replaceable(path.with_suffix(".h5"), STORE)
    shard = next(shards_of(desk.features).glob("shard-*.h5"))
    with pytest.raises(DataError, match=r"that is no store \(an HDF5 file\); name another"):
        check_replaceable(shard, STORE)


def test_the_formats_that_files_call_themselves_stand_in_one_place():
    """A second place would let `--force` refuse, or replace, what the first one calls otherwise."""
    package = Path(__file__).parents[2]
    for name in ("mer-manifest", "mer-feats"):
        files = [*package.glob("pipeline/**/*.py"), *package.glob("fusion/**/*.py")]
        found = [path for path in files if f'"{name}"' in path.read_text()]
        assert [path.name for path in found] == ["terms.py"]
