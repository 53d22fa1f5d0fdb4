"""The runs of a group over seeds or folds, each trained on its own: one after the other, or several
at a time in processes.

A process is a bare interpreter that runs this module. It needs no `if __name__ == "__main__"` in
the caller's script, shares no lock or thread with this process, and ends when this process does:
its next word about the training finds nobody. It trains one run after the other, as `train_member`
does here, with its share of the threads. Nothing but rounding can depend on how many there are, and
that only through the number of threads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import torch

from mer.fusion import checkpoint, files, splits
from mer.fusion.checkpoint import Run
from mer.fusion.config import TrainConfig
from mer.fusion.notes import Note, Once
from mer.fusion.one_epoch import DivergedError
from mer.fusion.parallel import ALONE, Processes
from mer.fusion.splits import Fold
from mer.fusion.train import fit
from mer.fusion.watch import Watch
from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.progress import Show, Silent
from mer.pipeline.runtime.signals import Terminated
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store import FeatureStore

SHOW_SECONDS = 0.2  # between two words of a process about how far it is
END_SECONDS = 10.0  # for a process to let go of its folder when it is told to end
AGAIN = "the same command goes on with what is there"


@dataclass(frozen=True)
class Member:
    """One training: the name of its folder, its fold and its configuration."""

    name: str
    fold: Fold | None
    config: TrainConfig


@dataclass(frozen=True)
class Setting:
    """What the trainings of a group have in common; the fields are arguments of `fit`.

    Attributes:
        lock: As in `mer.pipeline.runtime.hold.hold`.
    """

    device: str
    command: str | None = None
    log: tuple[str, ...] = ()
    lock: bool = True


def train_member(
    store: FeatureStore,
    member: Member,
    folder: Path,
    setting: Setting,
    *,
    note: Note,
    progress: Silent | None,
    processes: Processes = ALONE,
    among: int = 1,
    remark: Note | None = None,
) -> Run:
    """Train one run into its folder, which is held meanwhile.

    Args:
        store: The features.
        member: What is trained.
        folder: The run folder.
        setting: What it has in common with others.
        note: Told what the user should know, line by line.
        progress: Shows how far it is; None: `note` is told every epoch.
        processes: Those that train together.
        among: As for `fit`.
        remark: As for `fit`.

    Returns:
        The finished run.

    Raises:
        DataError: As `fit`, or somebody else holds the folder.
    """
    table = store.table()
    target = splits.targets(table, store.header.task, store.header.labels)
    config, fold = member.config, member.fold
    labels, task = store.header.labels, store.header.task
    split = splits.assign(table, target, config.data, fold, labels=labels, task=task)
    with alone_in(folder, processes, note, setting.lock):
        return fit(
            store,
            config,
            folder,
            split=split,
            fold=fold,
            device=setting.device,
            note=note,
            processes=processes,
            command=setting.command,
            watch=Watch(note, progress),
            log=setting.log,
            among=among,
            remark=remark,
        )


@contextmanager
def alone_in(folder: Path, processes: Processes, note: Note, lock: bool) -> Iterator[None]:
    """Hold a run folder, so that a second training into it is refused; a finished run is only
    looked at.
    """
    with ExitStack() as stack:

        def enter() -> str | None:
            if finished(folder):
                return None
            left_behind = stack.enter_context(hold(folder / checkpoint.HOLD, lock=lock))
            files.tidy(folder)
            return left_behind

        left_behind = processes.agree(enter)
        if left_behind:
            note(f"{folder}: {left_behind}")
        yield


def finished(folder: Path) -> bool:
    """Whether there is a finished run."""
    return (folder / checkpoint.INFO).exists() and Run.open(folder).finished


def train_at_once(
    store: Path,
    members: Sequence[Member],
    folder: Path,
    setting: Setting,
    *,
    jobs: int,
    note: Note,
    progress: Silent | None,
) -> None:
    """Train several runs into folders of their names, `jobs` at a time.

    Args:
        store: The features.
        members: What is trained.
        folder: Of the group.
        setting: What they have in common.
        jobs: How many processes, which share this one's threads; a run's figures follow from
            their number to rounding, so it is the same for those of a group that are left.
        note: Told what the user should know, line by line.
        progress: Shows how far they are; None: `note` is told every epoch.

    Raises:
        DataError: One of them failed, which ends the others; they go on where they were.
    """
    threads, started = max(torch.get_num_threads() // jobs, 1), min(jobs, len(members))
    note(
        f"{plural(len(members), 'run')} in {plural(started, 'process', 'processes')} of "
        f"{plural(threads, 'thread')} (--jobs {jobs})"
    )
    shown = progress or Silent()
    waiting = list(reversed(members))

    def give(worker: _Worker) -> None:
        worker.send(_Task(store, waiting.pop(), folder, setting, jobs, progress is not None))

    with ExitStack() as stack:
        show = stack.enter_context(shown.follow(len(members)))
        remark = Once(note)
        board = _Board([member.name for member in members], show)
        workers: dict[object, _Worker] = {}
        for worker in stack.enter_context(_started(started, threads)):
            workers[worker.connection] = worker
            give(worker)
        while workers:
            for connection in wait([worker.connection for worker in workers.values()]):
                worker = workers[connection]
                kind, said = worker.receive()
                if kind == "note":
                    note(f"{worker.name}: {said}")
                elif kind == "remark":
                    remark(said, of=worker.name)
                elif kind == "show":
                    board.at(worker.name, *said)
                elif kind == "done":
                    board.done(worker.name)
                    if waiting:
                        give(worker)
                    else:
                        del workers[connection]
                else:
                    raise said


@dataclass(frozen=True)
class _Task:
    """What a process is sent; `followed`: somebody shows progress."""

    store: Path
    member: Member
    folder: Path
    setting: Setting
    among: int
    followed: bool


class _Board:
    """How far the trainings are, on one bar."""

    def __init__(self, names: Sequence[str], show: Show) -> None:
        self.share = dict.fromkeys(names, 0.0)
        self.show, self.finished = show, 0

    def at(self, name: str, share: float, text: str, told: bool) -> None:
        """So far has one of them come."""
        self.share[name] = share
        self.say(f"{name}: {text}", told)

    def done(self, name: str) -> None:
        """One of them has ended, dev may have stopped it early."""
        self.share[name] = 1.0
        self.finished += 1
        self.say(f"{name}: done", True)

    def say(self, text: str, told: bool) -> None:
        so_far = f"{self.finished} of {plural(len(self.share), 'run')} done  "
        self.show(sum(self.share.values()), so_far + text, told=told)


class _Worker:
    """A process that trains, seen from here."""

    def __init__(self, process: subprocess.Popen, connection: Connection) -> None:
        self.process, self.connection, self.name = process, connection, ""

    def send(self, task: _Task) -> None:
        """Have it train the next one."""
        self.name = task.member.name
        try:
            self.connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            raise self.lost() from None

    def receive(self) -> tuple:
        """What it says next."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self.lost() from None

    def lost(self) -> DataError:
        """It has ended without a word."""
        code = self.process.wait()
        why = f"by signal {-code}" if code < 0 else f"with status {code}"
        memory = ", perhaps for lack of memory: fewer --jobs need less"
        return DataError(
            f"{self.name}: the process that trained it ended {why}"
            f"{memory if code == -signal.SIGKILL else ''}; {AGAIN}"
        )


