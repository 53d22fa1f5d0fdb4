"""One flipped bit in any file of a run folder, finished or interrupted: what mer then says is what
it said before, or it refuses. Before there were checksums, 13 of 14 flips in the checkpoint of an
interrupted run became another model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mer.fusion import report
from mer.fusion.evaluation import evaluate
from mer.fusion.runs import checkpoint, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import files
from mer.fusion.training import experiment, resume
from mer.pipeline.errors import MerError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

SETTINGS = ("train.epochs=3", "model_args.hidden=4")


class Killed(BaseException):
    """What a kill looks like from within."""


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_resamples):
    """(the store, a pristine finished run and what the commands say of it, a pristine interrupted
    one, the folder for trials)
    """
    folder = tmp_path_factory.mktemp("flips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "SAVE_SECONDS", 0)
        store = make_store(folder, n=60)
        done = train(store, folder / "done")
        evaluate.evaluate(done, note=quiet)

        def stop(line: str) -> None:
            if line.startswith("epoch   2"):
                raise Killed

        with pytest.raises(Killed):
            train(store, folder / "cut", note=stop)
        shutil.copytree(folder / "done", folder / "trial")
        sound = asked(store, folder / "trial", folder / "done")
        assert None not in sound.values()
        yield store, folder / "done", sound, folder / "cut", folder / "trial"


def train(store, folder: Path, note=quiet) -> Run:
    return experiment.train(store, settings(*SETTINGS), folder, note=note)


def flip(path: Path, rng: np.random.Generator) -> str:
    raw = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(raw)))
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)
    return f"bit {bit} of {path.name}"


def weights(run: Run) -> bytes:
    """Tensors of the model as it would predict, end to end."""
    state = run.model().state_dict()
    return b"".join(state[name].numpy().tobytes() for name in sorted(state))


def asked(store, folder: Path, other: Path) -> dict[str, object]:
    """What each command makes of a finished run: its answer, or None where it refuses."""

    def evaluated() -> tuple:
        found = evaluate.evaluate(folder, note=quiet)
        return found, pq.read_table(folder / files.PREDICTIONS).to_pylist()

    def trained() -> tuple:
        run = train(store, folder)
        return weights(run), result_files.stored_metrics(run)

    calls = {
        "report": lambda: report.page([Run.open(folder)]),
        "compare": lambda: report.compare(Run.open(folder), Run.open(other)),
        "predict": lambda: weights(Run.open(folder).trained()),
        "train": trained,
        "evaluate": evaluated,
    }
    answers: dict[str, object] = {}
    for name, call in calls.items():
        try:
            answers[name] = call()
        except MerError as error:
            assert len(str(error)) <= 300 + 2 * len(str(folder)), error
            answers[name] = None
    return answers


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size)


def trial_of_finished(made, seed: int) -> str:
    store, done, sound, _, folder = made
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(done, folder)
    path = files_of(folder)[rng.integers(len(files_of(folder)))]
    what = flip(path, rng)
    for name, answer in asked(store, folder, done).items():
        assert answer is None or answer == sound[name], (
            f"seed {seed}: {what}: {name} gave another answer"
        )
    return path.name


def trial_of_interrupted(made, seed: int) -> str:
    store, done, _, cut, folder = made
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cut, folder)
    path = files_of(folder)[rng.integers(len(files_of(folder)))]
    what = flip(path, rng)
    try:
        run = train(store, folder)
    except MerError as error:
        assert len(str(error)) <= 300 + 2 * len(str(folder)), error
        return path.name
    assert weights(run) == weights(Run.open(done)), f"seed {seed}: {what}: other weights"
    assert (
        run.info.dev == Run.open(done).info.dev
        and run.info.best_epoch == Run.open(done).info.best_epoch
    )
    split = (folder / checkpoint.SPLIT).read_bytes()
    assert split == (done / checkpoint.SPLIT).read_bytes(), (
        f"seed {seed}: {what}: another split is recorded"
    )
    return path.name


def test_the_interrupted_run_resumes_to_the_finished_one(made):
    """Without a flip; otherwise the trials would prove nothing."""
    store, done, _, cut, folder = made
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cut, folder)
    said = []
    run = train(store, folder, note=said.append)
    assert any("goes on after epoch 2" in line for line in said)
    assert weights(run) == weights(Run.open(done))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("trial", [trial_of_finished, trial_of_interrupted])
def test_one_flipped_bit_changes_nothing_unnoticed(made, trial, seed):
    trial(made, seed)


@pytest.mark.slow
@pytest.mark.parametrize("begin", [100, 142, 184])
@pytest.mark.parametrize("trial", [trial_of_finished, trial_of_interrupted])
def test_many_flipped_bits_change_nothing_unnoticed(made, trial, begin):
    """252 trials in all."""
    names = {trial(made, seed) for seed in range(begin, begin + 42)}
    assert names >= {
        "run.json",
        "config.toml",
        "split.json",
        "model.safetensors",
        "last.safetensors",
    }
