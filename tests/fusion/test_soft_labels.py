"""How raters divided over the classes: learnt (`data.soft_labels`) and reported as Jensen-Shannon
divergence. Held against SciPy, PyTorch's own cross-entropy and figures by hand.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from scipy.spatial.distance import jensenshannon

from mer.cli import main
from mer.fusion import config, report
from mer.fusion.config import DataConfig
from mer.fusion.data import feature_sets, sources, splits
from mer.fusion.evaluation import ensemble
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.losses import task_loss
from mer.fusion.measures import metrics
from mer.fusion.training import experiment
from mer.fusion.training.training_setup import class_weights
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import LABELS, make_store, quiet
from tests.fusion.test_crosscorpus import renamed
from tests.fusion.test_train import settings

pytestmark = pytest.mark.usefixtures("few_resamples")

SOFT = "data.soft_labels=true"
TINY = "builtin:tiny-roberta"


QUICK = {
    "drkf": ("model_args.d=32", "model_args.layers=1", "model_args.ffn=64"),
    "fusion": ("model_args.d=16", "model_args.layers=1"),
}


def shares_of(row: dict) -> tuple[str | None, list[float] | None]:
    """(label, shares): every fourth row a tie, every tenth without raters, else three of four votes
    for the label.
    """
    number = int(row["id"][1:])
    if number % 10 == 8:
        return row["label"], None
    if number % 4 == 3:
        return None, [0.5, 0.5, 0.0]
    return row["label"], [0.75 if name == row["label"] else 0.125 for name in LABELS]


def rated(folder, **given) -> FeatureStore:
    """A store whose rows say how raters divided."""

    def change(row: dict) -> dict:
        label, shares = shares_of(row)
        return {**row, "label": label, "targets": shares}

    return renamed(make_store(folder, **given), change)


def test_divergence_is_scipys():
    """200 random cases, ties, zeros and equal rows among them."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        classes = int(rng.integers(2, 8))
        votes = rng.integers(0, 4, size=(5, classes)).astype(float)
        votes[:, 0] += votes.sum(1) == 0
        p = votes / votes.sum(1, keepdims=True)
        q = rng.dirichlet(np.full(classes, 0.3), size=5)
        q[0] = p[0]
        q[1] = np.eye(classes)[int(rng.integers(classes))]
        wanted = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)]
        np.testing.assert_allclose(metrics.jensen_shannon(p, q), wanted, atol=1e-7)
    # by hand: the middle is (3/4, 1/4), so 1/2 log2 4/3 + 1/4 log2 2/3 + 1/4 log2 2
    by_hand = 0.5 * np.log2(4 / 3) + 0.25 * np.log2(2 / 3) + 0.25
    found = metrics.jensen_shannon(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
    assert found == pytest.approx([by_hand])
    assert metrics.jensen_shannon(np.eye(2), np.eye(2)[::-1]).tolist() == [1, 1]


def test_loss_is_cross_entropy_to_the_shares():
    rng = torch.Generator().manual_seed(0)
    for smoothing in (0.0, 0.1):
        logits = torch.randn(6, 4, generator=rng, dtype=torch.float64)
        shares = torch.rand(6, 4, generator=rng, dtype=torch.float64)
        shares /= shares.sum(1, keepdim=True)
        unlabelled = torch.full((6,), -1)
        found = task_loss(logits, unlabelled, task="single", soft=shares, smoothing=smoothing)
        assert found.item() == pytest.approx(
            F.cross_entropy(logits, shares, label_smoothing=smoothing).item()
        )
        # shares of 0 and 1 are labels, and a row without shares is its label
        target = torch.tensor([0, 3, -1, 2, 1, 1])
        hot = F.one_hot(target.clamp(min=0), 4).double()
        hot[target < 0] = torch.nan
        for weights in (None, torch.tensor([1.0, 0.2, 3.0, 0.5])):
            given = {"task": "single", "class_weights": weights, "smoothing": smoothing}
            wanted = task_loss(logits, target, **given).item()
            assert task_loss(logits, target, **given, soft=hot).item() == pytest.approx(wanted)
            none = torch.full_like(hot, torch.nan)
            assert task_loss(logits, target, **given, soft=none).item() == pytest.approx(wanted)
    nothing = torch.full((2, 4), torch.nan, dtype=torch.float64)
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    loss = task_loss(logits, torch.tensor([-1, -1]), task="single", soft=nothing)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


@pytest.mark.parametrize("residence", ["device", "stream"])
def test_batches_bring_the_shares(tmp_path, residence):
    store = rated(tmp_path)
    asked = DataConfig(residence=residence, soft_labels=True)
    spec = feature_sets.spec(store, asked)
    rows = np.array([8, 3, 0, 1])
    target = splits.targets(store.table(), "single", LABELS)[rows]
    part = sources.batch_source(store, spec, asked, rows, target, device="cpu")
    batch = part.batch(np.array([1, 0, 3]))
    wanted = [shares_of(row)[1] for row in store.table().to_pylist()]
    assert batch.soft[0].tolist() == wanted[3] and batch.soft[1].isnan().all()
    first, second = batch.split([1, 2])
    assert first.soft.tolist() == [wanted[3]] and second.soft[1].tolist() == batch.soft[2].tolist()
    asked = DataConfig(residence=residence)
    assert (
        sources.batch_source(store, spec, asked, rows, target, device="cpu")
        .batch(np.array([0]))
        .soft
        is None
    )


def test_rows_with_a_tie_train_and_are_in_no_figure_but_one(tmp_path):
    store = rated(tmp_path)
    table = store.table()
    target = splits.targets(table, "single", LABELS)
    hard = splits.assign(table, target, DataConfig())
    soft = splits.assign(table, target, DataConfig(soft_labels=True))
    ties = np.flatnonzero((target < 0) & table["targets"].is_valid().to_numpy())
    in_train = [row for row in ties if table["split"][int(row)].as_py() == "train"]
    assert set(soft.train) - set(hard.train) == set(in_train) and in_train
    assert soft.dev.tolist() == hard.dev.tolist()
    assert not any("without a label" in note for note in soft.notes if "train" not in note)
    weights = class_weights(target[soft.train], feature_sets.spec(store, DataConfig()), "balanced")
    wanted = class_weights(target[hard.train], feature_sets.spec(store, DataConfig()), "balanced")
    assert torch.equal(weights, wanted)
    # dev that is carved has labels, too
    bare = splits.assign(
        table.set_column(1, "split", table["split"].combine_chunks().fill_null("")),
        target,
        DataConfig(soft_labels=True),
        splits.Fold("S0", "session", ("S0",)),
    )
    assert (target[bare.dev] >= 0).all() and not set(bare.dev) & set(bare.train)


@pytest.mark.parametrize("model", ["concat", "fusion", "drkf", "dmd"])
def test_every_model_learns_the_shares(tmp_path, model):
    """Figures by the answers in predictions.parquet, of rows with shares or labels."""
    store = rated(tmp_path, n=40, signal=8.0)
    asked = config.load(model=model, sets=[*QUICK.get(model, ()), "train.epochs=1", SOFT])
    run = experiment.train(store, asked, tmp_path / "run", note=quiet)
    found = evaluate(run, note=quiet)
    table = pq.read_table(run.path / "predictions.parquet").to_pylist()
    rows = [row for row in table if row["shares"] is not None]
    each = []
    for row in rows:
        answer = [row[f"p_{name}"] for name in LABELS]
        each.append(jensenshannon(row["shares"], answer, base=2) ** 2)
    assert found.soft.js == pytest.approx(np.mean(each), abs=1e-6)
    assert found.soft.n == len(rows)
    assert found.soft.ties == sum(row["label"] is None for row in rows)
    labelled = [row for row in table if row["label"] is not None]
    right = np.mean([row["label"] == row["pred"] for row in labelled])
    assert found.metrics["wa"] == pytest.approx(right) and found.metrics.n == len(labelled)


def test_shares_make_a_model_less_sure(tmp_path):
    """A model that is shown three quarters for the label answers about as much; one that is shown
    the label alone is surer, and further from the raters.
    """
    store = rated(tmp_path, signal=8.0)
    found = {}
    for name, more in (("hard", ()), ("soft", (SOFT,))):
        asked = settings("train.epochs=8", "optim.lr=1e-2", *more)
        run = experiment.train(store, asked, tmp_path / name, seeds=2, note=quiet)
        found[name] = evaluate(run, note=quiet)
    assert found["soft"].soft.js < found["hard"].soft.js
    said = "\n".join(table.title + str(table.rows) for table in report.tables(found["soft"]))
    assert f"{found['soft'].soft.js:.3f}" in said
    assert "without a majority are in no other figure" in "\n".join(report.remarks(found["soft"]))
    of_folds = "\n".join(report.remarks(replace(found["soft"], over="folds")))
    assert (
        "the mean over 18 rows with shares of raters of each fold, on average; 6 rows" in of_folds
    )
    assert (found["soft"].soft.n, found["soft"].soft.ties) == (18, 6)
    together = ensemble.score([run], note=quiet)  # of the last, which learnt the shares
    assert together.soft.n == found["soft"].soft.n and together.soft.js > 0
    other = rated(tmp_path / "other", dataset="other", prefix="o", labels=LABELS)
    mapped = evaluate(run, other.path, mapping=["calm=sad"], note=quiet)
    assert mapped.soft is None and evaluate(run, other.path, note=quiet).soft.n == 18
    each = [
        json.loads((tmp_path / "soft" / f"seed-{s}" / "metrics.json").read_text()) for s in (0, 1)
    ]
    assert found["soft"].soft.js == pytest.approx(np.mean([one["soft"]["js"] for one in each]))


def test_a_store_without_shares(tmp_path):
    plain = make_store(tmp_path / "plain", n=40)
    with pytest.raises(DataError, match="no shares of raters"):
        experiment.train(plain, settings(SOFT), tmp_path / "a", note=quiet)
    multi = make_store(tmp_path / "multi", n=40, task="multi")
    with pytest.raises(DataError, match="no shares of raters"):
        experiment.train(multi, settings(SOFT), tmp_path / "b", note=quiet)
    for number, odd in enumerate(([0.5, 0.4, 0.0], [0.5, 0.5], [1.5, -0.5, 0.0], [1.0])):
        store = make_store(tmp_path / str(number), n=40)
        store = renamed(store, partial(dict, targets=odd))
        assert splits.soft(store.table(), "single", LABELS) is None
    run = experiment.train(plain, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    assert evaluate(run, note=quiet).soft is None
    assert "shares" not in pq.read_table(run.path / "predictions.parquet").column_names


# ---- From a table to figures


def mer(*args) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, [str(a) for a in args])
    assert "Traceback" not in outcome.output
    return outcome.exit_code, outcome.stdout, outcome.stderr


def prepared(tmp_path, lines: list[str], *more: str) -> tuple[int, str, str]:
    (tmp_path / "votes.csv").write_text("\n".join(["id,text,joy,anger,neutral", *lines]) + "\n")
    columns = () if "--soft-labels" in more else ("--soft-labels", "joy,anger,neutral")
    paths = ("--from", tmp_path / "votes.csv", "--out", tmp_path / "m.parquet")
    return mer("prepare", "table", *paths, *columns, *more)


def test_votes_of_a_table(tmp_path):
    lines = [
        "a,x,3,1,0",
        "b,x,2,2,0",
        "c,x,,,",
        "d,x,0.2,,0.6",
        "e,x,0,0,0",
        "f,x,1e300,1e300,2e300",
    ]
    code, out, err = prepared(tmp_path, lines)
    assert code == 0, err
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "m.parquet").to_pylist()}
    assert {name: row["label"] for name, row in rows.items()} == {
        "a": "joy",
        "b": None,
        "c": None,
        "d": "neutral",
        "e": None,
        "f": "neutral",
    }
    assert rows["a"]["targets"] == [0.75, 0.25, 0] and rows["b"]["targets"] == [0.5, 0.5, 0]
    assert rows["c"]["targets"] is rows["e"]["targets"] is None
    assert rows["d"]["targets"] == pytest.approx([0.25, 0, 0.75])
    assert rows["f"]["targets"] == [0.25, 0.25, 0.5]
    said = out + err
    assert "2 rows without a vote, unlabelled, the first on line 4" in said
    assert "1 row with empty cells among the votes, which count as 0, the first on line 5" in said
    assert "1 row where several classes have most votes" in said


