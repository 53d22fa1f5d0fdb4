"""SIGKILL at any moment: the same call finishes the job, with the very bytes of a run that was
never disturbed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction import runner
from mer.pipeline.runtime.hold import hold
from mer.pipeline.store import FeatureStore, Shard, ShardWriter

from tests.crash.runs import ROOT, again, check, fresh, kill_at_random_times
from tests.extract import corpus


def moments(total: int, count: int) -> list[int]:
    return sorted(random.Random(5).sample(range(1, total + 1), min(count, total)))


def kill_and_resume(run, undisturbed: tuple[Path, int], folder: Path, moment: int) -> None:
    made, _ = undisturbed
    fresh(made, folder)
    assert run(folder, moment)[0] == -signal.SIGKILL
    parts = {path.name: None for path in (folder / "feats.shards" / ".work").glob("*.h5")}
    shards = {
        path.name: path.stat().st_mtime_ns for path in (folder / "feats.shards").glob("shard-*.h5")
    }
    seen: list[str] = []
    original = runner.run_parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runner,
            "run_parts",
            lambda todo, *a, **k: (seen.extend(p.name for p in todo), original(todo, *a, **k))[1],
        )
        again(folder)
    check(folder, made)
    assert not set(seen) & parts.keys(), "a finished part was computed again"
    after = {
        path.name: path.stat().st_mtime_ns for path in (folder / "feats.shards").glob("shard-*.h5")
    }
    assert all(after[name] == stamp for name, stamp in shards.items()), (
        "a finished shard was written again"
    )


def test_killed_between_two_publications(run, undisturbed, tmp_path):
    for moment in moments(undisturbed[1], 4):
        kill_and_resume(run, undisturbed, tmp_path / str(moment), moment)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_publication(run, undisturbed, tmp_path):
    for moment in range(1, undisturbed[1] + 1):
        kill_and_resume(run, undisturbed, tmp_path / str(moment), moment)
        shutil.rmtree(tmp_path / str(moment))


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_killed_at_a_hundred_random_times(run, undisturbed, tmp_path):
    made, _ = undisturbed

    def resumed(folder: Path) -> None:
        again(folder)
        check(folder, made)

    begin = partial(fresh, made)
    kill_at_random_times(run, tmp_path, begin, resumed, trials=100, seed=11)


def test_a_changed_plan_of_an_unfinished_run_is_not_mixed_in(run, undisturbed, tmp_path):
    """Killed, then asked for with another recipe: parts of the first must not get into
    the second.
    """
    made, total = undisturbed
    folder = fresh(made, tmp_path / "x")
    assert run(folder, total // 2)[0] == -signal.SIGKILL
    again(folder, pool=2)
    other = fresh(made, tmp_path / "y")
    again(other, pool=2)
    check(folder, other)


def test_another_budget_does_not_disturb_a_resume(run, undisturbed, tmp_path):
    made, total = undisturbed
    folder = fresh(made, tmp_path / "x")
    assert run(folder, total // 2)[0] == -signal.SIGKILL
    again(folder, budget_seconds=9.0, part_seconds=1.0, shard_bytes=10**9)
    check(folder, made)


def test_a_damaged_part_is_computed_again(run, undisturbed, tmp_path):
    made, total = undisturbed
    folder = fresh(made, tmp_path / "x")
    run(folder, total // 2)
    part = sorted((folder / "feats.shards" / ".work").glob("*.h5"))[0]
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(content)
    again(folder)
    check(folder, made)


def test_a_part_of_another_plan_is_not_taken(run, undisturbed, tmp_path):
    made, total = undisturbed
    folder = fresh(made, tmp_path / "x")
    run(folder, total // 2)
    part = sorted((folder / "feats.shards" / ".work").glob("audio-*.h5"))[0]
    shard = Shard(part)
    with ShardWriter(part, {"audio": 96}, meta={"failures": []}, key="of another plan") as writer:
        for row, id in enumerate(shard.ids):
            writer.add(id, {"audio": shard.frames("audio", row, row + 1) * 0 + 7})
    again(folder)
    check(folder, made)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": "x"}'])
def test_a_damaged_plan_is_made_again(undisturbed, tmp_path, content):
    made, total = undisturbed
    folder = fresh(made, tmp_path / "x")
    (folder / "feats.shards" / ".work").mkdir(parents=True)
    (folder / "feats.shards" / ".work" / "plan.json").write_text(content)
    again(folder)
    check(folder, made)


@pytest.mark.parametrize("cut", ["before tidying", "among the parts"])
def test_killed_after_its_head_file_the_next_call_tidies_up(
    undisturbed, tmp_path, monkeypatch, cut
):
    """Named as a user would, relative to where they are: the shards that the head names stay."""
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    from mer.pipeline.extraction import publish as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "tidy", lambda *a: None)
        again(Path("x"))
    work = folder / "feats.shards" / ".work"
    (work / "audio-0.h5").write_text("left behind")
    shutil.copy(
        next((folder / "feats.shards").glob("shard-*.h5")),
        folder / "feats.shards" / "shard-00099-01234567.h5",
    )
    if cut == "among the parts":
        (work / "plan.json").unlink()
    assert again(Path("x")).action == "nothing"
    check(folder, made)


def test_what_another_run_has_left_beside_a_finished_store_stays(undisturbed, tmp_path):
    """Killed while it replaces the store: the old command finds its store finished and lets the new
    one's parts be.
    """
    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x")
    work = folder / "feats.shards" / ".work"
    work.mkdir()
    (work / "plan.json").write_text('{"fingerprint": "of another recipe"}')
    (work / "audio-0.h5").write_text("of another recipe")
    assert again(folder).action == "nothing" and len(list(work.iterdir())) == 2


def test_an_old_store_stays_readable_until_the_new_one_is_there(undisturbed, tmp_path):
    """Three clips change and the run is killed before its head file: the old head still finds all
    of its shards.
    """
    made, _ = undisturbed
    folder = shutil.copytree(made, tmp_path / "x")
    for i in range(3):
        corpus.write_clip(folder / f"clip{i}.wav", 0.4, 500 + i)
    from mer.pipeline.extraction import publish as module

    def killed(*args):
        raise KeyboardInterrupt

    original, module.write_head = module.write_head, killed
    try:
        with pytest.raises(KeyboardInterrupt):
            again(folder)
    finally:
        module.write_head = original
    FeatureStore(folder / "feats.h5").verify()
    assert again(folder).extracted == 3
    FeatureStore(folder / "feats.h5").verify()


@pytest.mark.parametrize("what", ["audio-", "text-", "shard-", "feats.h5", "plan.json"])
def test_a_full_disk_is_one_error_and_resumable(undisturbed, tmp_path, monkeypatch, what):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    fsync = os.fsync

    def full(descriptor):
        if what in os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        again(folder)
    assert error.value.errno == errno.ENOSPC
    assert not (folder / "feats.h5").exists()
    monkeypatch.undo()
    again(folder)
    check(folder, made)


def test_an_interruption_leaves_no_thread_and_no_hold(undisturbed, tmp_path, monkeypatch):
    import threading

    from mer.pipeline.encoders.wav2vec2 import AudioEncoder

    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    forward, calls = AudioEncoder.forward, []

    def interrupted(self, batch, **keywords):
        calls.append(1)
        if len(calls) == 14:  # the self-test takes nine
            raise KeyboardInterrupt
        return forward(self, batch, **keywords)

    monkeypatch.setattr(AudioEncoder, "forward", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        again(folder, decoders=2)
    assert threading.active_count() == before
    monkeypatch.undo()
    assert again(folder).action == "extracted"
    check(folder, made)


def test_the_second_run_says_who_holds_it(undisturbed, tmp_path):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    with hold(folder / "feats.shards" / ".hold"):
        with pytest.raises(DataError, match=f"process {os.getpid()} on .* is writing there"):
            again(folder)


def test_a_stale_hold_is_taken_over(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from mer.pipeline.runtime.hold import hold\n"
        "with hold(Path(sys.argv[1])): os.abort()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "hold")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    left = json.loads((tmp_path / "hold").read_text())
    with hold(tmp_path / "hold") as note:
        assert f"process {left['pid']}" in note and "killed" in note
    with hold(tmp_path / "hold") as note:
        assert note is None
