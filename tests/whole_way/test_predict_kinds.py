"""`mer predict` of many clips for every kind of run: values from films with a face, several labels
from a store that was joined; each alone where time does not matter. Each clip gets what `mer
evaluate` gave it from the store, and what it gets alone.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mer.pipeline.manifest import Manifest, Utterance

from tests.extract.corpus import write_clip, write_film
from tests.whole_way.mer import TINY, mer

COUNT = 9
TRAIN = ("--model", "concat", "--device", "cpu", "--set", "train.epochs=1")
CLOSE = 1e-4  # of an answer from float32 features, whatever batch they were computed in
EMOTIONS = ("calm", "angry", "sad")


def corpus(folder: Path, kind: str, *, films: bool = False) -> Path:
    """The manifest of a few clips, with the targets of a task."""
    rows = []
    for number in range(COUNT):
        name = f"clip{number}.{'mp4' if films else 'wav'}"
        (write_film if films else write_clip)(folder / name, 0.5 + 0.1 * number, number)
        told = {
            "single": {"label": EMOTIONS[number % 3]},
            "multi": {"targets": tuple(float((number >> bit) & 1) for bit in range(3))},
            "regression": {"targets": (math.sin(number) * 2,)},
        }[kind]
        rows.append(
            Utterance(
                f"u{number}",
                name,
                f"sentence {number}" + " with more words" * (number % 3),
                ("train", "dev", "test")[number % 3],
                video=name if films else None,
                dialogue=f"d{number}",
                **told,
            )
        )
    labels = () if kind == "regression" else EMOTIONS
    Manifest("own", kind, labels, tuple(rows), folder).write(folder / "all.parquet")
    return folder / "all.parquet"


def extracted(manifest: Path, name: str, *asked: str) -> Path:
    out = manifest.parent / name
    mer("extract", "--manifest", manifest, "--out", out, "--dtype", "float32", *asked)
    return out


def trained(store: Path, *asked: str) -> Path:
    out = store.parent / "run"
    mer("train", store, "--out", out, *TRAIN, *asked)
    return out


def made(folder: Path, kind: str) -> Path:
    """A run of a kind, with its clips and its manifest beside it."""
    if kind == "films":
        manifest = corpus(folder, "regression", films=True)
        return trained(extracted(manifest, "f.h5", *TINY, "--vision-encoder", "builtin:tiny-vit"))
    if kind == "joined":
        manifest, (sound, words) = corpus(folder, "multi"), (TINY[:2], TINY[2:])
        stores = (
            extracted(manifest, "a.h5", *sound, "--text-encoder", "none", "--pool", "2"),
            extracted(manifest, "t.h5", *words, "--audio-encoder", "none"),
        )
        mer("join", *stores, "--out", folder / "both.h5")
        return trained(folder / "both.h5")
    return trained(extracted(corpus(folder, kind), "f.h5", *TINY))


ALONE = [pytest.param(task, marks=pytest.mark.slow) for task in ("single", "regression", "multi")]


@pytest.fixture(scope="module", params=["films", "joined", *ALONE])
def run(request, tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp(request.param), request.param)


def answers(*asked: str | Path) -> dict[str, dict]:
    """The rows that `mer predict` prints, by the names of the clips' files."""
    lines = mer("predict", *asked, "--json").out.splitlines()
    return {Path(row["file"]).name: row for row in map(json.loads, lines)}


def numbers(row: dict) -> dict[str, float]:
    """What a model answers in numbers: probabilities, a value, and those of each modality."""
    kept = ("p_", "value", "pred", "attention_", "disagreement")
    return {k: v for k, v in row.items() if k.startswith(kept) and isinstance(v, float)}


def test_each_clip_of_a_manifest_gets_what_evaluate_gave_it(run, tmp_path):
    manifest = Manifest.read(run.parent / "all.parquet")
    part = [u for u in manifest.rows if u.split == "test"]
    replace(manifest, rows=tuple(part)).write(tmp_path / "test.parquet")
    known = pq.read_table(run / "predictions.parquet").to_pylist()
    expected = {row["id"]: row for row in known}
    asked = ("predict", run, tmp_path / "test.parquet", "--root", run.parent)
    found = list(csv.DictReader(io.StringIO(mer(*asked, "--csv").out)))
    assert [row["id"] for row in found] == [u.id for u in part]
    for row in found:
        wanted = expected[row["id"]]
        known_too = numbers(wanted).items()
        compared = {name: value for name, value in known_too if row.get(name)}
        assert {"p_sad", "pred"} & compared.keys()
        for name, value in compared.items():
            assert float(row[name]) == pytest.approx(value, abs=CLOSE), name
        if isinstance(wanted["pred"], list):
            assert row["pred"] == ";".join(wanted["pred"])
        elif isinstance(wanted["pred"], str):
            assert row["pred"] == wanted["pred"]


def test_each_file_of_a_folder_gets_what_it_gets_alone(run, tmp_path):
    manifest = Manifest.read(run.parent / "all.parquet")
    for u in manifest.rows[:3]:
        (tmp_path / u.audio).write_bytes((run.parent / u.audio).read_bytes())
        (tmp_path / u.audio).with_suffix(".txt").write_text(u.text)
    found = answers(run, tmp_path)
    assert len(found) == 3
    assert not any(row["missing"] for row in found.values())
    u = manifest.rows[2]
    picture = ["--video", tmp_path / u.video] if u.video else []
    alone = answers(run, "--audio", tmp_path / u.audio, "--text", u.text, *picture)[u.audio]
    assert numbers(alone) and numbers(found[u.audio]) == pytest.approx(numbers(alone), abs=CLOSE)
    assert found[u.audio]["pred"] == pytest.approx(alone["pred"], abs=CLOSE)
