"""`mer prepare emobox`: EmoBox's lists, their folds, labels, speakers, and media under any prefix.

Its real lists are not part of this repository: tests on them need MER_TEST_DATA, and hold every
fold to the counts that were taken from the lists by other code (counts.tsv).
"""

from __future__ import annotations

import csv
import json
import os
import struct
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.datasets import emobox, prepare
from mer.pipeline.datasets.pattern import Pattern, fill
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.terms import fold_of

from tests.datasets.byname import write_tree

DATA = Path(os.environ.get("MER_TEST_DATA", "/nowhere")) / "emobox"
real = pytest.mark.skipif(not DATA.is_dir(), reason="MER_TEST_DATA has no lists of EmoBox")
WHOLE = ("savee", "emodb", "urdu", "aesdd", "cafe")
SPLITS = {"train": "train", "valid": "dev", "test": "test"}  # what its parts are called here
CLIPS = {  # name -> code
    "DC_a01": "a",
    "DC_n01": "n",
    "JE_a01": "a",
    "JE_n01": "n",
    "KL_a01": "a",
    "KL_n01": "n",
}


def lines(names) -> str:
    rows = [
        {
            "key": f"savee-{name.replace('_', '-')}",
            "dataset": "savee",
            "wav": f"downloads/savee/{name}.wav",
            "length": 0.05,
            "emo": CLIPS[name],
            "channel": 1,
        }
        for name in names
    ]
    return "\n\n".join(map(json.dumps, rows)) + "\n"


@pytest.fixture
def meta(tmp_path):
    """Lists of three folds, each of which tests a speaker."""
    folder = tmp_path / "meta"
    folder.mkdir()
    (folder / "savee.jsonl").write_text(lines(CLIPS))
    (folder / "label_map.json").write_text('{"a": "Angry", "N": "Neutral"}')
    for number, speaker in enumerate(("DC", "JE", "KL"), start=1):
        (folder / f"fold_{number}").mkdir()
        for part in ("train", "test"):
            names = [name for name in CLIPS if name.startswith(speaker) == (part == "test")]
            path = folder / f"fold_{number}" / f"savee_{part}_fold_{number}.jsonl"
            path.write_text(lines(names))
    return folder


@pytest.fixture
def media(tmp_path):
    return write_tree(tmp_path / "media", [f"AudioData/x/{name}.wav" for name in CLIPS])


def run(meta: Path, media: Path, *options: str):
    out = str(meta.parent / "m.parquet")
    words = ["prepare", "emobox", "--meta", str(meta), "--root", str(media), "--out", out]
    return CliRunner().invoke(main, [*words, *options])


def test_folds_labels_and_speakers_are_read(meta, media):
    done = run(meta, media)
    assert done.exit_code == 0, done.stderr
    manifest = Manifest.read(meta.parent / "m.parquet")
    assert (manifest.dataset, manifest.labels) == ("savee", ("Angry", "Neutral"))
    row = manifest.rows[0]
    assert (row.id, row.audio, row.speaker) == ("savee-DC-a01", "AudioData/x/DC_a01.wav", "DC")
    assert (row.folds, row.split) == (("1=test", "2=train", "3=train"), "")
    assert "repaired: label n in another case: 3: " in done.stdout
    assert "  1: 4 train, 2 test\n" in done.stdout


def test_one_fold_is_a_split(meta, media):
    assert run(meta, media, "--fold", "2").exit_code == 0
    rows = Manifest.read(meta.parent / "m.parquet").rows
    assert Counter((u.split, u.speaker) for u in rows) == {
        ("train", "DC"): 2,
        ("test", "JE"): 2,
        ("train", "KL"): 2,
    }
    assert rows[0].folds == ("2=train",)


def test_missing_media_are_counted(meta, media):
    (media / "AudioData/x/KL_n01.wav").unlink()
    done = run(meta, media)
    assert done.exit_code == 0 and "files missing: 1: savee-KL-n01" in done.stdout
    assert Manifest.read(meta.parent / "m.parquet").rows[-1].audio == "savee/KL_n01.wav"


