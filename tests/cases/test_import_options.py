"""Options of `mer import` that say what cannot be: two classes of one name became one class, a name
left out moved all that came behind it, a rate of -5 was stored, and a word for "unlabelled" that no
row has, or that stands for a target, changed nothing. None of it was told. Found by an adversary.
"""

from __future__ import annotations

import numpy as np
import pytest

from mer.pipeline.store import FeatureStore

from tests.interchange.doors import mer


@pytest.fixture
def arrays(tmp_path):
    """Saves an npz of three utterances, and imports it."""

    def imported(*options, **columns):
        x = np.ones((3, 2, 4), np.float32)
        np.savez(tmp_path / "x.npz", id=np.array(["a", "b", "c"]), audio=x, **columns)
        return mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "o.h5", *options)

    return imported


NUMBERS, WORDS = np.array([0, 1, 0]), np.array(["joy", "sad", "joy"])


@pytest.mark.parametrize("labels", ["joy,joy", "joy,,sad", "joy,sad,", " , "])
@pytest.mark.parametrize("values", [NUMBERS, WORDS], ids=["numbers", "words"])
def test_each_class_has_a_name_of_its_own(arrays, labels, values):
    code, _, said = arrays("--labels", labels, label=values)
    assert code == 1 and "a label is empty or there twice; give each class" in said


@pytest.mark.parametrize("rate", ["nan", "inf", "-5", "0"])
def test_a_rate_is_above_nothing(arrays, rate):
    code, _, said = arrays("--frame-rate", f"audio={rate}", label=WORDS)
    assert code == 1 and f"--frame-rate audio={rate}: expected steps per second, above 0" in said


def test_a_rate_of_what_is_not_there(arrays):
    code, _, said = arrays("--frame-rate", "text=50", label=WORDS)
    assert code == 1 and "no features of text, which --frame-rate names; it has audio" in said


@pytest.mark.parametrize(("word", "values"), [("Joy", WORDS), ("-1", NUMBERS)])
def test_a_word_for_unlabelled_that_no_row_has(arrays, word, values):
    code, _, said = arrays(f"--unlabelled={word}", label=values)
    assert code == 0 and f"no utterance has '{word}', which --unlabelled names" in said


def test_a_target_may_mean_none(arrays, tmp_path):
    """-99 is no valence."""
    code, _, said = arrays("--unlabelled=-99", targets=np.array([-99, 0.5, -99.0]))
    assert code == 0 and "unlabelled: 2 of 3 utterances" in said
    assert "targets from 0.5 to 0.5" in said
    targets = FeatureStore(tmp_path / "o.h5").table()["targets"].to_pylist()
    assert targets == [None, [0.5], None]


def test_of_several_targets_all_or_none(arrays):
    values = np.array([[-99, 1.0], [1, 2], [-99, -99]])
    options = ("--labels", "valence,arousal", "--unlabelled=-99")
    code, _, said = arrays(*options, targets=values)
    assert code == 1 and "a has targets of which some are missing" in said


def folder_of_arrays(root, rows, names):
    (root / "audio").mkdir(parents=True)
    (root / "index.csv").write_text("id,label\n" + "".join(f"{row}\n" for row in rows))
    for number, name in enumerate(names, start=1):
        np.save(root / "audio" / f"{name}.npy", np.full((2, 3), number, np.float32))
    return root


def test_a_blank_behind_an_id_costs_no_array(tmp_path):
    folder = folder_of_arrays(tmp_path / "arrays", ["a ,joy", "b,sad"], ["a", "b"])
    code, _, said = mer("import", "npy-dir", folder, "--out", tmp_path / "o.h5")
    assert code == 0 and "absent" not in said
    assert FeatureStore(tmp_path / "o.h5").features("audio", 0)[0, 0] == 1


def test_arrays_without_a_row_are_counted(tmp_path):
    folder = folder_of_arrays(tmp_path / "arrays", ["a,joy", "b,sad"], ["a", "b", "c", "d"])
    code, _, said = mer("import", "npy-dir", folder, "--out", tmp_path / "o.h5")
    assert code == 0
    assert "audio: 2 arrays belong to no row of the csv, left out: c.npy, d.npy" in said


def test_what_the_first_row_asks_for_is_named(tmp_path):
    folder = folder_of_arrays(tmp_path / "arrays", ["a.wav,joy", "b.wav,sad"], ["a", "b"])
    code, _, said = mer("import", "npy-dir", folder, "--out", tmp_path / "o.h5")
    assert code == 1 and "its first asks for a.wav.npy" in said
