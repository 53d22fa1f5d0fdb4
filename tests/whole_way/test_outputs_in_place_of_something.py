"""A mistyped --out costs nobody a file: what lies there is replaced only by its own kind."""

from __future__ import annotations

import shutil

import pytest

from tests.whole_way.mer import TINY, mer, refused

TABLE = "clip,words,feeling\ndia0000_utt00.wav,hello,joy\n"
# what a user may have, and a beginning that tells it
THINGS = {
    "clips.csv": TABLE.encode(),
    "notes.txt": b"do not lose me",
    "clip.wav": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "picture.png": b"\x89PNG\r\n\x1a\nand so on",
    "features.parquet": b"PAR1 of somebody else",
    "run.json": b'{"format": "mer-run"}',
    "clips.jsonl": b'{"id": "a", "audio": "a.wav", "label": "joy"}\n',
    "page.html": b"<!doctype html>\n<title>My thesis</title>",
}


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
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("report", "prepare", "table", "predict", "lines", "evaluate"),
        *("extract", "join", "import", "train", "tune", "export"),
    ],
)
def test_what_is_something_else_stays(desk, place, name):
    words = commands(desk)[name]
    for thing in [*THINGS, "other.h5"]:
        if name == "evaluate" and thing in ("clips.csv", "notes.txt", "run.json", "clips.jsonl"):
            continue  # refused by the ending of the name
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