def test_of_files_of_one_name_the_one_with_the_lists_folders_is_taken(meta, media, tmp_path):
    write_tree(tmp_path / "more", ["b/savee/DC_a01.wav", "a/other/DC_a01.wav"])
    for part in ("a", "b"):
        (tmp_path / "more" / part).rename(media / part)
    (media / "AudioData/x/JE_a01.wav").rename(media / "AudioData/x/je_A01.WAV")
    assert run(meta, media).exit_code == 0
    places = {u.id: u.audio for u in Manifest.read(meta.parent / "m.parquet").rows}
    assert places["savee-DC-a01"] == "b/savee/DC_a01.wav"
    assert places["savee-JE-a01"] == "AudioData/x/je_A01.WAV"


def write_lists(folder: Path, corpus: str, wavs, part: str = "test") -> Path:
    """Lists of one fold; what is not in `part` has a clip of its own."""
    lists = folder / "fold_1"
    lists.mkdir(parents=True)
    other = {"train": "test", "test": "train"}[part]
    for name, paths in ((part, wavs), (other, ["elsewhere/only.wav"])):
        rows = []
        for path in paths:
            rows.append({"key": path, "wav": f"downloads/{corpus}/{path}", "emo": "a"})
        (lists / f"{corpus}_{name}_fold_1.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


CASIA = [
    f"{who}/{emotion}/{number}.wav"
    for who in ("liu", "zhao")
    for emotion in ("angry", "sad")
    for number in (201, 202)
]


@pytest.mark.parametrize(
    "moved",
    [
        "{who}/{emotion}/{number}",
        "downloads/casia/{who}/{emotion}/{number}",
        "CASIA {who}/wav/{who}/{emotion}/{number}",
        "{who}/wav/{emotion}/{number}",
        "{emotion}/{who}/{number}",
    ],
)
def test_a_clip_whose_file_is_absent_never_gets_the_file_of_another(moved, tmp_path):
    """All clips are called as others are; each file lies in folders of its own."""
    places = {}
    for wav in CASIA:
        who, emotion, number = wav.split("/")
        places[wav] = moved.format(who=who, emotion=emotion, number=number)
    absent = CASIA[5]
    there = [place for wav, place in places.items() if wav != absent]
    root = write_tree(tmp_path / "media", there)
    meta = write_lists(tmp_path / "meta", "casia", CASIA)
    manifest, found = prepare("emobox", root, meta=meta)
    got = {u.id: u.audio for u in manifest.rows if u.id in places}
    assert got == places | {absent: f"casia/{absent}"}
    assert found.missing == [absent, "elsewhere/only.wav"] and not found.orphans


def test_files_that_no_folder_tells_apart_are_of_nobody(tmp_path):
    root = write_tree(tmp_path / "media", ["angry/201.wav", "sad/201.wav", "sad/202.wav"])
    meta = write_lists(tmp_path / "meta", "casia", CASIA)
    _, found = prepare("emobox", root, meta=meta)
    assert sorted(found.missing) == sorted([*CASIA, "elsewhere/only.wav"])
    assert found.orphans == ["angry/201.wav", "sad/201.wav", "sad/202.wav"]
    (said,) = [line for line in found.warnings if "do not tell whose they are" in line]
    # 201 of both in both emotions, 202 of both in one
    assert said.startswith("6 clips are missing although files of their name are there")


def test_pieces_of_one_file_are_no_rivals(tmp_path):
    lists = tmp_path / "meta" / "fold_1"
    lists.mkdir(parents=True)
    for part, span in (("train", (0.0, 0.5)), ("test", (0.5, 1.0))):
        row = {"key": part, "wav": "downloads/x/whole.wav", "emo": "a"}
        row |= {"start_time": span[0], "end_time": span[1]}
        (lists / f"x_{part}_fold_1.jsonl").write_text(json.dumps(row))
    root = write_tree(tmp_path / "media", ["whole.wav"])
    manifest, found = prepare("emobox", root, meta=lists.parent)
    assert {u.audio for u in manifest.rows} == {"whole.wav"} and not found.missing


def test_a_fold_that_labels_a_clip_otherwise_is_told(meta, media):
    path = meta / "fold_1" / "savee_test_fold_1.jsonl"
    path.write_text(path.read_text().replace('"emo": "n"', '"emo": "a"'))
    manifest, found = prepare("emobox", media, meta=meta)
    assert any(
        line.startswith("1 clip has another label in the lists of folds") for line in found.warnings
    )
    assert {u.id: u.label for u in manifest.rows}["savee-DC-n01"] == "Neutral"


def test_accents_may_be_composed_otherwise_and_another_ending_is_taken(meta, tmp_path):
    for path in meta.rglob("*.jsonl"):
        path.write_text(path.read_text().replace("DC_a01.wav", "DC_e\\u0301.wav"))
    names = ["AudioData/DC_\u00e9.mp4", *(f"AudioData/{name}.wav" for name in CLIPS)]
    assert run(meta, write_tree(tmp_path / "media", names)).exit_code == 0
    places = {u.id: u.audio for u in Manifest.read(meta.parent / "m.parquet").rows}
    assert places["savee-DC-a01"] == "AudioData/DC_\u00e9.mp4"


def test_a_label_outside_the_map_is_left_out_and_counted(meta, media):
    (meta / "label_map.json").write_text('{"a": "Angry"}')
    done = run(meta, media)
    assert done.exit_code == 0, done.stderr
    assert "left out: label n, which label_map.json has not: 3: " in done.stdout


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (
            lambda meta: (meta / "savee.jsonl").write_text(lines(list(CLIPS)[1:])),
            "fold_1/savee_test_fold_1.jsonl: 1 of its 2 keys are not in the list of the whole",
        ),
        (
            lambda meta: (meta / "fold_1" / "savee_test_fold_1.jsonl").write_text(lines(CLIPS)),
            "keys twice in fold 1",
        ),
        (lambda meta: (meta / "fold_1" / "savee_test_fold_1.jsonl").unlink(), "fold 1 has no test"),
        (lambda meta: (meta / "label_map.json").write_text('{"x": "y"}'), "has none of the labels"),
        (lambda meta: (meta / "label_map.json").write_text("{"), "not JSON"),
        (lambda meta: (meta / "savee.jsonl").write_text('{"key": 3}\n'), "line 1 is not a clip"),
        (lambda meta: (meta / "savee.jsonl").write_text("\n"), "no clip in it"),
    ],
)
def test_lists_that_are_not_as_published_are_one_line(break_it, said, meta, media):
    break_it(meta)
    done = run(meta, media)
    assert done.exit_code == 1 and not done.stdout
    told = done.stderr.replace("\n", "").replace(" ", "")
    assert said.replace(" ", "") in told and len(done.stderr.strip()) <= 420