@contextmanager
def _started(count: int, threads: int) -> Iterator[list[_Worker]]:
    """So many processes, ended with the block."""
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_start(threads))
        yield workers
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.terminate()
            worker.connection.close()
        for worker in workers:
            try:
                worker.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def _start(threads: int) -> _Worker:
    ours, theirs = Pipe()
    # Ctrl-C reaches all processes of a terminal; this one decides what becomes of the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "mer.fusion.members", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Worker(process, ours)


# ---- In such a process


class _Told(Silent):
    """Passes on how far the training is."""

    def __init__(self, send: Callable[[str, object], None]) -> None:
        self.send = send

    @contextmanager
    def follow(self, total: float) -> Iterator[Show]:
        last = 0.0

        def show(done: float, text: str, told: bool = False) -> None:
            nonlocal last
            now = time.monotonic()
            if told or now - last >= SHOW_SECONDS:
                last = now
                self.send("show", (done / total, text, told))

        yield show


def _work(connection: Connection) -> None:
    """Train until the other end closes or says so."""
    signal.signal(signal.SIGTERM, _terminated)  # SIGINT has been blocked from the beginning
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def send(kind: str, said: object) -> None:
        connection.send((kind, said))

    with connection:
        try:
            while True:
                _train_next(connection.recv(), send)
        # the other end is gone or wants this one to be
        except (EOFError, ConnectionResetError, BrokenPipeError, Terminated):
            return


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def _train_next(task: _Task, send: Callable[[str, object], None]) -> None:
    name = task.member.name
    try:
        with FeatureStore(task.store) as store:
            train_member(
                store,
                task.member,
                task.folder / name,
                task.setting,
                note=lambda text: send("note", text),
                remark=lambda text: send("remark", text),
                progress=_Told(send) if task.followed else None,
                among=task.among,
            )
    except (ConnectionResetError, BrokenPipeError):
        raise
    except MerError as error:
        kind = DivergedError if isinstance(error, DivergedError) else DataError
        failed = kind(f"{name}: {error}")
        failed.exit_code = error.exit_code
        send("failed", failed)
    except Exception:
        send("failed", RuntimeError(f"{name}:\n{traceback.format_exc()}"))
    else:
        send("done", None)


if __name__ == "__main__":
    # Run as a script this module is `__main__`, but what is sent names `mer.fusion.members`: so
    # that one does the work.
    from mer.fusion import members as module

    module._work(Connection(int(sys.argv[1])))
