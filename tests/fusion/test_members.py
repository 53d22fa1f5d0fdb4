"""Runs of a group at the same time: what they are does not depend on it, and an end, of whatever
kind, leaves neither processes nor folders that are held.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mer.fusion import config
from mer.fusion.runs.checkpoint import HOLD, MODEL, Run
from mer.fusion.runtime import pool
from mer.fusion.runtime.notes import Once
from mer.fusion.runtime.parallel import Processes
from mer.fusion.training import experiment, members
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet

SHORT = config.load(model="concat", sets=["train.epochs=3", "model_args.hidden=8"])
LONG = replace(SHORT, train=replace(SHORT.train, epochs=1_000_000, patience=1_000_000))


@pytest.fixture
def one_thread():
    """Of each run, one by one, too: their number may change how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def started(monkeypatch) -> list:
    """The processes that are started."""
    found: list = []
    start = pool.start

    def recorded(threads):
        found.append(start(threads))
        return found[-1]

    monkeypatch.setattr(pool, "start", recorded)
    return found


def stopped(started: list, folder) -> None:
    """All processes have ended, in order or before they could do anything, and hold nothing."""
    assert all(worker.process.poll() in (0, -signal.SIGTERM) for worker in started)
    held = [path.read_text() for path in folder.glob(f"**/{HOLD}")]
    assert held and not any(held)


def test_what_two_runs_say_is_said_once_however_long_each_took():
    lines: list[str] = []
    remark = Once(lines.append)
    for took in ("", " in 0.6 s", " in 12.3 s"):
        remark(f"1.5 MB of features read{took}", of="seed-1")
    remark("1.6 MB of features read")
    assert lines == ["seed-1: 1.5 MB of features read", "1.6 MB of features read"]


def test_at_once_after_a_failure_is_one_by_one(tmp_path, one_thread, started):
    store, folder = make_store(tmp_path), tmp_path / "together"
    one_by_one: list[str] = []
    alone = experiment.train(
        store, SHORT, tmp_path / "alone", seeds=3, note=one_by_one.append, jobs=1
    )
    assert not started
    assert sum("of features read" in line for line in one_by_one) == 1

    def occupy(line: str) -> None:
        """When the processes are to be started somebody else trains in a folder of the group."""
        if line.startswith("3 runs in 2 processes of 1 thread"):
            other = config.load(model="text", sets=["train.epochs=1"])
            experiment.train(store, other, folder / "seed-1", note=quiet)

    with pytest.raises(DataError, match="^seed-1: .*holds another run") as caught:
        experiment.train(store, SHORT, folder, seeds=3, note=occupy, jobs=2)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
    stopped(started, folder)
    assert not Run.open(folder).finished

    shutil.rmtree(folder / "seed-1")
    said: list[str] = []
    done = experiment.train(store, SHORT, folder, seeds=3, note=said.append, jobs=2)
    # seed-2 may have been trained before the failure was told, seed-1 cannot have been
    assert done.finished and any(line.startswith("seed-1: epoch") for line in said)
    for ours, theirs in zip(done.children, alone.children, strict=True):
        assert ours.info.identity == theirs.info.identity
        assert (ours.path / MODEL).read_bytes() == (theirs.path / MODEL).read_bytes()
    assert sum("of features read" in line for line in said) == 1
    before = len(started)
    experiment.train(store, SHORT, folder, seeds=3, note=said.append, jobs=2)
    assert sum("already trained" in line for line in said) >= 3 and len(started) == before


def test_what_runs_have_in_common_is_said_once_and_what_differs_each_time(tmp_path):
    settings = config.load(sets=["train.epochs=2", "model_args.d=16", "model_args.ffn=16"])
    said: list[str] = []
    experiment.train(make_store(tmp_path), settings, tmp_path / "run", seeds=2, note=said.append)
    assert sum("loss terms rise until epoch" in line for line in said) == 1
    assert sum("checksums" in line for line in said) == 1 and not any("0.0 kB" in x for x in said)
    assert sum(line.startswith("chose epoch") for line in said) == 2


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(tmp_path, started):
    store, folder = make_store(tmp_path), tmp_path / "run"

    def kill(line: str) -> None:
        if line.startswith("seed-1: epoch"):
            next(worker for worker in started if worker.name == "seed-1").process.kill()

    with pytest.raises(DataError, match=r"^seed-1: .* ended by signal 9.*same command goes on"):
        experiment.train(store, LONG, folder, seeds=2, note=kill, jobs=2)
    assert all(worker.process.poll() is not None for worker in started)