def test_options_that_cannot_be(meta, media):
    assert "there are 1, 2, 3" in run(meta, media, "--fold", "7").stderr
    assert CliRunner().invoke(main, ["prepare", "emobox", "--root", str(media)]).exit_code == 2
    assert "no lists of folds" in " ".join(run(media, media).stderr.split())


def test_a_fold_with_a_speaker_on_both_sides_is_refused_where_none_may_be(meta, media):
    assert run(meta, media, "--speaker-independent").exit_code == 0
    names = [name for name in CLIPS if name != "DC_a01"]
    (meta / "fold_1" / "savee_test_fold_1.jsonl").write_text(lines(["DC_a01"]))
    (meta / "fold_1" / "savee_train_fold_1.jsonl").write_text(lines(names))
    done = run(meta, media, "--speaker-independent")
    said = " ".join(done.stderr.split())
    assert done.exit_code == 1 and "1 of 3 folds not speaker-independent" in said


@pytest.mark.parametrize(
    ("corpus", "path", "speaker"),
    [
        ("aesdd", "anger/a03 (3).wav", "3"),
        ("aesdd", "anger/a06 (5)b.wav", "5"),
        ("ased", "x/n1-02-01-01-45.wav", "45"),
        ("asvpesd", "x/03-01-06-01-02-12-02-01-03.wav", "12"),
        ("cafe", "CaFE_48k/Peur/Fort/12-P-2-5.wav", "12"),
        ("casia", "downloads/casia/liuchanhg/angry/201.wav", "liuchanhg"),
        ("cremad", "AudioWAV/1001_DFA_ANG_XX.wav", "1001"),
        ("emodb", "wav/03a01Wa.wav", "03"),
        ("emovdb", "bea_Amused/amused_1-15_0001.wav", "bea"),
        ("emovo", "f1/dis-f1-b1.wav", "f1"),
        ("enterface", "subject 1/anger/sentence 1/s1_an_1.avi", "s1"),
        ("esd", "0011/Angry/0011_000351.wav", "0011"),
        ("iemocap", "x/Ses01F_impro01/Ses01F_impro01_M012.wav", "Ses01M"),
        ("iemocap", "x/Ses05M_script03_2_F033.wav", "Ses05F"),
        ("jlcorpus", "x/female1_angry_10a_1.wav", "female1"),
        ("mead", "M003/audio/angry/level_1/001.m4a", "M003"),
        ("oreau", "x/12ABCN.wav", "12"),
        ("polish", "x/K1.a_dom_1.wav", "K1"),
        ("ravdess", "Actor_12/03-01-06-01-02-01-12.wav", "12"),
        ("savee", "JE_n23.wav", "JE"),
        ("shemo", "female/F21N37.wav", "F21"),
        ("subesco", "x/F_02_MONIKA_S_1_ANGRY_1.wav", "F_02"),
        ("tess", "OAF_angry/OAF_back_angry.wav", "OAF"),
        ("turevdb", "Sound Source/Angry/1157_kz_kizgin_1.wav", "1157"),
        ("urdu", "Neutral/SM20_F8_N012.wav", "SM20"),
    ],
)
def test_speakers_by_the_names_of_files(corpus, path, speaker):
    text, template = emobox.SPEAKERS[corpus]
    fields = Pattern(text).match(path)
    assert fields is not None and fill(template, fields) == speaker


