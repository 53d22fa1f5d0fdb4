"""`mer extract` and `mer fingerprint` as a user sees them: what is on stdout, what is on stderr,
and the exit status.
"""

from __future__ import annotations

import dataclasses
import json
import re

import click
import pytest
from click.testing import CliRunner

from mer import cli
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.store import FeatureStore

from tests.extract import corpus

TINY = [
    "--audio-encoder",
    "builtin:tiny-wav2vec2",
    "--text-encoder",
    "builtin:tiny-roberta",
    "--offline",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    corpus.make(tmp_path, 4)
    return tmp_path


def mer(*args: str):
    return CliRunner().invoke(cli.main, list(args))


def test_extract_then_again_then_another_recipe(folder):
    first = mer("extract", "--manifest", "manifest.parquet", *TINY)
    assert first.exit_code == 0, first.stderr
    assert first.stdout == "feats.h5\n"
    assert (
        "4 utterances extracted, 0 reused" in first.stderr
        and "untrained" in first.stderr
        and "self-test audio" in first.stderr
    )
    again = mer("extract", "--manifest", "manifest.parquet", *TINY, "--json")
    report = json.loads(again.stdout)
    assert (again.exit_code, report["action"], report["extracted"]) == (0, "nothing", 0)
    key = mer("fingerprint", "--manifest", "manifest.parquet", *TINY)
    assert (
        key.stdout.strip() == report["fingerprint"] == FeatureStore("feats.h5").header.fingerprint
    )
    other = mer("extract", "--manifest", "manifest.parquet", *TINY, "--pool", "2")
    assert other.exit_code == 4
    assert other.stderr.splitlines()[-1].startswith(
        "mer: feats.h5: made by another recipe (audio pool: 1 there, 2 now)"
    )
    assert other.stdout == ""


def test_failures_exit_with_3_after_writing(folder):
    (folder / "clip1.wav").write_text("no audio")
    result = mer("extract", "--manifest", "manifest.parquet", *TINY)
    assert (
        result.exit_code == 3
        and result.stdout == "feats.h5\n"
        and len(FeatureStore("feats.h5")) == 3
    )
    assert "failed: u001: open:" in result.stderr
    assert (
        mer("extract", "--manifest", "manifest.parquet", *TINY, "--max-failures", "1").exit_code
        == 0
    )


def test_a_failure_that_is_remembered_names_its_own_file(folder):
    """Of two files of the same bytes, and where they are now."""
    for i in (1, 2):
        (folder / f"clip{i}.wav").write_text("no audio")
    for moved, pool in (("there", "1"), ("elsewhere", "2")):
        place = folder / moved
        place.mkdir()
        for path in list(folder.rglob("clip*.wav")):
            path.rename(place / path.name)
        result = mer("extract", "--manifest", "manifest.parquet", "--root", str(place),
                     *TINY, "--pool", pool, "--out", f"{pool}.h5")  # fmt: skip
        assert result.exit_code == 3
        for i in (1, 2):
            told = f"failed: u00{i}: open: {place}/clip{i}.wav: not a media file that can be read"
            assert told in result.stderr


def test_what_is_counted_is_named_explained_and_listed(folder):
    for i in (0, 2):
        corpus.write_clip(folder / f"clip{i}.wav", 0.004, i)
    result = mer("extract", "--manifest", "manifest.parquet", *TINY)
    line = (
        "counted: 2 short (shorter than the encoder's first frame, padded with zeros): u000, u002"
    )
    assert (
        line in result.stderr
        and "all of a kind: mer inspect feats.h5 --flag short" in result.stderr
    )
    assert line in mer("inspect", "feats.h5").stdout
    assert mer("inspect", "feats.h5", "--flag", "short").stdout == "u000\nu002\n"
    assert mer("inspect", "feats.h5", "--flag", "silent").stdout == ""
    assert json.loads(mer("inspect", "feats.h5", "--json").stdout)["flags"] == {"short": 2}
    wrong = mer("inspect", "feats.h5", "--flag", "shortish")
    assert wrong.exit_code == 2 and "known are short, chunked" in wrong.stderr


def test_dry_run(folder):
    result = mer("extract", "--manifest", "manifest.parquet", *TINY, "--dry-run")
    assert result.exit_code == 0 and not (folder / "feats.h5").exists()
    for words in (
        "dry run: 4 utterances",
        " minutes of audio",
        "MB in",
        "1 batch (",
        "padded/valid",
        "disk:",
    ):
        assert words in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "either --dataset NAME or --manifest FILE"),
        (
            ("--dataset", "synthetic", "--manifest", "x"),
            2,
            "either --dataset NAME or --manifest FILE",
        ),
        (("--manifest", "nowhere.parquet"), 1, "nowhere.parquet: no such manifest"),
        (("--dataset", "nothing"), 1, "dataset 'nothing' is not known"),
        (("--dataset", "table"), 2, "`mer prepare table` makes a manifest of it"),
        (("--dataset", "emobox"), 2, "then give --manifest FILE"),
        (("--manifest", "manifest.parquet", *TINY, "--max-seconds", "nan"), 1, "is not from 0"),
        (("--manifest", "manifest.parquet", *TINY, "--max-seconds", "inf"), 1, "is not from 0"),
        (("--manifest", "manifest.parquet", *TINY, "--budget-seconds", "inf"), 1, "number above 0"),
        (("--manifest", "manifest.parquet", *TINY, "--pool", "9" * 20), 1, "is not from 1"),
        (("--manifest", "manifest.parquet", "--labels", "x"), 2, "--labels goes with --dataset"),
        (
            ("--manifest", "manifest.parquet", "--budget-seconds", "much"),
            2,
            "neither auto nor a number",
        ),
        (
            ("--manifest", "manifest.parquet", "--audio-layer", "first", *TINY),
            1,
            "--audio-layer 'first'",
        ),
        (
            ("--manifest", "manifest.parquet", "--audio-encoder", "./nowhere"),
            1,
            "no such directory",
        ),
        (
            ("--manifest", "manifest.parquet", "--text-encoder", "nobody/nothing", "--offline"),
            1,
            "--offline forbids",
        ),
        (("--manifest", "manifest.parquet", *TINY, "--out", "."), 1, "is a directory"),
    ],
)
def test_bad_requests_are_one_line(folder, args, code, words):
    result = mer("extract", *args)
    assert result.exit_code == code, result.stderr
    assert words in result.stderr.splitlines()[-1] and result.stdout == ""


