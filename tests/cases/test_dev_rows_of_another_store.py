"""Of another store of the same clips dev was carved anew, so that `mer evaluate --split dev` scored
rows that had trained the run (found by reading).
"""

from __future__ import annotations

import pytest

from mer.fusion.evaluation import ensemble, robustness
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_crosscorpus import renamed
from tests.fusion.test_train import settings


def without_dev(row: dict) -> dict:
    return {**row, "split": "train" if row["split"] == "dev" else row["split"]}


def test_they_are_refused(tmp_path, few_resamples):
    store = renamed(make_store(tmp_path / "a", n=60), without_dev)
    config = settings("train.epochs=1", "model_args.hidden=8")
    run = experiment.train(store, config, tmp_path / "run", seeds=2, note=quiet)
    evaluate(run, split="dev", note=quiet)
    more = renamed(make_store(tmp_path / "b", n=60), lambda row: {**row, "split": "train"})
    for score in (
        lambda: evaluate(run, more.path, "dev", note=quiet),
        lambda: ensemble.score([run], more.path, "dev", note=quiet),
        lambda: robustness.measure(run, more.path, "dev", note=quiet),
    ):
        with pytest.raises(DataError, match=r"of its dev part \(first: u\d+\) trained .*seed-0"):
            score()
    # of a corpus of another name they may be other clips, which is told
    said: list[str] = []
    other = renamed(make_store(tmp_path / "c", n=60, dataset="other"), without_dev)
    evaluate(run, other.path, "dev", note=said.append)
    assert not any("no dev figures" in line for line in said)
    other = renamed(
        make_store(tmp_path / "d", n=60, dataset="other"), lambda row: {**row, "split": "train"}
    )
    evaluate(run, other.path, "dev", note=said.append)
    assert sum("these are no dev figures" in line for line in said) >= 1