@pytest.mark.parametrize(
    ("corpus", "names", "speaker"),
    [
        ("aesdd", ("fear/f10 (01).wav", "anger/a03 (1).wav"), "1"),
        ("tess", ("OAF_neutral/OA_bite_neutral.wav", "OAF_angry/OAF_back_angry.wav"), "OAF"),
    ],
)
def test_a_speaker_whose_name_is_spelt_in_two_ways_is_one(corpus, names, speaker, tmp_path):
    lists = tmp_path / "meta" / "fold_1"
    lists.mkdir(parents=True)
    for part, name in zip(("train", "test"), names, strict=True):
        row = {"key": name, "wav": f"downloads/{corpus}/{name}", "emo": "a"}
        (lists / f"{corpus}_{part}_fold_1.jsonl").write_text(json.dumps(row))
    manifest, _ = prepare("emobox", write_tree(tmp_path / "media", names), meta=lists.parent)
    assert [u.speaker for u in manifest.rows] == [speaker, speaker]


@pytest.mark.parametrize("corpus", ["resd", "m3ed"])
def test_without_a_rule_there_is_a_warning(corpus, meta, media):
    for path in [*meta.glob("*.jsonl"), *meta.rglob("fold_*/*.jsonl")]:
        path.rename(path.with_name(path.name.replace("savee", corpus)))
    done = run(meta, media)
    assert done.exit_code == 0 and "dev is carved from train by utterance" in done.stdout
    assert not any(u.speaker for u in Manifest.read(meta.parent / "m.parquet").rows)


# --- the real lists


