from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mer.fusion import infer
from mer.fusion.data import splits
from mer.fusion.evaluation import answering, discrimination, scoring
from mer.fusion.evaluation import evaluate as module
from mer.fusion.evaluation.answering import predict_rows
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.measures import metrics
from mer.fusion.runs import prediction_table
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime.typed import tree
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError, KeyMismatchError

from tests.fusion.stores import make_store, quiet, with_rows
from tests.fusion.test_train import settings

pytestmark = pytest.mark.usefixtures("few_resamples")


def trained(
    folder, *more: str, model: str = "concat", epochs: int = 4, seeds: int = 1, folds=None, **store
):
    made = make_store(folder, **store)
    run = experiment.train(
        made,
        settings(f"train.epochs={epochs}", *more, model=model),
        folder / "run",
        seeds=seeds,
        folds=folds,
        note=quiet,
    )
    return made, run


@pytest.fixture(scope="module")
def drkf(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("drkf"), model="drkf", epochs=8, unlabelled=4)


def test_figures_are_those_of_the_predictions(drkf):
    store, run = drkf
    found = evaluate(run, note=quiet)
    written = json.loads((run.path / "metrics.json").read_text())
    assert (
        written.pop("predictions_sha256")
        == hashlib.sha256((run.path / "predictions.parquet").read_bytes()).hexdigest()
    )
    assert written.pop("sha256") and tree(found) == written
    table = pq.read_table(run.path / "predictions.parquet")
    rows = splits.held_out(store.table())
    assert table["id"].to_pylist() == [store.table()["id"][int(r)].as_py() for r in rows]
    true, pred = np.array(table["label"].to_pylist()), np.array(table["pred"].to_pylist())
    assert found.metrics["wa"] == pytest.approx((true == pred).mean())
    shares = np.stack([table[f"p_{name}"].to_numpy() for name in store.header.labels], axis=1)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert [store.header.labels[k] for k in shares.argmax(1)] == pred.tolist()
    attention = table["attention_audio"].to_numpy() + table["attention_text"].to_numpy()
    np.testing.assert_allclose(attention, 1, atol=1e-5)
    assert all(0 <= v <= 1 for v in table["disagreement"].to_pylist())
    differ = np.array(table["pred_audio"].to_pylist()) != np.array(table["pred_text"].to_pylist())
    assert found.heads_disagree.n == differ.sum() and found.heads_agree.n == (~differ).sum()
    if differ.any():
        assert found.heads_disagree["wa"] == pytest.approx((true == pred)[differ].mean())
    assert found.bootstrap.unit == "utterance"  # six dialogues are too few
    assert found.discrimination["audio-text"].pairs == 48


def test_an_utterance_of_no_known_group_is_one_of_its_own():
    """Two of eighteen name no dialogue: the other sixteen stay together in their eight. Of fewer
    than eight each utterance is one.
    """
    ids = [f"u{row}" for row in range(18)]
    dialogues = [f"d{row // 2}" for row in range(16)] + [None, ""]
    nobody = pa.nulls(18, pa.string())
    table = pa.table({"id": ids, "dialogue": dialogues, "session": nobody, "speaker": nobody})
    name, groups = prediction_table.unit(table)
    assert name == "dialogue" and len(set(groups)) == 10
    assert groups[:16].tolist() == dialogues[:16]
    name, groups = prediction_table.unit(table.slice(2))
    assert name == "utterance" and groups.tolist() == ids[2:]


def test_the_test_part_is_logged_each_time_it_is_opened(tmp_path):
    _, run = trained(tmp_path)
    log = run.path / "test_log.jsonl"
    assert not log.exists()  # training never opens it
    evaluate(run, split="dev", note=quiet)
    assert not log.exists() and (run.path / "metrics-dev.json").exists()
    evaluate(run, note=quiet)
    evaluate(run, note=quiet)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert (
        len(entries) == 2 and entries[0]["rows"] == 24 and entries[0]["store"].endswith("feats.h5")
    )


def test_dev_figures_equal_what_the_trainer_saw(tmp_path):
    _, run = trained(tmp_path)
    found = evaluate(run, split="dev", note=quiet)
    for k in ("wa", "ua", "wf1"):
        assert found.metrics[k] == pytest.approx(run.info.dev[k])


def test_predict_rows_keeps_the_order_and_needs_no_labels(drkf):
    store, run = drkf
    rows = [50, 3, 0, 119]
    table = predict_rows(run, store, rows)
    assert table["id"].to_pylist() == ["u050", "u003", "u000", "u119"]
    assert table["label"].to_pylist()[2] is None and None not in table["pred"].to_pylist()
    alone = predict_rows(run, store, [3])
    for name in store.header.labels:
        assert alone[f"p_{name}"][0].as_py() == pytest.approx(
            table[f"p_{name}"][1].as_py(), abs=1e-5
        )
    assert len(predict_rows(run, store, [])) == 0


