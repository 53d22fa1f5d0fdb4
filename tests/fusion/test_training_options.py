"""Options of a training that are off by default: a moving average of the weights, modality dropout,
temperature scaling, attentive pooling. Off, nothing of a run changes.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mer.fusion.config import TrainConfig, load, presets, to_toml
from mer.fusion.evaluation import evaluate
from mer.fusion.measures import calibration, metrics
from mer.fusion.models import REGISTRY
from mer.fusion.modules.modality_dropout import drop_modalities
from mer.fusion.modules.pooling import AttentiveStatistics
from mer.fusion.runs import checkpoint, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.training import experiment, resume
from mer.fusion.training.averaging import WeightAverage
from mer.fusion.training.training_setup import class_weights
from mer.pipeline.errors import DataError

from tests.fusion.models import make_batch, make_model, make_spec, total
from tests.fusion.stores import make_store, quiet

ALL = ("audio", "text", "vision")
SMALL = ("model_args.hidden=8", "train.epochs=3", "train.batch_size=16")


def trained(store, folder, *sets, model="concat", note=quiet) -> Run:
    settings = load(model=model, sets=[*SMALL, *sets])
    return experiment.train(store, settings, folder, note=note)


def test_defaults_leave_the_configuration_as_it_was_written_before():
    text = to_toml(TrainConfig(model="dmd"))
    for key in ("ema", "modality_dropout", "calibrate", "cooldown"):
        assert key not in text
    assert "pooling" not in to_toml(load(model="concat"))


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_with_a_cosine_lets_it_end_when_training_ends(name):
    chosen = load(preset=name)
    assert chosen.optim.schedule != "cosine" or chosen.train.cooldown > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim.ema=1", "at least 0 and below 1"),
        ("train.modality_dropout=1", r"in \[0, 1\)"),
        ("train.cooldown=-1", "at least 0"),
        ("train.calibrate=temp", "expected one of none, temperature"),
    ],
)
def test_values_that_make_no_sense(text, says):
    with pytest.raises(DataError, match=says):
        load(model="concat", sets=[text])


def test_what_changes_nothing_is_said(tmp_path):
    """Modality dropout of a model of one modality, and a width of no context."""
    store, said = make_store(tmp_path, n=60), []
    sets = ("train.modality_dropout=0.5", "data.context_width=3", "train.epochs=1")
    trained(store, tmp_path / "text", *sets, model="text", note=said.append)
    assert "train.modality_dropout does nothing: the model reads text alone" in said
    assert "data.context_width does nothing without data.context=past or both" in said
    said.clear()
    trained(store, tmp_path / "concat", sets[0], sets[2], note=said.append)
    assert not [line for line in said if "does nothing" in line]
    loss = "model_args.regression_loss=mse"
    trained(store, tmp_path / "loss", loss, sets[2], note=said.append)
    assert "model_args.regression_loss does nothing: the task is single" in said
    numbers = make_store(tmp_path / "numbers", n=60, task="regression")
    smooth = "model_args.label_smoothing=0.1"
    trained(numbers, tmp_path / "smooth", smooth, loss, sets[2], note=said.append)
    assert "model_args.label_smoothing does nothing: the task is regression" in said
    assert sum("does nothing" in line for line in said) == 2


# ---- Moving average


def test_the_average_is_that_of_the_formula():
    """By hand, with the decay of each step: min(decay, (1 + t) / (10 + t))."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, 0.3)
    expected = 1.0
    for t, weight in enumerate((2.0, -1.0, 4.0, 0.5, 7.0)):
        model.weight.data.fill_(weight)
        average.update()
        decay = min(0.3, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weight
        assert average.weights["weight"].item() == pytest.approx(expected)
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 7.0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_with_an_average_equals_an_uninterrupted_one(tmp_path, monkeypatch, after):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    store, sets = make_store(tmp_path, n=60), ("optim.ema=0.9", "train.modality_dropout=0.3")
    whole = trained(store, tmp_path / "whole", *sets)

    def kill(line: str) -> None:
        if line.startswith(f"epoch {after:3d}"):
            raise Killed

    with pytest.raises(Killed):
        trained(store, tmp_path / "cut", *sets, note=kill)
    again = trained(store, tmp_path / "cut", *sets)
    assert (whole.path / "model.safetensors").read_bytes() == (
        again.path / "model.safetensors"
    ).read_bytes()
    assert again.result.dev == whole.result.dev


def test_dev_scores_the_average_and_the_run_keeps_it(tmp_path):
    """The figures of the run are those that its kept weights give when they are evaluated."""
    store = make_store(tmp_path, n=60)
    run = trained(store, tmp_path / "run", "optim.ema=0.95")
    plain = trained(store, tmp_path / "plain")
    found = evaluate.evaluate(run, split="dev", note=quiet)
    assert found.metrics["wf1"] == pytest.approx(run.result.dev["wf1"])
    ours = checkpoint.load_tensors(run.path / "model.safetensors")[0]
    theirs = checkpoint.load_tensors(plain.path / "model.safetensors")[0]
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


# ---- Modality dropout


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_row_that_lost_modalities_is_one_that_never_had_them(name):
    """For every model the losses are finite, every parameter gets a gradient over a few batches,
    and what lies in the place of a lost modality is never read.
    """
    spec = make_spec(ALL)
    model, batch = make_model(name, spec), make_batch(spec)
    torch.manual_seed(0)
    touched = set()
    for _ in range(4):
        lost = drop_modalities(batch, 0.5, model.modalities)
        gone = {m: lost.lengths[m] == 0 for m in ALL}
        nan = replace(
            lost, x={m: x.masked_fill(gone[m][:, None, None], torch.nan) for m, x in lost.x.items()}
        )
        loss, terms = total(model, nan)
        assert all(t.isfinite() for t in terms.values()), terms
        model.zero_grad()
        loss.backward()
        for key, p in model.named_parameters():
            if p.grad is not None:
                assert p.grad.isfinite().all(), key
                touched.add(key)
    assert touched == {key for key, _ in model.named_parameters()}


def test_modalities_go_as_often_as_asked_and_one_always_stays():
    """Shares by hand: of three modalities each goes with 0.4, but not all of them together (0.064),
    where each is as likely to stay: 0.4 - 0.064 / 3. What was absent is never there.
    """
    spec = make_spec(ALL)
    batch = make_batch(spec, 8)
    batch.lengths["text"][:2] = 0
    torch.manual_seed(0)
    gone = torch.zeros(8, 3)
    rounds = 4000
    for _ in range(rounds):
        lost = drop_modalities(batch, 0.4, ALL)
        there = torch.stack([lost.lengths[m] > 0 for m in ALL], 1)
        assert there.any(1).all() and not there[:2, 1].any()
        gone += (~there).float()
    assert (gone[2:] / rounds - (0.4 - 0.064 / 3)).abs().max() < 0.03
    assert (gone[:2, [0, 2]] / rounds - (0.4 - 0.16 / 2)).abs().max() < 0.03
    for m in ALL:
        assert (lost.x[m][lost.lengths[m] == 0] == 0).all()
    assert drop_modalities(batch, 0.4, ("audio",)) is batch


# ---- Temperature


def test_the_temperature_is_the_one_that_made_the_scores():
    """Labels drawn from softmax(z), scores from softmax(3 z): a temperature of 3 undoes it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4))
    true = calibration.scaled(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1.0)
    target = (true.cumsum(1) > rng.random((len(true), 1))).argmax(1)
    sharp = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    found = calibration.fit(sharp, target)
    assert found.temperature == pytest.approx(3, rel=0.03)
    assert found.ece_after < 0.02 < 0.2 < found.ece_before
    assert found.nll_after < found.nll_before
    np.testing.assert_allclose(calibration.scaled(sharp, 3.0), true, atol=1e-12)


def test_certain_and_impossible_answers_stay_finite():
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = calibration.fit(scores, np.array([0, 1, 1]))
    assert all(map(math.isfinite, (found.temperature, found.nll_before, found.nll_after)))
    np.testing.assert_array_equal(calibration.scaled(scores, 2.0), scores)
    assert calibration.fit(scores, np.array([-1, -1, -1])) is None
    right = calibration.fit(np.array([[0.9, 0.1]] * 4), np.zeros(4, dtype=int))
    assert right.temperature == pytest.approx(calibration.LOWEST) and "bound" in str(right)


def test_a_calibrated_run_answers_the_same_with_other_probabilities(tmp_path):
    """The run keeps what it did to dev, and every probability is softmax(z / T) of the run without:
    the weights are the same to the bit.
    """
    store = make_store(tmp_path, n=120, signal=0.7)
    said: list[str] = []
    run = trained(store, tmp_path / "run", "train.calibrate=temperature", note=said.append)
    plain = trained(store, tmp_path / "plain")
    weights = "model.safetensors"
    ours, theirs = (checkpoint.load_tensors(one.path / weights)[0] for one in (run, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    scaling = run.result.scaling
    assert plain.result.scaling is None and str(scaling) in said
    assert json.loads((run.path / "run.json").read_text())["scaling"]["ece_after"] is not None
    for one in (run, plain):
        evaluate.evaluate(one, note=quiet)
    with_, without = result_files.read_predictions(run), result_files.read_predictions(plain)
    assert (with_.pred == without.pred).all()
    names = [f"p_{label}" for label in with_.labels]
    scores = [np.stack([p.table[n].to_numpy() for n in names], 1) for p in (with_, without)]
    logits = np.log(scores[1]) / scaling.temperature
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(scores[0], expected, atol=1e-12)
    figures = result_files.stored_metrics(run).calibration
    assert figures.ece == pytest.approx(metrics.ece(scores[0].max(1), with_.pred == with_.true))
    assert figures.uncalibrated == pytest.approx(result_files.stored_metrics(plain).calibration.ece)


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_other_tasks_have_no_temperature(tmp_path, task):
    store = make_store(tmp_path, n=60, task=task)
    with pytest.raises(DataError, match=f"the task here is {task}, use none"):
        trained(store, tmp_path / "run", "train.calibrate=temperature")


# ---- Attentive statistics pooling


def test_attentive_pooling_is_its_equation_step_by_step():
    """In plain loops and float64, of rows with 3, 1 and no steps."""
    torch.manual_seed(0)
    pool = AttentiveStatistics(4, 5).double()
    x = torch.randn(3, 3, 4, dtype=torch.float64)
    lengths = torch.tensor([3, 1, 0])
    mask = torch.arange(3) < lengths[:, None]
    found = pool(x.where(mask[..., None], torch.nan), mask)
    for row, n in enumerate(lengths.tolist()):
        if n == 0:
            assert (found[row] == 0).all()
            continue
        scores = [pool.score(torch.tanh(pool.hidden(step))) for step in x[row, :n]]
        weights = torch.cat(scores).softmax(0)
        mean = sum(w * step for w, step in zip(weights, x[row, :n], strict=True))
        pairs = zip(weights, x[row, :n], strict=True)
        variance = sum(w * (step - mean) ** 2 for w, step in pairs)
        torch.testing.assert_close(found[row], torch.cat([mean, (variance + 1e-8).sqrt()]))


@pytest.mark.parametrize("layers", ["auto", "stored"])
def test_a_pooled_model_with_attention_trains_evaluates_and_learns_when(tmp_path, layers):
    """Steps carry the signal; the run reads them, of a store with layer means and stacks, too."""
    store = make_store(tmp_path, means={"text": 3}, stacks={"audio": (0, 1)})
    size = ("model_args.hidden=16", "train.epochs=12", "optim.lr=3e-3")
    sets = ("model_args.pooling=attentive", f"data.layers={layers}", *size)
    run = trained(store, tmp_path / "run", *sets)
    found = evaluate.evaluate(run, split="dev", note=quiet)
    assert found.metrics["wf1"] == pytest.approx(run.result.dev["wf1"])
    assert run.result.dev["wf1"] > 0.6


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_the_log_has_the_layers_of_the_weights_that_are_kept(tmp_path, ema):
    store = make_store(tmp_path, n=60, means={"audio": 3})
    run = trained(store, tmp_path / "run", f"optim.ema={ema}", "optim.lr=1e-2", model="audio")
    lines = (run.path / "log.jsonl").read_text().splitlines()
    logged = json.loads(lines[run.result.best_epoch - 1])["layers"]["audio"]
    kept = checkpoint.load_tensors(run.path / checkpoint.MODEL)[0]["mix.audio.0.weight"]
    assert list(logged.values()) == pytest.approx(kept.softmax(0).tolist(), abs=1e-7)
    assert len(set(logged.values())) == 3


# ---- Class weights


def test_a_label_that_every_row_has_is_learnt():
    """By hand, of four rows: n_negative / n_positive is 1 and 3; of all and of none it says
    nothing.
    """
    target = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    spec = replace(make_spec(("audio",), "multi"), labels=("all", "half", "one", "none"))
    assert class_weights(target, spec, "balanced").tolist() == [1, 1, 3, 1]
    assert class_weights(target, spec, "sqrt").tolist() == pytest.approx([1, 1, 3**0.5, 1])
