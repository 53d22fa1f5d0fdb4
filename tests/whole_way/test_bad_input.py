"""Every bad input ends in one line and the right exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mer import cli
from mer.pipeline.manifest import Manifest

from tests.whole_way.conftest import QUICK
from tests.whole_way.mer import TINY, mer, refused


def table(folder: Path, text: str) -> Path:
    path = folder / "clips.csv"
    path.write_text(text)
    return path


def test_missing_column_names_those_there_are(tmp_path):
    path = table(tmp_path, "name,wav,words\na,a.wav,hello\n")
    refused(
        "prepare",
        "table",
        "--from",
        path,
        "--column",
        "audio=sound",
        says=["sound", "name, wav, words"],
    )


def test_duplicate_id(tmp_path, desk):
    path = table(
        tmp_path, f"id,audio,text,label\na,{desk.clip.name},x,joy\na,{desk.clip.name},y,joy\n"
    )
    refused(
        "prepare",
        "table",
        "--from",
        path,
        "--audio-dir",
        desk.clip.parent,
        "--out",
        tmp_path / "m.parquet",
        says=["'a'"],
    )


def test_unknown_label(tmp_path, desk):
    path = table(tmp_path, f"id,audio,text,label\na,{desk.clip.name},x,glee\n")
    refused(
        "prepare",
        "table",
        "--from",
        path,
        "--audio-dir",
        desk.clip.parent,
        "--labels",
        "joy,anger",
        "--out",
        tmp_path / "m.parquet",
        says=["glee", "joy"],
    )


@pytest.mark.parametrize("content", [b"", b"this is not sound\n" * 200], ids=["empty", "text"])
def test_a_clip_that_is_no_clip_is_counted_and_ends_in_3(tmp_path, desk, content):
    (tmp_path / "wav").mkdir()
    shutil.copy(desk.clip, tmp_path / "wav" / "good.wav")
    (tmp_path / "wav" / "bad.wav").write_bytes(content)
    path = table(tmp_path, "id,audio,text,label\ngood,good.wav,x,joy\nbad,bad.wav,y,joy\n")
    mer(
        "prepare",
        "table",
        "--from",
        path,
        "--audio-dir",
        tmp_path / "wav",
        "--out",
        tmp_path / "m.parquet",
        code=None,
    )
    out = tmp_path / "feats.h5"
    line = refused(
        "extract",
        "--manifest",
        tmp_path / "m.parquet",
        "--out",
        out,
        *TINY,
        code=3,
        says=["bad", "failures.jsonl"],
    )
    assert "1" in line
    assert "bad.wav" in (tmp_path / "feats.shards" / "failures.jsonl").read_text()
    mer("extract", "--manifest", tmp_path / "m.parquet", "--out", out, *TINY, "--max-failures", "1")
    assert "1 utterance" in mer("inspect", out).out


def test_store_of_another_recipe_is_exit_4_and_says_what_differs(desk):
    refused(
        "extract", "--dataset", "synthetic", "--pool", "4", code=4, says=["pool"], cwd=desk.folder
    )


def test_unreadable_folder(tmp_path):
    refused("prepare", "meld", "--root", tmp_path / "nowhere", says=[str(tmp_path / "nowhere")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_folder_without_permission(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    refused("prepare", "meld", "--root", closed, says=["closed"])


def copy_of(desk, folder: Path) -> Path:
    shutil.copy(desk.features, folder / "feats.h5")
    shutil.copytree(desk.folder / "feats.shards", folder / "feats.shards")
    return folder / "feats.h5"


def test_truncated_shard_is_exit_5_and_repair_mends_it(tmp_path, desk):
    store = copy_of(desk, tmp_path)
    shard = next((tmp_path / "feats.shards").glob("shard-*.h5"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused("train", "--features", store, "--model", "text", code=5, says=[shard.name])
    refused("verify", store, code=5, says=["--repair"])
    mer("verify", store, "--repair")
    assert shard.read_bytes() == whole


def test_wrong_version(tmp_path, desk):
    import h5py

    store = copy_of(desk, tmp_path)
    with h5py.File(store, "r+") as file:
        file.attrs["version"] = 99
    refused("inspect", store, says=["99"])


def test_not_a_store(tmp_path):
    (tmp_path / "feats.h5").write_text("no")
    refused("train", "--features", tmp_path / "feats.h5", code=5, says=["feats.h5"])


def test_manifest_that_is_none(tmp_path):
    (tmp_path / "m.parquet").write_text("no")
    refused("extract", "--manifest", tmp_path / "m.parquet", says=["m.parquet"])


def test_unknown_setting_names_the_known_ones(desk):
    refused(
        "train",
        "--features",
        desk.features,
        "--set",
        "optim.learning_rate=1",
        says=["learning_rate", "lr"],
    )


def test_language_without_default_encoders(tmp_path, desk):
    manifest = Manifest.read(desk.folder / "data" / "synthetic" / "manifest.parquet")
    replace(manifest, dataset="mine", language="pl").write(tmp_path / "m.parquet")
    refused("extract", "--manifest", tmp_path / "m.parquet", says=["pl", "--audio-encoder"])


def test_offline_without_the_encoder(desk):
    manifest = desk.folder / "data" / "synthetic" / "manifest.parquet"
    asked = (
        "extract",
        "--manifest",
        manifest,
        "--audio-encoder",
        "nobody/nothing",
        "--offline",
        "--out",
        "x.h5",
    )
    refused(*asked, says=["nobody/nothing", "offline"])


def test_usage_is_one_line_and_2(desk, tmp_path):
    refused("prepare", "table", code=2, says=["--from FILE", "prepare --help"])
    refused("train", code=2, says=["--features"])
    refused("trian", code=2, says=["trian"])
    refused("--bogus", code=2, says=["--bogus"])
    group = tmp_path / "group"
    mer(
        "train",
        "--features",
        desk.features,
        "--model",
        "text",
        "--folds",
        "speaker",
        "--set",
        "train.epochs=1",
        "--out",
        group,
        "--no-test",
    )
    line = refused("predict", group, "--text", "hi", code=2, says=["runs over folds", f"{group}/"])
    assert mer("predict", group, "--text", "hi", code=2).err.strip() == line


def test_predict_names_a_path_that_is_not_utf8(desk, tmp_path):
    clip = tmp_path / os.fsdecode(b"b\xff.wav")
    shutil.copy(desk.clip, clip)
    refused(
        "predict",
        desk.run,
        "--audio",
        clip,
        "--text",
        "hi",
        says=["is not UTF-8; rename that file"],
    )


def test_an_absent_store_and_a_bad_setting_are_told_without_torch(desk):
    code = (
        "import sys\nfrom mer import cli\ntry:\n    cli.main(sys.argv[1:])\nfinally:\n    "
        "print('torch' in sys.modules)"
    )
    for asked in (
        ["--features", "nosuch.h5"],
        ["--features", str(desk.features), "--set", "optim.foo=1"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "train", *asked],
            capture_output=True,
            text=True,
            cwd=Path(cli.__file__).parent,
        )
        assert (done.returncode, done.stdout) == (1, "False\n") and done.stderr.startswith(
            "mer: "
        ), done


DAMAGED = {
    "run.json": ("evaluate", "predict", "compare", "report", "train"),
    "config.toml": ("evaluate", "predict"),
    "split.json": ("evaluate",),
    "log.jsonl": ("report",),
    "metrics.json": ("report", "train"),
    "predictions.parquet": ("compare",),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_named_with_what_helps(desk, tmp_path, name):
    for content in (b"", b"\xff\xfe", b"[1]", b'{"a":' * 2000):
        run = shutil.copytree(desk.run, tmp_path / "run", dirs_exist_ok=True)
        (run / name).write_bytes(content)
        asked = {
            "evaluate": ["evaluate", run],
            "predict": ["predict", run, "--audio", desk.clip, "--text", "hi"],
            "compare": ["compare", desk.run, run],
            "report": ["report", run, "--out", tmp_path / "r.html"],
            "train": ["train", "--features", desk.features, *QUICK, "--out", run],
        }
        for command in DAMAGED[name]:
            if name == "log.jsonl" and not content:
                continue  # no epochs: nothing is drawn
            line = refused(*asked[command], says=[str(run / name), "again"])
            assert (
                "evaluate" if name in ("metrics.json", "predictions.parquet") else "train again"
            ) in line


def test_settings_that_no_model_can_take_are_one_line(desk):
    asked = ("train", "--features", desk.features, "--model", "text")
    for setting, says in (
        ("model_args.dropout=2", "model_args.dropout = 2.0: must be between 0 and 1"),
        ("model_args.hidden=-1", "model_args.hidden = -1: must be at least 1"),
        (
            "model_args.label_smoothing=nan",
            "model_args.label_smoothing = nan: must be between 0 and 1",
        ),
        ("model_args.hidden=100000000000", "model_args.hidden = 100000000000: must be below 2^31"),
        ("train.seed=99999999999999999999", "expected a whole number of at most 64 bits"),
    ):
        refused(*asked, "--set", setting, says=[says])
    refused(*asked, "--device", "meta", says=["--device meta", "auto, cpu, cuda or cuda:N"])


def test_a_report_that_cannot_be_written_is_named(desk, tmp_path):
    refused(
        "report", desk.run, "--out", tmp_path, says=[f"{tmp_path}: Is a directory; name a file"]
    )
    refused("report", desk.run, "--out", ".", says=[".: Is a directory; name a file"])
    (tmp_path / "file").touch()
    refused(
        "report",
        desk.run,
        "--out",
        tmp_path / "file" / "r.html",
        says=[f"{tmp_path}/file/r.html", "name another place"],
    )


def test_neither_a_folder_nor_a_device_is_replaced(desk, tmp_path):
    corpus = ("--root", desk.folder / "data" / "synthetic", "--size", "48")
    refused("prepare", "synthetic", *corpus, "--out", ".", says=[".: Is a directory; name a file"])
    os.mkfifo(tmp_path / "pipe")  # stands for /dev/null
    refused(
        "prepare", "synthetic", *corpus, "--out", tmp_path / "pipe", says=["pipe: a device or pipe"]
    )
    refused(
        "extract",
        "--dataset",
        "synthetic",
        "--out",
        tmp_path / "pipe",
        says=["pipe: is a device or pipe"],
        cwd=desk.folder,
    )
    refused(
        "evaluate",
        desk.run,
        "--split",
        "dev",
        "--predictions",
        tmp_path / "pipe",
        says=["pipe: a device or pipe"],
    )
    assert (tmp_path / "pipe").is_fifo()
