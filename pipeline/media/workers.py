"""Decoding ahead of the encoder, in processes that may hang or crash without harm.

Each worker is a bare interpreter that runs this module: it needs no `if __name__ == "__main__"` in
the caller's script, shares no lock or thread with this process, and ends when this process does. A
worker that does not answer in time is killed, and the clip counts as failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe

import numpy as np

from mer.pipeline.media import audio as media
from mer.pipeline.media import pictures
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.files import identity
from mer.pipeline.runtime.limits import LINE_CHARACTERS
from mer.pipeline.runtime.terminal import first_line

# Statuses of a decoder that somebody ended: the kernel for lack of memory, …
ENDED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)

TRIES = 2  # of a job whose decoder was killed, or crashed after it had done others


@dataclass(frozen=True, slots=True)
class Job:
    """What a decoder is asked.

    Attributes:
        what: "probe" asks how many samples there are, "load" for the waveform, and "changed" why
            this version decodes the file otherwise than the first, which is the `reason`. "count"
            and "pictures" ask the same of the picture as "probe" and "load" of the sound.
            "streams" asks which of the two there are.
        path: The file.
        channel: As for `media.load`.
        start: As for `media.load`, in seconds.
        end: As for `media.load`, in seconds.
        expected: (inode, size, mtime_ns) of the bytes that are meant; a file that no longer has
            them changed while the run was going on.
        track: As for `media.load`.
        pictures: Which pictures are wanted, for "count" and "pictures".
    """

    what: str
    path: str
    channel: str
    start: float | None
    end: float | None
    expected: tuple[int, int, int] | None = None
    track: str = "auto"
    pictures: pictures.Wanted | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder answers.

    Attributes:
        samples: How many there are at 16 kHz; for "count" and "pictures", how many pictures.
        waveform: (samples,) float32, for "load".
        flags: Names of `stages.Flag`, for "load" and "pictures".
        stage: Where it failed, if it did.
        reason: One line that says why; for "changed" its answer.
        pictures: Those that were wanted, one behind the other, for "pictures".
        streams: Whether there is sound, and whether there is a picture, for "streams".
    """

    samples: int = 0
    waveform: np.ndarray | None = None
    flags: tuple[str, ...] = ()
    stage: Stage | None = None
    reason: str | None = None
    pictures: np.ndarray | None = None
    streams: tuple[bool, bool] | None = None


def decode(job: Job) -> Decoded:
    """Do one job, in this process.

    Args:
        job: What is asked.

    Returns:
        The answer. A file that cannot be decoded is one, too, and no exception.
    """
    try:
        if job.expected is not None and identity(job.path) != job.expected:
            return Decoded(
                stage=Stage.CHANGED, reason=f"{job.path}: changed while it was being extracted"
            )
        if job.what == "changed":
            return Decoded(reason=media.changed(job.path))
        if job.what == "streams":
            return Decoded(streams=pictures.streams(job.path))
        if job.pictures is not None:
            return _pictures(job, job.pictures)
        if job.what == "probe":
            info = media.probe(job.path, start=job.start, end=job.end, track=job.track)
            return Decoded(samples=info.samples)
        clip = media.load(
            job.path, channel=job.channel, start=job.start, end=job.end, track=job.track
        )
        return Decoded(len(clip.waveform), clip.waveform, clip.flags)
    except media.MediaError as error:
        return Decoded(stage=Stage(error.stage), reason=str(error))
    except MemoryError:
        return Decoded(stage=Stage.OOM, reason=f"{job.path}: not enough memory to decode it")
    except OSError as error:
        return Decoded(stage=Stage.OPEN, reason=f"{job.path}: {error.strerror or error}")
    except Exception as error:  # the last net: a decoder's surprise costs one clip, not the run
        said = first_line(error, LINE_CHARACTERS)
        return Decoded(stage=Stage.DECODE, reason=f"{job.path}: {type(error).__name__}: {said}")


def _pictures(job: Job, wanted: pictures.Wanted) -> Decoded:
    if job.what == "count":
        info = pictures.probe(job.path, fps=wanted.fps, start=job.start, end=job.end)
        return Decoded(samples=info.count)
    found, total, flags = pictures.take(job.path, wanted, start=job.start, end=job.end)
    return Decoded(total, flags=flags, pictures=found)


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that decodes, this end of its pipe, and the environment it was started with."""

    process: subprocess.Popen
    connection: Connection
    environment: frozenset[tuple[str, str]]


class _Waiting:
    """Workers without a job, while somebody is within `workers_kept`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keepers = 0
        self._workers: list[Worker] = []

    def forget(self) -> None:
        """In a fork: workers answer the process that started them."""
        self._lock, self._workers = threading.Lock(), []

    def enter(self) -> None:
        with self._lock:
            self._keepers += 1

    def leave(self) -> None:
        with self._lock:
            self._keepers -= 1
            ended = [] if self._keepers else self._workers
            if ended:
                self._workers = []
        for worker in ended:
            _end(worker)

    def put(self, worker: Worker) -> None:
        """Keep a worker that has answered; it ends where nobody keeps any."""
        with self._lock:
            if keeping := self._keepers > 0:
                self._workers.append(worker)
        if not keeping:
            _end(worker)

    def take(self) -> Worker | None:
        """A worker that has the environment that one would be started with now; others end."""
        environment, taken, ended = _environment(), None, []
        with self._lock:
            waiting, self._workers = self._workers, []
            for worker in waiting:
                if worker.environment != environment or _ended(worker):
                    ended.append(worker)
                elif taken is None:
                    taken = worker
                else:
                    self._workers.append(worker)
        for worker in ended:
            _end(worker)
        return taken


