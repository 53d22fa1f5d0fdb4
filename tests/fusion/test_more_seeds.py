"""Seeds that are added to a run over seeds: the same command with a larger `--seeds`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.evaluation import ensemble, robustness
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.report import gathering
from mer.fusion.runs import checkpoint, ledger, result_files, run_rows
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.hold import hold

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

pytestmark = pytest.mark.usefixtures("few_resamples")

ONE_EPOCH = ("train.epochs=1", "model_args.hidden=8")


def train(store, folder: Path, seeds: int, *more: str, note=quiet, **options) -> Run:
    config = settings(*ONE_EPOCH, *more)
    return experiment.train(store, config, folder, seeds=seeds, note=note, **options)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but what says who holds it."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != checkpoint.HOLD]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def figures(run: Run) -> dict:
    """What metrics.json says, but for the names of the run and its openings."""
    found = json.loads((run.path / "metrics.json").read_text())
    return {key: value for key, value in found.items() if key not in ("run", "sha256")}


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_they_are_trained_and_every_figure_is_that_of_a_run_over_all(tmp_path, jobs):
    store, folder, said = make_store(tmp_path), tmp_path / "run", []
    few = train(store, folder, 2, jobs=jobs)
    evaluate(few, note=quiet)
    evaluate(few, split="dev", note=quiet)
    ensemble.score([few], note=quiet)
    robustness.measure(few, note=quiet)
    before = content(folder)
    more = train(store, folder, 4, jobs=jobs, note=said.append)
    assert more.info.children == ("seed-0", "seed-1", "seed-2", "seed-3") and more.finished
    now = content(folder)
    kept = {name for name in before if "/" in name}
    assert kept and all(now[name] == before[name] for name in kept)
    gone = before.keys() - now.keys()
    assert gone == {
        *("metrics.json", "metrics-dev.json", "metrics-ensemble.json", "robustness.json"),
        *("predictions.parquet", "predictions-dev.parquet", "predictions-ensemble.parquet"),
    }
    assert any("has 2 of 4 seeds" in line for line in said)
    assert any("was scored with 2 seeds before" in line for line in said)
    assert any(all(name in line for name in gone) for line in said)

    whole = train(store, tmp_path / "whole", 4, jobs=jobs)
    for ours, theirs in zip(more.children, whole.children, strict=True):
        assert ours.info.identity == theirs.info.identity
        weights = [one.path / checkpoint.MODEL for one in (ours, theirs)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert more.info.identity == whole.info.identity
    evaluate(more, note=quiet)
    evaluate(whole, note=quiet)
    assert figures(more) == figures(whole)
    row = run_rows.read(folder)
    assert (row.state, row.seeds) == ("finished", (0, 1, 2, 3)) and row.test_sd
    read = gathering.read_run(Run.open(folder))
    assert not read.robust and len(read.logs) == 4


def test_the_ledger_knows_them_as_trainings_of_one_configuration(tmp_path):
    store, folder = make_store(tmp_path), tmp_path / "run"
    evaluate(train(store, folder, 2), note=quiet)
    said: list[str] = []
    evaluate(train(store, folder, 3), note=said.append)
    assert said[-1] == "test part: 24 rows, seen by 1 configuration (3 trainings)"
    lines = ledger.read(ledger.beside(Path(store.path))).openings
    assert [one.seed for one in lines] == [0, 1, 0, 1, 2]  # each as often as it was scored


def test_killed_while_they_are_trained_the_run_is_as_it_was_and_goes_on(tmp_path):
    store, folder = make_store(tmp_path), tmp_path / "run"
    few = train(store, folder, 2)
    evaluate(few, note=quiet)
    before = content(folder)

    def kill(line: str) -> None:
        if line.startswith("[4/4]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, folder, 4, note=kill)
    now = content(folder)
    assert all(now[name] == before[name] for name in before)
    assert result_files.stored_metrics(Run.open(folder).trained()) is not None
    assert train(store, folder, 2).info == few.info  # nothing to do
    said: list[str] = []
    assert len(train(store, folder, 4, note=said.append).children) == 4
    assert sum("already trained" in line for line in said) == 3


@pytest.mark.slow
def test_to_a_run_that_is_not_finished_and_to_one_over_folds(tmp_path):
    store, folder = make_store(tmp_path), tmp_path / "run"

    def kill(line: str) -> None:
        if line.startswith("[2/2]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, folder, 2, note=kill)
    assert len(train(store, folder, 3).children) == 3
    train(store, tmp_path / "folds", 2, folds="session")
    assert len(train(store, tmp_path / "folds", 3, folds="session").children) == 9


def test_what_cannot_be_added_says_what_helps(tmp_path):
    store, folder = make_store(tmp_path), tmp_path / "run"
    train(store, folder, 3)
    train(store, tmp_path / "one", 1)
    train(store, tmp_path / "folds", 1, folds="session")
    before = content(tmp_path)
    with pytest.raises(DataError, match=r"3 seeds; asked for: 2 seeds.*ask for --seeds 3, as no"):
        train(store, folder, 2)
    with pytest.raises(DataError, match=r"\(3 seeds; .*optim.lr: 0.003 -> 0.5\); choose another"):
        train(store, folder, 4, "optim.lr=0.5")
    with pytest.raises(DataError, match=r"asked for: 4 seeds, --folds session\); choose another"):
        train(store, folder, 4, folds="session")
    with pytest.raises(DataError, match=r"\(one training; asked for: 2 seeds\); choose another"):
        train(store, tmp_path / "one", 2)
    with pytest.raises(DataError, match=r"1 seed, --folds session; asked for: 2 seeds, --folds"):
        train(store, tmp_path / "folds", 2, folds="session")
    with pytest.raises(DataError, match="over seeds or folds.*choose another --out"):
        train(store, folder, 1)
    with pytest.raises(DataError, match="4 seeds.*trained on another store"):
        train(make_store(tmp_path / "x", seed=2), folder, 4)
    assert {name: one for name, one in content(tmp_path).items() if name in before} == before


def test_two_at_a_time_are_refused(tmp_path):
    store, folder = make_store(tmp_path), tmp_path / "run"
    train(store, folder, 2)
    with (
        hold(folder / checkpoint.HOLD),
        pytest.raises(DataError, match="is writing there"),
    ):
        train(store, folder, 3)


def test_the_command_scores_all_of_them(tmp_path):
    store = make_store(tmp_path)
    words = ["train", str(store.path), "--model", "concat", "--out", str(tmp_path / "run")]
    for one in ONE_EPOCH:
        words += ["--set", one]
    for seeds in (2, 3):
        done = CliRunner().invoke(main, [*words, "--seeds", str(seeds)])
        assert done.exit_code == 0, done.stderr
        assert f"mean ± sd over {seeds} seeds" in done.stdout
