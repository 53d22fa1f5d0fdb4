"""`mer evaluate --robustness`: what a model does without a modality, with noise, where its heads
disagree, by speaker; held against predictions that are made by hand.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import report
from mer.fusion.batch import Batch
from mer.fusion.evaluation import alterations, robustness, robustness_tables, scoring
from mer.fusion.evaluation.answering import predict_rows
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.evaluation.robustness import Bin
from mer.fusion.report import figures, pictures
from mer.fusion.report.drawing import scene
from mer.fusion.runs import ledger
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import files, typed
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, a run of two seeds on it, and the same without ED."""
    folder = tmp_path_factory.mktemp("robust")
    store = make_store(folder, absent={"text": [16, 17]})  # two test rows have no words
    runs = []
    for name, more in (("drkf", ()), ("without", ("model_args.w_ed=0",))):
        sets = settings("train.epochs=1", *more, model="drkf")
        runs.append(experiment.train(store, sets, folder / name, seeds=2, note=quiet))
        evaluate(runs[-1], note=quiet)
    return store, *runs


@pytest.fixture(scope="module")
def measured(made):
    store, run, other = made
    return robustness.measure(run, against=other, note=quiet)


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def wf1(run, store, rows, change) -> float:
    """Mean over the seeds, by scikit-learn."""
    from sklearn.metrics import f1_score

    figures = []
    for child in run.children:
        table = predict_rows(child, store, rows, change=change)
        true, pred = table["label"].to_pylist(), table["pred"].to_pylist()
        figures.append(f1_score(true, pred, average="weighted", zero_division=0))
    return float(np.mean(figures))


def test_figures_are_those_of_altered_predictions(made, measured):
    store, run, _ = made
    test = np.flatnonzero(np.array(store.table()["split"].to_pylist()) == "test")
    assert measured.n == len(test) == 24 and measured.seeds == 2 and measured.metric == "wf1"
    assert measured.value == pytest.approx(wf1(run, store, test, None))
    found = {(one.what, one.modality, one.level): one for one in measured.altered}
    kinds = [("without", None), ("swapped", None), *(("noise", k) for k in alterations.LEVELS)]
    assert found.keys() == {(what, m, level) for what, level in kinds for m in ("audio", "text")}
    # without their voice the two rows that have no words have nothing
    rest = np.array([row for row in test if row not in (16, 17)])
    silent = found["without", "audio", None]
    assert silent.n == 22
    assert silent.value == pytest.approx(wf1(run, store, rest, alterations.without("audio")))
    plain = wf1(run, store, rest, None)
    assert silent.difference == pytest.approx(silent.value - plain)
    assert found["without", "text", None].n == 24
    assert silent.interval[0] <= silent.difference <= silent.interval[1]
    assert all(one.p <= one.p_holm <= 1 for one in measured.altered)


def test_a_modality_that_is_taken_away_is_absent():
    batch = Batch(
        {"audio": torch.ones(2, 3, 4), "text": torch.ones(2, 5, 6)},
        {"audio": torch.tensor([3, 1]), "text": torch.tensor([5, 0])},
        torch.tensor([0, 1]),
        torch.tensor([7, 8]),
    )
    found = alterations.without("audio")(batch)
    assert found.lengths["audio"].tolist() == [0, 0] and not found.x["audio"].any()
    assert torch.equal(found.x["text"], batch.x["text"])


def test_a_modality_of_another_utterance():
    """Nobody keeps its own, each is given once, and who has none gets none."""
    x = torch.arange(6.0).reshape(6, 1, 1)
    lengths = torch.tensor([1, 1, 0, 1, 1, 1])
    batch = Batch({"audio": x}, {"audio": lengths}, torch.zeros(6), torch.arange(6))
    found = alterations.swapped("audio")(batch)
    given = found.x["audio"].flatten().tolist()
    assert sorted(given) == [0, 1, 2, 3, 4, 5] and given[2] == 2
    assert all(mine != own for own, mine in enumerate(given) if own != 2)
    assert torch.equal(found.lengths["audio"], lengths)


def test_noise_is_an_offset_of_the_utterance_of_the_size_that_is_named():
    """A thousand rows: the deviation of the offsets is that of the level, and padding stays 0."""
    deviation = torch.tensor([1.0, 4.0, 0.0])
    x = torch.zeros(1000, 2, 3)
    lengths = torch.where(torch.arange(1000) < 500, 2, 1)
    batch = Batch({"audio": x}, {"audio": lengths}, torch.zeros(1000), torch.arange(1000))
    change = alterations.noisy("audio", 0.5, deviation, 0)
    moved = change(batch).x["audio"]
    assert moved[:, 0].std(0).tolist() == pytest.approx([0.5, 2.0, 0.0], rel=0.1)
    assert torch.equal(moved[:500, 0], moved[:500, 1]) and not moved[500:, 1].any()
    # it follows from the row, whatever batch that is in
    order = torch.arange(999, -1, -1)
    turned = Batch({"audio": x}, {"audio": lengths[order]}, batch.target, order)
    assert torch.equal(change(turned).x["audio"][0, 0], moved[999, 0])