def test_large_stores_ask_first(folder, monkeypatch):
    monkeypatch.setattr(
        "mer.pipeline.extraction.settle.planned_bytes", lambda inputs, planned: 30_000_000_000
    )
    result = mer("extract", "--manifest", "manifest.parquet", *TINY)
    assert (
        result.exit_code == 2
        and "30.0 GB" in result.stderr
        and "--yes" in result.stderr
        and not (folder / "feats.h5").exists()
    )
    assert mer("extract", "--manifest", "manifest.parquet", *TINY, "--yes").exit_code == 0


def test_a_known_corpus_is_prepared_on_the_way(folder, monkeypatch):
    """`mer extract --dataset synthetic` with nothing there yet; eight clips instead of 600."""
    from mer.pipeline.datasets import prepared

    prepare = prepared.prepare
    monkeypatch.setattr(
        prepared,
        "prepare",
        lambda name, root, labels=None: prepare(name, root, labels=labels, size=48),
    )
    result = mer("extract", "--dataset", "synthetic", "--root", "corpus")
    assert result.exit_code == 0, result.stderr
    assert (folder / "corpus" / "manifest.parquet").exists() and len(FeatureStore("feats.h5")) == 48
    assert (
        mer("fingerprint", "--dataset", "synthetic", "--root", "corpus").stdout.strip()
        == FeatureStore("feats.h5").header.fingerprint
    )


def test_the_help_shows_the_defaults_that_the_options_have():
    """They stand in ExtractOptions alone; what is not given is not passed on."""
    fields = {field.name: field.default for field in dataclasses.fields(ExtractOptions)}
    shown, context = {}, click.Context(cli.main)
    for option in cli.main.commands["extract"].params:
        found = re.search(r"\[default: ([^\] ]+)\]", option.help or "")
        if found and option.name in fields:
            shown[option.name] = found[1]
            assert not isinstance(option.get_default(context), str | int | float), option.name
    wanted = {"audio_track", "channel", "device", "dtype", "max_failures", "text_windows"}
    wanted |= {"vision_crop", "vision_fps", "vision_layer", "vision_no_face", "vision_pool"}
    assert wanted | {"max_seconds", "pool", "precision"} == shown.keys()
    assert shown == {name: str(fields[name]) for name in shown}
