"""A fold whose test part has no unimodal label ended the figures of all folds in an internal error
(found by leaving a session without any).
"""

from __future__ import annotations

import pyarrow.parquet as pq

from mer.fusion.evaluation import robustness
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_crosscorpus import renamed
from tests.fusion.test_train import settings


def own(row: dict) -> dict:
    return {**row, "unimodal": [] if row["session"] == "S0" else ["text=sad", "audio=glad"]}


def test_the_others_keep_theirs(tmp_path, few_resamples):
    store = renamed(make_store(tmp_path, n=60), own)
    config = settings("train.epochs=1", "model_args.hidden=8")
    run = experiment.train(store, config, tmp_path / "run", folds="session", note=quiet)
    found = evaluate(run, note=quiet)
    rows = pq.read_table(run.path / "predictions.parquet").to_pylist()
    assert found.n == len(rows) == 60
    said = {(row["fold"], row["unimodal_text"], row["unimodal_audio"]) for row in rows}
    assert said == {("S0", None, None), ("S1", "sad", "glad"), ("S2", "sad", "glad")}
    measured = robustness.measure(run, note=quiet)
    of_labels = {one.agree: one.n for one in measured.heads if one.labels}
    assert of_labels == {True: 0, False: sum(row["fold"] != "S0" for row in rows)}