def test_models_without_attention_give_nulls(tmp_path):
    store, run = trained(tmp_path)
    table = predict_rows(run, store, [0, 1])
    assert table["attention_audio"].null_count == table["disagreement"].null_count == 2
    found = evaluate(run, note=quiet)
    assert not {"attention", "discrimination", "unimodal", "heads_disagree"} & set(tree(found))


@pytest.mark.parametrize("task", ["multi", "regression"])
@pytest.mark.parametrize("model", ["concat", "drkf"])
def test_every_task_is_scored(tmp_path, task, model):
    store, run = trained(tmp_path, model=model, task=task, epochs=8)
    found = evaluate(run, note=quiet)
    assert found.metrics["weighted_f1"] > 0.7 if task == "multi" else found.metrics["pearson"] > 0.5
    table = pq.read_table(run.path / "predictions.parquet")
    if task == "multi":
        limits = run.info.thresholds
        first = [
            name
            for name, t in zip(store.header.labels, limits, strict=True)
            if table[f"p_{name}"][0].as_py() >= t
        ]
        assert table["pred"][0].as_py() == first
    else:
        assert table["pred"].to_pylist() == table["value"].to_pylist()


def test_unlabelled_test_rows_are_predicted_and_counted(tmp_path):
    store = make_store(tmp_path)
    table = store.table().to_pylist()
    test = [k for k, r in enumerate(table) if r["split"] == "test"]
    for k in test[:5]:
        table[k]["label"] = None
    again = with_rows(store, table)
    run = experiment.train(again, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    found = evaluate(run, note=quiet)
    assert found.unlabelled == 5 and found.metrics.n == 19
    assert len(pq.read_table(run.path / "predictions.parquet")) == 24


def test_other_stores(tmp_path):
    _, run = trained(tmp_path / "a")
    evaluate(run, note=quiet)
    before = (run.path / "metrics.json").read_bytes()
    said = []
    other = make_store(tmp_path / "b", seed=5, dataset="elsewhere")
    evaluate(run, other.path, note=said.append)
    assert "other clips" in said[0] and (run.path / "metrics-test-elsewhere.json").exists()
    assert (run.path / "metrics.json").read_bytes() == before
    with pytest.raises(KeyMismatchError):
        evaluate(run, make_store(tmp_path / "c", rate=25.0).path, note=quiet)
    with pytest.raises(DataError, match="no such store"):
        evaluate(run, tmp_path / "gone.h5", note=quiet)
    with pytest.raises(DataError, match="expected train, dev or test"):
        evaluate(run, split="valid", note=quiet)


def test_rows_that_trained_cannot_become_test_rows(tmp_path):
    store, run = trained(tmp_path)
    table = store.table().to_pylist()
    for row in table:
        row["split"] = {"train": "test", "test": "train"}.get(row["split"], row["split"])
    with_rows(store, table)
    with pytest.raises(DataError, match="72 test rows .* were used in training"):
        evaluate(run, note=quiet)


def test_an_unfinished_run_and_a_store_without_test_rows(tmp_path):
    store, run = trained(tmp_path)
    info = tree(run.info) | {"finished": False}
    (run.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="not finished"):
        evaluate(run.path, note=quiet)
    table = [r for r in store.table().to_pylist() if r["split"] != "test"]
    bare = with_rows(store, table, tmp_path / "bare.h5")
    done = experiment.train(bare, settings("train.epochs=1"), tmp_path / "bare", note=quiet)
    assert not module.has_test(done, bare)
    with pytest.raises(DataError, match="no test rows"):
        evaluate(done, note=quiet)


def test_folds_and_seeds_are_summed_up(tmp_path):
    store, run = trained(tmp_path, seeds=2, folds="session", epochs=2)
    found = evaluate(run, note=quiet)
    table = pq.read_table(run.path / "predictions.parquet")
    assert len(table) == 240 and found.n == 120 and found.over == "folds"
    children = {
        c.path.name: json.loads((c.path / "metrics.json").read_text())
        for c in Run.open(run.path).children
    }
    per_fold = [
        np.mean([children[f"fold-S{f}-seed-{s}"]["metrics"]["ua"] for s in range(2)])
        for f in range(3)
    ]
    assert found.metrics["ua"] == pytest.approx(np.mean(per_fold)) and found.sd[
        "ua"
    ] == pytest.approx(np.std(per_fold, ddof=1))
    pooled = []
    for s in range(2):
        rows = table.filter(np.array(table["seed"]) == s)
        true, pred = (
            [store.header.labels.index(v) for v in rows[c].to_pylist()] for c in ("label", "pred")
        )
        pooled.append(
            metrics.classification(np.array(true), np.array(pred), store.header.labels)["ua"]
        )
    assert found.pooled["ua"] == pytest.approx(np.mean(pooled))
    low, high = found.interval["ua"]
    assert low <= found.pooled["ua"] <= high and found.bootstrap.unit == "dialogue"
    assert np.array(found.confusion).sum() == pytest.approx(120)


def test_seeds_alone(tmp_path):
    _, run = trained(tmp_path, seeds=3, epochs=1)
    found = evaluate(run, note=quiet)
    values = [row.metrics["wa"] for row in found.runs]
    assert len(values) == 3 and found.over == "seeds" and found.pooled is None
    assert found.metrics["wa"] == pytest.approx(np.mean(values)) and found.sd[
        "wa"
    ] == pytest.approx(np.std(values, ddof=1))


def test_pairs_are_balanced_and_rightly_labelled():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=40)
    i, j, differs = discrimination.re_paired(y[:, None] == y[None], rng)
    assert (i != j).all() and ((y[i] != y[j]) == differs).all() and differs.mean() == 0.5
    i, j, differs = discrimination.re_paired(np.ones((3, 3), dtype=bool), rng)  # one class only
    assert not differs.any() and len(i) == 3
    assert len(discrimination.re_paired(np.ones((1, 1), dtype=bool), rng)[0]) == 0


