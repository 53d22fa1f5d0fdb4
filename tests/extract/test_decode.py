"""Decoding in processes that may hang, crash or lie."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.media import workers as decode
from mer.pipeline.media.workers import Decoders, Job, workers_kept

from tests.extract import corpus


@pytest.fixture
def clips(tmp_path):
    for i in range(6):
        corpus.write_clip(tmp_path / f"{i}.wav", 0.1 * (i + 1), i)
    (tmp_path / "bad.wav").write_text("no audio")
    return tmp_path


def jobs(folder, what="load", names=("0", "1", "bad", "2", "3", "4", "5")):
    return [Job(what, str(folder / f"{name}.wav"), "auto", None, None) for name in names]


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(clips, workers):
    with Decoders(workers) as decoders:
        found = list(decoders.run(jobs(clips), ahead=3))
    assert [x.samples for x in found] == [1600, 3200, 0, 4800, 6400, 8000, 9600]
    assert found[2].stage == "open" and "bad.wav" in found[2].reason
    assert all(len(x.waveform) == x.samples for x in found if x.stage is None)


def test_workers_and_calling_thread_decode_alike(clips):
    with Decoders(1) as one, Decoders(0) as here:
        for a, b in zip(one.run(jobs(clips)), here.run(jobs(clips)), strict=True):
            assert (a.stage, a.reason, a.samples) == (b.stage, b.reason, b.samples)
            assert a.stage or np.array_equal(a.waveform, b.waveform)


def test_probe(clips):
    with Decoders(0) as decoders:
        assert [x.samples for x in decoders.run(jobs(clips, "probe", ("0", "5")))] == [1600, 9600]


def test_a_hanging_decoder_costs_one_clip(clips):
    """A named pipe that nobody writes to: opening it for reading never returns.

    `media` refuses it before, so go round it.
    """
    os.mkfifo(clips / "pipe.wav")
    script = clips / "sitecustomize.py"
    script.write_text(
        "import mer.pipeline.media.audio as m\nload = m.load\n"
        "def hang(path, **k):\n    if 'pipe' in str(path): open(path).read()\n    return "
        "load(path, **k)\nm.load = hang\n"
    )
    environment = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(clips)
    try:
        with Decoders(1, timeout=5.0) as decoders:
            found = list(decoders.run(jobs(clips, names=("0", "pipe", "1"))))
    finally:
        os.environ.pop("PYTHONPATH")
        if environment is not None:
            os.environ["PYTHONPATH"] = environment
    assert [x.stage for x in found] == [None, "timeout", None]
    assert "did not answer within 5 s" in found[1].reason


@pytest.mark.parametrize("first", ["", "0"], ids=["new", "used"])
def test_a_decoder_that_a_clip_crashes_costs_that_clip(clips, monkeypatch, first):
    script = clips / "sitecustomize.py"
    script.write_text(
        "import os\nimport mer.pipeline.media.audio as m\nload = m.load\n"
        "def crash(path, **k):\n    if '1.wav' in str(path): os.abort()\n    return "
        "load(path, **k)\nm.load = crash\n"
    )
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{clips}{os.pathsep}{before}")
    names = (*first, "1", "2")
    with Decoders(1) as decoders:
        found = list(decoders.run(jobs(clips, names=names)))
    assert [x.stage for x in found] == [None] * len(first) + ["decode", None]
    assert f"crashed (status -{signal.SIGABRT.value})" in found[-2].reason


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_ends_between_two_clips_costs_none(clips, number):
    with Decoders(1) as decoders:
        stream = decoders.run(jobs(clips, names=("0", "1", "2")), ahead=1)
        assert next(stream).stage is None
        decoders._running[0].send_signal(number)
        decoders._running[0].wait()
        assert [next(stream).stage, next(stream).stage] == [None, None]


def test_a_kept_worker_that_ends_before_its_next_clip_costs_none(clips, none_kept, monkeypatch):
    """It is not seen yet that it has ended, of none of those that are kept."""
    with workers_kept():
        with Decoders(2) as decoders:
            list(decoders.run(jobs(clips)))
        monkeypatch.setattr(decode, "_ended", lambda worker: False)
        for worker in decode._WAITING._workers:
            worker.process.send_signal(signal.SIGSEGV)
            worker.process.wait()
        with Decoders(1) as decoders:
            found = list(decoders.run(jobs(clips, names=("0", "1"))))
    assert [x.stage for x in found] == [None, None]


def test_signals_to_the_whole_group_leave_decoders_alone(clips):
    with Decoders(1) as decoders:
        stream = decoders.run(jobs(clips, names=("0", "1", "2")), ahead=1)
        assert next(stream).stage is None
        for number in (signal.SIGINT, signal.SIGTERM):
            decoders._running[0].send_signal(number)
        assert next(stream).stage is None and decoders._running[0].poll() is None


@pytest.fixture
def none_kept(monkeypatch):
    """As outside of a test session, which keeps workers."""
    monkeypatch.setattr(decode, "_WAITING", decode._Waiting())


def test_workers_end_with_the_pool(clips, none_kept):
    with Decoders(2) as decoders:
        list(decoders.run(jobs(clips)))
        running = list(decoders._running)
        assert running and all(process.poll() is None for process in running)
    assert all(process.poll() is not None for process in running)


def test_workers_that_are_kept_serve_the_next_pool_and_end_with_the_last_keeper(
    clips, none_kept, monkeypatch
):
    running = []
    with workers_kept(), workers_kept():
        for environment in ("", "", "another"):
            monkeypatch.setenv("MER_TEST_ENVIRONMENT", environment)
            with Decoders(1) as decoders:
                [found] = decoders.run(jobs(clips, names=("0",)))
                [process] = decoders._running
            assert found.stage is None and process.poll() is None
            running.append(process)
        assert running[0].pid == running[1].pid != running[2].pid
        assert running[0].poll() is not None  # it has the environment of before
    assert running[2].poll() is not None


def test_a_worker_that_died_while_it_was_kept_costs_no_clip(clips, none_kept):
    with workers_kept():
        for number in range(2):
            with Decoders(1) as decoders:
                [found] = decoders.run(jobs(clips, names=("0",)))
                [process] = decoders._running
            assert found.stage is None, number
            process.kill()


def test_a_worker_at_work_is_not_kept(clips, none_kept):
    [job] = jobs(clips, names=("0",))
    with workers_kept():
        with Decoders(1) as decoders:
            assert next(decoders.run([job])).stage is None
            [process] = decoders._running
            process.send_signal(signal.SIGSTOP)  # it does not answer any more
            unanswered = decoders._pool.submit(decoders._one, job)
            while process in decoders._idle:
                time.sleep(0.01)
        assert process.poll() is not None and unanswered.result().stage == "killed"
        with Decoders(1) as decoders:
            assert next(decoders.run([job])).stage is None


def test_a_kept_worker_follows_into_another_folder(clips, none_kept, monkeypatch, tmp_path_factory):
    """Paths may be relative."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    job, stages = Job("load", "0.wav", "auto", None, None), []
    with workers_kept():
        for folder in (elsewhere, clips, elsewhere):
            monkeypatch.chdir(folder)
            with Decoders(1) as decoders:
                [found] = decoders.run([job])
            stages.append(found.stage)
    assert stages == ["open", None, "open"]


def test_workers_end_when_their_parent_is_killed(clips, tmp_path):
    import subprocess
    import sys

    code = (
        f"import sys, time\nfrom mer.pipeline.media.workers import Decoders, Job\n"
        f"d = Decoders(1)\nlist(d.run([Job('load', {str(clips / '0.wav')!r}, 'auto', None, "
        "None)]))\n"
        f"print(d._running[0].pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def test_a_changed_file_is_noticed(clips):
    path = clips / "0.wav"
    job = Job("load", str(path), "auto", None, None, decode.identity(path))
    assert decode.decode(job).stage is None
    os.utime(path, (1, 1))
    assert decode.decode(job).stage == "changed"


def test_surprises_are_one_clip_not_the_run(monkeypatch):
    def surprise(*args, **kwargs):
        raise ZeroDivisionError("inside a codec")

    monkeypatch.setattr("mer.pipeline.media.audio.load", surprise)
    found = decode.decode(Job("load", "x.wav", "auto", None, None))
    assert found.stage == "decode" and "ZeroDivisionError" in found.reason
