"""SIGKILL at any moment of an extraction of sound, words and pictures: the same call finishes the
job, with the very bytes of a run that was never disturbed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.crash.runs import again, check, fresh
from tests.extract import corpus

SEEN = {"vision_encoder": "builtin:tiny-vit"}
TRIALS = 50


@pytest.fixture(scope="module")
def filmed(run, tmp_path_factory) -> tuple[Path, int]:
    """A finished store of films and the number of publications it took."""
    folder = tmp_path_factory.mktemp("filmed")
    corpus.make(folder, 12, films=True)
    status, count = run(folder, **SEEN)
    assert status == 0 and count > 10, (folder / "stderr").read_text()
    return folder, count


def test_killed_between_two_publications(run, filmed, tmp_path):
    made, total = filmed
    for moment in random.Random(4).sample(range(1, total + 1), 3):
        folder = fresh(made, tmp_path / str(moment))
        assert run(folder, moment, **SEEN)[0] == -signal.SIGKILL
        again(folder, **SEEN)
        check(folder, made)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_killed_at_random_times(run, filmed, tmp_path):
    made, _ = filmed
    dice, started = random.Random(13), time.monotonic()
    run(fresh(made, tmp_path / "timing"), **SEEN)
    length = time.monotonic() - started
    for trial in range(TRIALS):
        folder = fresh(made, tmp_path / str(trial))
        victim = run.start(folder, **SEEN)
        time.sleep(dice.uniform(0, length))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        again(folder, **SEEN)
        check(folder, made)
        shutil.rmtree(folder)
