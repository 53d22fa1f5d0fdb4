"""`mer datasets` and `mer prepare` from the outside."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.datasets import DATASETS
from mer.pipeline.manifest import Manifest

from tests.datasets.trees import write_meld_csv, write_wav


@pytest.fixture
def mer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MER_DATA", raising=False)
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


def test_datasets_lists_every_corpus_and_what_is_here(mer, tmp_path):
    (tmp_path / "data" / "meld").mkdir(parents=True)
    text = mer("datasets").stdout
    assert (
        all(f"{name}: " in text for name in DATASETS)
        and "not prepared yet" in text
        and "table: your own" in text
    )
    found = {c["name"]: c for c in json.loads(mer("datasets", "--json").stdout)}
    assert set(found) == set(DATASETS) and found["meld"]["licence"].startswith("GPL-3.0")
    assert found["synthetic"]["audio_encoder"] == "builtin:tiny-wav2vec2"


def test_datasets_of_a_name_is_its_page(mer, tmp_path):
    (tmp_path / "data" / "nemo").mkdir(parents=True)
    (tmp_path / "data" / "nemo" / "manifest.parquet").touch()
    (tmp_path / "data" / "nemo" / "manifest-emotion.parquet").touch()
    text = mer("datasets", "nemo").stdout
    for part in (
        "nemo: nEMO: Polish",
        "prepared: data/nemo/manifest-emotion.parquet, data/nemo/manifest.parquet",
        "modalities audio, text",
        "emotion: neutral, anger, fear, happiness, sadness, surprised (one class)",
        "text carries no emotion",
        "--folds speaker",
        "CC BY-NC-SA 4.0",
        "https://github.com/amu-cai/nEMO",
        "mer prepare nemo --root DIR",
    ):
        assert part in text
    (found,) = json.loads(mer("datasets", "meld", "--json").stdout)
    assert found["expected"]["emotion"]["train"]["neutral"] == 4710
    assert found["tasks"] == {"emotion": "single", "sentiment": "single"}
    done = mer("datasets", "melt")
    assert done.exit_code == 1 and "did you mean 'meld'?)" in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", DATASETS)
def test_every_corpus_has_a_page(mer, name):
    done = mer("datasets", name)
    assert done.exit_code == 0 and done.stdout.startswith(f"{name}: ")


def test_prepare_synthetic_where_extract_looks_for_it(mer, tmp_path):
    done = mer("prepare", "synthetic", "--size", 12, "--seed", 3)
    assert done.exit_code == 0 and done.stdout.endswith("wrote data/synthetic/manifest.parquet\n")
    manifest = Manifest.read(tmp_path / "data" / "synthetic" / "manifest.parquet")
    assert len(manifest) == 12 and all((manifest.root / u.audio).is_file() for u in manifest.rows)
    assert manifest.source["seed"] == 3 and manifest.source["report"]["counts"]


def test_a_prepared_folder_can_be_moved(mer, tmp_path):
    mer("prepare", "synthetic", "--size", 12, "--root", "here")
    (tmp_path / "here").rename(tmp_path / "there")
    manifest = Manifest.read(tmp_path / "there" / "manifest.parquet")
    assert all((manifest.root / u.audio).is_file() for u in manifest.rows)


def test_prepare_json(mer):
    found = json.loads(mer("prepare", "synthetic", "--size", 12, "--json").stdout)
    assert (
        found["utterances"] == 12
        and len(found["hash"]) == 64
        and found["overlaps"]["train/test"]["texts"] == 0
    )


def test_prepare_table(mer, tmp_path):
    (tmp_path / "t.csv").write_text("file,words,emo,who\na,hi,joy,x\nb,no,sad,y\nc,oh,joy,z\n")
    for name in "abc":
        write_wav(tmp_path / "wavs" / f"{name}.wav")
    columns = [
        a
        for c in ("id=file", "audio=file", "text=words", "label=emo", "speaker=who")
        for a in ("--column", c)
    ]
    done = mer(
        "prepare",
        "table",
        "--from",
        "t.csv",
        "--audio-dir",
        "wavs",
        *columns,
        "--out",
        "m.parquet",
        "--labels",
        "sad,joy",
    )
    assert done.exit_code == 0, done.stderr
    manifest = Manifest.read(tmp_path / "m.parquet")
    assert (
        manifest.labels == ("sad", "joy")
        and manifest.dataset == "t"
        and (manifest.root / manifest.rows[0].audio).is_file()
    )


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (("prepare", "melt"), 1, "dataset 'melt' is not known (did you mean 'meld'?); known: "),
        (("prepare", "meld"), 1, "to get it: MELD.Raw.tar.gz"),
        (("prepare", "meld", "--size", 3), 1, "mer: meld takes no option size"),
        (
            ("prepare", "synthetic", "--labels", "x"),
            1,
            "mer: --labels x: synthetic has emotion, sentiment",
        ),
        (("prepare", "synthetic", "--size", 0), 2, "0 is not in the range"),
        (("prepare", "synthetic", "--from", "x.csv"), 2, "go with `mer prepare table`"),
        (("prepare", "emobox", "--column", "a=b"), 2, "go with `mer prepare table`"),
        (("prepare", "table", "--from", "x.csv", "--map", "a=b"), 2, "`mer prepare folder`"),
        (("prepare", "table", "--from", "x.csv", "--size", 3), 1, "table takes no option size"),
        (
            ("prepare", "folder", "--root", ".", "--pattern", "{id}", "--unimodal", "text=a"),
            1,
            "mer: folder takes no option unimodal; `mer prepare --help` says which go with it",
        ),
        (("prepare", "table"), 2, "table takes --from FILE"),
        (("prepare", "table", "--from", "x.csv"), 1, "mer: x.csv: no such file"),
        (
            ("prepare", "table", "--from", "x.csv", "--root", ".", "--audio-dir", "wav"),
            2,
            "--audio-dir wav and --root . both say where the audio of a table is; give one of them",
        ),
        (("prepare", "table", "--from", "x.csv", "--column", "audio"), 2, "expected FIELD=NAME"),
    ],
)
def test_mistakes_are_one_line_and_the_right_status(mer, args, code, part):
    done = mer(*args)
    assert done.exit_code == code and part in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1


def test_root_is_another_name_of_the_folder_of_the_audio(mer, tmp_path):
    write_wav(tmp_path / "wav" / "a.wav")
    (tmp_path / "t.csv").write_text("id,audio,label,split\na,a.wav,joy,train\n")
    for option in ("--audio-dir", "--root"):
        done = mer(
            "prepare", "table", "--from", "t.csv", option, "wav", "--out", f"{option}.parquet"
        )
        assert done.exit_code == 0 and "missing" not in done.stdout, done.stderr
        (row,) = Manifest.read(tmp_path / f"{option}.parquet").rows
        assert row.audio == "a.wav"


def test_an_out_that_cannot_be_written_says_so(mer, tmp_path):
    (tmp_path / "file").write_text("")
    done = mer("prepare", "synthetic", "--size", 12, "--out", "file/m.parquet")
    assert done.exit_code == 1 and "name a file that can be written with --out" in done.stderr


def test_prepare_meld_prints_what_is_missing(mer, tmp_path):
    write_meld_csv(tmp_path / "dev_sent_emo.csv", [("Hi", "Joey", "joy", "positive", 0, 0)])
    done = mer("prepare", "meld", "--root", tmp_path)
    assert (
        done.exit_code == 0
        and "files missing: 1: dev/dia0_utt0" in done.stdout
        and "expected ones" in done.stdout
    )


def test_each_label_set_has_a_manifest_of_its_own(mer, tmp_path):
    """What `prepare` writes for one label set is not what `extract` takes for another."""
    write_meld_csv(
        tmp_path / "data" / "meld" / "dev_sent_emo.csv", [("Hi", "Joey", "joy", "positive", 0, 0)]
    )
    mer("prepare", "meld")
    mer("prepare", "meld", "--labels", "sentiment")
    labels = [
        Manifest.read(tmp_path / "data" / "meld" / f"{name}.parquet").labels
        for name in ("manifest", "manifest-sentiment")
    ]
    assert "joy" in labels[0] and "positive" in labels[1]
