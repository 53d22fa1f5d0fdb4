"""Trainings that do not need each other, several at a time, each in a process: the `--jobs` of
`mer train` and of `mer tune`.

A process is a bare interpreter that runs this module. It needs no `if __name__ == "__main__"` in
the caller's script, shares no lock or thread with this process, and ends when this one does,
however that ends: nothing goes on training unseen. It does one task after the other, with its share
of the threads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Generic, TypeVar

import torch

from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime.signals import Terminated

Task = TypeVar("Task")
Result = TypeVar("Result")
Tell = Callable[[Any], None]
END_SECONDS = 10.0  # for a process to let go of what it holds when it is told to end
LOOK_SECONDS = 1.0  # between two looks of a process whether the one that started it is there
AGAIN = "the same command goes on with what is there"


class Pool(Generic[Task, Result]):
    """Processes that do the same work on one task after the other.

    Args:
        work: Does one task; what it tells its second argument arrives at `heard`. It is a function
            of a module, and all that it takes and gives can be pickled.
        name: What a task is called in messages.
        jobs: How many processes there are at most. A process is started when there is a task for
            it.
        threads: Of each.
    """

    def __init__(
        self,
        work: Callable[[Task, Tell], Result],
        name: Callable[[Task], str],
        *,
        jobs: int,
        threads: int,
    ) -> None:
        self.work, self.name, self.jobs, self.threads = work, name, jobs, threads
        self._workers: list[Worker] = []

    def run(
        self,
        ready: Callable[[], Task | None],
        heard: Callable[[Task, Any], None],
        done: Callable[[Task, Result], None],
    ) -> None:
        """Do all tasks that there are.

        Args:
            ready: The next task; None: there is none, or none before another is done.
            heard: Told what is said of a task while it is done.
            done: Told what has come of a task.

        Raises:
            MerError: A task raised it, or its process was killed; the others are ended.
        """
        with ended(self._workers):
            while True:
                self._hand_out(ready)
                busy = {worker.connection: worker for worker in self._workers if worker.busy}
                if not busy:
                    return
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    kind, said = worker.receive()
                    if kind == "said":
                        heard(worker.task, said)
                    elif kind == "failed":
                        raise said
                    else:
                        worker.busy = False
                        done(worker.task, said)

    def _hand_out(self, ready: Callable[[], Task | None]) -> None:
        """Give tasks to the processes that have none."""
        idle = [worker for worker in self._workers if not worker.busy]
        while idle or len(self._workers) < self.jobs:
            task = ready()
            if task is None:
                return
            if not idle:
                idle.append(start(self.threads))
                self._workers += idle
            idle.pop(0).send(self.work, task, self.name(task))


class Worker:
    """A process, seen from here."""

    def __init__(self, process: subprocess.Popen, connection: Connection) -> None:
        self.process, self.connection = process, connection
        self.task: Any = None
        self.name, self.busy = "", False

    def send(self, work: Callable, task: Any, name: str) -> None:
        """Have it do a task."""
        self.task, self.name, self.busy = task, name, True
        try:
            self.connection.send((work, task, name))
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def receive(self) -> tuple[str, Any]:
        """The next message of the process."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._lost() from None

    def _lost(self) -> DataError:
        """The error that the process has ended without a message."""
        code = self.process.wait()
        why = f"by signal {-code}" if code < 0 else f"with status {code}"
        memory = ", perhaps for lack of memory: fewer --jobs need less"
        return DataError(
            f"{self.name}: the process that trained it ended {why}"
            f"{memory if code == -signal.SIGKILL else ''}; {AGAIN}"
        )


def start(threads: int) -> Worker:
    """A process of so many threads that waits for a task."""
    ours, theirs = Pipe()
    # Ctrl-C reaches all processes of a terminal; this one decides what becomes of the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with theirs:
            number = theirs.fileno()
            # -P: what lies in the working folder, a script called torch.py, is none of its modules.
            module = [sys.executable, "-P", "-m", "mer.fusion.runtime.pool"]
            process = subprocess.Popen(
                [*module, str(number), str(os.getpid())],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Worker(process, ours)


@contextmanager
def ended(workers: list[Worker]) -> Iterator[None]:
    """At the end of the block, end the processes of the list, also those added within it."""
    try:
        yield
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
        workers.clear()


# ---- In such a process


def _serve(connection: Connection, parent: int) -> None:
    """Do tasks until the other end closes or says so."""
    signal.signal(signal.SIGTERM, _terminated)  # SIGINT has been blocked from the beginning
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with connection:
        try:
            while True:
                work, task, name = connection.recv()
                connection.send(_answer(work, task, name, connection))
        # the other end is gone or wants this one to be
        except (EOFError, ConnectionResetError, BrokenPipeError, Terminated):
            return


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def _answer(work: Callable, task: Any, name: str, connection: Connection) -> tuple[str, Any]:
    """What has come of a task."""
    try:
        return "done", work(task, lambda said: connection.send(("said", said)))
    except (ConnectionResetError, BrokenPipeError):
        raise
    except MerError as error:
        # a kind that is made of more than its message could not be made again from what is sent
        kind = type(error) if type(error).__init__ is MerError.__init__ else MerError
        failed = kind(str(error))
        failed.exit_code = error.exit_code
        return "failed", failed
    except Exception:
        return "failed", RuntimeError(f"{name}:\n{traceback.format_exc()}")


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
