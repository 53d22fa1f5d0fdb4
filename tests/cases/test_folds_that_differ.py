"""Runs over other folds of the same rows: those of the second were said to be missing from the
ledger that has them, and every interval of a report to resample what those of the first run do
(found by comparing them).
"""

from __future__ import annotations

import pytest

from mer.fusion import report
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.report.gathering import gather
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_resamples):
    """One over three sessions, one over six speakers, one on the stored test part of 12 rows."""
    folder = tmp_path_factory.mktemp("folds")
    store = make_store(folder, n=60)
    config = settings("train.epochs=1", "model_args.hidden=8")
    made = []
    for folds in ("session", "speaker", None):
        name = str(folds)
        made.append(experiment.train(store, config, folder / name, folds=folds, note=quiet))
        evaluate(made[-1], note=quiet)
    return made


def test_the_ledger_knows_the_folds_of_both(runs):
    found = report.compare(runs[0], runs[1])
    assert found.n == 60 and found.seen.missing == 0
    assert found.seen.trainings == 3 + 6 and found.seen.elsewhere == 0


def test_a_report_says_of_each_run_what_its_interval_resamples(runs):
    told, _, _ = gather([run.path for run in runs])
    made = report.prepared(told, against=runs[0].path)
    (part,) = made.comparisons
    (table,) = part.tables
    assert table.table.columns[4:6] == ("95 % interval", "over")
    over = {row[0]: row[5] for row in table.table.rows}
    assert over == {"session": "15 dialogues", "speaker": "15 dialogues", "None": "12 utterances"}
    assert "which resamples 15 dialogues or 12 utterances of the test part" in part.explained[0]
    (line,) = [line for line in part.explained if line.startswith("Test part")]
    assert "9 trainings" in line and "not in its ledger" not in line
    # of runs of the same rows the head of the column says it
    (part,) = report.prepared(told[:2]).comparisons
    assert part.tables[0].table.columns[4] == "95 % interval (15 dialogues)"
