"""Several targets at once: concordance by its definition in plain loops (Lin 1989, Biometrics 45),
its loss, and a run from a table's columns to predictions on the scale of the ratings.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import report
from mer.fusion.batch import DataSpec
from mer.fusion.config import load
from mer.fusion.data import splits
from mer.fusion.evaluation import answering, discrimination
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.losses.supervised import same_emotion, task_loss
from mer.fusion.measures import metrics
from mer.fusion.report.results import compare
from mer.fusion.runs import prediction_table
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import experiment
from mer.pipeline.store import FeatureStore, build_index

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

TINY_DMD = (
    "model_args.width=8",
    "model_args.heads=2",
    "model_args.layers=1",
    "model_args.memory_layers=1",
    "train.batch_size=16",
    "optim.lr=3e-3",
)
NAMES = ("valence", "arousal", "dominance")


def in_loops(x: list[float], y: list[float]) -> float:
    n = len(x)
    if n < 2:
        return math.nan
    a, b = math.fsum(x) / n, math.fsum(y) / n
    both = math.fsum((p - a) * (q - b) for p, q in zip(x, y, strict=True)) / n
    spread = math.fsum((p - a) ** 2 for p in x) / n + math.fsum((q - b) ** 2 for q in y) / n
    whole = spread + (a - b) ** 2
    return 2 * both / whole if whole else math.nan


@pytest.mark.parametrize("seed", range(200))
def test_concordance_equals_plain_loops(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    x = rng.integers(1, 8, n).astype(float)  # ties
    y = x + rng.normal(0, 2, n)
    if seed % 10 == 0:
        y[:] = 4.0  # a constant answer agrees with nothing
    if seed % 10 == 1:
        x[:] = y[:] = 2.0
    if seed % 10 == 2:
        y = x.copy()
    if seed % 10 == 3:
        x[:] = 0.0
    found = metrics.dimensional(np.stack([x, y], 1), np.stack([y, y], 1), ["one", "two"])
    assert found["n"] == n
    first, second = in_loops(x.tolist(), y.tolist()), in_loops(y.tolist(), y.tolist())
    assert found["ccc_one"] == pytest.approx(first, abs=1e-9, nan_ok=True)
    assert found["ccc_two"] == pytest.approx(second, abs=1e-9, nan_ok=True)
    assert found["ccc"] == pytest.approx((first + second) / 2, abs=1e-9, nan_ok=True)
    assert found["mae_one"] == pytest.approx(sum(abs(x - y)) / n)
    assert found["mae"] == pytest.approx(sum(abs(x - y)) / n / 2)


@pytest.mark.parametrize("value", [2.0, 2.3, 0.1, 1e-9, 12345.678])
@pytest.mark.parametrize("rows", [2, 3, 7, 11])
def test_constants_are_constants_whatever_rounding_makes_of_their_mean(value, rows):
    same, other = np.full(rows, value), np.linspace(1.0, 5.0, rows)
    assert math.isnan(metrics.ccc(same, same))
    assert metrics.ccc(other, same) == metrics.ccc(same, other) == 0.0
    target = np.stack([same, other], 1)
    (_, first), (_, second) = splits.scale(target, "regression")
    assert first == 1.0 and second == pytest.approx(other.std())


def test_one_target_has_no_figures_beside_the_means():
    assert set(metrics.dimensional(np.ones((3, 1)), np.ones(3), ["valence"])) == {
        "n",
        "ccc",
        "pearson",
        "mae",
    }


@pytest.mark.parametrize(
    ("dataset", "targets", "labels", "whose"),
    [
        ("iemocap", [1.0, 5.0], ("valence", "arousal"), "ccc"),
        ("mosi", [1.0, -3.0], ("sentiment", "arousal"), "ccc"),
        ("mosi", [1.0, -3.0], ("sentiment",), "mosi"),
        ("mine", [1.0, -3.0], ("score",), "mosi"),
        ("mine", [0.5, -1.0], ("score",), "sims"),
        ("mine", [1.0, 7.0], ("score",), "ccc"),
        ("mine", [math.nan], ("score",), "mosi"),
    ],
)
def test_whose_measures(dataset, targets, labels, whose):
    assert metrics.measures_of(dataset, np.array(targets), labels) == whose


def test_the_loss_is_one_minus_concordance_of_the_labelled_rows():
    rng = np.random.default_rng(3)
    logits, target = rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    target[4] = np.nan
    kept = np.delete(np.arange(9), 4)
    given = torch.tensor(logits, requires_grad=True)
    loss = task_loss(given, torch.tensor(target), task="regression", regression="ccc")
    wanted = np.mean([1 - in_loops(logits[kept, k], target[kept, k]) for k in range(3)])
    assert loss.item() == pytest.approx(wanted)
    (grad,) = torch.autograd.grad(loss, given)
    assert not grad[4].any() and grad[kept].all()


@pytest.mark.parametrize("rows", [0, 1])
def test_the_loss_of_no_row_and_of_one(rows):
    logits = torch.full((2, 2), 0.5, requires_grad=True)
    target = torch.full((2, 2), torch.nan)
    target[:rows] = 1.5
    loss = task_loss(logits, target, task="regression", regression="ccc")
    assert loss.item() == pytest.approx(1.0 if rows else 0.0)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.isfinite().all()


def test_rows_alike_in_every_target_carry_the_same_emotion():
    target = torch.tensor([[1.1, 2.0], [0.9, 2.2], [1.0, -2.0]])
    same, labelled = same_emotion(target, task="regression")
    assert same.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]] and labelled.all()


def test_scales_of_targets_go_and_come_back():
    spec = DataSpec({"audio": 2}, {}, "regression", NAMES[:2], scale=((3.0, 2.0), (100.0, 10.0)))
    rated = np.array([[5.0, 90.0], [np.nan, np.nan]], np.float32)
    assert spec.scaled(rated)[0].tolist() == [1.0, -1.0]
    assert spec.unscaled(spec.scaled(rated))[0].tolist() == [5.0, 90.0]


@pytest.mark.parametrize("model", ["concat", "drkf", "dmd"])
def test_every_kind_of_model_learns_several_targets(tmp_path, model):
    store = make_store(tmp_path, task="regression", targets=NAMES, unlabelled=3)
    more = ("train.epochs=6", "model_args.regression_loss=ccc")
    config = (
        settings(*more, model=model)
        if model != "dmd"
        else load(model="dmd", sets=[*TINY_DMD, *more])
    )
    run = experiment.train(store, config, tmp_path / "run", note=quiet)
    assert run.info.select_metric == "ccc"
    means = [mean for mean, _ in run.spec.scale]
    assert all(3 < mean < 5 for mean in means)
    found = evaluate(run, note=quiet)
    assert found.measures == "ccc" and found.metrics["ccc"] > 0.3
    assert found.metrics["ccc"] == pytest.approx(
        np.mean([found.metrics[f"ccc_{name}"] for name in NAMES])
    )
    table = pq.read_table(tmp_path / "run" / "predictions.parquet")
    values = np.stack([table[f"value_{name}"].to_numpy() for name in NAMES], 1)
    assert values == pytest.approx(np.array(table["pred"].to_pylist()))
    # ratings from 1 to 7, not deviations from their mean
    assert (values.mean(0) > 2).all() and (values.mean(0) < 6).all()
    rated = np.array(table["targets"].to_pylist())
    assert found.metrics["ccc_arousal"] == pytest.approx(
        in_loops(rated[:, 1].tolist(), values[:, 1].tolist())
    )


def test_emotions_are_alike_on_the_scale_that_was_trained(tmp_path, monkeypatch):
    """What counts as another emotion when discrimination is measured: half a deviation, as in
    training, not half a point of whatever scale the ratings have.
    """
    store = make_store(tmp_path, task="regression", targets=NAMES)
    run = experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    compared = []

    def spy(target, **given):
        compared.append(target)
        return same_emotion(target, **given)

    monkeypatch.setattr(discrimination, "same_emotion", spy)
    predicted = prediction_table.from_table(
        answering.predict_rows(run, store, np.arange(60)), "regression", NAMES, "ccc"
    )
    monkeypatch.setattr(discrimination, "_disagreement", lambda model, batch: np.zeros(len(batch)))
    discrimination.discrimination(run, predicted, store, "cpu")
    (target,) = compared
    assert target.abs().max() < 3 and target.mean().abs() < 0.5
    assert predicted.true.min() == 2 and predicted.true.max() == 6


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """A run over folds and one over seeds, whose members have scales of their own."""
    folder = tmp_path_factory.mktemp("dimensions")
    store = make_store(folder, task="regression", targets=NAMES)
    config = settings("train.epochs=2", model="concat")
    folds = experiment.train(store, config, folder / "folds", folds="session", note=quiet)
    seeds = experiment.train(store, config, folder / "seeds", seeds=2, note=quiet)
    for run in (folds, seeds):
        evaluate(run, note=quiet)
    return folder


def test_groups_are_evaluated_compared_and_listed(groups):
    folds, seeds = Run.open(groups / "folds"), Run.open(groups / "seeds")
    scales = {child.spec.scale for child in folds.children}
    assert len(scales) == 3
    there = json.loads((groups / "folds" / "metrics.json").read_text())
    assert {"ccc", "ccc_valence", "mae_dominance"} <= there["metrics"].keys()
    said = report.tables(evaluate(seeds, note=quiet))[0]
    assert [row[0] for row in said.rows][:4] == [
        "CCC",
        "CCC of valence",
        "CCC of arousal",
        "CCC of dominance",
    ]
    same = compare(seeds, seeds)
    assert same.metric == "ccc" and same.metrics["ccc_arousal"].difference == 0
    listed = CliRunner().invoke(main, ["runs", str(groups)])
    assert listed.exit_code == 0 and "CCC" in listed.output
    page = CliRunner().invoke(main, ["report", str(groups / "seeds"), "--out", str(groups / "r")])
    assert page.exit_code == 0, page.output


TABLE = """id,text,speaker,valence,arousal
a,one two,s1,1.5,4
b,three four,s2,2,
c,five six,s3,,
d,seven eight,s4,5,1
"""


def prepared(folder, *options):
    path = folder / "t.csv"
    path.write_text(TABLE)
    return CliRunner().invoke(
        main,
        ["prepare", "table", "--from", str(path), "--out", str(folder / "m.parquet"), *options],
    )


def test_columns_of_a_table_are_targets(tmp_path):
    done = prepared(tmp_path, "--targets", "valence, arousal")
    assert done.exit_code == 0, done.output
    said = (
        "2 rows without valence and arousal (1 of them with some of these), unlabelled, the first"
    )
    assert said in done.output and done.output.count("unlabelled") == 1
    assert "no label column" not in done.output
    table = pq.read_table(tmp_path / "m.parquet")
    assert table["targets"].to_pylist() == [[1.5, 4.0], None, None, [5.0, 1.0]]


def test_a_label_beside_targets_is_left_aside(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,text,speaker,label,valence\na,one,s1,anger,1\nb,two,s2,joy,5\n")
    options = ["--from", str(path), "--out", str(tmp_path / "m.parquet"), "--targets", "valence"]
    options += ["--split", "none"]
    done = CliRunner().invoke(main, ["prepare", "table", *options])
    assert done.exit_code == 0 and "the label column is left aside" in done.output
    table = pq.read_table(tmp_path / "m.parquet")
    assert table["targets"].to_pylist() == [[1.0], [5.0]]
    assert table["label"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--targets", "valence,power"], "no column 'power'"),
        (["--targets", "valence,valence"], "a column is empty or there twice"),
        (["--targets", "valence,"], "a column is empty or there twice"),
        (["--targets", "valence,speaker"], "has speaker 's1', expected a number"),
        (["--targets", "valence", "--task", "multi"], "--task multi has labels"),
        (["--targets", "valence", "--labels", "a,b"], "leave out --labels"),
        (["--task", "regression", "--column", "label=valence", "--labels", "a,b"], "--targets"),
    ],
)
def test_what_is_no_target_is_one_line(tmp_path, options, said):
    done = prepared(tmp_path, *options)
    assert done.exit_code and said in done.output and len(done.output) < 300


def test_one_target_with_several_names_is_the_first(tmp_path):
    """What was made before there were several targets stays readable."""
    store = make_store(tmp_path, task="regression", labels=("score", "another"))
    rows = store.table().to_pylist()
    build_index(
        tmp_path / "old.h5",
        [tmp_path / "feats.shards" / "shard-00000.h5"],
        [{name: row[name] for name in ("id", "split", "dialogue", "targets")} for row in rows],
        dataset="toy",
        task="regression",
        labels=("score", "another"),
        modalities=store.header.modalities,
    )
    old = FeatureStore(tmp_path / "old.h5")
    assert old.header.labels == ("score",)
    run = experiment.train(
        old, settings("train.epochs=1", model="concat"), tmp_path / "r", note=quiet
    )
    assert evaluate(run, note=quiet).measures == "sims"
