"""IEMOCAP: sessions in the release's shape, with its traps."""

from __future__ import annotations

from pathlib import Path

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio as media

from tests.datasets.trees import write_iemocap


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_iemocap(tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release")


@pytest.mark.parametrize(
    ("labels", "n", "happy"),
    [
        (None, 8, ["Ses01F_script01_1_F000", "Ses01F_script01_1_M000", "Ses02M_script01_1_F000"]),
        ("4-noexc", 6, ["Ses01F_script01_1_F000"]),
        ("6", 9, ["Ses01F_script01_1_F000"]),
    ],
)
def test_label_sets(root, labels, n, happy):
    manifest, report = prepare("iemocap", root, labels=labels)
    labelled = [u for u in manifest.rows if u.label is not None]
    assert len(labelled) == n and [u.id for u in labelled if u.label == "happy"] == happy
    assert {u.split for u in manifest.rows} == {""}
    assert len(manifest) == 14 and not report.dropped
    assert sum(map(len, report.unlabelled.values())) == 14 - n
    assert len(report.unlabelled[f"label xxx, not in the set '{labels or 4}'"]) == 1
    said = "kept without a label, neither trained on nor scored: label xxx, not in the set"
    assert any(line.startswith(said) for line in report.lines())


def test_turns_without_a_label_keep_their_place(root):
    """Nearly half of the turns have no label of the set of four; their neighbours need them."""
    manifest, _ = prepare("iemocap", root)
    turns = [u for u in manifest.rows if u.dialogue == "Ses01F_impro01"]
    assert [(u.position, u.label) for u in turns] == [(0, "neutral"), (1, None), (2, "angry")]
    assert turns[1].text == "Do you have your forms?" and turns[1].speaker == "Ses01M"


def test_ratings_are_three_targets_of_every_turn(root):
    manifest, report = prepare("iemocap", root, labels="vad")
    assert (manifest.task, manifest.labels) == ("regression", ("valence", "arousal", "dominance"))
    turns = [u.targets for u in manifest.rows if u.dialogue == "Ses01F_impro01"]
    assert turns == [(1.0, 2.5, 3.5), (2.0, 2.5, 3.5), (3.0, 2.5, 3.5)]
    assert len(manifest) == 14 and not report.unlabelled


@pytest.mark.parametrize("ratings", ["2.5000, 2.5000", "2.5, nan, 2.5", "2.5, 2.5, -1", ""])
def test_ratings_that_are_no_three_numbers_are_one_line(tmp_path, ratings):
    here = write_iemocap(tmp_path)
    path = here / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    path.write_text(path.read_text().replace("2.0000, 2.5000, 3.5000", ratings))
    with pytest.raises(DataError, match=r"Ses01F_impro01_M000 has ratings \["):
        prepare("iemocap", here, labels="vad")


def test_the_speaker_is_the_utterances_letter(root):
    rows = {u.id: u for u in prepare("iemocap", root)[0].rows}
    assert (
        rows["Ses01F_impro01_M012"].speaker == "Ses01M"
        and rows["Ses02M_script01_1_F000"].speaker == "Ses02F"
    )
    assert rows["Ses05M_impro03_F000"].session == "Ses05"


def test_text_with_colons_missing_text_and_noise(root):
    manifest, report = prepare("iemocap", root)
    rows = {u.id: u for u in manifest.rows}
    assert rows["Ses01F_script01_1_F000"].text == "The sky is blue: always was."
    assert (
        rows["Ses01F_impro01_M012"].text == "[LAUGHTER]"
        and rows["Ses05M_impro03_M001"].text is None
    )
    assert any(w.startswith("1 utterance has no transcript: Ses") for w in report.warnings)
    assert any(w.startswith("1 transcript is nothing but noise marks") for w in report.warnings)


def test_kinds_positions_and_wavs(root):
    manifest, report = prepare("iemocap", root)
    rows = {u.id: u for u in manifest.rows}
    assert rows["Ses01F_impro01_F000"].tags == ("improvised",) and rows[
        "Ses01F_script01_1_F000"
    ].tags == ("scripted",)
    assert [rows[f"Ses01F_impro01_{n}"].position for n in ("F000", "M012")] == [0, 2]
    assert not report.missing and all(
        media.load(manifest.root / u.audio).source_rate == 16_000 for u in manifest.rows
    )


def test_scripts_spoken_in_several_sessions_are_said(root):
    _, report = prepare("iemocap", root)
    assert report.overlaps["other sessions/scripted Ses01"] == {
        "texts": 2,
        "long_texts": 1,
        "speakers": 0,
    }
    assert report.overlaps["other sessions/improvised Ses05"]["texts"] == 0
    assert any("other sessions/scripted Ses02" in line for line in report.lines())


def test_counts_are_checked_as_a_whole_and_by_session(root):
    _, report = prepare("iemocap", root)
    assert "all neutral: 2 found, 1,708 expected" in report.unexpected
    assert "Ses01: 5 utterances labelled, 1,819 expected" in report.warnings
    assert "Ses05: 2 utterances of set '4', 1,241 expected" in report.warnings


def test_the_release_may_lie_one_folder_below_and_a_missing_session_is_said(root, tmp_path):
    manifest, _ = prepare("iemocap", root.parent)
    assert len(manifest) == 14 and manifest.rows[0].audio.startswith("IEMOCAP_full_release/")
    (tmp_path / "Session1").symlink_to(root / "Session1")
    _, report = prepare("iemocap", tmp_path)
    assert any(
        w.startswith("Session2, Session3, Session4, Session5 not found") for w in report.warnings
    )


def test_a_folder_that_is_not_iemocap(tmp_path):
    with pytest.raises(DataError, match="no Session1/dialog/EmoEvaluation in .*sail.usc.edu"):
        prepare("iemocap", tmp_path)


def test_a_missing_wav_is_named(tmp_path):
    root = write_iemocap(tmp_path / "x")
    (root / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav").unlink()
    assert prepare("iemocap", root)[1].missing == ["Ses01F_impro01_F000"]
