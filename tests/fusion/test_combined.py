"""MER2023's combined measure, of two runs on the same test rows; by scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scipy import stats
from sklearn.metrics import f1_score, mean_squared_error

from mer.cli import main
from mer.fusion.evaluation import combined
from mer.fusion.evaluation import scoring as module
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.measures import intervals
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import Predicted
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


def predicted(true: np.ndarray, pred: np.ndarray, task: str, labels: tuple[str, ...]) -> Predicted:
    return Predicted(None, true, pred, task, labels)


def test_it_is_the_challenges_in_200_random_cases():
    """Ties, zeros, one class alone, a class that nobody answers and clips in one group among them;
    the reference is what the challenge's baseline computes.
    """
    rng = np.random.default_rng(0)
    labels = ("neutral", "angry", "happy", "sad", "worried", "surprise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RESAMPLES", 2)
        for case in range(200):
            n = int(rng.integers(1, 40))
            classes = int(rng.integers(1, 7))
            true, pred = rng.integers(0, classes, size=(2, n))
            values = rng.choice([-5.0, -1.5, 0.0, 0.0, 2.0, 4.5], size=(n, 1)).astype(np.float32)
            said = values[:, 0] if case % 10 == 0 else rng.normal(0, 2, size=n).round(case % 3)
            groups = rng.integers(0, 4, size=n)
            wf1 = combined._wf1([predicted(true, pred, "single", labels)], groups)
            mse = combined._mse([predicted(values, said, "regression", ("valence",))], groups)
            found = combined.measure(wf1.values, mse.values)[0]
            f1 = f1_score(true, pred, average="weighted", zero_division=0)
            wanted = f1 - mean_squared_error(values[:, 0], said) * 0.25
            assert found == pytest.approx(wanted, abs=1e-9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_resamples):
    """An emotion of two seeds, and a valence of as many and of one, of the same clips."""
    folder = tmp_path_factory.mktemp("mer2023")
    made = {}
    for name, task, seeds in (("emotion", "single", 2), ("v", "regression", 2), ("w", "", 1)):
        store = make_store(folder / (task or "regression"), task=task or "regression")
        asked = settings("train.epochs=1")
        made[name] = experiment.train(store, asked, folder / name, seeds=seeds, note=quiet)
        evaluate(made[name], note=quiet)
    return made


def by_hand(emotion: Run, valence: Run) -> list[float]:
    """The measure of each pair of seeds."""
    found = []
    for one, other in zip(emotion.children, valence.children * 2, strict=False):
        rows = pq.read_table(one.path / "predictions.parquet").to_pylist()
        values = {
            row["id"]: (row["targets"][0], row["pred"])
            for row in pq.read_table(other.path / "predictions.parquet").to_pylist()
        }
        f1 = f1_score([r["label"] for r in rows], [r["pred"] for r in rows], average="weighted")
        squared = [(values[row["id"]][0] - values[row["id"]][1]) ** 2 for row in rows]
        found.append(f1 - 0.25 * np.mean(squared))
    return found


def test_it_is_the_mean_over_seeds(runs):
    for name in ("v", "w"):
        found = combined.of_runs(runs["emotion"], runs[name])
        assert found.combined == pytest.approx(np.mean(by_hand(runs["emotion"], runs[name])))
        assert found.combined == pytest.approx(found.wf1 - 0.25 * found.mse)
        low, high = found.interval
        assert low < found.combined < high and found.n == 24


def test_the_command_prints_it(runs):
    words = ["evaluate", str(runs["emotion"].path), "--valence", str(runs["v"].path)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.stderr
    assert "MER2023's combined measure, 24 utterances, without context" in done.stdout
    assert "95 % interval (24 utterances)" in done.stdout
    done = CliRunner().invoke(main, [*words, "--json"])
    found = json.loads(done.stdout)["mer2023"]
    assert found["combined"] == pytest.approx(np.mean(by_hand(runs["emotion"], runs["v"])))
    assert found["target"] == "valence" and found["n"] == 24


def test_what_does_not_go_together_is_refused(runs, tmp_path):
    with pytest.raises(DataError, match="is of task single with 3 outputs; expected one number"):
        combined.of_runs(runs["emotion"], runs["emotion"])
    with pytest.raises(DataError, match="of task regression .*; expected one emotion of several"):
        combined.of_runs(runs["v"], runs["v"])
    store = make_store(tmp_path, n=100, task="regression")
    other = experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    with pytest.raises(DataError, match="no predictions"):
        combined.check(runs["emotion"], other)
    evaluate(other, note=quiet)
    told = "24 labelled test rows and .* 20; 4 are in one alone"
    with pytest.raises(DataError, match=told) as caught:
        combined.of_runs(runs["emotion"], other)
    assert "\n" not in str(caught.value)
    words = ["evaluate", str(runs["emotion"].path), "--valence", str(other.path), "--ensemble"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "leave out --ensemble" in done.stderr
    assert intervals.LEVEL == 0.95  # as the table says


def test_the_interval_of_unequal_numbers_of_seeds_is_of_their_own_spread():
    """Every draw of groups the same, so that only seeds vary: three of one run and five of the
    other are eight trainings, not fifteen pairs. The interval is that of the difference of two
    means, with the degrees of freedom of Welch and Satterthwaite.
    """
    first, second = np.array([0.60, 0.66, 0.63]), np.array([0.5, 0.9, 0.7, 0.2, 1.1])
    groups = 1e9  # so many that they add nothing
    some = [intervals.Sampled(one, np.tile(one, (200_000, 1)), groups) for one in (first, second)]
    low, high = intervals.interval_of_sum(some, [1.0, -combined.WEIGHT])
    parts = [np.var(first, ddof=1) / 3, combined.WEIGHT**2 * np.var(second, ddof=1) / 5]
    dof = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 4)
    half = stats.t.ppf(0.975, dof) * np.sqrt(sum(parts))
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
