"""docs/cli.md said that mistakes of one command line are told together, and `train` alone did."""

from __future__ import annotations

import pytest

from tests.fusion.stores import make_store
from tests.whole_way.mer import mer

LINES = {
    "evaluate": (
        ["evaluate", "no-run", "--against", "no-other", "--map", "a=b", "--predictions", "x.csv"],
        ["--against goes with", "--map is for", "end its name in .parquet", "no-run", "no-other"],
    ),
    "several": (
        ["evaluate", "no-run", "no-other", "--robustness", "--figures", "f", "--split", "all"],
        ["several runs", "go with the run's own labels", "no-run", "no-other"],
    ),
    "predict": (
        [
            "predict",
            "no-run",
            "a.wav",
            "b.wav",
            "--text",
            "t",
            "--language",
            "de",
            "--out",
            "x.bin",
        ],
        ["--text is of one clip", "--language goes", "--out x.bin", "no-run", "none of 2 clips"],
    ),
    "prepare": (
        ["prepare", "meld", "--pattern", "{a}", "--from", "x.csv", "--out", "notes.txt"],
        ["--pattern and --map go", "--from, --audio-dir and --column", "--out notes.txt"],
    ),
    "table": (
        ["prepare", "table", "--pattern", "{a}", "--column", "audio", "--out", "notes.txt"],
        ["--pattern and --map", "table takes --from", "expected FIELD=NAME", "--out notes.txt"],
    ),
    "join": (
        ["join", "no.h5", "notes.txt", "--as", "x", "--force", "--out", "notes.txt"],
        ["--out notes.txt", "'x' is not STORE:MODALITY=NAME", "no.h5: no such store"],
    ),
    "import": (
        ["import", "npz", "x.npz", "--frame-rate", "audio=x", "--force", "--out", "notes.txt"],
        ["--out notes.txt", "a rate is a number of steps"],
    ),
    "extract": (
        ["extract", "--manifest", "no.parquet", "--shard", "3", "--force", "--out", "notes.txt"],
        ["--out notes.txt", "--shard '3'", "no.parquet"],
    ),
    "layers": (["layers", "no.h5", "--out", "notes.txt"], ["notes.txt", "no.h5: no such store"]),
    "tune": (
        ["tune", "no.h5", "--set", "optim.lrr=1", "--space", "no.toml"],
        ["no.h5: no such store", "optim.lrr", "no.toml"],
    ),
    "train": (
        ["train", "no.h5", "--set", "optim.lrr=1", "--log", "paper"],
        ["no.h5: no such store", "optim.lrr", "--log paper"],
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_each_has_a_line(tmp_path, name):
    (tmp_path / "notes.txt").write_text("mine")
    words, told = LINES[name]
    outcome = mer(*words, code=None, cwd=tmp_path)
    lines = [line for line in outcome.err.splitlines() if line.startswith("mer: ")]
    assert outcome.code in (1, 2) and (tmp_path / "notes.txt").read_text() == "mine"
    for part in told:
        assert any(part in line for line in lines), (part, outcome.err)
    assert len(lines) == len(set(lines)) >= len(told)
    assert max(map(len, lines)) <= 306


def test_one_mistake_is_one_line_with_the_way_to_the_help(tmp_path):
    store = make_store(tmp_path).path
    for words in (
        ["evaluate", tmp_path, "--valence", "x", "--split", "dev"],
        ["join", store, store, "--as", "x", "--out", "y.h5"],
    ):
        outcome = mer(*words, code=None, cwd=tmp_path)
        assert outcome.code in (1, 2) and "Traceback" not in outcome.err
    once = mer("predict", tmp_path, "--audio", tmp_path, code=None).err
    assert "a folder; name it behind RUN" in once
