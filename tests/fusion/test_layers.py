"""`mer layers`: a linear probe for every layer, fitted on train, scored on dev."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.data import splits
from mer.fusion.evaluation import layers
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store

KEPT = {"audio": 4, "text": 3}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(layers, "RESAMPLES", 50)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_the_planted_layer_is_found_for_every_task(tmp_path, task):
    store = make_store(tmp_path, means=KEPT, task=task, signal=2.0)
    (audio, text), _ = layers.probe(store)
    assert [curve.name for curve in (audio, text)] == ["audio", "text"]
    assert len(audio.layers) == 4 and len(text.layers) == 3
    for curve in (audio, text):
        assert curve.best == 1 and curve.first <= 1 <= curve.last
        assert curve.settings[0] == "1"
        low, high = curve.layers[1].interval
        assert low <= curve.layers[1].figure <= high
    assert audio.metric == {"single": "wf1", "multi": "weighted_f1", "regression": "mae"}[task]
    assert audio.train == 72 and audio.dev == 24 and audio.absent == 0


def test_the_figures_are_those_of_another_implementation(tmp_path):
    """scikit-learn's logistic regression minimises C sum(loss) + |w|^2 / 2: ours over N C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    store = make_store(tmp_path, means=KEPT, signal=0.7)
    (curve,), _ = layers.probe(store, ["audio"])
    y = splits.targets(store.table(), "single", store.header.labels)
    split = np.array(store.table()["split"].to_pylist())
    train, dev = split == "train", split == "dev"
    for layer, x in enumerate(store.layer_means("audio").transpose(1, 0, 2)):
        scale = StandardScaler().fit(x[train])
        other = LogisticRegression(C=1 / (curve.strength * train.sum()), max_iter=1000, tol=1e-8)
        answer = other.fit(scale.transform(x[train]), y[train]).predict(scale.transform(x[dev]))
        expected = f1_score(y[dev], answer, average="weighted")
        assert curve.layers[layer].figure == pytest.approx(expected, abs=0.05)


def test_no_test_row_is_read(tmp_path, monkeypatch):
    store = make_store(tmp_path, means=KEPT)
    calls: list[set[int]] = []
    whole = type(store).layer_means

    def recorded(self, modality, rows=None):
        calls.append(set(range(len(self)) if rows is None else np.asarray(rows).tolist()))
        return whole(self, modality, rows)

    monkeypatch.setattr(type(store), "layer_means", recorded)
    table = store.table()
    layers.probe(store, ["text"])
    assert calls and not set().union(*calls) & set(splits.held_out(table).tolist())
    calls.clear()
    (curve,), _ = layers.probe(store, ["text"], folds="speaker")
    target = splits.targets(table, "single", store.header.labels)
    folds, _ = splits.folds(table, target, "speaker")
    assert curve.train + curve.dev == sum(map(len, calls))
    # one fold after the other, each with the same number of reads
    each, odd = divmod(len(calls), len(folds))
    assert each > 0 and odd == 0
    for number, fold in enumerate(folds):
        read = set().union(*calls[each * number : each * (number + 1)])
        held = set(splits.held_out(table, fold).tolist())
        assert read and held and not read & held
        assert read | held == set(range(len(store)))


def test_the_layers_around_the_best_one_that_are_within_the_noise():
    within = np.array([True, False, True, True, True, False, True])
    assert layers._around(3, within) == (2, 4)
    assert layers._around(0, within) == (0, 0) and layers._around(6, within) == (6, 6)


def test_dev_is_carved_as_the_trainer_does_and_absent_utterances_are_counted(tmp_path):
    store = make_store(tmp_path, means=KEPT, absent={"audio": [0, 1, 2]})
    (curve,), notes = layers.probe(store, ["audio"])
    assert curve.absent == 3 and notes == []
    lines = layers.lines(curve, "--audio-layer")
    assert "3 utterances have no audio and are left out" in lines[1]
    assert lines[-1] == "  too few rows to tell: 24 dev rows" and "bars begin at 0" in lines[0]
    bare = make_store(tmp_path / "bare", means=KEPT, splits=False)
    with pytest.raises(DataError, match="--folds"):
        layers.probe(bare)
    assert layers.probe(bare, folds="speaker")[0]


def test_bars_begin_at_zero_and_intervals_that_all_overlap_are_said():
    def curve(*found):
        made = tuple(layers.Layer(k, *one) for k, one in enumerate(found))
        best = max(made, key=lambda one: one.figure).layer
        return layers.Curve("audio", "wf1", "speaker", 9, 90, 60, 0, 1.0, made, best, best, best)

    apart = curve((0.3, (0.2, 0.4)), (0.6, (0.5, 0.7)), (0.0, (0.0, 0.1)))
    bars = [line.count("#") for line in layers.lines(apart, "--audio-layer")[1:4]]
    assert bars == [15, 30, 0] and apart.doubt == ""
    alike = curve((0.50, (0.4, 0.6)), (0.55, (0.45, 0.65)))
    assert alike.doubt == "too few rows to tell: the intervals of all layers overlap"
    assert layers.lines(alike, "--audio-layer")[-1] == f"  {alike.doubt}"


@pytest.mark.parametrize(
    ("kept", "arguments", "said"),
    [
        ({}, [], "has no layer means of its features; extract it again with --layer-means --force"),
        ({"audio": 4}, ["--modality", "text"], "has no layer means of text"),
        ({"audio": 4}, ["--modality", "txet"], "the store has audio, text (did you mean 'text'?)"),
        ({"audio": 4}, ["--modality", "smell"], "--modality smell: the store has audio, text"),
        ({"audio": 4}, ["--out", "curve.pdf"], "name a file ending in .png, .svg, .html"),
    ],
)
def test_bad_input_is_one_line(tmp_path, kept, arguments, said):
    store = make_store(tmp_path, means=kept)
    done = CliRunner().invoke(main, ["layers", str(store.path), *arguments])
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert said in done.output


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_the_command_prints_and_draws(tmp_path, kind):
    store = make_store(tmp_path, means=KEPT)
    out = tmp_path / f"curve.{kind}"
    command = ["layers", str(store.path), "--out", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "best: --audio-layer 1" in done.stdout and "best: --text-layer 1" in done.stdout
    assert done.stdout.count("WF1: F1 averaged over the classes by their size.") == 1
    begin = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!doctype html>"}[kind]
    raw = out.read_bytes()
    assert raw.startswith(begin)
    if kind == "html":
        assert b"<svg" in raw and b"--audio-layer 1" in raw
        assert raw.count(b"WF1: F1 averaged over the classes by their size.") == 1
    again = CliRunner().invoke(main, [*command, "--json", "--modality", "text"])
    found = json.loads(again.stdout)
    assert list(found) == ["text"] and found["text"]["best"] == 1
    assert found["text"]["extract"][0] == "1" and len(found["text"]["layers"]) == 3
