"""Ctrl-C and SIGTERM to a real `mer extract`: what is in hand is written, the status says why it
ended, the same command goes on.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.store import Shard

from tests.crash.runs import Run, again, check, finished, fresh, in_workers

# one part a modality: all there is of it is the beginning
LONG = {"part_seconds": 30.0, "part_tokens": 1000}
BY = {signal.SIGTERM: (143, "mer: terminated; the same command goes on from here"),
      signal.SIGINT: (130, "mer: interrupted; the same command goes on from here")}  # fmt: skip


def stop_at(run: Run, batch: int, number: int) -> tuple[int, str]:
    """Signal the run while its batch of that number is computed, then let it go on: (exit status,
    stderr).
    """
    run.wait_for((run.folder / f"batch-{batch}").exists, f"batch {batch}")
    os.kill(run.pid, number)
    run.wait_for(lambda: "stopping" in run.stderr, "the notice")
    (run.folder / "go").touch()
    return run.wait()[0], run.stderr


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """Thread names of the forward passes in this process that are not those of the self-test."""
    import threading

    calls: list[str] = []
    for kind in (AudioEncoder, TextEncoder):

        def counting(self, batch, *, forward=kind.forward, **keywords):
            if threading.current_thread().name.startswith("encode"):
                calls.append(type(self).__name__)
            return forward(self, batch, **keywords)

        monkeypatch.setattr(kind, "forward", counting)
    return calls


@pytest.mark.parametrize("number", BY)
def test_what_is_in_hand_is_written_and_the_same_command_goes_on(
    run, undisturbed, tmp_path, encoded, number
):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    status, stderr = stop_at(run.start(folder, slow=5, **LONG), 6, number)
    assert status == BY[number][0] and stderr.splitlines()[-1] == BY[number][1]
    assert not finished(folder, "*.h5") and finished(folder, "*.begun") == {
        "audio-00000-00000.begun",
        "text-00000-00000.begun",
    }
    before = sum(
        Shard(path).meta["batches"] for path in (folder / "feats.shards" / ".work").glob("*.begun")
    )
    assert before == 6, "the batch that was being computed, and those before it"
    total = sum(again(folder, **LONG).batches.values())
    assert len(encoded) == total - before > 3
    check(folder, made)


def test_stopped_again_and_again(run, undisturbed, tmp_path):
    """Every run gets one batch further than the last; in the end the bytes are those of a run that
    was left alone.
    """
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    for _ in range(3):
        for path in [*folder.glob("batch-*"), *folder.glob("go")]:
            path.unlink()
        assert stop_at(run.start(folder, slow=0, **LONG), 1, signal.SIGTERM)[0] == 143
    assert (
        sum(
            Shard(path).meta["batches"]
            for path in (folder / "feats.shards" / ".work").glob("*.begun")
        )
        == 3
    )
    again(folder, **LONG)
    check(folder, made)


def test_a_second_signal_ends_at_once(run, undisturbed, tmp_path, monkeypatch):
    """Within a second it is the echo of the first (`timeout` sends two); after that it is meant."""
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    stopped = run.start(folder, slow=0)
    stopped.wait_for((folder / "batch-1").exists, "the first batch")
    os.kill(stopped.pid, signal.SIGINT)
    os.kill(stopped.pid, signal.SIGINT)
    stopped.wait_for(lambda: "stopping" in stopped.stderr, "the notice")
    time.sleep(1.1)
    os.kill(stopped.pid, signal.SIGTERM)
    time.sleep(0.2)  # the exception waits for the batch, which waits for this
    (folder / "go").touch()
    assert stopped.wait()[0] == 143
    again(folder)
    check(folder, made)


SLOW_WORKERS = """
import os, time
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
forward = AudioEncoder.forward
def slowly(self, batch, **keywords):
    (folder / "worker-at-work").touch()
    time.sleep(0.5)
    return forward(self, batch, **keywords)
AudioEncoder.forward = slowly
"""


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_workers_write_what_they_have(run, undisturbed, tmp_path, group):
    """SIGTERM reaches the client alone, or from a terminal or a batch system every process of the
    group.
    """
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    stopped = run.start(
        folder, "--workers", "2", environment=in_workers(folder, SLOW_WORKERS), **LONG
    )
    stopped.wait_for((folder / "worker-at-work").exists, "a worker at work")
    (os.killpg if group else os.kill)(stopped.pid, signal.SIGTERM)
    status, _ = stopped.wait()
    assert status == 143 and stopped.stderr.splitlines()[-1] == BY[signal.SIGTERM][1], (
        stopped.stderr
    )
    assert "audio-00000-00000.begun" in finished(folder, "*.begun"), stopped.stderr
    again(folder, **LONG)
    check(folder, made)


@pytest.mark.parametrize("content", [b"", b"garbage", "cut", "flipped", "of another plan"])
def test_a_damaged_beginning_is_computed_again(run, undisturbed, tmp_path, content):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    stop_at(run.start(folder, slow=5, **LONG), 6, signal.SIGTERM)
    for path in (folder / "feats.shards" / ".work").glob("*.begun"):
        whole = bytearray(path.read_bytes())
        if content == "flipped":
            whole[-50] ^= 16
        elif content == "of another plan":
            whole = whole.replace(Shard(path).key.encode(), b"0" * 64)
        path.write_bytes(
            {"cut": whole[:-100]}.get(content, content if isinstance(content, bytes) else whole)
        )
    again(folder, **LONG)
    check(folder, made)


def test_before_there_is_anything_in_hand_it_ends_at_once(run, undisturbed, tmp_path):
    """In the self-test there is nothing to finish."""
    made, _ = undisturbed
    stopped = run.start(fresh(made, tmp_path / "x"), slow=-1)
    stopped.wait_for((stopped.folder / "batch-1").exists, "the self-test")
    os.kill(stopped.pid, signal.SIGTERM)
    assert stopped.wait()[0] == 143 and "stopping" not in stopped.stderr
