"""Several runs as one: means of probabilities, by hand from the predictions of each run."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer import cli
from mer.commands import predicting
from mer.fusion.config import load
from mer.fusion.evaluation import answering, ensemble, evaluate
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet

SMALL = ("model_args.hidden=8", "train.epochs=2", "train.batch_size=16")


def trained(store, folder, *sets, model="concat", **more) -> Run:
    return experiment.train(
        store, load(model=model, sets=[*SMALL, *sets]), folder, note=quiet, **more
    )


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_the_mean_of_the_seeds(tmp_path, task):
    store = make_store(tmp_path, n=60, task=task, signal=0.5)
    group = trained(store, tmp_path / "run", seeds=3)
    found = ensemble.score([group], note=quiet)
    evaluate.evaluate(group, note=quiet)
    tables = [pq.read_table(child.path / "predictions.parquet") for child in group.children]
    names = ["value"] if task == "regression" else [f"p_{n}" for n in group.children[0].spec.labels]
    scores = np.mean([[table[n].to_numpy() for n in names] for table in tables], axis=0).T
    together = pq.read_table(group.path / "predictions-ensemble.parquet")
    np.testing.assert_allclose([together[n].to_numpy() for n in names], scores.T, rtol=1e-12)
    if task == "single":
        expected = [names[column].removeprefix("p_") for column in scores.argmax(1)]
        right = np.mean(
            [a == b for a, b in zip(expected, together["label"].to_pylist(), strict=True)]
        )
        assert together["pred"].to_pylist() == expected
        assert found.metrics["wa"] == pytest.approx(right)
    elif task == "multi":
        bounds = np.mean([child.result.thresholds for child in group.children], axis=0)
        rows = [
            [n.removeprefix("p_") for n, one in zip(names, row, strict=True) if one]
            for row in scores >= bounds
        ]
        assert together["pred"].to_pylist() == rows
    else:
        np.testing.assert_allclose(together["pred"].to_numpy(), scores[:, 0])
    assert len(found.members) == 3 and found.seed is None
    assert (group.path / "metrics-ensemble.json").exists()
    logged = [(child.path / "test_log.jsonl").read_text().count("\n") for child in group.children]
    assert logged == [2, 2, 2], "every opening is logged in every run"


def test_several_runs_of_several_models(tmp_path):
    store = make_store(tmp_path, n=60)
    runs = [trained(store, tmp_path / name, model=name) for name in ("concat", "text")]
    words = ["evaluate", *(str(run.path) for run in runs), "--device", "cpu"]
    refused = CliRunner().invoke(cli.main, words)
    assert refused.exit_code == 2 and "--ensemble" in refused.output
    done = CliRunner().invoke(
        cli.main, [*words, "--ensemble", "--predictions", str(tmp_path / "p.parquet")]
    )
    assert done.exit_code == 0, done.output
    assert "An ensemble: the mean of the probabilities of 2 runs." in done.stdout
    assert (tmp_path / "p.parquet").exists() and not list(tmp_path.rglob("*-ensemble*"))


def test_what_is_no_ensemble_is_one_line(tmp_path):
    store = make_store(tmp_path, n=60)
    alone = trained(store, tmp_path / "alone")
    other = trained(make_store(tmp_path / "b", n=60, task="multi"), tmp_path / "other")
    folds = trained(store, tmp_path / "folds", folds="session")
    for runs, says in (
        ([alone], "one run is no ensemble"),
        ([alone, alone], "named twice"),
        ([alone, other], "another task or other labels"),
        ([folds], "other folds"),
    ):
        with pytest.raises(DataError, match=says):
            ensemble.members(runs)
    text = trained(store, tmp_path / "text", model="text")
    with pytest.raises(DataError, match="reads other features"):
        ensemble.check_alike([alone, text])


def test_new_clips_get_the_mean_and_it_is_said(tmp_path):
    """On a run over seeds; the features of the clip are those of a row of the store."""
    store = make_store(tmp_path, n=60)
    group = trained(store, tmp_path / "run", "train.calibrate=temperature", seeds=2)
    asked = predicting.Asked(device="cpu")
    clip = predicting.Utterance(id="u000", audio="a.wav", text="Hello.")
    rows = predicting._rows(group.children, store, [clip], {}, asked.device, predicting.SILENT)
    each = [answering.predict_rows(child, store, [0]).to_pylist()[0] for child in group.children]
    for name in group.children[0].spec.labels:
        mean = np.mean([row[f"p_{name}"] for row in each])
        assert rows[0][f"p_{name}"] == pytest.approx(mean)
    lines = "\n".join(predicting_lines(rows[0], group))
    assert "ensemble       mean of 2 runs of concat" in lines
    assert "calibrated     on dev, temperature each run's own" in lines
    one = predicting._rows(group.children[:1], store, [clip], {}, asked.device, predicting.SILENT)
    scaling = group.children[0].result.scaling
    assert f"temperature {scaling.temperature:.2f}" in "\n".join(predicting_lines(one[0], group))


def predicting_lines(row, group):
    from mer.fusion.evaluation.answer_text import prediction_lines

    return prediction_lines(row, group.children[0].spec)
