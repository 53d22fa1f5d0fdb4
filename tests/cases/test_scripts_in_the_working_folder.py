"""A folder of data may hold scripts of one's own called av.py or queue.py: `python -m` would take
them for the modules of that name."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import soundfile

from mer.fusion.runtime import pool
from mer.pipeline.media.workers import Decoders, Job


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A working folder with such scripts, for processes that are started anew."""
    for name in ("av", "mer", "numpy", "queue", "signal", "soundfile", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of the working folder')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MER_TEST_OF_SCRIPTS", "1")  # so that no decoder of another test is taken
    return tmp_path


def test_decoders_take_none_of_them(scripts):
    soundfile.write(scripts / "a.wav", np.full(1600, 0.1), 16_000)
    with Decoders(1) as decoders:
        [found] = decoders.run([Job("probe", "a.wav", "auto", None, None)])
    assert (found.samples, found.reason) == (1600, None)


@pytest.mark.slow  # torch is imported
def test_trainings_side_by_side_take_none_of_them(scripts):
    workers = [pool.start(1)]
    with pool.ended(workers):
        workers[0].send(operator.contains, [1], "a task")
        assert workers[0].receive() == ("done", False)
