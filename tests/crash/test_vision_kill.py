"""SIGKILL at any moment of an extraction of sound, words and pictures: the same call finishes the
job, with the very bytes of a run that was never disturbed. Once from films that a table could name,
once from a root of mp4 in MELD's shape.
"""

from __future__ import annotations

import random
import signal
from functools import partial
from pathlib import Path

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.store import FeatureStore

from tests.crash.runs import again, check, fresh, kill_at_random_times
from tests.datasets.trees import write_meld_csv
from tests.extract import corpus

SEEN = {"vision_encoder": "builtin:tiny-vit"}
TRIALS = 50


CLIPS = {"train_splits": 7, "dev_splits_complete": 3, "output_repeated_splits_test": 3}
TABLES = {
    "train_splits": "train_sent_emo.csv",
    "dev_splits_complete": "dev_sent_emo.csv",
    "output_repeated_splits_test": "test_sent_emo.csv",
}


def films(folder: Path) -> None:
    corpus.make(folder, 12, films=True)


def meld(folder: Path) -> None:
    """mp4 of 0.2 to 1.6 s whose names repeat across splits, and the csv of each."""
    for number, (split, count) in enumerate(CLIPS.items()):
        (folder / split).mkdir()
        rows = []
        for i in range(count):
            dialogue, utterance, seed = i // 3, i % 3, 100 * number + i
            clip = folder / split / f"dia{dialogue}_utt{utterance}.mp4"
            corpus.write_film(clip, 0.2 + 0.35 * (seed % 5), seed=seed, rate=24)
            text = f"line {seed}" + " and some more" * (i % 4)
            rows.append((text, "Joey", "joy", "positive", dialogue, utterance))
        write_meld_csv(folder / TABLES[split], rows)
    manifest, report = prepare("meld", folder)
    assert len(manifest) == sum(CLIPS.values()) and report.missing == []
    manifest.write(folder / "manifest.parquet")


@pytest.fixture(scope="module", params=[films, meld], ids=["films", "meld"])
def filmed(request, run, tmp_path_factory) -> tuple[Path, int]:
    """A finished store of sound, words and pictures, and the number of publications it took."""
    folder = tmp_path_factory.mktemp("filmed")
    request.param(folder)
    status, count = run(folder, **SEEN)
    assert status == 0 and count > 10, (folder / "stderr").read_text()
    with FeatureStore(folder / "feats.h5") as store:
        assert list(store.header.modalities) == ["audio", "text", "vision"]
    return folder, count


def test_killed_between_two_publications(run, filmed, tmp_path):
    made, total = filmed
    for moment in random.Random(4).sample(range(1, total + 1), 3):
        folder = fresh(made, tmp_path / str(moment))
        assert run(folder, moment, **SEEN)[0] == -signal.SIGKILL
        again(folder, **SEEN)
        check(folder, made)


@pytest.mark.slow
def test_killed_at_a_few_random_times(run, filmed, tmp_path):
    kill_and_resume(run, filmed[0], tmp_path, trials=3)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_killed_at_random_times(run, filmed, tmp_path):
    kill_and_resume(run, filmed[0], tmp_path, trials=TRIALS)


def kill_and_resume(run, made: Path, place: Path, *, trials: int) -> None:
    def resumed(folder: Path) -> None:
        again(folder, **SEEN)
        check(folder, made)

    kill_at_random_times(run, place, partial(fresh, made), resumed, trials=trials, seed=13, **SEEN)
