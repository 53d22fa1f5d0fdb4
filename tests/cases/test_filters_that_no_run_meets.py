"""`mer runs --where model=drfk` said `0 runs` and nothing else; so did every other condition with a
value that no run has, and a sorting by a setting of runs that a condition had left out was refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment

from tests.fusion.made_runs import make
from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_resamples) -> Path:
    """Three runs of concat: learning rates 1e-4, 3e-4, 1e-3, dates from November 1 to 3, 2026, and
    dev WF1 50.0, 50.1, 50.2.
    """
    folder = tmp_path_factory.mktemp("filters")
    asked = settings("train.epochs=1", "model_args.hidden=8")
    run = experiment.train(make_store(folder), asked, folder / "template", note=quiet)
    evaluate(run, note=quiet)
    for number in range(3):
        make(run.path, folder / "runs", number)
    return folder / "runs"


def listed(runs: Path, *words: str):
    return CliRunner().invoke(main, ["runs", str(runs), *words])


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("model=dmd", "no run here has it; model is concat"),
        ("model!=dmd", "no run here has it; model is concat"),
        ("model~drf", "no run here has it; model is concat"),
        ("run=run_1", "no run here has it (did you mean 'run-1'?); run is run-0, run-1, run-2"),
        ("lr=1", "no run here has it; optim.lr is from 0.0001 to 0.001"),
        ("lr=fast", "no run here has it; optim.lr is from 0.0001 to 0.001"),
        ("lr>1", "no run here has it; optim.lr is from 0.0001 to 0.001"),
        ("dev>99", "no run here has it; dev is from 50 to 50.2"),
        ("schedule=cosin", "no run here has it (did you mean 'cosine'?); optim.schedule is cosine"),
        ("date=2025", "no run here has it; date is 2026-11-01"),
        ("date>=2026-12", "no run here has it; date is 2026-11-01"),
        ("folds=speaker", "no run here has a folds"),
        ("state=damaged", "no run here has it; state is finished"),
    ],
)
def test_the_values_that_there_are_are_named(runs, condition, says):
    done = listed(runs, "--where", condition)
    assert done.exit_code == 0, done.output
    assert f"--where '{condition}': {says}" in done.stderr
    assert done.stdout.startswith("3 runs" if "!=" in condition else "0 runs (3 in all)")
    assert all(len(line) <= 300 for line in done.stderr.splitlines())
    as_json = listed(runs, "--where", condition, "--json")
    assert says in as_json.stderr and len(as_json.stdout.splitlines()) == 3 * ("!=" in condition)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("model=drfk", "there is no such model (did you mean 'drkf'?); those here: concat"),
        ("model=Concat", "there is no such model (did you mean 'concat'?); those here: concat"),
        ("state==finshed", "there is no such state (did you mean 'finished'?)"),
        ("date>yesterday", "a date is written 2026-11-29 18:05, or the beginning of it"),
        ("date=2026-13", "a date is written 2026-11-29 18:05, or the beginning of it"),
        ("date<11/02/2026", "a date is written 2026-11-29 18:05, or the beginning of it"),
        ("size>1GB", "size is a number (of MB), which '1GB' is not"),
    ],
)
def test_what_no_run_can_have_is_refused(runs, condition, says):
    done = listed(runs, "--where", condition)
    assert done.exit_code == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert says in line and len(line) <= 300


def test_conditions_that_hold_but_not_together(runs):
    done = listed(runs, "--where", "lr=1e-4", "--where", "dev>50.05")
    assert done.exit_code == 0 and done.stdout.startswith("0 runs (3 in all)")
    said = "every --where holds for some run, all of them for none: lr=1e-4 for 1, dev>50.05 for 2"
    assert said in done.stderr
    assert "--where" not in listed(runs, "--where", "lr=1e-4").stderr


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("run=run-1", [1]),
        ("date=2026-11-02", [1]),
        ("date!=2026-11-02", [0, 2]),
        ("date>2026-11-02", [2]),
        ("date>=2026-11-02", [1, 2]),
        ("date<=2026-11-02", [0, 1]),
        ("date=2026-11", [0, 1, 2]),
        ("date>2026", []),
        ("date>=2026-11-02T00:00", [1, 2]),
    ],
)
def test_a_date_is_compared_as_far_as_it_is_written(runs, condition, expected):
    done = listed(runs, "--where", condition, "--json")
    assert done.exit_code == 0, done.output
    names = [Path(json.loads(line)["run"]).name for line in done.stdout.splitlines()]
    assert names == [f"run-{number}" for number in expected]


@pytest.mark.parametrize("more", [("--sort", "lr"), ("--sort", "hidden", "--limit", "1")])
def test_settings_of_runs_that_are_left_out_are_columns(runs, tmp_path, more):
    """Of a run that was killed before its first epoch no setting is known."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("config.toml", "split.json"):
            (tmp_path / name / file).write_bytes((runs / "run-0" / file).read_bytes())
    words = ["runs", str(runs), str(tmp_path), "--where", "state=unfinished", *more]
    done = CliRunner().invoke(main, [*words, "--columns", "run,hidden"])
    assert done.exit_code == 0 and "2 unfinished" in done.stdout.replace("1 unf", "2 unf"), done


def test_of_no_runs_nothing_is_asked(tmp_path):
    done = listed(tmp_path, "--where", "lr<1", "--sort", "lr", "--columns", "run,lr")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "0 runs\n", "")
