"""`mer predict` with a run that sees the turns around an utterance: a manifest, a table, a folder
in order, or without context; the output says which.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.commands import predicting
from mer.pipeline.manifest import Manifest

from tests.whole_way.mer import mer

TOLERANCE = 2e-3  # of a probability: features as stored in half precision against new ones
SETS = (
    "data.context=past",
    "data.context_width=2",
    "train.epochs=2",
    "model_args.hidden=8",
    "optim.lr=0.01",
)


@pytest.fixture(scope="module")
def run(desk, tmp_path_factory) -> Path:
    """A run with context on the shared store, evaluated."""
    out = tmp_path_factory.mktemp("context") / "run"
    sets = [part for one in SETS for part in ("--set", one)]
    mer("train", desk.features, "--model", "concat", "--out", out, *sets)
    return out


def evaluated(run: Path) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(run / "predictions.parquet").to_pylist()}


def rows(*args, **options) -> tuple[list[dict], str]:
    found = mer("predict", *args, "--json", **options)
    return [json.loads(line) for line in found.out.splitlines()], found.err


def shares(row: dict) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("p_")}


def of_test(desk) -> tuple[Path, pa.Table]:
    corpus = desk.folder / "data" / "synthetic"
    table = pq.read_table(corpus / "manifest.parquet")
    return corpus, table.filter([split == "test" for split in table["split"].to_pylist()])


def test_a_manifest_of_dialogues_gives_what_evaluate_gave(desk, run, tmp_path):
    corpus, part = of_test(desk)
    pq.write_table(part, tmp_path / "test.parquet")
    found, said = rows(run, tmp_path / "test.parquet", "--root", corpus)
    expected = evaluated(run)
    dialogues = len(set(part["dialogue"].to_pylist()))
    assert f"context past 2: clips of {dialogues} dialogue" in said
    assert len(found) == part.num_rows > 0
    for row in found:
        assert row["turns"] == expected[row["id"]]["turns"] == min(row["position"], 2)
        assert shares(row) == pytest.approx(shares(expected[row["id"]]), abs=TOLERANCE)
    text = mer("predict", run, tmp_path / "test.parquet", "--root", corpus, "--csv").out
    assert {int(row["turns"]) for row in csv.DictReader(text.splitlines())} == {0, 1, 2}


def test_a_turn_that_is_missing_leaves_its_slot_empty(desk, run, tmp_path):
    corpus, part = of_test(desk)
    dialogue = part["dialogue"][0].as_py()
    keep = [
        (name, place) != (dialogue, 1)
        for name, place in zip(
            part["dialogue"].to_pylist(), part["position"].to_pylist(), strict=True
        )
    ]
    pq.write_table(part.filter(keep), tmp_path / "gap.parquet")
    found, _ = rows(run, tmp_path / "gap.parquet", "--root", corpus)
    seen = {row["position"]: row["turns"] for row in found if row["dialogue"] == dialogue}
    assert seen[0] == 0 and 1 not in seen and all(seen[at] == 1 for at in (2, 3) if at in seen)


@pytest.fixture
def talk(desk, tmp_path) -> tuple[Path, list[str]]:
    """The clips of one test dialogue as a folder in order, twelve names that sort as numbers."""
    corpus, part = of_test(desk)
    manifest = Manifest.read(corpus / "manifest.parquet")
    dialogue = part["dialogue"][0].as_py()
    turns = sorted(
        (u for u in manifest.rows if u.dialogue == dialogue), key=lambda u: u.position or 0
    )
    folder = tmp_path / "talk"
    folder.mkdir()
    for number, u in zip((2, 10, 11, 100, 101, 1000, 2000), turns, strict=False):
        shutil.copy(corpus / u.audio, folder / f"turn{number}.wav")
        (folder / f"turn{number}.txt").write_text(u.text)
    return folder, [u.id for u in turns]


def test_a_folder_is_a_dialogue_where_that_is_said(desk, run, talk):
    folder, ids = talk
    count = len(list(folder.glob("*.wav")))
    found, said = rows(run, folder, "--dialogue")
    assert "context past 2: clips of 1 dialogue" in said
    by_place = {row["position"]: row for row in found}
    assert [Path(by_place[at]["file"]).name for at in range(2)] == ["turn2.wav", "turn10.wav"]
    assert [by_place[at]["turns"] for at in range(count)] == [min(at, 2) for at in range(count)]
    alone, said = rows(run, folder)
    assert "without context, although the run was trained with context past 2" in said
    assert {row["turns"] for row in alone} == {0}
    first = {Path(row["file"]).name: shares(row) for row in alone}
    for row in found:  # the first turn has nobody before it
        same = shares(row) == pytest.approx(first[Path(row["file"]).name], abs=1e-6)
        assert same == (row["position"] == 0)


def test_a_broken_clip_keeps_its_place(run, talk):
    folder, _ = talk
    (folder / "turn3.wav").write_bytes(b"no sound")
    found = mer("predict", run, folder, "--dialogue", "--json", code=3)
    told = {row["position"]: row["turns"] for row in map(json.loads, found.out.splitlines())}
    assert told[0] == 0 and 1 not in told and told[2] == 1
    assert "turn3.wav" in found.err


def test_one_clip_alone_is_said_to_be_without_context(desk, run):
    found = mer("predict", run, "--audio", desk.clip, "--text", "I told you so.")
    assert "without context: one clip (the run was trained with past 2)" in found.err


def test_a_table_with_columns_of_its_own(desk, run, talk, tmp_path):
    folder, _ = talk
    table = tmp_path / "talk.csv"
    files = sorted(folder.glob("*.wav"), key=lambda path: int(path.stem[4:]))
    lines = [f"{path},talk1,{at + 1},hello" for at, path in enumerate(files)]
    table.write_text("\n".join(["audio,talk,turn,text", *lines]) + "\n")
    columns = ["--column", "dialogue=talk", "--root", folder]
    refused = mer("predict", run, table, *columns, code=1).err.strip().splitlines()
    assert len(refused[-1]) <= 300 and "--column position=NAME" in refused[-1]
    found, said = rows(run, table, *columns, "--column", "position=turn")
    assert "context past 2: clips of 1 dialogue" in said
    assert [row["turns"] for row in found] == [min(at, 2) for at in range(len(files))]
    table.write_text(table.read_text().replace(",talk1,1,", ",talk1,first,"))
    line = mer("predict", run, table, *columns, "--column", "position=turn", code=1).err.strip()
    assert "line 2 has position 'first', expected the number of a turn" in line


def test_two_turns_at_one_place_are_told_before_the_work(run, talk, tmp_path, monkeypatch):
    """As of dialogues that are numbered anew in each part of a corpus."""
    folder, _ = talk
    table = tmp_path / "talk.csv"
    files = sorted(folder.glob("*.wav"))[:2]
    lines = [f"{path.stem},{path},0,0,hello" for path in files]
    table.write_text("\n".join(["id,audio,dialogue,position,text", *lines]) + "\n")
    monkeypatch.setattr(predicting, "make_ready", None)
    columns = ("--column", "position=position")
    line = mer("predict", run, table, *columns, code=1).err.strip().splitlines()[-1]
    both = f"{files[0].stem} and {files[1].stem} both have position 0 of dialogue 0"
    assert both in line and len(line) <= 300


def test_what_does_not_go_together_is_one_line(desk, run, talk, tmp_path):
    folder, _ = talk
    for args, code, says in (
        ((desk.run, folder, "--dialogue"), 1, "--dialogue: the run sees each clip without context"),
        ((run, "--text", "Hi.", "--audio", desk.clip, "--dialogue"), 2, "--dialogue goes with"),
        (
            (run, desk.folder / "data" / "synthetic" / "manifest.parquet", "--dialogue"),
            1,
            "--dialogue goes with folders",
        ),
    ):
        error = mer("predict", *args, code=code).err.strip().splitlines()[-1]
        assert says in error and len(error) <= 300
