"""What `python -m tests.bench real` writes is what docs/results.py reads: all parts, with a `mer`
that trains nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs import results as page
from tests.bench import machine, real, real_parts

FIGURE = 0.5
GAP = {"difference": 0.01, "interval": [-0.02, 0.04], "p": 0.4}


def said(*args: str | Path | int) -> str:
    """What each command would print."""
    words = [str(arg) for arg in args]
    same = dict.fromkeys(real_parts.SHOWN, FIGURE)
    kinds = [word.split("=")[1] for word in words if word.startswith("data.context=")]
    told: dict = {
        "train": {
            "n": 40,
            "bootstrap": {"unit": "dialogue", "groups": 4, "resamples": 9, "level": 0.95},
            "metrics": same,
            "sd": same,
            "pooled": None,
            "interval": dict.fromkeys(real_parts.SHOWN, [0.4, 0.6]),
        },
        "compare": {"metrics": dict.fromkeys(real_parts.SHOWN, GAP)},
        "layers": {m: {"layers": [{"figure": FIGURE}], "best": 0} for m in ("text", "audio")},
    }.get(words[0], {})
    if kinds and kinds != ["none"]:
        told["context"] = f"{kinds[0]} 8"
    return json.dumps(told)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The files of results beside which `real` has put its own."""
    folder = tmp_path / page.FOLDER
    folder.mkdir(parents=True)
    monkeypatch.setattr(real_parts, "mer", said)
    monkeypatch.setattr(real, "save", lambda *a, **k: machine.save(*a, **k, folder=folder))
    monkeypatch.setattr(page, "ROOT", tmp_path)
    page.results.cache_clear()
    yield folder
    page.results.cache_clear()


def test_every_part_is_read_by_the_page(measured, tmp_path):
    real.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "3"])
    assert {path.stem for path in measured.iterdir()} == {name for name, _ in real.PARTS.values()}
    every = [page.PARTS[name]() for name in ("aims", "meld", "nemo", "mosi")]
    for text in every:
        assert "50.0" in text and "+1.0 [-2.0, +4.0]" in text
    assert every[1].count("\n| emotion |") == 7 and every[1].count("\n| sentiment |") == 3
    assert every[3].count("\n| `") == 8 * 3
    assert "Of the 16 differences from none, 0 have" in every[3]


def test_one_part_is_measured_alone(measured, tmp_path, capsys):
    real.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "sentiment"])
    (path,) = measured.iterdir()
    found = json.loads(path.read_text())
    assert path.name == "real-sentiment.json" and found["command"].endswith("--only sentiment")
    assert [row["context"] for row in found["rows"]] == ["none", "past 8", "both 8"]


def test_some_models_of_mosi_are_measured(measured, tmp_path):
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "mosi"]
    real.main([*words, "--models", "text,concat"])
    found = json.loads((measured / "real-mosi.json").read_text())
    assert found["command"].endswith("--only mosi --models text,concat")
    assert [row["model"] for row in found["rows"]] == ["concat"] * 3 + ["text"] * 3


def test_the_configurations_of_mosi_are_those_that_dev_chose():
    chosen = real_parts.mosi_settings()
    assert next(iter(chosen)) == "concat" and set(chosen) == set(real_parts.mosi.MODELS)
    for model, sets in chosen.items():
        assert sets in real_parts.mosi.settings(model)


def test_results_alone_do_not_make_a_commit_dirty(monkeypatch):
    asked = []

    def git(*args: str) -> str:
        asked.append(args)
        return "abc1234" if args[0] == "describe" else ""

    monkeypatch.setattr(machine, "git", git)
    assert machine.commit() == "abc1234"
    assert f":(exclude){machine.RESULTS}" in asked[-1]
    monkeypatch.setattr(machine, "git", lambda *args: "abc1234")
    assert machine.commit() == "abc1234-dirty"
