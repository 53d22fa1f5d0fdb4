"""What a unimodal head said of rows that lack its modality was counted in its figures, and in where
the heads agree and disagree (found by reading).
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from mer.fusion.evaluation import robustness
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.runs.prediction_table import decisions
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

TASKS = ("single", "multi", "regression")
SILENT = [16, 17, 38]  # test rows without words


pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.mark.parametrize("task", TASKS)
def test_a_head_is_scored_on_the_rows_that_have_its_modality(tmp_path, task):
    store = make_store(tmp_path, n=60, task=task, absent={"text": SILENT, "audio": [18]})
    config = settings("train.epochs=1", model="drkf")
    run = experiment.train(store, config, tmp_path / "run", note=quiet)
    found = evaluate(run, note=quiet)
    table = pq.read_table(run.path / "predictions.parquet")
    rows = table.to_pylist()
    assert [row["id"] for row in rows if row["pred_text"] is None] == ["u016", "u017", "u038"]
    assert [row["id"] for row in rows if row["pred_audio"] is None] == ["u018"]
    assert found.heads_agree.n + found.heads_disagree.n == len(rows) - 4
    assert found.heads_agree.of == found.heads_disagree.of == len(rows) - 4
    assert found.heads_agree.share + found.heads_disagree.share == pytest.approx(1)
    if task != "single":
        return
    both = [row for row in rows if None not in (row["pred_text"], row["pred_audio"])]
    assert found.heads_agree.n == sum(row["pred_text"] == row["pred_audio"] for row in both)
    there = [row for row in rows if row["pred_text"] is not None]
    true, said = [row["label"] for row in there], [row["pred_text"] for row in there]
    wanted = f1_score(true, said, average="weighted", zero_division=0)
    assert found.unimodal["text"].figures["wf1"] == pytest.approx(wanted)
    measured = robustness.measure(run, note=quiet)
    assert [one.n for one in measured.heads] == [found.heads_agree.n, found.heads_disagree.n]


def test_a_head_of_a_modality_that_no_row_has_has_no_figure(tmp_path):
    parts = np.arange(60) // 4 % 5
    store = make_store(tmp_path, n=60, absent={"text": np.flatnonzero(parts == 4).tolist()})
    config = settings("train.epochs=1", model="drkf")
    run = experiment.train(store, config, tmp_path / "run", note=quiet)
    found = evaluate(run, note=quiet)
    assert set(found.unimodal["text"].figures.values()) == {None}
    assert found.heads_agree.n == found.heads_disagree.n == 0


def test_no_answer_is_read_as_none():
    import pyarrow as pa

    single = pa.chunked_array([pa.array(["sad", None], pa.string())])
    assert decisions(single, "single", ("calm", "sad")).tolist() == [1, -1]
    several = pa.chunked_array([pa.array([["sad"], None], pa.list_(pa.string()))])
    assert decisions(several, "multi", ("calm", "sad")).tolist() == [[False, True], [False, False]]
    values = pa.chunked_array([pa.array([0.5, None], pa.float64())])
    np.testing.assert_array_equal(decisions(values, "regression", ("x",)), [0.5, np.nan])
    pairs = pa.chunked_array([pa.array([[0.5, 1.0], None], pa.list_(pa.float64()))])
    found = decisions(pairs, "regression", ("x", "y"))
    np.testing.assert_array_equal(found, [[0.5, 1.0], [np.nan, np.nan]])
