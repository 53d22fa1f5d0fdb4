"""Corpora by the names of their files: every one of them on a tree of its release's layout, whole
releases by their design, and what a tree may lack or have twice.
"""

from __future__ import annotations

import os
import pickle
import shutil

import pytest

from mer.pipeline.datasets import BY_NAMES, DATASETS, corpora, prepare
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest

from tests.datasets.byname import TREES, WHOLE, write_tree
from tests.datasets.trees import write_wav

NAMES = [name for name, module in DATASETS.items() if module == BY_NAMES]


def test_every_corpus_by_names_has_a_tree():
    assert {*NAMES, "msp_improv", "msp_podcast", "ur_funny"} == set(TREES)


@pytest.mark.parametrize("name", TREES)
def test_a_tree_in_the_releases_layout_is_read(name, tmp_path):
    for number, tree in enumerate(TREES[name]):
        root = write_tree(tmp_path / str(number), tree.files, tree.tables)
        manifest, found = prepare(name, root, labels=tree.labels)
        assert {u.id: (u.label, u.speaker, u.text) for u in manifest.rows} == tree.rows
        assert {u.id: u.split for u in manifest.rows if u.split} == tree.split
        assert not found.missing and not found.unreadable and not found.orphans
        manifest.write(tmp_path / "manifest.parquet")
        again = Manifest.read(tmp_path / "manifest.parquet")
        assert [u.id for u in again.rows] == [u.id for u in manifest.rows]


@pytest.mark.parametrize("name", TREES)
def test_the_groups_that_folds_go_by_are_there(name, tmp_path):
    tree = TREES[name][0]
    manifest, _ = prepare(name, write_tree(tmp_path / "r", tree.files, tree.tables))
    for by in corpora.corpus(name).folds:
        assert all(getattr(u, by) for u in manifest.rows), by


@pytest.mark.parametrize("name", TREES)
def test_a_file_of_another_name_is_counted(name, tmp_path):
    tree = TREES[name][0]
    root = write_tree(tmp_path / "root", tree.files, tree.tables)
    other = write_wav(root / "elsewhere" / "one more x.wav")
    manifest, found = prepare(name, root, labels=tree.labels)
    assert len(manifest) == len(tree.rows) and found.orphans == [str(other.relative_to(root))]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "esd" else ()) for name in WHOLE],
)
def test_a_whole_release_has_the_published_counts(name, tmp_path):
    root = write_tree(tmp_path / "root", WHOLE[name]())
    for labels in corpora.corpus(name).label_sets:
        _, found = prepare(name, root, labels=labels)
        assert found.expected and not found.unexpected


def test_sound_and_film_of_one_utterance_are_one_row(tmp_path):
    tree = TREES["ravdess"][0]
    manifest, found = prepare("ravdess", write_tree(tmp_path / "root", tree.files))
    both, alone = (next(u for u in manifest.rows if u.speaker == who) for who in ("12", "03"))
    assert both.audio.endswith("03-01-06-01-02-01-12.wav")
    assert both.video.endswith("01-01-06-01-02-01-12.mp4") and alone.video is None
    assert both.tags == ("channel=speech", "intensity=normal", "sentence=02", "repetition=01")
    assert {what: len(names) for what, names in found.dropped.items()} == {
        "files of modality 02": 1,
        "files of channel 02": 1,
    }


def test_a_film_alone_is_heard_as_well(tmp_path):
    root = write_tree(tmp_path / "root", ["Actor_12/01-01-06-01-02-01-12.mp4"])
    (row,) = prepare("ravdess", root)[0].rows
    assert row.audio == "Actor_12/01-01-06-01-02-01-12.mp4" and row.video is None


def test_an_archive_that_was_packed_twice_is_counted_once(tmp_path):
    root = write_tree(tmp_path / "root", ["Actor_03/03-01-08-01-01-01-03.wav"])
    shutil.copytree(root / "Actor_03", root / "again" / "Actor_03")
    manifest, found = prepare("ravdess", root)
    assert len(manifest) == 1
    assert found.dropped["copies of a file"] == ["again/Actor_03/03-01-08-01-01-01-03.wav"]
    write_wav(root / "again" / "Actor_03" / "03-01-08-01-01-01-03.wav", samples=99)
    with pytest.raises(DataError, match="are both '01-08-01-01-01-03', and not the same file"):
        prepare("ravdess", root)


def test_of_two_sounds_the_wav_is_taken(tmp_path):
    manifest, found = prepare("cremad", write_tree(tmp_path / "r", TREES["cremad"][0].files))
    assert manifest.rows[0].audio == "AudioWAV/1001_DFA_ANG_XX.wav"
    dropped = found.dropped["another file of the same utterance"]
    assert dropped == ["AudioMP3/1001_DFA_ANG_XX.mp3"]


