"""Rows that no fold tests were left out of "Not counted", which named others (found by a user)."""

from __future__ import annotations

import numpy as np
import pytest

from mer.fusion import report
from mer.fusion.data import splits
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.runs import result_files
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

pytestmark = pytest.mark.usefixtures("few_resamples")


def said(tmp_path, **store) -> tuple[str, str]:
    """The line of a run over sessions, and its metrics.json."""
    config = settings("train.epochs=1", "model_args.hidden=8")
    made = make_store(tmp_path, n=60, **store)
    run = experiment.train(made, config, tmp_path / "run", folds="session", note=quiet)
    found = evaluate(run, note=quiet)
    again = result_files.stored_metrics(run)
    lines = [line for line in report.remarks(again) if line.startswith("Not counted")]
    assert lines == [line for line in report.remarks(found) if line.startswith("Not counted")]
    return "".join(lines), (run.path / "metrics.json").read_text()


def test_rows_without_a_group_and_rows_without_a_label_are_both_named(tmp_path):
    """Rows 0 to 2 have no label, and 2, 9 and 11 no session."""
    line, _ = said(tmp_path, unlabelled=3, ungrouped=[2, 9, 11])
    assert line == (
        "Not counted: 2 utterances without a label; 3 utterances without a session, so of no fold."
    )


def test_where_nothing_is_left_out_nothing_is_said_or_written(tmp_path):
    line, text = said(tmp_path)
    assert line == "" and "untested" not in text


@pytest.mark.parametrize("by", ["speaker", "dialogue"])
def test_the_rows_of_a_group_without_any_label_are_counted(tmp_path, by):
    store = make_store(tmp_path, n=120, ungrouped=[3])
    table = store.table()
    target = splits.targets(table, "single", store.header.labels)
    group = np.array(table[by].to_pylist(), dtype=object)
    target[group == group[5]] = -1
    folds, _ = splits.folds(table, target, by)
    tested = np.concatenate([splits.held_out(table, fold) for fold in folds])
    size = int((group == group[5]).sum())
    assert splits.untested(table, target, by, tested) == {by: 1, "label": size}
