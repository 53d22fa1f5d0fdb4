"""Encoders of other families, killed, in workers and in shares: the same bytes, layer means
included. Whisper has windows of its own (here of four seconds), so that clips are cut into pieces.
"""

from __future__ import annotations

import random
import signal
from functools import partial
from pathlib import Path

import pytest

from mer.pipeline.extraction import Share, Workers, extract
from mer.pipeline.manifest import Manifest
from mer.pipeline.store import FeatureStore

from tests.crash.runs import again, check, fresh, kill_at_random_times
from tests.encoders import checkpoints
from tests.extract import corpus

TRIALS = 50


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, str]:
    """A random Whisper checkpoint, beside the built-in text encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    return {"audio_encoder": str(checkpoints.whisper(folder / "whisper", max_source_positions=200))}


@pytest.fixture(scope="module")
def whole(run, options, tmp_path_factory) -> tuple[Path, int]:
    """The corpus with two clips of several windows, its store, and how many files that took."""
    folder = tmp_path_factory.mktemp("whole")
    corpus.make(folder)
    for number, seconds in ((2, 8.9), (7, 5.3)):
        corpus.write_clip(folder / f"clip{number}.wav", seconds, seed=number)
    status, count = run(folder, **options)
    assert status == 0, (folder / "stderr").read_text()
    return folder, count


def test_clips_are_cut_and_every_layer_is_there(whole):
    folder, _ = whole
    store = FeatureStore(folder / "feats.h5")
    store.verify()
    assert store.header.provenance["extract"]["counts"]["chunked"] == 2
    infos = store.header.modalities
    assert (infos["audio"].layers, infos["text"].layers) == (4, 3)
    means, last = store.layer_means("audio"), store.pooled("audio")
    assert means.shape == (24, 4, 24)
    # what the head calls pooled is the mean of the layer that is stored, the last
    assert abs(means[:, -1] - last).max() < 2e-3


def test_killed_between_two_publications(run, whole, options, tmp_path):
    made, count = whole
    for moment in random.Random(6).sample(range(2, count), 3):
        folder = fresh(made, tmp_path / str(moment))
        assert run(folder, moment, **options)[0] == -signal.SIGKILL
        again(folder, **options)
        check(folder, made)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_killed_at_random_times(run, whole, options, tmp_path):
    made, _ = whole

    def resumed(folder: Path) -> None:
        again(folder, **options)
        check(folder, made)

    begin = partial(fresh, made)
    kill_at_random_times(run, tmp_path, begin, resumed, trials=TRIALS, seed=13, **options)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    "ways", [pytest.param((Workers(2),), marks=pytest.mark.slow), (Share(2, 2), Share(1, 2))]
)
def test_workers_and_shares_make_the_same_bytes(whole, options, tmp_path, ways):
    made, _ = whole
    folder = fresh(made, tmp_path / "x")
    file = folder / "manifest.parquet"
    for where in ways:
        extract(
            Manifest.read(file),
            folder / "feats.h5",
            corpus.options(**options),
            source=file,
            where=where,
        )
    assert corpus.digests(folder / "feats.shards") == corpus.digests(made / "feats.shards")
