"""`mer predict RUN` for many clips: files, folders, tables and manifests."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from mer.pipeline.manifest import Manifest

from tests.encoders import checkpoints
from tests.whole_way.mer import mer

LABELS = ("anger", "joy", "neutral", "sadness")  # of the synthetic corpus
TOLERANCE = 2e-5  # of a probability: batched against alone


@pytest.fixture(scope="module")
def clips(desk, tmp_path_factory) -> Path:
    """A folder with four clips of the corpus, words beside three of them, and other things."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    manifest = Manifest.read(desk.folder / "data" / "synthetic" / "manifest.parquet")
    for number, u in enumerate(manifest.rows[:4]):
        place = folder / ("deep" if number == 3 else "") / f"{number}.wav"
        shutil.copy(desk.folder / "data" / "synthetic" / u.audio, place)
        if number:
            place.with_suffix(".txt").write_text(u.text)
    (folder / "notes.pdf").write_text("no clip")
    (folder / "lonely.txt").write_text("words of nobody")
    (folder / ".hidden.wav").write_text("no clip")
    return folder


def rows(*args, **options) -> tuple[list[dict], str]:
    found = mer("predict", *args, "--json", **options)
    return [json.loads(line) for line in found.out.splitlines()], found.err


def shares(row: dict) -> dict[str, float]:
    """The probabilities of a row."""
    return {key: value for key, value in row.items() if key.startswith("p_")}


def test_a_folder_is_each_of_its_clips(desk, clips):
    found, said = rows(desk.run, clips)
    assert [Path(row["file"]).name for row in found] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert [row["text_from"] for row in found] == [None, "file", "file", "file"]
    assert found[0]["missing"] == ["text"] and found[0]["modalities"] == ["audio"]
    assert all(not row["missing"] for row in found[1:])
    assert "1 file left out that is no media by name (1 .pdf)" in said
    told = [line for line in said.splitlines() if "without a clip of the same name" in line]
    assert len(told) == 1 and told[0].startswith("1 .txt file ") and "lonely.txt" in told[0]
    for row in found[1:]:
        alone = ["--audio", row["file"], "--text", row["text"]]
        [one], _ = rows(desk.run, *alone)
        assert shares(row) and one["pred"] == row["pred"]
        assert shares(one) == pytest.approx(shares(row), abs=TOLERANCE)


def test_a_manifest_gives_what_evaluate_gave(desk, tmp_path):
    """The test part of the very store that the run was evaluated on."""
    corpus = desk.folder / "data" / "synthetic"
    table = pq.read_table(corpus / "manifest.parquet")
    part = table.filter([split == "test" for split in table["split"].to_pylist()])
    pq.write_table(part, tmp_path / "test.parquet")
    found, _ = rows(desk.run, tmp_path / "test.parquet", "--root", corpus)
    stored = pq.read_table(desk.run / "predictions.parquet").to_pylist()
    expected = {row["id"]: row for row in stored}
    assert len(found) == part.num_rows > 0
    for row in found:
        assert shares(row) == pytest.approx(shares(expected[row["id"]]), abs=2e-3)


def test_what_a_manifest_says_of_single_modalities_is_of_another_corpus(desk, clips, tmp_path):
    """Its unimodal labels are no classes of the run, or numbers, and no reason to refuse it."""
    for task, label, alone in (("single", "glad", "sad"), ("regression", "0.5", "-1")):
        table = tmp_path / f"{task}.csv"
        table.write_text(
            f"id,audio,text,label,words\na,{clips}/1.wav,hello there,{label},{alone}\n"
            f"b,{clips}/2.wav,well well,{alone},{label}\n"
        )
        manifest = tmp_path / f"{task}.parquet"
        mer("prepare", "table", "--from", table, "--audio-dir", clips, "--split", "none",
            "--task", task, "--unimodal", "text=words", "--out", manifest)  # fmt: skip
        found, _ = rows(desk.run, manifest)
        assert [row["id"] for row in found] == ["a", "b"] and found[0]["pred"] in LABELS


def test_blanks_are_no_words(desk, clips):
    for text in ("", "  ", "\u00a0"):
        told = mer("predict", desk.run, "--audio", clips / "1.wav", "--text", text, code=1).err
        assert "give it text too (--text TEXT)" in told


