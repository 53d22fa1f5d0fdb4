"""A run of a group that was copied over another one, or comes from another group: its figures would
count twice, or be averaged with those of other settings.
"""

from __future__ import annotations

import shutil

import pytest

from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


@pytest.fixture(scope="module")
def groups(tmp_path_factory, few_resamples):
    """Two runs over two seeds, of other settings, and one on another store."""
    folder = tmp_path_factory.mktemp("copies")
    for name, seed, more in (("a", 0, ()), ("b", 0, ("optim.lr=1e-4",)), ("c", 1, ())):
        store = make_store(folder / f"store-{name}", seed=seed)
        config = settings("train.epochs=1", "model_args.hidden=8", *more)
        experiment.train(store, config, folder / name, seeds=2, note=quiet)
    return folder


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a/seed-0", "seed-1/run.json: of the same training as seed-0 beside it"),
        ("b/seed-1", "seed-1: trained with other settings than seed-0 beside it"),
        ("c/seed-1", "seed-1/run.json: not a run of the group"),
    ],
)
def test_they_are_named_and_nothing_is_scored(groups, tmp_path, source, says):
    shutil.copytree(groups / "a", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "seed-1")
    shutil.copytree(groups / source, tmp_path / "run" / "seed-1")
    with pytest.raises(DataError, match=says) as caught:
        evaluate(tmp_path / "run", note=quiet)
    assert "train again into a new folder" in str(caught.value)
    assert not list(tmp_path.rglob("metrics.json"))


def test_a_group_that_is_moved_whole_is_scored(groups, tmp_path):
    shutil.copytree(groups / "a", tmp_path / "elsewhere")
    assert len(evaluate(Run.open(tmp_path / "elsewhere"), note=quiet).runs) == 2