def test_deviations_are_over_utterances_by_hand():
    """Means 1 and 3 of two utterances: deviation 1; a third one is absent."""
    moments = alterations.Moments()
    x = torch.tensor([[[0.0], [2.0]], [[3.0], [99.0]], [[50.0], [50.0]]])
    lengths = torch.tensor([2, 1, 0])
    moments.count(Batch({"audio": x}, {"audio": lengths}, torch.zeros(3), torch.arange(3)))
    assert moments.deviation("audio").tolist() == pytest.approx([1.0])


def test_heads_and_the_difference_from_another_run(made, measured):
    store, run, other = made
    assert [one.agree for one in measured.heads] == [True, False]
    assert sum(one.n for one in measured.heads) == 22  # two have no words to agree with
    assert measured.against == str(other.path)
    whole = report.results.predictions(run)
    differ = [scoring.where_heads_differ(p, ("audio", "text")) for p in whole]
    rows = np.flatnonzero(np.mean(differ, axis=0) > 0.5)
    assert measured.heads[1].n == len(rows)
    theirs = report.results.predictions(other)
    for one, kept in ((measured.heads[1], rows),):
        if len(kept):
            mine = np.mean([p.figures(kept)["wf1"] for p in whole])
            assert one.value == pytest.approx(mine)
            gap = mine - np.mean([p.figures(kept)["wf1"] for p in theirs])
            assert one.difference == pytest.approx(gap)


def test_calibration_speakers_and_confusions_by_hand(made, measured):
    """All counts are those of the predictions."""
    store, run, _ = made
    assert sum(one.n for one in measured.calibration) == 48  # two seeds
    whole = report.results.predictions(run)
    right = np.mean([np.mean(p.pred == p.true) for p in whole])
    shares = [one.n * one.right for one in measured.calibration]
    assert sum(shares) / 48 == pytest.approx(right)
    wrong = np.mean([np.sum(p.pred != p.true) for p in whole])
    assert sum(one.n for one in measured.confused) == pytest.approx(wrong)
    names = whole[0].table["speaker"].to_pylist()
    for one in measured.speakers:
        rows = np.array([place for place, name in enumerate(names) if name == one.name])
        assert one.n == len(rows) >= robustness.FEWEST_OF_A_SPEAKER
        assert one.value == pytest.approx(np.mean([p.figures(rows)["wf1"] for p in whole]))
    values = [one.value for one in measured.speakers]
    assert values == sorted(values)


def test_it_is_an_opening_that_the_ledger_knows(made, measured):
    store, run, other = made
    found = ledger.read(ledger.beside(store.path)).openings
    looked = [one for one in found if one.what == "robustness"]
    assert len(looked) == 4 and len({one.training for one in looked}) == 4
    assert not (run.path / "robustness-dev.json").exists()
    robustness.measure(run, split="dev", note=quiet)
    assert (run.path / "robustness-dev.json").exists()
    assert len(ledger.read(ledger.beside(store.path)).openings) == len(found)


def test_the_report_shows_what_was_measured_and_measures_nothing(made, measured, tmp_path):
    store, run, other = made
    before = ledger.beside(store.path).read_bytes()
    page = report.page([run, other])
    assert ledger.beside(store.path).read_bytes() == before
    assert page.count("when a modality fails") >= 1 and "without audio" in page
    assert "what is confused" in page and "heads disagree" in page
    assert "when a modality fails" not in report.page([other])
    # of other weights, or damaged: named, and the run is left out
    path = run.path / "robustness.json"
    raw = path.read_bytes()
    try:
        value = json.loads(raw)
        value.pop(files.SEAL)
        files.write_json(path, {**value, "weights": ["0", "1"]})
        with pytest.raises(DataError, match=r"robustness\.json: damaged \(of other weights"):
            report.gather([run.path])
        path.write_bytes(raw.replace(b"0.", b"1.", 1))
        with pytest.raises(DataError, match="does not match its checksum"):
            robustness.stored(Run.open(run.path))
    finally:
        path.write_bytes(raw)