def test_fixed_sentences_are_warned_of(tmp_path):
    for name in ("ravdess", "savee"):
        _, found = prepare(name, write_tree(tmp_path / name, TREES[name][0].files))
        told = any("text carries no emotion" in warning for warning in found.warnings)
        assert told == corpora.corpus(name).fixed_sentences


def test_labels_outside_the_set_are_counted(tmp_path):
    root = write_tree(tmp_path / "r", ["wav/03a01Fa.wav", "wav/03a01Xa.wav"])
    manifest, found = prepare("emodb", root)
    assert len(manifest) == 1 and found.dropped["label X"] == ["03a01Xa"]


def test_a_line_without_a_file_is_missing_and_a_file_without_a_line_an_orphan(tmp_path):
    tree = TREES["nemo"][0]
    root = write_tree(tmp_path / "r", tree.files, tree.tables)
    (root / "samples" / "EB0_anger_15.wav").rename(root / "samples" / "EB0_anger_16.wav")
    manifest, found = prepare("nemo", root)
    assert len(manifest) == 2 and found.missing == ["EB0_anger_15"]
    assert found.orphans == ["samples/EB0_anger_16.wav"]


def test_values_of_a_regression_are_those_of_the_chosen_column(tmp_path):
    tree = TREES["ch_sims"][0]
    root = write_tree(tmp_path / "r", tree.files, tree.tables)
    for labels, values in (("sentiment", (-1.0, 0.0, 0.8)), ("text", (-0.8, 0.2, 0.6))):
        manifest, _ = prepare("ch_sims", root, labels=labels)
        assert manifest.task == "regression"
        assert [u.targets[0] for u in manifest.rows] == pytest.approx(values)
    tree = TREES["msp_improv"][0]
    manifest, _ = prepare(
        "msp_improv", write_tree(tmp_path / "i", tree.files, tree.tables), labels="valence"
    )
    assert [u.targets for u in manifest.rows] == [(3.5,), (3.0,), (4.5,)]


def test_a_value_that_is_no_number_is_named(tmp_path):
    tree = TREES["ch_sims"][0]
    root = write_tree(tmp_path / "r", tree.files)
    (root / "label.csv").write_text(tree.tables["label.csv"].replace("-1.0", "n/a", 1))
    with pytest.raises(DataError, match="label.csv: line 2 has 'n/a' where a number belongs"):
        prepare("ch_sims", root)
    headless = tree.tables["label.csv"].partition("\n")[2]
    (root / "label.csv").write_text(headless.replace("-1.0", "n/a", 1))
    with pytest.raises(DataError, match="label.csv: line 1 has 'n/a' where a number belongs"):
        prepare("ch_sims", root)
    (root / "label.csv").write_text(headless.replace(",train", "", 1))  # not its columns
    with pytest.raises(DataError, match="label.csv: no column video_id"):
        prepare("ch_sims", root)
    (root / "label.csv").write_text(headless.replace(",valid", "", 1))
    with pytest.raises(DataError, match="label.csv: line 2 has fewer columns"):
        prepare("ch_sims", root)


def test_languages_are_those_of_the_label_set(tmp_path):
    for tree, language in zip(TREES["esd"], ("en", "zh"), strict=True):
        root = write_tree(tmp_path / language, tree.files)
        assert prepare("esd", root, labels=tree.labels)[0].language == language


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("mustard", "[]", "expected an object of objects"),
        ("mustard", "{", "not JSON"),
        ("mustard", '{"1_60": {"utterance": "x"}}', "1_60 has no show, speaker, sarcasm"),
        ("msp_improv", "UTD-IMPROV-S01A-F01-S-FM01.avi N A:3", "line 1 begins like a clip's"),
        ("mer2024", "name,valence\na,1\n", "no column discrete"),
        (
            "msp_podcast",
            "FileName,EmoClass,SpkrID,Split_Set\na.wav,N,1,Testing9\n",
            "split 'Testing9'",
        ),
    ],
)
def test_tables_that_are_not_as_published_are_one_line(name, table, said, tmp_path):
    tree = TREES[name][0]
    place = next(iter(tree.tables))
    root = write_tree(tmp_path / "r", tree.files, {place: table})
    with pytest.raises(DataError, match=said) as caught:
        prepare(name, root)
    assert len(str(caught.value)) <= 300


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({1: Hostile()}), "wants to run posix.mkdir"),
        (pickle.dumps([1, 2]), "expected a dictionary by id"),
        (pickle.dumps({1: "yes"}), "1 has label 'yes'"),
        (pickle.dumps({1: 1})[:-3], "not a readable pickle of data"),
        (b"no pickle", "not a readable pickle of data"),
    ],
)
def test_pickles_are_read_as_data(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = TREES["ur_funny"][0]
    tables = tree.tables | {"humor_label_sdk.pkl": content}
    with pytest.raises(DataError, match=said):
        prepare("ur_funny", write_tree(tmp_path / "r", tree.files, tables))
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_a_line_that_is_there_twice_is_named(tmp_path):
    tree = TREES["nemo"][0]
    twice = tree.tables["data.tsv"] + tree.tables["data.tsv"].splitlines(keepends=True)[1]
    root = write_tree(tmp_path / "r", tree.files, {"data.tsv": twice})
    with pytest.raises(DataError, match="line 4: 'EB0_anger_15' is there twice, first in data.tsv"):
        prepare("nemo", root)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_says_where_to_get_the_corpus(name, tmp_path):
    with pytest.raises(DataError, match="to get it"):
        prepare(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("msp_podcast", {"MSP-PODCAST_0001_0008": (3.8, 4.2, 4.0)}),
        ("msp_improv", {"MSP-IMPROV-S01A-F01-S-FM01": (3.5, 3.0, 2.0)}),
    ],
)
def test_valence_arousal_and_dominance_are_three_targets(name, wanted, tmp_path):
    tree = TREES[name][0]
    manifest, _ = prepare(name, write_tree(tmp_path / "r", tree.files, tree.tables), labels="vad")
    assert (manifest.task, manifest.labels) == ("regression", ("valence", "arousal", "dominance"))
    found = {u.id: u.targets for u in manifest.rows}
    assert found | wanted == found and all(len(targets) == 3 for targets in found.values())


