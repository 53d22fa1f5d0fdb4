"""A run that is named twice in a report counted twice, and in the correction of its p values, too;
predictions as Parquet went into a file that was called .csv.
"""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.report import gathering
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory, few_resamples):
    made = tmp_path_factory.mktemp("twice")
    store = make_store(made)
    for seed in (0, 1):
        asked = settings("train.epochs=1", "model_args.hidden=8", f"train.seed={seed}")
        evaluate(experiment.train(store, asked, made / f"run{seed}", note=quiet), note=quiet)
    return made


def test_a_run_that_is_named_twice_is_in_a_report_once(folder):
    named = [folder / "run1", folder / "run0", folder / "x" / ".." / "run1"]
    told, left, lines = gathering.gather(named)
    assert [one.run.path.name for one in told] == ["run1", "run0"] and not left
    assert lines == ["1 run named twice, taken once"]


@pytest.mark.parametrize("name", ["p.csv", "p.JSONL"])
def test_predictions_are_not_called_what_they_are_not(folder, tmp_path, name):
    words = ["evaluate", str(folder / "run0"), "--predictions", str(tmp_path / name)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "end its name in .parquet" in done.stderr
    assert not list(tmp_path.iterdir())
