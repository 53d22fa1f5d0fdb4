"""Where epochs go besides log.jsonl: the protocol, by a sink of this file, and TensorBoard, read
back by its own reader.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import resume, sinks
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store

QUICK = ("--model", "concat", "--device", "cpu", "--set", "train.epochs=3", "--no-test")


def train(*args: object, code: int = 0) -> str:
    """What `mer train feats.h5 ARGS` says on stderr."""
    result = CliRunner().invoke(main, ["train", "feats.h5", *QUICK, *map(str, args)])
    assert result.exit_code == code, result.output
    assert "internal error" not in result.stderr
    return result.stderr


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    make_store(tmp_path, n=60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Kept:
    """Keeps what it is told."""

    calls: list[tuple] = []

    def __init__(self, folder: Path) -> None:
        self.calls.append(("made", folder.name))

    def begin(self, info, config, done) -> None:
        self.calls.append(("begin", info.model, config.train.epochs, len(done)))

    def epoch(self, entry) -> None:
        self.calls.append(("epoch", entry.epoch, sorted(entry.dev)[:1]))

    def end(self, info) -> None:
        self.calls.append(("end", info.epochs))

    def close(self) -> None:
        self.calls.append(("close",))


class Full(Kept):
    """Has no room for a second epoch."""

    calls: list[tuple] = []

    def epoch(self, entry) -> None:
        if entry.epoch == 2 and ("full",) not in self.calls:
            self.calls.append(("full",))
            raise OSError(28, "No space left on device", "kept")
        super().epoch(entry)


@pytest.fixture
def registered(monkeypatch):
    """Makes a class a sink of the name `kept`."""

    def register(kind: type) -> None:
        kind.calls = []
        module = ModuleType("kept_sink")
        module.Kept = kind
        monkeypatch.setitem(sys.modules, "kept_sink", module)
        monkeypatch.setitem(sinks.SINKS, "kept", ("kept_sink", "Kept", "kept"))

    return register


def test_a_sink_is_told_every_epoch_once_and_closed(desk, registered):
    registered(Kept)
    train("--log", "kept", "--log", "kept", "--out", "run")
    told = [call[:2] for call in Kept.calls]
    epochs = [("epoch", number) for number in (1, 2, 3)]
    assert told == [("made", "run"), ("begin", "concat"), *epochs, ("end", 3), ("close",)]
    assert Kept.calls[1] == ("begin", "concat", 3, 0)


def test_each_seed_has_its_own(desk, registered):
    registered(Kept)
    train("--log", "kept", "--seeds", "2", "--out", "group")
    assert [call for call in Kept.calls if call[0] == "made"] == [
        ("made", "seed-0"),
        ("made", "seed-1"),
    ]


def test_a_sink_that_fails_ends_the_training_which_then_goes_on(desk, registered, monkeypatch):
    """The epoch was saved before the sink was told: nothing is trained twice."""
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    registered(Full)
    said = train("--log", "kept", "--out", "run", code=1)
    assert "No space left" in said and Full.calls[-2:] == [("full",), ("close",)]
    said = train("--log", "kept", "--out", "run")
    assert "goes on after epoch 2" in said
    begun = [call for call in Full.calls if call[0] == "begin"]
    assert [call[-1] for call in begun] == [0, 2]
    assert [entry["epoch"] for entry in logged(desk / "run")] == [1, 2, 3]
    Run.open("run").sound()


def test_the_same_run_with_and_without(desk, registered):
    """What is logged decides neither the run nor its bytes."""
    registered(Kept)
    train("--out", "plain")
    train("--log", "kept", "--out", "told")
    same = ("model.safetensors", "config.toml", "split.json")
    for name in same:
        assert (desk / "plain" / name).read_bytes() == (desk / "told" / name).read_bytes()
    said = train("--log", "kept", "--out", "plain")
    assert "already trained; nothing is added for --log kept" in said


def test_what_is_mistyped_is_guessed_and_what_is_missing_is_named(desk, monkeypatch):
    said = train("--log", "tensorbord", "--out", "run", code=1)
    assert "--log tensorbord: unknown (did you mean 'tensorboard'?)" in said
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in ("mer.fusion.training.sinks.tensorboard", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    said = train("--log", "tensorboard", "--out", "run", code=1)
    assert said.strip().splitlines() == [
        "mer: --log tensorboard: needs a package that cannot be imported (tensorboard); run `pip "
        "install 'mer[tensorboard]'`, or leave --log out"
    ]
    assert not (desk / "run").exists(), "nothing was trained"


def test_names_are_checked_in_python_too(desk):
    with pytest.raises(DataError, match="--log other: unknown"):
        sinks.check(["other"])


# ---- TensorBoard


def events(folder: Path):
    """What TensorBoard itself reads of a run."""
    reason = "the package tensorboard is not installed: pip install 'mer[tensorboard]'"
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module, reason=reason)
    found = reader.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same figures from log.jsonl."""
    wanted: dict[str, list[tuple[int, float]]] = {}
    for entry in logged(folder):
        figures = {f"train/{name}": value for name, value in entry["train"].items()}
        figures |= {f"dev/{name}": value for name, value in entry["dev"].items()}
        figures |= {"optim/lr": entry["lr"], "time/seconds": entry["seconds"]}
        for name, value in figures.items():
            if value is not None:
                wanted.setdefault(name, []).append((entry["epoch"], pytest.approx(value, rel=1e-6)))
    return wanted