def test_a_table_with_spans_and_names_of_its_own(desk, clips, tmp_path):
    table = tmp_path / "own.csv"
    table.write_text(f"name,wav,said,from,to\na,{clips}/1.wav,hello there,0.0,0.5\n"
                     f"b,{clips}/1.wav,hello there,0.0,\n")  # fmt: skip
    columns = ("id=name", "audio=wav", "text=said", "start=from", "end=to")
    asked = [part for one in columns for part in ("--column", one)]
    refused = mer("predict", desk.run, table, *asked, code=1).err
    assert "line 2" in refused and "(--root)" in refused
    found, _ = rows(desk.run, table, *asked, "--root", clips)
    assert [row["id"] for row in found] == ["a", "b"]
    assert shares(found[0]) != pytest.approx(shares(found[1]), abs=TOLERANCE)


def test_paths_that_are_relative_to_another_folder_name_the_option(desk, clips, tmp_path):
    """A line for each clip that is not there said nothing of --root; a manifest that its media
    have left and lines of JSON are siblings of a csv.
    """
    (tmp_path / "own.csv").write_text("id,audio,text\na,1.wav,hello\nb,2.wav,well\n")
    (tmp_path / "own.jsonl").write_text('{"id": "a", "audio": "1.wav", "text": "hello"}\n')
    mer("prepare", "table", "--from", tmp_path / "own.csv", "--split", "none", "--out",
        tmp_path / "own.parquet")  # fmt: skip
    for name, count in {"own.csv": 2, "own.jsonl": 1, "own.parquet": 2}.items():
        said = mer("predict", desk.run, tmp_path / name, code=3).err.splitlines()[-1]
        are = "2 files are" if count == 2 else "1 file is"
        assert f"{are} not there: name the folder with --root if it is not {tmp_path}" in said
    for name, option in {"own.csv": "--audio-dir", "own.parquet": "--root"}.items():
        found, _ = rows(desk.run, tmp_path / name, option, clips)
        assert len(found) == 2
    told = mer("predict", desk.run, tmp_path / "gone.wav", clips / "1.wav", code=3).err
    assert "--root" not in told


def test_what_fails_is_named_and_the_others_keep_their_line(desk, clips, tmp_path):
    shutil.copy(clips / "1.wav", tmp_path / "good.wav")
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    (tmp_path / "dir.wav").mkdir()
    found = mer("predict", desk.run, tmp_path, "--json", code=3)
    assert [Path(json.loads(line)["file"]).name for line in found.out.splitlines()] == ["good.wav"]
    assert "bad.wav" in found.err and "1 of 2 clips have no prediction" in found.err
    found = mer("predict", desk.run, tmp_path / "bad.wav", code=3)
    assert "1 of 1 clip has no prediction" in found.err and "words of 1 clip" not in found.err


def test_a_very_short_clip_is_marked_in_its_row(desk, clips, tmp_path):
    shutil.copy(clips / "1.wav", tmp_path / "whole.wav")
    soundfile.write(tmp_path / "tiny.wav", np.full(160, 0.1), 16_000)  # 10 ms
    table = mer("predict", desk.run, tmp_path).out.splitlines()
    assert table[1].split()[-1] == "noted"
    assert [line.split()[-1] for line in table[2:4]] == ["short", "–"]
    text = mer("predict", desk.run, tmp_path, "--csv").out
    assert [row["noted"] for row in csv.DictReader(io.StringIO(text))] == ["short", ""]
    assert "noted          short" in mer("predict", desk.run, tmp_path / "tiny.wav").out


def test_names_that_are_mistyped_are_told(desk, clips):
    runs = desk.run.parent
    said = mer("predict", runs / "synthetic-drfk-1", clips, code=1).err
    assert "there is none of that name (did you mean 'synthetic-drkf-1'?)" in said
    said = mer("predict", desk.run, clips / "nobody.txt", code=3).err
    assert "no such file" in said and "words without" not in said


def test_of_several_seeds_the_mean_is_predicted_and_the_best_on_dev_named(desk, clips):
    group = desk.folder / "several"
    mer("train", desk.features, "--model", "concat", "--seeds", "2", "--set", "train.epochs=2",
        "--no-test", "--out", group)  # fmt: skip
    infos = [json.loads((group / f"seed-{seed}" / "run.json").read_text()) for seed in (0, 1)]
    best = max(infos, key=lambda info: info["dev"][info["select_metric"]])
    found = mer("predict", group, clips / "1.wav", "--json")
    said = found.err.replace("\n", " ")
    assert "mean of 2 runs of concat: probabilities are averaged" in said
    assert f"the best on dev alone: {group}/seed-{best['seed']}" in said
    each = [mer("predict", group / f"seed-{s}", clips / "1.wav", "--json").out for s in (0, 1)]
    together, *alone = (json.loads(text) for text in (found.out, *each))
    for label in LABELS:
        mean = sum(one[f"p_{label}"] for one in alone) / 2
        assert abs(together[f"p_{label}"] - mean) < 1e-6


