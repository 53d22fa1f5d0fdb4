"""How far a training has come: what is shown, at what pace, and the log that grows with it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from mer.fusion import config
from mer.fusion.batch import DataSpec
from mer.fusion.models import build
from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import Epoch
from mer.fusion.runtime import files
from mer.fusion.training import experiment, resume
from mer.fusion.training.watch import Watch, rising
from mer.pipeline.errors import DataError
from mer.pipeline.runtime import progress
from mer.pipeline.runtime.progress import Lines, Silent

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import log, settings

ROOT = Path(__file__).parent.parent.parent


class Recorded(Silent):
    """What a bar would show."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, str, bool]] = []
        self.total = 0.0

    @contextmanager
    def follow(self, total):
        self.total = total
        yield lambda done, text, told=False: self.shown.append((done, text, told))


def train(folder, *more: str, note=quiet, **options) -> Run:
    return experiment.train(
        make_store(folder), settings(*more), folder / "run", note=note, **options
    )


def test_a_bar_knows_epoch_loss_dev_and_the_time_left(tmp_path):
    seen, said = Recorded(), []
    run = train(tmp_path, "train.epochs=3", progress=seen, note=said.append)
    rows = run.result.counts["train"]
    assert seen.total == 3 * rows
    assert [done for done, _, told in seen.shown if told] == [rows, 2 * rows, 3 * rows]
    within = [(done, text) for done, text, told in seen.shown if not told]
    assert len(within) == 3 * -(-rows // 16), "one step for each batch of 16"
    assert all(text.startswith("epoch   ") and " of 3" in text for _, text in within)
    assert "loss" not in within[0][1] and "loss" in within[-1][1] and "left" in within[0][1]
    told = [text for _, text, told in seen.shown if told]
    for number, (text, line) in enumerate(zip(told, log(run.path), strict=True), start=1):
        assert text.startswith(f"epoch   {number} of 3")
        assert f"loss {line['train']['total']:.4f}" in text
        assert f"dev WF1 {100 * line['dev']['wf1']:.1f}" in text
    assert "best so far" in told[0] and "left" not in told[-1]
    assert not any(line.startswith("epoch") for line in said), "said once"


def test_without_a_display_every_epoch_is_a_note_and_the_end_says_what_was_chosen(tmp_path):
    said: list[str] = []
    early = ("train.epochs=30", "train.patience=2", "train.cooldown=0", "optim.lr=3e-2")
    run = train(tmp_path, *early, note=said.append)
    epochs = [line for line in said if line.startswith("epoch")]
    done = run.result
    assert len(epochs) == done.epochs < 30
    figure = f"{100 * (done.dev['wf1'] or 0):.1f}"
    assert said[-1] == (
        f"chose epoch {done.best_epoch} of {done.epochs} (dev WF1 {figure}), stopped early: 2 "
        "epochs without a better one"
    )
    best = [line for line in epochs if "best so far" in line]
    assert best[-1] == epochs[done.best_epoch - 1] and not any("*" in line for line in epochs)
    assert f"(best {figure}, epoch {done.best_epoch})" in epochs[-1]


def entry(number: int) -> Epoch:
    return Epoch(epoch=number, train={"total": 1.0}, seconds=1.0, dev={"wf1": 0.5})


def test_lines_come_at_a_pace(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    watch = Watch(quiet, Lines(every=10))
    with watch.training(epochs=40, rows=10, done=0, metric="wf1"):
        for number in range(1, 41):
            for _ in range(2):
                watch.step(5)
            now[0] += 1
            watch.epoch(entry(number), number == 1, 1, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "11", "21", "31"]
    assert lines[1].startswith("epoch  11 of 40  at most 0:00:29 left  loss 1.0000  dev WF1 50.0")


def test_a_resumed_training_counts_what_was_done(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    seen = Recorded()

    def stop(line: str) -> None:
        if line.startswith("epoch   2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, note=stop)
    run = train(tmp_path, progress=seen)
    rows = run.result.counts["train"]
    assert [done for done, _, told in seen.shown if told] == [3 * rows, 4 * rows]
    assert seen.shown[0][1].startswith("epoch   3 of 4")


@pytest.mark.parametrize(("model", "some"), [("drkf", True), ("concat", False), ("dmd", False)])
def test_weights_that_rise_are_explained(model, some):
    spec = DataSpec({"audio": 8, "text": 6}, {"audio": 10.0, "text": None}, "single", ("a", "b"))
    cfg = config.load(model=model)
    built = build(model, cfg.model_args, spec)
    line = rising(built, 40)
    assert (line is not None) == some
    if line is not None:  # DRKF: a cosine over the first 15 % of the training, 6 epochs of 40
        assert cfg.model_args.progressive_share == 0.15 and "until epoch 6 of 40" in line
        rise = [name for name in built.weights(1.0) if name.startswith(("mi_", "rec_", "kl_"))]
        assert f"weights of {len(rise)} of {len(built.weights(1.0))} loss terms" in line


# ---- log.jsonl


def test_the_log_grows_with_the_training(tmp_path):
    path, lines = tmp_path / "run" / files.LOG, []

    def note(line: str) -> None:
        if line.startswith("epoch"):
            lines.append([json.loads(text)["epoch"] for text in path.read_text().splitlines()])

    run = train(tmp_path, note=note)
    assert lines == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert run.sound(), "what is sealed at the end is what has grown"


@pytest.mark.parametrize("there", ["short", "long", "torn", "gone", "linked"])
def test_a_resume_writes_the_log_as_far_as_it_is_saved(tmp_path, there):
    path = tmp_path / "run" / files.LOG

    def stop(line: str) -> None:
        if line.startswith("epoch   2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, note=stop)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 2
    (tmp_path / "mine").write_text("mine")
    match there:
        case "short":  # killed between the checkpoint and the log
            path.write_text(lines[0])
        case "long":
            path.write_text("".join([*lines, lines[1]]))
        case "torn":
            path.write_text(lines[0] + lines[1][:20])
        case "gone":
            path.unlink()
        case "linked":
            path.unlink()
            path.symlink_to(tmp_path / "mine")
    run = train(tmp_path)
    assert [line["epoch"] for line in log(run.path)] == [1, 2, 3, 4] and run.sound()
    assert (tmp_path / "mine").read_text() == "mine" and not path.is_symlink()


def test_something_else_in_the_place_of_the_log_is_named(tmp_path):
    (tmp_path / "run").mkdir()

    def block(line: str) -> None:
        if line.startswith("epoch   1"):
            (tmp_path / "run" / checkpoint.LOG).unlink()
            (tmp_path / "run" / checkpoint.LOG).symlink_to(tmp_path / "mine")

    with pytest.raises(DataError, match=r"log.jsonl: a directory, link or pipe"):
        train(tmp_path, note=block)
    assert not (tmp_path / "mine").exists()


# ---- On a terminal

SHOW = """
import sys, time
from mer.pipeline.runtime.progress import choose
bars = choose()
with bars.follow(10) as show:
    for done in range(1, 11):
        show(done, f"epoch {done} of 10  loss [0.5]", told=True)
        time.sleep(0.03)
print("the end", file=sys.stderr)
"""


def on_a_terminal(code: str) -> str:
    """What a program writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    env = {**plain, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, stdout=theirs, env=env, cwd=ROOT
    ) as process:
        os.close(theirs)
        raw = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            raw += part
        assert process.wait() == 0
    os.close(ours)
    return raw.decode()


def test_a_terminal_shows_one_bar_that_goes_away():
    seen = on_a_terminal(SHOW)
    assert "epoch 10 of 10  loss [0.5]" in seen and "━" in seen
    assert "\x1b[2K" in seen, "the line is drawn over"
    assert seen.rstrip().endswith("the end")
