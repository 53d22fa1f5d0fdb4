"""What the README promises a new user, through the command line itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import metadata

import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from mer.fusion.runtime.files import SEAL, write_json
from mer.pipeline import doctor
from mer.pipeline.manifest import Manifest

from tests.whole_way.conftest import QUICK
from tests.whole_way.mer import mer, refused


def test_extract_again_does_nothing(desk):
    found = json.loads(mer("extract", "--dataset", "synthetic", "--json", cwd=desk.folder).out)
    assert found["extracted"] == 0
    assert found["reused"] == 48


def test_inspect_warns_of_untrained_encoders(desk):
    assert "untrained" in mer("inspect", desk.features).out


def test_train_again_shows_the_same_table_and_opens_test_no_second_time(desk):
    opened = (desk.run / "test_log.jsonl").read_text().splitlines()
    first = mer("train", "--features", "feats.h5", *QUICK, cwd=desk.folder)
    assert "UA" in first.out and "UNTRAINED" in (first.out + first.err).upper()
    assert (desk.run / "test_log.jsonl").read_text().splitlines() == opened
    assert len(opened) == 1


def test_run_folder_holds_what_the_docs_say(desk):
    for name in (
        "config.toml",
        "run.json",
        "split.json",
        "log.jsonl",
        "model.safetensors",
        "metrics.json",
        "predictions.parquet",
    ):
        assert (desk.run / name).is_file(), name
    table = pq.read_table(desk.run / "predictions.parquet")
    for column in ("id", "pred", "attention_audio", "attention_text", "disagreement"):
        assert column in table.column_names


def test_predict_one_clip(desk):
    outcome = mer(
        "predict",
        desk.run,
        "--audio",
        desk.clip,
        "--text",
        "Leave me alone, I am furious.",
        "--json",
    )
    row = json.loads(outcome.out)
    scores = [value for name, value in row.items() if name.startswith("p_")]
    assert sum(scores) == pytest.approx(1, abs=1e-4)
    assert row["attention_audio"] + row["attention_text"] == pytest.approx(1, abs=1e-4)
    assert 0 <= row["disagreement"] <= 1


def test_predict_gives_what_evaluate_gave_for_the_same_clip(desk):
    """The clip goes through extraction again, alone: features do not depend on the batch, so
    neither does the prediction.
    """
    known = pq.read_table(desk.run / "predictions.parquet").to_pylist()[0]
    manifest = pq.read_table(desk.folder / "data" / "synthetic" / "manifest.parquet").to_pylist()
    row = next(r for r in manifest if r["id"] == known["id"])
    found = json.loads(
        mer(
            "predict",
            desk.run,
            "--audio",
            desk.folder / "data" / "synthetic" / row["audio"],
            "--text",
            row["text"],
            "--json",
        ).out
    )
    for name, value in known.items():
        if name.startswith(("p_", "attention_", "disagreement")):
            assert found[name] == pytest.approx(value, abs=2e-3), name


def test_predict_a_manifest(desk):
    lines = mer(
        "predict",
        desk.run,
        "--manifest",
        desk.folder / "data" / "synthetic" / "manifest.parquet",
        "--json",
    ).out.splitlines()
    assert len(lines) == 48
    known = {
        u["id"]: u["label"]
        for u in pq.read_table(desk.folder / "data" / "synthetic" / "manifest.parquet").to_pylist()
    }
    assert {row["id"]: row["label"] for row in map(json.loads, lines)} == known


def test_predict_with_a_clip_that_cannot_be_read_tells_the_others_and_ends_in_3(desk, tmp_path):
    manifest = Manifest.read(desk.folder / "data" / "synthetic" / "manifest.parquet")
    rows = [replace(u, audio="gone.wav") if i == 1 else u for i, u in enumerate(manifest.rows[:3])]
    replace(manifest, rows=tuple(rows)).write(tmp_path / "m.parquet")
    outcome = mer("predict", desk.run, "--manifest", tmp_path / "m.parquet", "--json", code=3)
    assert [json.loads(line)["id"] for line in outcome.out.splitlines()] == [rows[0].id, rows[2].id]
    assert (
        f"failed: {rows[1].id}: open: " in outcome.err
        and "mer: 1 of 3 clips have no prediction" in outcome.err
    )
    assert "extracting: " in outcome.err, "how far it is"


def test_a_model_of_one_modality_predicts_from_that_alone(desk, tmp_path):
    mer(
        "train",
        "--features",
        desk.features,
        "--model",
        "text",
        "--set",
        "train.epochs=1",
        "--out",
        tmp_path / "run",
        "--no-test",
    )
    assert json.loads(mer("predict", tmp_path / "run", "--text", "I am so happy!", "--json").out)[
        "pred"
    ]
    refused(
        "predict",
        tmp_path / "run",
        "--audio",
        desk.clip,
        says=["trained on text; give it text too"],
    )
    asked = ("predict", desk.run, "--audio", desk.clip, "--text", "hi", "--text-encoder", "none")
    refused(*asked, says=["--text-encoder none", "trained on text"])


def test_predict_does_not_need_the_store(desk, tmp_path):
    run = shutil.copytree(desk.run, tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    info.pop(SEAL)
    write_json(run / "run.json", info | {"features": str(tmp_path / "gone.h5")})
    assert "probability" in mer("predict", run, "--audio", desk.clip, "--text", "hi").out
    info["store"]["recipe"].pop("dtype")
    write_json(run / "run.json", info)
    refused(
        "predict",
        run,
        "--audio",
        desk.clip,
        "--text",
        "hi",
        says=["run.json", "incomplete", "put it back"],
    )


def test_predict_says_what_is_missing(desk):
    refused("predict", desk.run, "--text", "hello", says=["audio"])


def test_predict_refuses_another_encoder(desk, tmp_path):
    line = refused(
        "predict",
        desk.run,
        "--audio",
        desk.clip,
        "--text",
        "hello",
        "--audio-encoder",
        tmp_path,
        says=["config.json"],
    )
    assert str(tmp_path) in line


def test_doctor_finds_no_fault_here():
    findings = [json.loads(line) for line in mer("doctor", "--json").out.splitlines()]
    assert {f["state"] for f in findings} <= {"ok", "note"}
    assert {"machine", "packages", "decoders", "disk"} <= {f["what"] for f in findings}


def test_doctor_and_every_command_name_a_wrong_torchaudio(monkeypatch, desk):
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "2.8.0" if name == "torchaudio" else real(name)
    )
    words = ["torch 2.11.0", "torchaudio 2.8.0", "pip install"]
    refused("inspect", desk.features, says=words)
    outcome = mer("doctor", code=1)
    assert all(word in outcome.out for word in words)
    assert mer("extract", "--help").out


def test_doctor_looks_for_encoders_where_the_hub_keeps_them(tmp_path, monkeypatch):
    """`XDG_CACHE_HOME` moves the hub's cache, too."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--roberta--base").mkdir(parents=True)
    found = doctor.models()
    assert (found.state, found.detail) == ("ok", f"in {tmp_path}/hub: roberta/base")
