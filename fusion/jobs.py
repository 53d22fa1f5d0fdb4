"""Independent trainings in processes of their own, for `mer tune --jobs N`.

Each process is started once and given one piece of work after the other over a pipe. It ends when
the process that started it does, however that ends: nothing goes on training unseen.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from mer.pipeline.errors import MerError
from mer.pipeline.runtime.machine import cores

Task = TypeVar("Task")
Result = TypeVar("Result")
Heard = Callable[[Any], None]
END_SECONDS = 5.0  # for a process that was asked to end


@dataclass
class Job(Generic[Task]):
    """A process, and what it is doing."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def run(
    work: Callable[[Task, Heard], Result],
    ready: Callable[[], Task | None],
    heard: Callable[[Task, Any], None],
    done: Callable[[Task, Result], None],
    *,
    jobs: int,
) -> None:
    """Do all work there is.

    Args:
        work: Does one task; what it tells its second argument arrives at `heard`. With several
            jobs it is a function of a module, and all it takes and gives can be pickled.
        ready: The next task; None: there is none, or none before another is done.
        heard: Told what is said of a task that is being done.
        done: Told what has come of a task.
        jobs: Processes; 1: the work is done here.

    Raises:
        MerError: A task raised it; the others are stopped.
    """
    if jobs == 1:
        while (task := ready()) is not None:
            done(task, work(task, partial(heard, task)))
        return
    with _processes(work, jobs) as there:
        while True:
            for job in there:
                if job.task is None and (task := ready()) is not None:
                    job.task = task
                    job.pipe.send(task)
            busy = {job.pipe: job for job in there if job.task is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                _hear(busy[pipe], heard, done)  # type: ignore[index]


def _hear(job: Job, heard: Callable, done: Callable) -> None:
    """Take one message of a process."""
    try:
        kind, said = job.pipe.recv()
    except (EOFError, OSError):
        job.process.join(END_SECONDS)
        code = job.process.exitcode
        raise MerError(
            f"a process of --jobs ended (status {code}) while it trained; out of memory? Run the "
            "same command again, with fewer jobs, to go on"
        ) from None
    if kind == "said":
        heard(job.task, said)
    elif kind == "failed":
        raise said
    else:
        task, job.task = job.task, None
        done(task, said)


@contextmanager
def _processes(work: Callable, jobs: int) -> Iterator[list[Job]]:
    """Processes that wait for work, until the block ends."""
    context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
    there: list[Job] = []
    threads = max(cores() // jobs, 1)
    try:
        for _ in range(jobs):
            mine, other = context.Pipe()
            process = context.Process(target=_serve, args=(other, work, threads), daemon=True)
            process.start()
            other.close()
            there.append(Job(process, mine))
        yield there
    finally:
        for job in there:
            job.pipe.close()
            job.process.terminate()
        for job in there:
            job.process.join(END_SECONDS)
            if job.process.is_alive():
                job.process.kill()
                job.process.join()


def _serve(pipe: Connection, work: Callable, threads: int) -> None:
    """What a process does: one task after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; who started us ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("done", work(task, lambda said: pipe.send(("said", said))))
        except MerError as error:
            failed = MerError(str(error))
            failed.exit_code = error.exit_code
            answer = ("failed", failed)
        pipe.send(answer)


def _end_with_parent() -> None:
    """End this process at once when the one that started it has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