@pytest.mark.slow
def test_an_interrupt_ends_all_of_them(tmp_path, started):
    store, folder = make_store(tmp_path), tmp_path / "run"

    def interrupt(line: str) -> None:
        if ": epoch" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.train(store, LONG, folder, seeds=2, note=interrupt, jobs=2)
    stopped(started, folder)


@pytest.mark.slow
def test_a_process_ends_when_nobody_listens_any_more():
    """As after a kill of the one that started it."""
    worker = pool.start(1)
    with pool.ended([worker]):
        worker.connection.close()
        assert worker.process.wait(60) == 0


@pytest.mark.parametrize(
    ("seeds", "jobs", "processes", "said"),
    [
        (2, 0, Processes(), "--jobs 0: expected at least 1"),
        (1, 2, Processes(), "--jobs 2: there is one run to train; add --seeds or --folds"),
        (2, 2, Processes(0, 2), "--jobs 2: under torchrun all processes train one run"),
    ],
)
def test_jobs_that_cannot_be_meant_are_one_line(tmp_path, seeds, jobs, processes, said):
    store = make_store(tmp_path)
    with pytest.raises(DataError, match=said):
        experiment.train(
            store, SHORT, tmp_path / "x", seeds=seeds, jobs=jobs, processes=processes, note=quiet
        )
    assert not (tmp_path / "x").exists()


def test_processes_are_started_only_for_trainings_that_last(tmp_path, monkeypatch):
    store, cpu = make_store(tmp_path), torch.device("cpu")

    def jobs(model: str, seeds: int, device: torch.device = cpu, **sets) -> int:
        settings = config.load(model=model, sets=[f"{k}={v}" for k, v in sets.items()])
        found = experiment._members(settings, seeds, [None])
        return experiment.jobs_that_pay(store, found, device)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert jobs("concat", 5) == 1
    assert jobs("drkf", 5) == 4
    assert jobs("drkf", 5, torch.device("cuda")) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert jobs("drkf", 5) == 1


def test_the_bar_shows_all_of_them():
    shown: list[tuple[float, str, bool]] = []
    board = members._Board(["a", "b"], lambda done, text, told: shown.append((done, text, told)))
    board.at("a", 0.5, "epoch 1 of 2", False)
    board.at("b", 0.25, "epoch 1 of 4", True)
    board.done("a")
    assert shown == [
        (0.5, "0 of 2 runs done  a: epoch 1 of 2", False),
        (0.75, "0 of 2 runs done  b: epoch 1 of 4", True),
        (1.25, "1 of 2 runs done  a: done", True),
    ]


@pytest.mark.slow
def test_nothing_goes_on_training_when_the_one_that_started_it_is_killed(tmp_path):
    store = make_store(tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom mer.fusion import config\n"
        "from mer.fusion.training import experiment\n"
        "from mer.pipeline.store import FeatureStore\n"
        "sets = ['train.epochs=1000000', 'train.patience=1000000', 'model_args.hidden=8']\n"
        "settings = config.load(model='concat', sets=sets)\n"
        "say = lambda line: print(line, flush=True)\n"
        "experiment.train(\n"
        "    FeatureStore(sys.argv[1]), settings, Path(sys.argv[2]), seeds=2, jobs=2, note=say\n"
        ")\n"
    )
    words = [sys.executable, "-c", code, str(store.path), str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert any(": epoch" in line for line in parent.stdout)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    assert len(children) == 2
    until = time.monotonic() + 60
    while any(map(_runs, children)):
        assert time.monotonic() < until
        time.sleep(0.1)


def _runs(number: str) -> bool:
    """Whether there is such a process, and not only its status that nobody has asked for."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