@pytest.mark.parametrize(
    "lines, more, said",
    [
        (["a,x,3,-1,0"], (), "line 2 has -1 votes for anger, expected 0 or more"),
        (["a,x,3,many,0"], (), "has anger 'many', expected a number"),
        (["a,x,3,nan,0"], (), "has anger 'nan', expected a number"),
        (["a,x,3,1,0"], ("--task", "multi"), "--soft-labels are of --task single"),
        (["a,x,3,1,0"], ("--labels", "joy,anger"), "leave out --labels"),
        (["a,x,3,1,0"], ("--targets", "joy"), "leave out --labels, --targets"),
        (["a,x,3,1,0"], ("--column", "label=joy"), "and --column label="),
        (["a,x,3,1,0"], ("--soft-labels", "joy"), "a column for each of two classes or more"),
        (["a,x,3,1,0"], ("--soft-labels", "joy,joy"), "empty or there twice"),
        (["a,x,3,1,0"], ("--soft-labels", "joy,fear"), "fear"),
    ],
)
def test_votes_that_are_none(tmp_path, lines, more, said):
    code, _, err = prepared(tmp_path, lines, *more)
    assert code == 1 and said in err and err.strip().count("\n") == 0


def test_the_whole_way(tmp_path):
    """table → manifest → features → join, export and import → training → figures."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(40):
        votes = rng.integers(0, 4, size=3)
        lines.append(f"u{number},word {number},{votes[0]},{votes[1]},{votes[2]}")
    assert prepared(tmp_path, lines, "--split", "none")[0] == 0
    manifest = pq.read_table(tmp_path / "m.parquet").to_pylist()
    wanted = {row["id"]: (row["label"], row["targets"]) for row in manifest}
    store, given = tmp_path / "f.h5", ("--audio-encoder", "none", "--text-encoder", TINY)
    code, _, err = mer("extract", "--manifest", tmp_path / "m.parquet", *given, "--out", store)
    assert code == 0, err

    def held(path) -> dict:
        rows = FeatureStore(path).table().to_pylist()
        return {row["id"]: (row["label"], row["targets"]) for row in rows}

    assert held(store) == wanted
    code, out, err = mer("inspect", store)
    shares = np.array([row["targets"] for row in manifest if row["targets"]])
    assert code == 0 and f"joy mean {round(float(shares[:, 0].mean()), 4):g}" in out, err
    assert mer("export", store, tmp_path / "one.h5", "--to", "single")[0] == 0
    assert held(tmp_path / "one.h5") == wanted
    assert mer("export", store, tmp_path / "out", "--to", "parquet")[0] == 0
    found = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["id"]: (row["label"], row["targets"]) for row in found} == wanted
    beside = ("--as", "one.h5:text=text.again")
    assert mer("join", store, tmp_path / "one.h5", *beside, "--out", tmp_path / "j.h5")[0] == 0
    assert held(tmp_path / "j.h5") == wanted
    code, out, err = mer("import", "parquet", tmp_path / "out", "--out", tmp_path / "back.h5")
    assert code == 0, err
    labels = {name: label for name, (label, _) in wanted.items()}
    assert {name: label for name, (label, _) in held(tmp_path / "back.h5").items()} == labels
    assert "not used: targets" in out + err  # an import knows of one kind of reference


def test_a_carved_dev_part_without_a_label_is_refused():
    """Of three dialogues two have shares alone, and are as large as dev is to be: it would choose
    by nothing."""
    table = pa.table(
        {
            "split": ["train"] * 7,
            "dialogue": [*"aaaaabc"],
            "label": ["calm", "sad", "calm", "sad", "calm", None, None],
            "targets": [None] * 5 + [[0.5, 0.5, 0.0]] * 2,
        }
    )
    target = splits.targets(table, "single", LABELS)
    with pytest.raises(DataError, match=r"carved by dialogue has no labelled row.*data\.dev_share"):
        splits.assign(table, target, DataConfig(soft_labels=True))
