"""Rows without a modality that a model reads were trained on and scored without a word."""

from __future__ import annotations

import numpy as np

from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment

from tests.fusion.stores import make_store
from tests.fusion.test_train import settings


def test_training_and_evaluation_count_them(tmp_path, few_resamples):
    """Of 60 rows 36 train, 12 choose and 12 test. No test row has text, two rows that train have no
    sound, and one of these no text either.
    """
    parts = np.array(["train", "train", "train", "dev", "test"])[np.arange(60) // 4 % 5]
    test, train = np.flatnonzero(parts == "test"), np.flatnonzero(parts == "train")
    absent = {"text": [*test, train[1]], "audio": train[:2]}
    store = make_store(tmp_path, n=60, absent=absent)
    said: list[str] = []
    config = settings("train.epochs=1", "model_args.hidden=8")
    run = experiment.train(store, config, tmp_path / "run", note=said.append)
    assert [line for line in said if "absent" in line or "no features" in line] == [
        "audio: absent in 2 of 36 train rows",
        "text: absent in 1 of 36 train rows",
        "1 row has no features at all: the answer there is the same for each",
    ]
    said.clear()
    evaluate(run, note=said.append)
    assert "text: absent in 12 of 12 test rows" in said and not any("audio" in x for x in said)


def test_nothing_is_said_of_what_a_model_does_not_read(tmp_path):
    store = make_store(tmp_path, n=60, absent={"text": range(60)})
    said: list[str] = []
    config = settings("train.epochs=1", "model_args.hidden=8", model="audio")
    experiment.train(store, config, tmp_path / "run", note=said.append)
    assert not any("absent" in line for line in said)
