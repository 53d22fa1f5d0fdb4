"""docs/adding.md, done: its file, its line and its preset add a model."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import config, models

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
