"""`mer prepare` on a table or folder with a slip in the command: a field given twice, one column
for two fields, a column that holds no paths, a corpus misspelt; and what is said of texts and
speakers that are not there. The same slips in `mer import`. From a walk through the commands.
"""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.manifest import Manifest

from tests.datasets.trees import write_wav

LABELS = ("joy", "anger", "fear")
SPEAKERS = ("ann", "ben", "cat", "dan")


@pytest.fixture
def mer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])


def table(folder, *, gaps=(), drop=()):
    """clips.csv of twelve rows: three of each speaker; those of `gaps` lack theirs."""
    names = [name for name in ("path", "words", "emotion", "who") if name not in drop]
    lines = [",".join(["id", *names])]
    for i in range(12):
        write_wav(folder / f"{i}.wav")
        cells = {"path": f"{i}.wav", "words": f"word {i}", "emotion": LABELS[i % 3]}
        cells["who"] = "" if i in gaps else SPEAKERS[i // 3]
        lines.append(",".join([f"u{i}", *(cells[name] for name in names)]))
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder / "clips.csv"


def prepare(mer, source, *pairs):
    given = [word for pair in pairs for word in ("--column", pair)]
    return mer("prepare", "table", "--from", source, "--out", "m.parquet", *given)


def test_a_field_given_twice_is_refused(mer, tmp_path):
    source = table(tmp_path)
    done = prepare(mer, source, "audio=path", "text=words", "text=emotion")
    assert done.exit_code != 0 and "text is given twice, as words and emotion" in done.output
    done = mer("prepare", "folder", "--root", ".", "--pattern", "x", "--map", "A=b", "--map", "A=c")
    assert done.exit_code != 0 and "--map A is given twice, as b and c" in done.output
    twice = ["--feature", "audio=x", "--feature", "audio=y"]
    done = mer("import", "npz", source, "--out", "f.h5", *twice)
    assert done.exit_code != 0 and "audio is given twice, as x and y" in done.output


def test_one_column_for_two_fields_is_warned_of(mer, tmp_path):
    source = table(tmp_path)
    done = prepare(mer, source, "audio=path", "text=emotion", "label=emotion", "speaker=who")
    assert done.exit_code == 0, done.output
    assert "warning: column emotion is read as text and as label" in done.stdout
    done = prepare(mer, source, "audio=path", "video=path", "label=emotion", "speaker=who")
    assert done.exit_code == 0 and "is read as" not in done.stdout, done.output


def test_a_target_as_the_transcript_is_warned_of(mer, tmp_path):
    (tmp_path / "t.csv").write_text("words,valence\n" + "".join(f"w{i},{i}\n" for i in range(9)))
    done = mer(
        *("prepare", "table", "--from", "t.csv", "--out", "m.parquet"),
        *("--targets", "valence", "--column", "text=valence"),
    )
    assert done.exit_code == 0, done.output
    assert "column valence is read as text and as target" in done.stdout


def test_a_column_that_holds_no_paths_is_asked_about(mer, tmp_path):
    source = table(tmp_path)
    done = prepare(mer, source, "audio=words", "label=emotion", "speaker=who")
    asked = "none of the 12 files is there; is 'words' the column of the audio, and --audio-dir"
    assert done.exit_code == 0 and asked in done.stdout, done.output
    (tmp_path / "3.wav").unlink()
    done = prepare(mer, source, "audio=path", "label=emotion", "speaker=who")
    assert "files missing: 1: u3" in done.stdout and "none of the" not in done.stdout


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["text=words", "speaker=who"], "no text and no speaker is in both"),
        (["text=words"], "no text is in both; speakers are not known"),
        (["speaker=who"], "no speaker is in both; texts are not known"),
        ([], "not known, as there are no texts and no speakers"),
    ],
)
def test_overlap_of_what_is_not_there_is_not_known(mer, tmp_path, pairs, said):
    source = table(tmp_path)
    done = prepare(mer, source, "audio=path", "label=emotion", *pairs)
    assert f"overlap train/dev, train/test, dev/test: {said}" in done.stdout, done.output


def test_an_overlap_of_texts_beside_unknown_speakers(mer, tmp_path):
    lines = [f"u{i},the very same words,{part}" for i, part in enumerate(("train", "test"))]
    (tmp_path / "t.csv").write_text("\n".join(["id,text,split", *lines]) + "\n")
    done = prepare(mer, "t.csv")
    assert "1 with a text of at least 4 words), speakers are not known" in done.stdout, done.output


def test_a_corpus_misspelt_is_said_before_its_options(mer, tmp_path):
    done = mer("prepare", "tabel", "--from", table(tmp_path), "--column", "audio=path")
    assert done.exit_code != 0 and "did you mean 'table'?" in done.output


def test_a_second_run_counts_no_manifest_as_a_foreign_file(mer, tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    for speaker in SPEAKERS:
        for label in LABELS:
            write_wav(root / f"{speaker}_s1_{label}.wav")
    command = ("prepare", "folder", "--root", root, "--pattern", "{speaker}_{sentence}_{emotion}")
    first, second = mer(*command), mer(*command)
    assert (root / "manifest.parquet").is_file()
    assert first.exit_code == second.exit_code == 0 and first.stdout == second.stdout
    assert "so far the utterances have none" in first.stdout
    (root / "other.parquet").write_bytes(b"PAR1 of another")
    assert "1 file left out that is no media by name (1 .parquet)" in mer(*command).stdout


def test_rows_without_a_speaker_do_not_part_the_others(mer, tmp_path):
    source = table(tmp_path, gaps=(4,))
    done = prepare(mer, source, "audio=path", "label=emotion", "speaker=who")
    assert done.exit_code == 0, done.output
    assert "split by speaker with seed 0 (4 speakers)" in done.stdout
    told = "1 row without a speaker is a group of its own in the split, the first on line 6"
    assert told in done.stdout
    rows = Manifest.read(tmp_path / "m.parquet").rows
    for who in SPEAKERS:
        assert len({u.split for u in rows if u.speaker == who}) == 1


@pytest.mark.parametrize("word", ["vison", "Audio", "txt.clip"])
def test_a_misspelt_modality_is_refused(mer, tmp_path, word):
    known = {"vison": "vision", "Audio": "audio", "txt.clip": "text"}[word]
    done = mer("import", "npy-dir", arrays(tmp_path), "--out", "f.h5", "--feature", f"{word}=audio")
    assert done.exit_code != 0 and f"did you mean '{known}'?" in done.output
    assert not (tmp_path / "f.h5").exists()


def test_a_folder_called_like_a_column_is_named_where_it_is_left_aside(mer, tmp_path):
    done = mer("import", "npy-dir", arrays(tmp_path), "--out", "f.h5", "--feature", "eeg=audio")
    assert done.exit_code == 0 and "eeg features = audio; not used: text (folder)" in done.output


def arrays(folder):
    """A folder of npy files: audio/, text/ and an index whose transcript is called text."""
    for name in ("audio", "text"):
        (folder / "x" / name).mkdir(parents=True)
        for id in ("u1", "u2"):
            np.save(folder / "x" / name / f"{id}.npy", np.ones((3, 2)))
    (folder / "x" / "index.csv").write_text("id,label,text\nu1,joy,good\nu2,fear,bad\n")
    return folder / "x"