def test_a_csv_has_numbers_that_people_can_read(desk, clips):
    text = mer("predict", desk.run, clips / "1.wav", "--csv").out
    [found] = csv.DictReader(io.StringIO(text))
    numbers = [value for name, value in found.items() if name.startswith("p_")]
    assert len(numbers) == len(LABELS)
    for number in numbers:
        assert number == f"{float(number):.6g}"


def test_csv_stays_csv_whatever_a_file_is_called(desk, clips, tmp_path):
    name = 'a "b", c\nd.wav'
    shutil.copy(clips / "1.wav", tmp_path / name)
    text = mer("predict", desk.run, tmp_path, clips / "2.wav", "--csv").out
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) == 2 and Path(found[1]["file"]).name == "2.wav"
    assert {row["pred"] for row in found} <= set(LABELS)
    mer("predict", desk.run, tmp_path, "--out", tmp_path / "p.csv")
    mer("predict", desk.run, tmp_path, "--out", tmp_path / "p.jsonl")
    [row] = csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text()))
    assert row["pred"] == json.loads((tmp_path / "p.jsonl").read_text())["pred"]


def test_a_film_is_taken_with_its_sound(desk, clips, tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    film = tmp_path / "film.mp4"
    picture = ["-f", "lavfi", "-i", "color=size=64x64:rate=5:duration=1", "-i", clips / "1.wav"]
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", *picture, "-c:a", "flac", "-strict", "-2", film],
        check=True,
    )
    (tmp_path / "film.txt").write_text((clips / "1.txt").read_text())
    [found], _ = rows(desk.run, film)
    [alone], _ = rows(desk.run, clips / "1.wav")
    assert found["pred"] == alone["pred"]
    assert found["modalities"] == ["audio", "text"]


def test_what_does_not_go_together_is_one_line(desk, clips, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.csv").write_text("name,wav\na,1.wav\n")
    (tmp_path / "folder.csv").write_text("id,audio\na,empty\n")
    for args, code, says in (
        ((tmp_path / "empty",), 1, ["empty"]),
        ((tmp_path / "nowhere.wav",), None, ["nowhere.wav"]),
        ((tmp_path / "odd.csv",), 1, ["is called audio, text, video, id, start, end, dialogue,"]),
        ((tmp_path / "folder.csv",), 3, ["empty: a folder, no file"]),
        (("--audio", clips, "--text", "hi"), 2, [f"--audio {clips}: a folder; name it behind"]),
        (("--video", clips, "--text", "hi"), 2, ["a folder; name it behind RUN"]),
        (("--manifest", clips), 2, ["a folder; name it behind RUN, without --manifest"]),
        ((clips, "--text", "hi"), 2, ["--text is of one clip"]),
        ((clips / "1.wav", clips / "2.wav", "--text", "hi"), 2, ["is of one clip"]),
        ((clips, "--language", "en"), 2, ["--language goes with --transcribe"]),
        ((clips, "--csv", "--json"), 2, ["--csv and --json"]),
        ((clips, "--out", tmp_path / "p.txt"), 2, [".csv or .jsonl"]),
        ((clips, "--transcribe", desk.folder), None, ["not a complete checkpoint"]),
    ):
        outcome = mer("predict", desk.run, *args, code=None)
        assert outcome.code not in (0, 70) and (code is None or outcome.code == code), outcome.err
        told = " ".join(outcome.err.split())
        for words in says:
            assert words in told, outcome.err


def test_words_are_heard_by_a_whisper_checkpoint(desk, clips, tmp_path):
    heard_by = checkpoints.transcriber(tmp_path / "whisper")
    found, _ = rows(desk.run, clips, "--transcribe", heard_by)
    assert [row["text_from"] for row in found[1:]] == ["file"] * 3
    assert (
        "transcribed by" in found[0]["text_from"] and found[0]["text"] and not found[0]["missing"]
    )
    again, _ = rows(desk.run, clips / "0.wav", "--transcribe", heard_by)
    assert again[0]["text"] == found[0]["text"]
    assert shares(again[0]) == pytest.approx(shares(found[0]), abs=TOLERANCE)
    given, _ = rows(desk.run, clips / "0.wav", "--text", found[0]["text"])
    assert shares(given[0]) == pytest.approx(shares(found[0]), abs=TOLERANCE)