def test_tensorboard_reads_what_the_log_has(desk):
    pytest.importorskip("tensorboard", reason="pip install 'mer[tensorboard]'")
    train("--log", "tensorboard", "--out", "run")
    found, wanted = curves(desk / "run"), expected(desk / "run")
    assert wanted.keys() <= found.keys() and "train/total" in wanted and "dev/wf1" in wanted
    for name, points in wanted.items():
        assert found[name] == points, name
    text = events(desk / "run").Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert 'model = "concat"' in text.decode()


def test_a_training_that_goes_on_has_every_epoch_once(desk, monkeypatch):
    """Killed after an epoch was saved and before it was told."""
    pytest.importorskip("tensorboard", reason="pip install 'mer[tensorboard]'")
    from mer.fusion.training.sinks.tensorboard import TensorBoard

    tell = TensorBoard.epoch

    def killed(self, entry):
        if entry.epoch == 2:
            raise OSError(5, "Input/output error")
        tell(self, entry)

    monkeypatch.setattr(TensorBoard, "epoch", killed)
    train("--log", "tensorboard", "--out", "run", code=1)
    assert [step for step, _ in curves(desk / "run")["train/total"]] == [1]
    monkeypatch.setattr(TensorBoard, "epoch", tell)
    train("--log", "tensorboard", "--out", "run")
    found, wanted = curves(desk / "run"), expected(desk / "run")
    assert [step for step, _ in found["train/total"]] == [1, 2, 3]
    assert {name: found[name] for name in wanted} == wanted


def test_asked_for_later_it_has_the_epochs_before(desk, monkeypatch, registered):
    pytest.importorskip("tensorboard", reason="pip install 'mer[tensorboard]'")
    registered(Full)
    train("--log", "kept", "--out", "run", code=1)
    train("--log", "tensorboard", "--out", "run")
    assert [step for step, _ in curves(desk / "run")["train/total"]] == [1, 2, 3]


def test_runs_prune_evaluate_and_reports_live_with_the_folder(desk):
    pytest.importorskip("tensorboard", reason="pip install 'mer[tensorboard]'")
    train("--log", "tensorboard", "--out", "runs/a")
    size = sum(path.stat().st_size for path in (desk / "runs").rglob("*") if path.is_file())
    rows = CliRunner().invoke(main, ["runs", "--json"])
    (row,) = map(json.loads, rows.stdout.splitlines())
    assert row["state"] == "finished" and row["size_bytes"] == size
    assert CliRunner().invoke(main, ["prune", "runs/a", "--yes"]).exit_code == 0
    assert any((desk / "runs" / "a" / "tensorboard").iterdir())
    for words in (["evaluate", "runs/a"], ["report", "runs/a"], ["evaluate", "runs/a"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    assert "already trained" in train("--out", "runs/a")