def test_disagreement_is_measured_on_what_it_is_asked_about(drkf, monkeypatch):
    """A model whose disagreement is the truth scores 1; one that says the opposite scores 0.

    Three modalities, one pair at a time.
    """
    store, run = drkf
    p = prediction_table.from_table(
        predict_rows(run, store, splits.held_out(store.table())), "single", store.header.labels
    )

    class Oracle(torch.nn.Module):
        def forward(self, batch):
            from mer.fusion.models import Prediction

            seen = {m: batch.x[m].sum((1, 2)) for m in batch.x}
            said = torch.tensor(
                [
                    truth[(round(a, 3), round(b, 3))]
                    for a, b in zip(seen["audio"].tolist(), seen["text"].tolist(), strict=True)
                ]
            )
            return Prediction(torch.zeros(len(batch), 3), disagreement=said)

    part = answering.part_of(
        run,
        store,
        np.array([store.table()["id"].to_pylist().index(i) for i in p.table["id"].to_pylist()]),
        "cpu",
    )
    batch = part.batch(np.arange(len(part)))
    sums = {m: [round(v, 3) for v in batch.x[m].sum((1, 2)).tolist()] for m in batch.x}
    y = p.true
    truth = {
        (sums["audio"][i], sums["text"][j]): float(y[i] != y[j])
        for i in range(len(y))
        for j in range(len(y))
    }
    monkeypatch.setattr(Run, "model", lambda self, device="cpu": Oracle())
    assert discrimination.discrimination(run, p, store, "cpu")["audio-text"].auc == 1.0
    truth = {k: 1 - v for k, v in truth.items()}
    assert (
        discrimination.discrimination(run, p, store, "cpu")["audio-text"].balanced_accuracy == 0.0
    )


def test_heads_that_differ():
    single = [np.array([0, 1, 2]), np.array([0, 2, 2])]
    assert scoring.heads_differ(single, "single").tolist() == [False, True, False]
    multi = [np.array([[True, False], [True, True]]), np.array([[True, False], [False, True]])]
    assert scoring.heads_differ(multi, "multi").tolist() == [False, True]
    assert scoring.heads_differ(
        [np.array([0.1, -2.0]), np.array([3.0, 2.0])], "regression"
    ).tolist() == [False, True]


def test_padding_never_reaches_a_prediction(drkf):
    """NaN beyond the lengths, and other neighbours in the batch, leave every prediction
    as it was.
    """
    store, run = drkf
    model = run.model()
    part = answering.part_of(run, store, np.arange(20), "cpu")
    batch = part.batch(np.arange(20))
    with torch.inference_mode():
        clean = model(batch)
        for m in batch.x:
            batch.x[m][~batch.mask(m)] = float("nan")
        dirty = model(batch)
    torch.testing.assert_close(clean.logits, dirty.logits)
    out = infer.infer(model, part)
    np.testing.assert_allclose(out.scores, clean.logits.double().softmax(1).numpy(), atol=1e-5)
