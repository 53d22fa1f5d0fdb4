"""Each modality missing, or that of another row: held against stores in which it is so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from mer import cli
from mer.fusion import evaluate, experiment, infer, robustness
from mer.fusion.config import load
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import make_store, quiet

SMALL = ("model_args.hidden=16", "train.epochs=8", "train.batch_size=16", "optim.lr=3e-3")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robustness")
    store = make_store(folder, signal=1.0)
    settings = load(model="concat", sets=SMALL)
    run = experiment.train(store, settings, folder / "run", seeds=2, note=quiet)
    return folder, store, run


def test_without_a_modality_is_a_store_without_it(desk):
    """Of the same rows: one in which every utterance lacks the modality gives these figures."""
    folder, store, run = desk
    found = robustness.robustness(run, store.path, "dev")
    bare = make_store(folder / "bare", signal=1.0, absent={"text": range(120)})
    child = run.children[0]
    with FeatureStore(store.path) as there:
        whole = evaluate.part_of(child, there, "dev", "cpu")
        gone = robustness.Altered(whole, robustness.without("text"))
        ours = infer.infer(child.model(), gone).scores
        rows = whole.rows
    theirs = evaluate.predict_rows(child, bare, rows)
    names = [f"p_{name}" for name in child.spec.labels]
    expected = np.stack([theirs[name].to_numpy() for name in names], 1)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert found.figures["without text"] != found.figures[robustness.WHOLE]


def test_the_modality_of_another_row_is_its_own_and_nobody_keeps_its_own(desk):
    _, store, run = desk
    with FeatureStore(store.path) as there:
        part = evaluate.part_of(run.children[0], there, "dev", "cpu")
        index = np.arange(len(part))
        plain = part.batch(index)
        swapped = robustness.of_another(part, "audio")(plain, index)
    x = {"ours": swapped.x["audio"].flatten(1), "plain": plain.x["audio"].flatten(1)}
    pairs = (x["ours"][:, None] == x["plain"][None]).all(2).numpy()
    assert (pairs.sum(0) == 1).all() and (pairs.sum(1) == 1).all(), "each is taken once"
    assert not pairs.diagonal().any()
    assert (swapped.x["text"] == plain.x["text"]).all()
    assert (swapped.target == plain.target).all()


def test_figures_are_means_over_seeds_and_the_signal_of_audio_is_missed(desk):
    _, store, run = desk
    found = robustness.robustness(run, store.path, "dev")
    by_hand = np.mean([child.result.dev["wf1"] for child in run.children])
    assert found.figures[robustness.WHOLE]["wf1"] == pytest.approx(by_hand)
    assert set(found.figures) == {
        robustness.WHOLE,
        "without audio",
        "without text",
        "audio of another row",
        "text of another row",
    }
    assert found.drop["audio of another row"] < -0.1, "audio carries most of the signal"
    low, high = found.interval["audio of another row"]
    assert low <= found.drop["audio of another row"] <= high
    stored = json.loads((run.path / "robustness-dev.json").read_text())
    assert stored["figures"]["without audio"]["wf1"] == found.figures["without audio"]["wf1"]


def test_command_and_what_it_refuses(desk):
    folder, store, run = desk
    words = ["evaluate", str(run.path), "--split", "dev", "--device", "cpu"]
    done = CliRunner().invoke(cli.main, [*words, "--robustness"])
    assert done.exit_code == 0, done.output
    assert "without audio" in done.stdout and "change of WF1" in done.stdout
    both = CliRunner().invoke(cli.main, [*words, "--robustness", "--ensemble"])
    assert both.exit_code == 2 and "leave out --ensemble" in both.output
    settings = load(model="audio", sets=SMALL)
    folds = experiment.train(store, settings, folder / "folds", folds="session", note=quiet)
    with pytest.raises(DataError, match="over folds: name one of its runs"):
        robustness.robustness(folds, store.path)
    alone = robustness.robustness(folds.children[0], store.path)
    assert set(alone.figures) == {robustness.WHOLE, "audio of another row"}
    logged = (folds.children[0].path / "test_log.jsonl").read_text()
    assert logged.count("\n") == 1
