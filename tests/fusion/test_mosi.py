"""The whole training room on real features: utterance-level CMU-MOSI, by the most regularised
configuration of `tests/bench/mosi.py`.

Dev videos are carved from the training videos, on which the text and vision vectors were learnt:
dev is far easier than test and cannot choose, so nothing is chosen here. The figures that count are
those of the bench; this test holds that they come out again.
"""

from __future__ import annotations

import json

import pytest
import torch

from mer.fusion import config
from mer.fusion.data import splits
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.runtime.typed import tree
from mer.fusion.training import experiment

from tests.bench.mosi import make_store, settings
from tests.fusion.stores import quiet

FLOOR = 0.767  # logistic regression on the three modalities, from the README of the data


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("concat", marks=pytest.mark.slow),
        pytest.param("drkf", marks=pytest.mark.exhaustive),
    ],
)
def test_all_modalities_reach_logistic_regression(tmp_path, test_data, model):
    """Mean of 5 seeds: its interval over videos must not lie below the floor.

    The figure itself is in docs/results.md.
    """
    torch.set_num_threads(1)
    store = make_store(test_data / "mosi" / "mosi_utt.npz", tmp_path / "mosi.h5")
    run = experiment.train(
        store,
        config.load(model=model, sets=settings(model)[0]),
        tmp_path / "run",
        seeds=5,
        note=quiet,
    )
    for child in run.children:
        split = json.loads((child.path / "split.json").read_text())
        videos = {name: {i.rsplit("_", 1)[0] for i in ids} for name, ids in split.items()}
        assert (
            not videos["train"] & videos["dev"]
            and child.info.counts["train"] + child.info.counts["dev"] == 1447
        )
    assert len(splits.held_out(store.table())) == 752
    found = tree(evaluate(run, note=quiet))
    print(json.dumps({k: found[k] for k in ("metrics", "sd", "interval", "bootstrap")}))
    assert found["bootstrap"] == {
        "unit": "dialogue",
        "groups": 31,
        "resamples": 1000,
        "level": 0.95,
    }
    assert found["interval"]["wa"][1] >= FLOOR
