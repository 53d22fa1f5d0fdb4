"""A run and its store that moved together: run.json kept the path that the store had, and every
command but training asked for `--features`, or read whatever lay at the old place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mer.fusion.data import context
from mer.fusion.evaluation import ensemble, evaluate, opening_rows, robustness
from mer.fusion.report import figures
from mer.fusion.runs import moved
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import Origin
from mer.fusion.runs.result_files import read_predictions, stored_metrics
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

STORE, RUN = "data/toy/feats.h5", "runs/x"  # within a project


def train(folder: Path) -> None:
    """A store and a run over two seeds in a project, evaluated."""
    store = make_store((folder / STORE).parent, n=60)
    config = settings("train.epochs=1", "model_args.hidden=8", model="concat")
    run = experiment.train(store, config, folder / RUN, seeds=2, note=quiet)
    evaluate.evaluate(run, note=quiet)


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_resamples) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "old"
    train(folder)
    return folder


@pytest.fixture
def project(made, tmp_path) -> Iterator[Path]:
    """The project at a new place. At the old one there is nothing, or what a test puts there."""
    shutil.copytree(made, tmp_path / "new" / "place")
    away = made.rename(made.with_name("away"))
    yield tmp_path / "new" / "place"
    shutil.rmtree(made, ignore_errors=True)
    away.rename(made)


def test_the_store_at_the_same_place_beside_the_run_is_read(project, made):
    said: list[str] = []
    run = Run.open(project / RUN)
    before = stored_metrics(run)
    assert evaluate.evaluate(run, note=said.append).metrics == before.metrics
    was, now = made / STORE, project / STORE
    assert said[0] == f"{was} is gone; the store that the run was trained on is {now}"
    # the openings are noted beside the store that was read, together with the earlier ones
    ledger = now.with_name("feats.ledger.jsonl").read_text().splitlines()
    assert len(ledger) == 2 * 2 and not made.exists()
    assert any("seen by 1 configuration (2 trainings)" in line for line in said)


def test_whoever_shows_test_figures_finds_the_ledger(project):
    """`compare` and `report` read no store, and counted every training as missing from it."""
    run = Run.open(project / RUN)
    found = opening_rows.seen(run.children, read_predictions(run))
    assert (found.configurations, found.trainings, found.missing) == (1, 2, 0)


def test_every_command_that_opens_the_store_finds_it(project, monkeypatch):
    """Ensembles, robustness, the figures of a model's features, and where encoders were."""
    run = Run.open(project / RUN).children[0]
    said: list[str] = []

    def opened(path, **options):
        raise AssertionError(path)

    for module in (ensemble, robustness, figures):
        monkeypatch.setattr(module, "FeatureStore", opened)
    model = SimpleNamespace(core=SimpleNamespace(spaces=None))
    monkeypatch.setattr(Run, "model", lambda self, device: model)
    for call in (
        lambda: ensemble.score([Run.open(project / RUN)], note=said.append),
        lambda: robustness.measure(run, note=said.append),
        lambda: figures.of_features(run, None, "cpu"),
    ):
        with pytest.raises(AssertionError, match=str(project / STORE)):
            call()
    assert sum("is gone; the store that the run was trained on" in line for line in said) == 2


def test_the_same_training_goes_on_from_the_new_place(project):
    with FeatureStore(project / STORE) as store:
        config = settings("train.epochs=1", "model_args.hidden=8", model="concat")
        run = experiment.train(store, config, project / RUN, seeds=3, note=quiet)
    assert run.finished and len(run.children) == 3
    assert moved.find(run).path == project / STORE


def test_another_store_of_that_name_is_never_taken_for_it(project):
    """It is told by its key, at the old place and beside the run."""
    make_store((project / STORE).parent, n=60, seed=5)
    with pytest.raises(DataError) as refused:
        evaluate.evaluate(project / RUN, note=quiet)
    line = str(refused.value)
    assert "is not the one that the run was trained on; name the one to evaluate on" in line
    assert len(line) <= 300 and "--features" in line
    (project / STORE).unlink()
    with pytest.raises(DataError, match="no such store, nor beside the run; name the one"):
        evaluate.evaluate(project / RUN, note=quiet)


def test_a_store_of_somebody_else_at_the_old_place_is_not_read(project, made):
    make_store((made / STORE).parent, n=60, seed=5)
    said: list[str] = []
    evaluate.evaluate(project / RUN, note=said.append)
    assert said[0].startswith(f"{made / STORE} is another store now; the store that the run was")
    assert not (made / STORE).with_name("feats.ledger.jsonl").exists()


def test_what_was_changed_where_it_was_is_read_as_before(project, made):
    """With nothing beside the run the recorded store is scored, and it is said that it is another
    one.
    """
    make_store((made / STORE).parent, n=60, seed=5)
    shutil.rmtree((project / STORE).parent)
    said: list[str] = []
    evaluate.evaluate(project / RUN, note=said.append)
    assert any("has other clips, labels or splits than the run was trained on" in x for x in said)
    assert not any("is another store now" in line for line in said)


def test_a_damaged_store_beside_the_run_is_not_it(project):
    (project / STORE).write_bytes(b"no store")
    with pytest.raises(DataError, match="is not the one that the run was trained on"):
        evaluate.evaluate(project / RUN, note=quiet)


def test_a_copy_beside_the_original_reads_the_original(made, tmp_path):
    """The recorded path is the store still."""
    shutil.copytree(made, tmp_path / "copy")
    assert moved.find(Run.open(tmp_path / "copy" / RUN)).path == made / STORE


def test_the_order_of_turns_belongs_to_the_store_of_a_run_with_context(project):
    run = Run.open(project / RUN)
    with FeatureStore(project / STORE) as store:
        turns = context.key(store.table())
    for key, path in ((turns, project / STORE), ("other turns", None)):
        there = replace(run, info=replace(run.info, turns_key=key))
        assert moved.find(there).path == path


def test_a_path_that_cannot_be_one_is_nowhere(project):
    run = Run.open(project / RUN)
    for odd in ("", "/", "a\0b", "/x" * 40_000, "/" + "y" * 5_000, "../../.."):
        there = replace(run, info=replace(run.info, features=odd))
        assert moved.find(there).path is None


def test_runs_of_a_join_that_moved_in_between_may_be_averaged(project):
    """They read the same features, wherever the members were when each was trained."""
    run = Run.open(project / RUN).children[0]
    runs = []
    for store, recipe in (("a/x.h5", {"pool": 1}), ("b/x.h5", {"pool": 1}), ("a/x.h5", {})):
        origin = Origin(store=store, modality="audio", recipe=recipe)
        kind = replace(run.info.store, origins=dict.fromkeys(run.spec.sources, origin))
        runs.append(replace(run, info=replace(run.info, store=kind)))
    ensemble.check_alike(runs[:2])
    with pytest.raises(DataError, match="reads other features"):
        ensemble.check_alike(runs[1:])
