"""A single target from 0 to 100 was learnt as it is stored: at the end of a training the answers
were still about 0, which nobody said (found by reading).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mer.fusion.data import splits
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_crosscorpus import renamed
from tests.fusion.test_train import same, settings, weights


@pytest.mark.parametrize("model", ["concat", "drkf"])
def test_it_is_learnt_in_deviations(tmp_path, few_resamples, model):
    """Against a store whose targets were put into deviations by hand: the same weights."""

    def far(row: dict) -> dict:
        value, number = row["targets"][0], int(row["id"][1:])
        return {**row, "targets": [500 + 40 * value + number % 3], "unimodal": [f"text={number}"]}

    store = renamed(make_store(tmp_path / "far", n=60, task="regression"), far)
    target = splits.targets(store.table(), "regression", ("valence",))[:, 0].astype(float)
    train = np.array(store.table()["split"].to_pylist()) == "train"
    mean, deviation = target[train].mean(), target[train].std()

    def near(row: dict) -> dict:
        number = int(row["id"][1:])
        value = float(np.float32((target[number] - mean) / deviation))
        own = float(np.float32((number - mean) / deviation))
        return {**row, "targets": [value], "unimodal": [f"text={own!r}"]}

    by_hand = renamed(make_store(tmp_path / "near", n=60, task="regression"), near)
    more = ("data.unimodal_labels=true",) if model == "drkf" else ()
    config = settings("train.epochs=2", *more, model=model)
    run = experiment.train(store, config, tmp_path / "a", note=quiet)
    other = experiment.train(by_hand, config, tmp_path / "b", note=quiet)
    assert same(weights(run.path), weights(other.path))
    assert run.spec.scale == ((pytest.approx(mean), pytest.approx(deviation)),)
    found, small = evaluate(run, note=quiet), evaluate(other, note=quiet)
    assert found.metrics["mae"] == pytest.approx(deviation * small.metrics["mae"], rel=1e-5)
    assert found.metrics["mae"] < 2 * deviation


def test_a_target_near_zero_stays_as_it_is_stored():
    assert splits.scale(np.array([[-3.0], [3.0]]), "regression") == ()
    assert splits.scale(np.array([[1.0], [7.0], [np.nan]]), "regression") == ()
    assert splits.scale(np.array([[1.0], [11.0]]), "regression") == ((6.0, 5.0),)
    assert splits.scale(np.array([[np.nan]]), "regression") == ()
    assert torch.tensor(splits.scale(np.full((3, 1), 50.0), "regression")).tolist() == [[50.0, 1.0]]