def test_a_line_that_lacks_one_of_three_targets_is_unlabelled_and_told(tmp_path):
    tree = TREES["msp_podcast"][0]
    place = "Labels/labels_consensus.csv"
    tables = tree.tables | {place: tree.tables[place].replace(",N,4.2,3.8,", ",N,,3.8,")}
    root = write_tree(tmp_path / "r", tree.files, tables)
    manifest, found = prepare("msp_podcast", root, labels="vad")
    assert [u.id for u in manifest.rows if u.targets is None] == ["MSP-PODCAST_0001_0008"]
    told = "1 utterance with some of EmoVal, EmoAct, EmoDom only: unlabelled"
    assert any(line.startswith(told) for line in found.warnings)
    tables[place] = tree.tables[place].replace(",N,4.2,3.8,", ",N,4.2,high,")
    again = write_tree(tmp_path / "again", tree.files, tables)
    with pytest.raises(DataError, match="line 2 has EmoVal 'high' where a number belongs"):
        prepare("msp_podcast", again, labels="vad")


def test_numbers_beyond_the_scale_of_a_corpus_are_refused(tmp_path):
    tree = TREES["ch_sims"][0]
    table = tree.tables["label.csv"].replace("-1.0,-0.8", "-10,-0.8", 1)
    root = write_tree(tmp_path / "r", tree.files, {"label.csv": table})
    with pytest.raises(DataError, match="line 2 has label -10, expected a number from -1 to 1"):
        prepare("ch_sims", root)


def test_files_whose_names_differ_by_zeros_only_are_not_taken_for_one(tmp_path):
    tree = TREES["ch_sims"][0]
    files = (*tree.files, "Raw/video_0001/1.mp4")
    root = write_tree(tmp_path / "r", files, tree.tables)
    manifest, found = prepare("ch_sims", root)
    assert [u.audio for u in manifest.rows] == list(tree.files)
    assert found.orphans == ["Raw/video_0001/1.mp4"]
    dropped_zeros = {"label.csv": tree.tables["label.csv"].replace("_0001,0001,", "_0001,001,")}
    root = write_tree(tmp_path / "s", files, dropped_zeros)
    with pytest.raises(DataError, match="may be Raw/video_0001/0001.mp4, Raw/video_0001/1.mp4"):
        prepare("ch_sims", root)
    twice = tree.tables["label.csv"] + "video_0001,1,again,0,0,0,0,Neutral,train\n"
    root = write_tree(tmp_path / "t", tree.files, {"label.csv": twice})
    with pytest.raises(DataError, match="'video_0001/1' is there twice, first in label.csv"):
        prepare("ch_sims", root)


def test_a_table_of_one_part_that_is_absent_is_told(tmp_path):
    tree = TREES["mer2023"][0]
    tables = {name: text for name, text in tree.tables.items() if "test1" not in name}
    _, found = prepare("mer2023", write_tree(tmp_path / "r", tree.files, tables))
    told = f"no test1-label.csv, test3-label.csv below {tmp_path / 'r'}: without these utterances"
    assert told in found.warnings
    tree = TREES["ch_sims"][0]  # whose table has two names
    _, found = prepare("ch_sims", write_tree(tmp_path / "s", tree.files, tree.tables))
    assert not any("without these" in line for line in found.warnings)
