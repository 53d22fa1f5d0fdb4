"""Words that a newcomer knows: rates, counts of one, what the short names of figures mean."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mer.fusion import config, report
from mer.fusion.batch import DataSpec
from mer.fusion.measures.metrics import MEANINGS, TITLES
from mer.fusion.measures.tables import glossary, loss_title
from mer.fusion.models import REGISTRY, build
from mer.fusion.runs.checkpoint import Run
from mer.pipeline.runtime.progress import Count
from mer.pipeline.runtime.terminal import plural, wrapped

from tests.fusion.test_watch import on_a_terminal
from tests.whole_way.conftest import QUICK
from tests.whole_way.mer import mer

WORDS = ("reconstruction", "margin", "task", "orthogonality")  # terms that are words themselves
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("total", "done", "seconds", "said"),
    [
        (7200, 3600, 20, "1.0 of 2.0 hours of audio, 180 × real time, 0:00:20 left"),
        (120, 60, 10, "1.0 of 2.0 minutes of audio, 6.0 × real time, 0:00:10 left"),
        (30, 30, 1, "30.0 of 30.0 seconds of audio, 30 × real time"),
    ],
)
def test_audio_is_told_in_times_of_real_time(monkeypatch, total, done, seconds, said):
    count = Count(total, "s", started=0.0)
    monkeypatch.setattr("time.monotonic", lambda: seconds)
    count.add(done)
    assert str(count) == said


def test_one_is_singular(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 2.0)
    count = Count(1, "shards", started=0.0)
    count.add(1)
    assert str(count) == "1 of 1 shard, 0.5 a second"
    assert (
        plural(1, "batch", "batches") == "1 batch" and plural(2, "batch", "batches")[-3:] == "hes"
    )


def test_every_short_name_is_explained_once_where_it_is_shown(desk, tmp_path):
    explained = [MEANINGS[name] for name in ("wa", "ua", "wf1", "macro_f1")]
    assert all(TITLES[name] == said.split(":")[0] for name, said in MEANINGS.items())
    train = ("train", desk.features, *QUICK, "--out", desk.run)
    other = tmp_path / "other"  # of another seed: a run is not compared with itself
    mer("train", desk.features, *QUICK, "--set", "train.seed=1", "--out", other, cwd=desk.folder)
    for words in (train, (*train, "--no-test"), ("compare", desk.run, other)):
        out = mer(*words, cwd=desk.folder).out
        assert [out.count(said) for said in explained] == [1, 1, 1, 1], words
    outcome = mer("runs", desk.folder / "runs")
    assert (outcome.out + outcome.err).count(MEANINGS["wf1"]) == 1
    page = report.page([Run.open(desk.run)] * 2)
    assert page.count(MEANINGS["wf1"]) == 1
    assert glossary(["pearson", "f1_has0"]) == ""


def test_untrained_is_said_once(desk, tmp_path):
    fresh = ("train", desk.features, "--model", "concat", "--set", "train.epochs=1")
    for more in ((), ("--no-test",), ("--seeds", "2")):
        outcome = mer(*fresh, *more, "--out", tmp_path / f"run{''.join(more)}")
        assert (outcome.out + outcome.err).count("UNTRAINED ENCODERS") == 1, more


@pytest.mark.parametrize("model", REGISTRY)
def test_every_loss_term_has_words(model):
    widths = {"audio": 8, "text": 8, "vision": 8}
    spec = DataSpec(widths, dict.fromkeys(widths, 10.0), "single", ("a", "b"))
    built = build(model, config.load(model=model).model_args, spec)
    terms = list(built.weights(1.0))
    titles = [loss_title(name) for name in terms]
    assert len(set(titles)) == len(terms)
    for name, title in zip(terms, titles, strict=True):
        assert "_" not in title and (title != name or name in WORDS)


# ---- A terminal of 80 columns


def test_lines_break_between_words():
    line = "meld: /data/MELD.Raw/train/dia0_utt0.mp4 is not there; get it, or leave it out of " * 2
    shown = wrapped(line, 80)
    assert all(len(part) <= 80 for part in shown.splitlines())
    assert shown.split() == line.split() and wrapped(line, None) == line
    long = "/data/" + "x" * 100
    assert wrapped(f"no such file: {long}", 80).split()[-1] == long, "a path stays whole"


def test_a_terminal_is_not_broken_inside_words_and_a_pipe_gets_one_line(tmp_path):
    asked = ["runs", "--where", "no condition at all, and a long one at that, so that it wraps"]
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); sys.path.insert(0, {str(ROOT)!r})\n"
        f"os.makedirs('runs', exist_ok=True)\nfrom mer.cli import main\n"
        f"try: main({asked!r})\nexcept SystemExit: pass\n"
    )
    seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_a_terminal(code)).replace("\r", "")
    lines = seen.strip().splitlines()
    assert len(lines) > 1 and all(len(line) <= 80 for line in lines)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert len(piped.stderr.splitlines()) == 1
    assert piped.stderr.split() == seen.split()