_WAITING = _Waiting()
os.register_at_fork(after_in_child=_WAITING.forget)


@contextmanager
def workers_kept() -> Iterator[None]:
    """Within: a worker that is done waits for the next `Decoders` instead of ending.

    An extraction asks decoders three times, and each start takes 0.2 s of a processor.
    """
    _WAITING.enter()
    try:
        yield
    finally:
        _WAITING.leave()


def _environment() -> frozenset[tuple[str, str]]:
    return frozenset(os.environ.items())


def _ended(worker: Worker) -> bool:
    return worker.process.poll() is not None


def _end(worker: Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.wait()


class Decoders:
    """Processes that decode ahead of whoever needs the sound.

    A context manager: leaving it ends them, or leaves those that have answered to the next one,
    see `workers_kept`.

    Args:
        workers: How many processes; 0 decodes in the calling thread.
        timeout: Seconds after which a process that does not answer is killed.
    """

    def __init__(self, workers: int, *, timeout: float = 120.0):
        self.workers, self.timeout = workers, timeout
        self._local = threading.local()
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen] = []
        self._idle: dict[subprocess.Popen, Worker] = {}
        self._closed = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            with self._lock:
                self._closed = True
                for process in self._running:
                    if process not in self._idle:
                        process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            for process in self._running:
                if process not in self._idle:
                    process.wait()
            for worker in self._idle.values():
                _WAITING.put(worker)
            self._running, self._idle = [], {}

    def run(self, jobs: Iterable[Job], *, ahead: int = 64) -> Iterator[Decoded]:
        """Do jobs, ahead of the one that is asked for.

        Args:
            jobs: What is asked; it is consumed lazily.
            ahead: How many answers are held at most before they are asked for.

        Yields:
            The answers, in the order of `jobs`.
        """
        if self._pool is None:
            yield from map(decode, jobs)
            return
        waiting: deque[Future] = deque()
        try:
            for job in jobs:
                waiting.append(self._pool.submit(self._one, job))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _one(self, job: Job) -> Decoded:
        """Have one job done by this thread's worker; what ends the worker costs the clip alone.

        A worker that has done other jobs may crash because of those, which the second try, by a new
        one, tells apart.
        """
        for number in range(TRIES):
            used = False
            try:
                connection, used = self._connection(new=number > 0)
                if connection is None:
                    return Decoded(stage=Stage.KILLED, reason=f"{job.path}: no longer asked for")
                connection.send((_folder(), job))
                if connection.poll(self.timeout):
                    answer = connection.recv()
                    with self._lock:
                        self._idle[self._local.worker.process] = self._local.worker
                    return answer
                self._drop()
                return Decoded(
                    stage=Stage.TIMEOUT,
                    reason=f"{job.path}: the decoder did not answer within {self.timeout:g} s",
                )
            except (EOFError, BrokenPipeError, ConnectionResetError):
                code = self._drop()
                if code not in ENDED and not used:
                    return Decoded(
                        stage=Stage.DECODE,
                        reason=f"{job.path}: the decoder crashed (status {code})",
                    )
                if self._closed:
                    break
        return Decoded(
            stage=Stage.KILLED,
            reason=f"{job.path}: the decoder was killed (status {code}), perhaps for lack of "
            "memory",
        )

    def _connection(self, *, new: bool = False) -> tuple[Connection | None, bool]:
        """To this thread's worker, which is started where there is none, and whether it has done
        other jobs; None: nobody waits for an answer any more.

        `new`: where it has none, it gets none of those that were kept.
        """
        with self._lock:
            if self._closed:
                return None, False
            worker = getattr(self._local, "worker", None)
            used = worker is not None
            if worker is None:
                kept = None if new else _WAITING.take()
                used = kept is not None
                worker = self._local.worker = kept or _start()
                self._running.append(worker.process)
            self._idle.pop(worker.process, None)
        return worker.connection, used

    def _drop(self) -> int:
        """End this thread's worker; the next job starts another."""
        worker, self._local.worker = self._local.worker, None
        _end(worker)
        with self._lock:
            self._running.remove(worker.process)
        return worker.process.returncode


def _folder() -> str | None:
    """The working folder, which paths may be relative to; None: it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _start() -> Worker:
    ours, theirs = Pipe()
    # -P: what lies in the working folder, a script called av.py, is none of its modules.
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mer.pipeline.media.workers", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            # what decoding libraries write there is not for the user: answers say what went wrong
            stderr=None if os.environ.get("MER_DEBUG") else subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return Worker(process, ours, _environment())


def _work(connection: Connection) -> None:
    """Do jobs until the other end closes."""
    # Both signals may reach the whole group; the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with connection:
        while True:
            try:
                folder, job = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            with suppress(OSError):  # what is not found there has its own message
                if folder != _folder():
                    os.chdir(folder)
            connection.send(decode(job))


if __name__ == "__main__":
    # Run as a script this module is `__main__`, but the jobs name `mer.pipeline.media.workers`: so
    # that one does the work.
    from mer.pipeline.media import workers as module

    module._work(Connection(int(sys.argv[1])))
