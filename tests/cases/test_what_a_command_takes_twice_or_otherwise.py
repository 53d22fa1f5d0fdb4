"""A run that is named twice in a report counted twice, and in the correction of its p values, too;
one that was compared with itself, a link to it or a copy differed by 0.0; predictions as Parquet
went into a file that was called .csv.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.report import gathering
from mer.fusion.training import experiment
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory, few_resamples):
    made = tmp_path_factory.mktemp("twice")
    store = make_store(made)
    for seed in (0, 1):
        asked = settings("train.epochs=1", "model_args.hidden=8", f"train.seed={seed}")
        evaluate(experiment.train(store, asked, made / f"run{seed}", note=quiet), note=quiet)
    return made


def test_a_run_that_is_named_twice_is_in_a_report_once(folder):
    named = [folder / "run1", folder / "run0", folder / "x" / ".." / "run1"]
    told, left, lines = gathering.gather(named)
    assert [one.run.path.name for one in told] == ["run1", "run0"] and not left
    assert lines == ["1 run named twice, taken once"]


WAYS = ("itself", "link", "relative", "copy", "again")


def another_way(folder: Path, tmp_path: Path, way: str) -> Path:
    """The first run by another path, a copy of it, or the same training made again."""
    run = folder / "run0"
    if way == "relative":
        return Path(os.path.relpath(run))
    if way == "link":
        (tmp_path / "link").symlink_to(run)
    elif way == "copy":
        shutil.copytree(run, tmp_path / "copy")
    elif way == "again":
        config = settings("train.epochs=1", "model_args.hidden=8", "train.seed=0")
        store = FeatureStore(folder / "feats.h5")
        evaluate(experiment.train(store, config, tmp_path / way, note=quiet), note=quiet)
    return run if way == "itself" else tmp_path / way


def call(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_compared_with_itself_is_said_to_be(folder, tmp_path, way):
    other = another_way(folder, tmp_path, way)
    done = call("compare", folder / "run0", other, "--fail-if", "worse")
    what = "one training, copied or made twice" if way in ("copy", "again") else "one run folder"
    said = f"{folder / 'run0'} and {other} are {what}: neither better nor worse\n"
    assert (done.exit_code, done.stdout) == (0, said)
    told = json.loads(call("compare", folder / "run0", other, "--json").stdout)
    assert told["same"] == what and told["verdict"] == "undecided"
    two = call("compare", folder / "run0", folder / "run1", "--json")
    assert "same" not in json.loads(two.stdout) and "shared" not in json.loads(two.stdout)


def test_a_group_and_a_run_of_it_share_a_training(folder, tmp_path):
    config = settings("train.epochs=1", "model_args.hidden=8")
    store = FeatureStore(folder / "feats.h5")
    group = experiment.train(store, config, tmp_path / "group", seeds=2, note=quiet)
    evaluate(group, note=quiet)
    done = call("compare", tmp_path / "group", tmp_path / "group" / "seed-1")
    assert "1 training is in both runs" in done.stdout, done.output
    shutil.copytree(tmp_path / "group", tmp_path / "copy")
    done = call("compare", tmp_path / "group", tmp_path / "copy")
    assert "are one training, copied or made twice" in done.stdout, done.output


@pytest.mark.parametrize("way", ["copy", "again"])
def test_a_copy_is_in_no_report_beside_its_run(folder, tmp_path, way):
    other = another_way(folder, tmp_path, way)
    told, left, lines = gathering.gather([folder / "run1", folder / "run0", other])
    assert [one.run.path.name for one in told] == ["run1", "run0"]
    assert [entry.path for entry in left] == [other]
    assert str(folder / "run0") in str(left[0].error)
    said = "1 run left out, the same training as another one, copied or made twice: "
    assert lines == [said + other.name]


@pytest.mark.parametrize("way", WAYS)
def test_no_run_is_twice_in_an_ensemble_or_held_against_itself(folder, tmp_path, way):
    other = another_way(folder, tmp_path, way)
    opened = (folder / "run0" / "test_log.jsonl").read_text()
    for words in ([other, "--ensemble"], ["--robustness", "--against", other]):
        done = call("evaluate", folder / "run0", *words)
        assert done.exit_code == 1 and len(done.output.splitlines()) == 1
        assert "name" in done.output and len(done.output) < 300 + len(str(tmp_path))
    assert (folder / "run0" / "test_log.jsonl").read_text() == opened, "nothing was opened"


@pytest.mark.parametrize("way", WAYS)
def test_a_list_of_runs_has_each_folder_once_and_names_copies(folder, tmp_path, way):
    other = another_way(folder, tmp_path, way)
    done = call("runs", folder / "run0", other)
    if way in ("copy", "again"):
        assert done.stdout.startswith("2 runs: 2 finished")
        twins = f"{other} (as {folder / 'run0'})"
        assert "1 run is the training of another, copied or made twice: " in done.stderr
        assert twins in done.stderr or len(twins) > 80
    else:
        assert done.stdout.startswith("1 run: 1 finished")
        assert "1 folder named twice or within another one, counted once" in done.stderr
    whole = call("runs", folder, folder / "run1")
    assert whole.stdout.startswith("2 runs: 2 finished")
    assert "1 folder named twice or within another one, counted once" in whole.stderr
    assert "copied" not in whole.stderr


@pytest.mark.parametrize("name", ["p.csv", "p.JSONL"])
def test_predictions_are_not_called_what_they_are_not(folder, tmp_path, name):
    words = ["evaluate", str(folder / "run0"), "--predictions", str(tmp_path / name)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "end its name in .parquet" in done.stderr
    assert not list(tmp_path.iterdir())