def test_the_calibration_curve_is_drawn_where_its_numbers_say(measured):
    """By hand: bins of 5, 15, … % in a picture whose axes go from 0 to 100 %."""
    bins = (Bin(0.6, 0.7, 4, 0.65, 0.5), Bin(0.9, 1.0, 1, 0.95, 1.0))
    made = pictures.reliability(replace(measured, calibration=bins))
    assert made.bins == ((0.65, 0.5, 4), (0.95, 1.0, 1)) and made.name == "calibration"
    drawn = scene(made)
    (line,) = [one for one in drawn.marks if one.attributes.get("class") == "chance"]
    left, right, bottom, top = (line.attributes[end] for end in ("x1", "x2", "y1", "y2"))
    dots = [one.attributes for one in drawn.marks if one.tag == "circle"]
    for dot, (mean, share) in zip(dots, ((0.65, 0.5), (0.95, 1.0)), strict=True):
        assert dot["cx"] == pytest.approx(left + mean * (right - left), abs=0.1)
        assert dot["cy"] == pytest.approx(bottom + share * (top - bottom), abs=0.1)
    assert "4 answers of 65 % on average: 50 % right. 1 answer of 95 %" in drawn.description
    curve = figures.draw(made).axes[0].lines[1]
    np.testing.assert_allclose(curve.get_xydata(), [[65, 50], [95, 100]])
    assert pictures.reliability(replace(measured, calibration=())) is None


def test_an_interval_without_width_is_a_dash(measured):
    """Noise that changes no answer of these utterances says nothing of others."""
    none = replace(measured.altered[0], difference=0.0, interval=(0.0, 0.0), p=1.0, p_holm=1.0)
    rows = robustness_tables.tables(replace(measured, altered=(none,)))[0].rows
    assert rows[1][2:5] == ("+0.0", "–", "1.000")


def test_the_report_tells_dev_from_test(made, measured):
    """Both may have been measured, and stand below each other."""
    run = made[1]
    told = typed.tree(replace(measured, split="dev"))
    files.write_json(run.path / "robustness-dev.json", told)
    page = report.page([run])
    for name in ("calibration", "calibration-dev"):
        assert page.count(f'<figure id="run-1-{name}"') == 1
    titles = re.findall("<caption[^>]*>(.*?)</caption>", page)
    assert len(set(titles)) == len(titles) and "what is confused, dev" in titles


@pytest.mark.parametrize(("model", "task"), [("concat", "regression"), ("text", "single")])
def test_other_tasks_and_models(tmp_path, model, task):
    """A regression has no calibration and no confusions; a model of one modality is not tried
    without it.
    """
    store = make_store(tmp_path, task=task)
    run = experiment.train(
        store, settings("train.epochs=1", model=model), tmp_path / "run", note=quiet
    )
    found = robustness.measure(run, note=quiet)
    without = {one.modality for one in found.altered if one.what == "without"}
    noise = {one.modality for one in found.altered if one.what == "noise"}
    assert without == (set() if model == "text" else {"audio", "text"})
    assert noise == ({"text"} if model == "text" else {"audio", "text"})
    assert bool(found.calibration) == (task == "single") and found.heads == ()
    assert robustness_tables.tables(found) and robustness.stored(run) == found


def test_from_the_command_line(tmp_path):
    store = make_store(tmp_path)
    run = experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    other = make_store(tmp_path / "b", n=80, labels=("calm", "glad", "angry"))
    stranger = experiment.train(other, settings("train.epochs=1"), tmp_path / "b" / "r", note=quiet)
    told = call("evaluate", run.path, "--robustness", "--split", "dev")
    assert told.exit_code == 0, told.output
    assert "concat on toy dev, when a modality fails" in told.stdout
    assert "noise on audio, 0.25 sd" in told.stdout
    as_json = call("evaluate", run.path, "--robustness", "--split", "dev", "--json")
    assert len(json.loads(as_json.stdout)["robustness"]["altered"]) == 10
    assert call("evaluate", run.path, "--against", run.path).exit_code == 2
    again = settings("train.epochs=1", "train.seed=1")
    again = experiment.train(store, again, tmp_path / "again", note=quiet)
    headless = call("evaluate", run.path, "--robustness", "--against", again.path)
    assert headless.exit_code == 1 and "concat has no heads of single modalities" in headless.stderr
    gone = call("evaluate", run.path, "--robustness", "--against", tmp_path / "none")
    assert gone.exit_code == 1 and "not a run folder" in gone.stderr
    asked = ("evaluate", run.path, "--robustness", "--split", "dev", "--against", stranger.path)
    wrong = call(*asked)
    assert wrong.exit_code == 4 and "labels" in wrong.stderr
