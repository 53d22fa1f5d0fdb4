"""SIGKILL at any moment while a modality is added: until the new head is there the old store is
read, and the same call finishes the job, with the very bytes of a run that was never disturbed.
"""

from __future__ import annotations

import random
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.store import FeatureStore

from tests.crash.runs import again, check, kill_at_random_times

TRIALS = 50


@pytest.fixture(scope="module")
def begun(undisturbed, tmp_path_factory) -> Path:
    """The corpus with a store of its sound alone."""
    made, _ = undisturbed
    folder = tmp_path_factory.mktemp("begun") / "audio"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("feats*", ".mer-files*", "stderr"))
    again(folder, text_encoder="none")
    return folder


def added(folder: Path, made: Path) -> None:
    """What the store says now, before the same call again, and after it."""
    with FeatureStore(folder / "feats.h5") as store:
        store.verify()
        there = list(store.header.modalities)
    assert there in (["audio"], ["audio", "text"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AudioEncoder, "forward", lambda *a, **k: pytest.fail("computed"))
        again(folder)
    check(folder, made)


def kill(run, begun: Path, folder: Path, moment: int) -> Path:
    shutil.copytree(begun, folder)
    assert run(folder, moment)[0] == -signal.SIGKILL
    return folder


def publications(run, begun: Path, folder: Path) -> int:
    """How many files an undisturbed run publishes."""
    status, count = run(shutil.copytree(begun, folder))
    assert status == 0
    return count


def test_killed_between_two_publications(run, begun, undisturbed, tmp_path):
    total = publications(run, begun, tmp_path / "whole")
    check(tmp_path / "whole", undisturbed[0])
    chosen = {1, total, *random.Random(3).sample(range(1, total + 1), 2)}
    for moment in sorted(chosen):
        added(kill(run, begun, tmp_path / str(moment), moment), undisturbed[0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_publication(run, begun, undisturbed, tmp_path):
    for moment in range(1, publications(run, begun, tmp_path / "whole") + 1):
        folder = kill(run, begun, tmp_path / str(moment), moment)
        added(folder, undisturbed[0])
        shutil.rmtree(folder)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_killed_at_random_times(run, begun, undisturbed, tmp_path):
    begin = partial(shutil.copytree, begun)
    resumed = partial(added, made=undisturbed[0])
    kill_at_random_times(run, tmp_path, begin, resumed, trials=TRIALS, seed=12)
