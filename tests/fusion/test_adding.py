"""docs/adding.md, done: its file, its line and its preset add a model; a file and a line a sink."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import config, models
from mer.fusion.training import resume, sinks

from tests.fusion.models import make_batch, make_spec, total
from tests.fusion.stores import make_store

PAGE = Path(__file__).parents[2] / "docs" / "adding.md"


def block(number: int, kind: str) -> str:
    """The first piece of code of a kind under the heading of that number."""
    return re.search(f"```{kind}\n(.*?)```", PAGE.read_text().split(f"## {number}.")[1], re.S)[1]


@pytest.fixture
def average(tmp_path, monkeypatch):
    """The page's model, registered, with its preset; returns (model class, config class)."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "average.py").write_text(block(8, "python"))
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(package)])
    name, entry = re.fullmatch(r'"(\w+)": \((.*)\),\n', block(9, "python")).groups()
    monkeypatch.setitem(models.REGISTRY, name, tuple(re.findall(r'"([\w.]+)"', entry)))
    presets = shutil.copytree(config.PRESETS, tmp_path / "presets")
    (presets / "average.toml").write_text(block(9, "toml"))
    monkeypatch.setattr(config, "PRESETS", presets)
    yield models.model_class("average")
    sys.modules.pop("mer.fusion.models.average")


def test_the_pages_model_is_trained_like_any_other(average, tmp_path, monkeypatch):
    make_store(tmp_path, n=60)
    monkeypatch.chdir(tmp_path)
    asked = ["train", "--features", "feats.h5", "--model", "average", "--set", "train.epochs=3"]
    done = CliRunner().invoke(main, [*asked, "--device", "cpu"])
    assert done.exit_code == 0, done.stderr
    assert "average on toy test" in done.stdout
    again = CliRunner().invoke(main, ["evaluate", "runs/toy-average-1", "--split", "dev"])
    assert again.exit_code == 0, again.stderr


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_it_keeps_the_contract(average, task):
    spec = make_spec(("audio", "text", "vision"), task)
    model = average[0](average[1](), spec)
    batch = make_batch(spec, 5)
    loss, _ = total(model, batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    logits = model.eval()(batch).logits
    for name, steps in batch.x.items():
        steps[~batch.mask(name)] = float("nan")
    assert torch.equal(model(batch).logits, logits)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The page's sink, registered."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "table.py").write_text(block(10, "python"))
    monkeypatch.setattr(sinks, "__path__", [*sinks.__path__, str(package)])
    name, entry = re.fullmatch(r'"(\w+)": \((.*)\),\n', block(11, "python")).groups()
    monkeypatch.setitem(sinks.SINKS, name, tuple(re.findall(r'"([\w.]*)"', entry)))
    yield name
    sys.modules.pop("mer.fusion.training.sinks.table", None)


def test_the_pages_sink_has_every_epoch_once_also_after_a_kill(table, tmp_path, monkeypatch):
    make_store(tmp_path, n=60)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    asked = ["train", "feats.h5", "--model", "concat", "--set", "train.epochs=3", "--no-test"]
    asked += ["--device", "cpu", "--log", table, "--out", "run"]
    tell, told = sinks.JsonLines.epoch, []

    def killed(self, entry):
        told.append(entry.epoch)
        if told == [1, 2]:
            raise OSError(5, "Input/output error")
        tell(self, entry)

    monkeypatch.setattr(sinks.JsonLines, "epoch", killed)
    assert CliRunner().invoke(main, asked).exit_code == 1
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "run" / "epochs.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    head = rows[0]
    logged = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert [row[0] for row in rows[1:-1]] == ["1", "2", "3"] and head[:2] == ["epoch", "lr"]
    for row, entry in zip(rows[1:-1], logged, strict=True):
        assert float(row[head.index("wf1")]) == pytest.approx(entry["dev"]["wf1"], abs=1e-4)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert rows[-1] == [f"# chosen: epoch {info['best_epoch']} of 3"]