def published() -> dict[tuple[str, str, str], tuple[int, dict[str, int]]]:
    """(corpus, fold, part) -> rows, and how many of each label, as other code counted them."""
    found = {}
    with open(DATA / "counts.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["rows"].isdecimal():
                labels = dict(pair.rsplit(":", 1) for pair in row["labels as written"].split())
                counts = {label: int(count) for label, count in labels.items()}
                found[row["corpus"], row["fold"], row["part"]] = int(row["rows"]), counts
    return found


@real
@pytest.mark.parametrize("corpus", WHOLE)
def test_every_fold_of_a_real_corpus_has_its_size_and_labels(corpus, tmp_path):
    rows = clips_of(corpus)
    root = write_tree(tmp_path / "media", [row["wav"].removeprefix("downloads/") for row in rows])
    manifest, findings = prepare("emobox", root, meta=DATA / corpus)
    assert not findings.missing and not findings.orphans and not findings.dropped
    assert all(u.speaker for u in manifest.rows)
    names = {code.casefold(): name for code, name in labels_of(corpus).items()}
    found: Counter = Counter()
    for u in manifest.rows:
        for entry in u.folds:
            found[corpus, *fold_of(entry), u.label] += 1
    wanted: Counter = Counter()
    for (name, fold, part), (_, labels) in published().items():
        if name == corpus:
            for code, count in labels.items():
                wanted[corpus, fold, part, names[code.casefold()]] += count
    assert found == wanted


def clips_of(corpus: str) -> list[dict]:
    text = (DATA / corpus / f"{corpus}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def labels_of(corpus: str) -> dict[str, str]:
    return json.loads((DATA / "label_maps.json").read_text())[corpus]


@real
def test_counts_of_the_tomls_are_those_of_emobox():
    """Of the corpora that both know as they were released."""
    from mer.pipeline.datasets import corpora

    published_rows: Counter = Counter()
    for (corpus, fold, _), (rows, _) in published().items():
        if fold == "1":
            published_rows[corpus] += rows
    more = {"aesdd": 1}  # which EmoBox could not read
    for corpus in ("cremad", "emodb", "emovo", "ravdess", "savee", "tess", "aesdd"):
        expected = corpora.corpus(corpus).label_set().expected[""]
        assert sum(expected.values()) == published_rows[corpus] + more.get(corpus, 0), corpus


@real
@pytest.mark.parametrize("corpus", ["savee", "emodb", "aesdd"])
def test_a_corpus_by_names_has_the_labels_and_speakers_of_its_lists(corpus, tmp_path):
    rows = clips_of(corpus)
    root = write_tree(tmp_path / "media", [row["wav"].removeprefix("downloads/") for row in rows])
    by_lists, _ = prepare("emobox", root, meta=DATA / corpus)
    by_names, findings = prepare(corpus, root)
    assert not findings.orphans and not findings.dropped
    speakers = {u.audio: u.speaker for u in by_lists.rows}
    assert {u.audio: u.speaker.removeprefix("speaker") for u in by_names.rows} == speakers
    labels = {u.audio: u.label for u in by_lists.rows}
    pairs = {(labels[u.audio], u.label) for u in by_names.rows}
    assert len(pairs) == len(by_lists.labels) == len(by_names.labels)
    assert corpus == "aesdd" or not findings.unexpected


def silence(path: Path, seconds: float, rate: int = 16_000) -> None:
    """A wav of zeros that takes no room on the disk."""
    size = 2 * round(seconds * rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16
    )
    with path.open("wb") as file:
        file.write(head + struct.pack("<4sI", b"data", size))
        file.truncate(44 + size)


@real
@pytest.mark.parametrize(
    "corpus",
    [
        pytest.param(
            corpus, marks=pytest.mark.slow if corpus == "savee" else pytest.mark.exhaustive
        )
        for corpus in WHOLE
    ],
)
def test_the_whole_way_on_clips_of_the_right_lengths(corpus, tmp_path):
    """prepare, extract, train: each fold trains and tests as many rows as EmoBox's, and the figures
    are the means of what each fold's own predictions say.
    """
    import numpy as np
    import pyarrow.parquet as pq

    rows = clips_of(corpus)
    for row in rows:
        silence(tmp_path / "media" / row["wav"], row["length"])
    lists = ["--meta", str(DATA / corpus), "--root", str(tmp_path / "media")]
    manifest, store, out = (str(tmp_path / name) for name in ("m.parquet", "f.h5", "run"))
    encoder = ("--audio-encoder", "builtin:tiny-wav2vec2", "--device", "cpu")
    settings = ("--set", "train.epochs=1", "--device", "cpu", "--json")
    for words in (
        ["prepare", "emobox", *lists, "--out", manifest],
        ["extract", "--manifest", manifest, *encoder, "--out", store],
        ["train", store, "--model", "audio", "--folds", "published", "--out", out, *settings],
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    table = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    figures = []
    for fold in dict.fromkeys(row["fold"] for row in table):
        pairs = [(row["label"], row["pred"]) for row in table if row["fold"] == fold]
        size, labels = published()[corpus, fold, "test"]
        assert len(pairs) == size
        trained = json.loads((tmp_path / "run" / f"fold-{fold}" / "run.json").read_text())["counts"]
        assert trained["train"] + trained["dev"] == published()[corpus, fold, "train"][0]
        figures.append(scores(pairs))
    for name, column in zip(("wa", "ua", "macro_f1"), zip(*figures, strict=True), strict=True):
        np.testing.assert_allclose(found["metrics"][name], np.mean(column), atol=1e-6)


def scores(pairs: list[tuple[str, str]]) -> tuple[float, float, float]:
    """WA, UA and macro-F1 by their definitions: accuracy, recall and F1 averaged over classes."""
    hits: Counter = Counter(true for true, pred in pairs if true == pred)
    true, pred = Counter(t for t, _ in pairs), Counter(p for _, p in pairs)
    recall = [hits[label] / true[label] for label in true]
    f1 = [2 * hits[label] / (true[label] + pred[label]) for label in {*true, *pred}]
    return sum(hits.values()) / len(pairs), sum(recall) / len(recall), sum(f1) / len(f1)


def test_pieces_of_long_files_keep_their_times(meta, media):
    for path in meta.rglob("*.jsonl"):
        path.write_text(
            path.read_text().replace('"length"', '"start_time": 1.5, "end_time": 2.0, "length"')
        )
    manifest, _ = prepare("emobox", media, meta=meta)
    assert {(u.start, u.end) for u in manifest.rows} == {(1.5, 2.0)}


def test_lists_of_two_corpora_are_refused(meta, media):
    other = meta / "fold_1" / "tess_train_fold_1.jsonl"
    other.write_text(lines(["DC_a01"]))
    with pytest.raises(DataError, match="lists of several corpora"):
        prepare("emobox", media, meta=meta)


@real
def test_lists_of_all_32_corpora_have_the_published_folds_and_labels(tmp_path):
    """Lists with a few clips of each published label: the folds, parts and labels that are read of
    each corpus are these, whatever its codes and label map.
    """
    maps = json.loads((DATA / "label_maps.json").read_text())
    counts = published()
    corpora = dict.fromkeys(corpus for corpus, _, _ in counts)
    assert len(corpora) == 32 and corpora.keys() - maps.keys() == {"emovo"}
    (tmp_path / "media").mkdir()
    for corpus in corpora:
        parts = {key[1:]: labels for key, (_, labels) in counts.items() if key[0] == corpus}
        # some training lists are too long for that table
        for fold in {fold for fold, _ in parts}:
            parts.setdefault((fold, "train"), {next(iter(maps.get(corpus, "-"))): 1})
        for labels in parts.values():
            labels.update({code: min(number, 3) for code, number in labels.items()})
        wanted: Counter = Counter()
        named = {code.casefold(): name.strip() for code, name in maps.get(corpus, {}).items()}
        for (fold, part), labels in parts.items():
            for code, number in labels.items():
                wanted[fold, SPLITS[part], named.get(code.casefold(), code)] += number
        meta = write_counted(tmp_path / corpus, corpus, parts)
        if corpus in maps:
            (meta / "label_map.json").write_text(json.dumps(maps[corpus]))
        manifest, found = prepare("emobox", tmp_path / "media", meta=meta)
        read: Counter = Counter()
        for u in manifest.rows:
            for entry in u.folds:
                read[*fold_of(entry), u.label] += 1
        assert read == wanted and not found.dropped, corpus


def write_counted(meta: Path, corpus: str, parts: dict[tuple[str, str], dict[str, int]]) -> Path:
    """Lists with so many clips of each code: (fold, part) -> code -> clips."""
    for (fold, part), labels in parts.items():
        rows = []
        for code, number in labels.items():
            for i in range(number):
                key = f"{fold}-{part}-{code}-{i}"
                rows.append({"key": key, "wav": f"downloads/{key}.wav", "emo": code})
        path = meta / f"fold_{fold}" / f"{corpus}_{part}_fold_{fold}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    return meta
