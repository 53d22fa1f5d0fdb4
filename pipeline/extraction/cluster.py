"""The pieces of a plan on many processes or machines, by Dask.

Whoever does it, the bytes are the same.

Tasks carry the numbers of parts and shards and return a few integers; features never travel through
the scheduler, they are written by the worker that computed them. What is finished is what is on
disk, so a scheduler, a worker or the client may die at any time.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import dask
from distributed import (
    Client,
    KilledWorker,
    LocalCluster,
    Worker,
    WorkerPlugin,
    as_completed,
    get_worker,
    wait,
)
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.security import Security

from mer.pipeline.errors import DataError, DependencyError, EncoderError, MerError
from mer.pipeline.extraction.decoding import open_decoders
from mer.pipeline.extraction.fingerprint import Chosen
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.parts import Done, Finished, Tally
from mer.pipeline.extraction.plan import Part, ShardPlan
from mer.pipeline.extraction.request import Place, Scheduler, Workers
from mer.pipeline.extraction.runner import (
    Assignment,
    LocalRunner,
    assemble_shard,
    load_encoders,
)
from mer.pipeline.runtime.background import prefetch
from mer.pipeline.runtime.machine import cores, keep_freed_memory, pin
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.runtime.terminal import first_line

RETRIES = 2  # of a task that raised
CONNECT_SECONDS = 30
DEATHS = 4  # workers that may die over one task before it is given up
GONE = "the Dask scheduler went away; run the same command again to go on"
CLOSE_SECONDS = 30  # for local workers to end by themselves
WORKER_NAME = "Dask Worker process"  # as Dask calls the processes of a LocalCluster
LOOK_SECONDS = 5  # between two looks at whether there are workers
LOST_SECONDS = 180  # without any worker; a nanny does not restart one that dies while it starts
MANY_JOBS = 1 << 30  # a worker decodes for as many parts as it is given
SETTINGS = {
    "distributed.scheduler.allowed-failures": DEATHS,
    # one that died may take a while to load its encoders again
    "distributed.deploy.lost-worker-timeout": LOST_SECONDS,
    "distributed.worker.memory.terminate": False,  # encoders are large on purpose
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    # looks at the stacks of all threads a hundred times a second: 5 % of a CPU worker
    "distributed.worker.profile.enabled": False,
}


class WorkerSetup(WorkerPlugin):
    """What a worker process has for its tasks: encoders loaded once, on its device.

    Dask calls `setup` in every one, restarted ones too. The name is the run's own: other runs may
    use the same workers.
    """

    def __init__(self, assignment: Assignment, *, local_workers: int = 0):
        self.name = f"mer-{uuid.uuid4().hex}"
        # workers may have been started in another folder
        place = Place(assignment.place.out.absolute())
        self.assignment = replace(assignment, place=place)
        self.local_workers = local_workers

    def setup(self, worker) -> None:
        keep_freed_memory()
        self.stop = Stop()
        options = self.assignment.options
        if self.local_workers:
            # both reach the whole group; the client decides, through `stop`
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            options = self._options_of(worker.name)
        chosen = [
            self._resolved(choice, worker.address) for choice in self.assignment.inputs.chosen
        ]
        self.runner = LocalRunner(
            replace(self.assignment, options=options),
            load_encoders(chosen, options),
            open_decoders(options, MANY_JOBS),
        )
        self.finished: dict[int, Finished] = {}

    def _options_of(self, name: int | str) -> ExtractOptions:
        """The share of a local worker in this machine's devices and cores."""
        options = self.assignment.options
        return replace(
            options,
            device=pin(options.device, name),
            threads=options.threads or max(1, cores() // self.local_workers),
            decoders=options.decoders if options.decoders >= 0 else 1,
        )

    def _resolved(self, choice: Chosen, address: str) -> Chosen:
        """The encoder's files on this machine. Raises EncoderError when they are others."""
        source, offline = choice.checkpoint.source, self.assignment.options.offline
        here = choice.modality.resolve(source, offline=offline)
        if here.hash != choice.checkpoint.hash:
            raise EncoderError(
                f"{choice.name} encoder {source} has other files on {address} than on the machine "
                "that made the plan"
            )
        return Chosen(choice.modality, here)

    def teardown(self, worker) -> None:
        if self.runner.decoders is not None:
            self.runner.decoders.__exit__()

    def encode(self, window: int, number: int) -> Tally:
        part = self.assignment.plan.parts[window][number]
        # it is there when the worker that made it died before it could say so
        if Finished(self.assignment.place.parts).add(part):
            return Tally()
        return self.runner.encode(window, [part], stop=self.stop)

    def assemble(self, window: int, number: int) -> None:
        if self.stop.asked:
            return
        if window not in self.finished:
            self.finished = {window: self.runner.collect(window)}
        shard = self.assignment.plan.windows[window][number]
        assemble_shard(self.runner.assignment, shard, window, self.finished[window])


def _setup_of(worker: Worker, plugin: str) -> WorkerSetup:
    return cast(WorkerSetup, worker.plugins[plugin])


def encode_task(plugin: str, window: int, number: int) -> Tally:
    return _setup_of(get_worker(), plugin).encode(window, number)


def assemble_task(plugin: str, window: int, number: int) -> None:
    _setup_of(get_worker(), plugin).assemble(window, number)


def stop_worker(plugin: str, dask_worker: Worker | None = None) -> None:
    if dask_worker is not None:  # Dask gives it by this name
        _setup_of(dask_worker, plugin).stop.asked = True


class ClusterRunner:
    """Does pieces of a plan on the workers of a Dask client, which have the plugin of that name."""

    def __init__(self, client: Client, assignment: Assignment, plugin: str):
        self.client, self.assignment, self.plugin = client, assignment, plugin
        self._looked = self._seen = time.monotonic()

    def encode(self, window: int, parts: Sequence[Part], done: Done, stop: Stop) -> Tally:
        """Encode parts of a window; fewer when asked to stop."""
        planned = self.assignment.plan.parts[window]
        numbers = {part.name: number for number, part in enumerate(planned)}
        todo = {numbers[part.name]: part for part in parts}
        tally = Tally()
        for number, counted in self._run(encode_task, window, list(todo), stop):
            tally += counted
            done(todo[number], todo[number].length)
        return tally

    def assemble(self, window: int, shards: Sequence[ShardPlan], stop: Stop) -> None:
        """Write shards of a window; fewer when asked to stop."""
        first = self.assignment.plan.windows[window][0].number
        numbers = [shard.number - first for shard in shards]
        for _ in self._run(assemble_task, window, numbers, stop):
            pass

    def _run(
        self, task: Callable, window: int, numbers: list[int], stop: Stop
    ) -> Iterator[tuple[int, Any]]:
        """(number, result) as the tasks finish, longest first, as planned.

        Asked to stop, the workers write what they have of the tasks they are at, and do nothing for
        the others.
        """
        futures = {
            self.client.submit(
                task, self.plugin, window, number, pure=False, retries=RETRIES, priority=-i
            ): number
            for i, number in enumerate(numbers)
        }
        self._seen = time.monotonic()
        finished = prefetch(
            as_completed(list(futures)),
            max(1, len(futures)),
            until=lambda: stop.asked or self._lost(),
        )
        try:
            for future in finished:
                yield futures[future], self._result(future)
            if stop.asked:
                # one that is just starting has nothing to write
                self.client.run(stop_worker, self.plugin, on_error="ignore")
                self._stopped(list(futures))
        except KilledWorker as error:
            raise DataError(
                f"{error.allowed_failures + 1} workers died over one piece of work, probably out "
                "of memory; "
                "use a smaller --budget-seconds or fewer workers"
            ) from None
        except (FutureCancelledError, CommClosedError):
            raise DataError(GONE) from None
        finally:
            with suppress(CommClosedError, TimeoutError):
                self.client.cancel(list(futures))
            finished.close()

    def _result(self, future) -> Any:
        """What a finished task returned.

        If the worker that has it died meanwhile the task runs again, provided there is another.
        """
        while future.status != "error":
            try:
                return future.result(timeout=LOOK_SECONDS)
            except TimeoutError:
                self._lost()
        return future.result()  # raises what the task raised, at once

    def _stopped(self, futures: list) -> None:
        """Wait until the tasks have ended, for as long as there are workers."""
        while True:
            try:
                wait(futures, timeout=LOOK_SECONDS)
                return
            except TimeoutError:
                self._lost()

    def _lost(self) -> bool:
        """False; raises DataError when there has been no worker for a while, or there is no
        scheduler.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            try:
                workers = self.client.scheduler_info()["workers"]
            except OSError:
                raise DataError(GONE) from None
            if workers:
                self._seen = now
            elif now - self._seen > LOST_SECONDS:
                raise DataError(
                    f"all workers are gone, and none came for {LOST_SECONDS} s; they probably ran "
                    "out of memory: use a smaller "
                    "--budget-seconds or fewer workers; the same command goes on from here"
                )
        return False


def temporary_security() -> Security:
    """A certificate and key that nobody else has. Raises DependencyError."""
    try:
        return Security.temporary()
    except ImportError:
        raise DependencyError(
            "--workers needs the package cryptography; run `pip install cryptography`, or use "
            "--shard i/n"
        ) from None


@contextmanager
def local_cluster(workers: int) -> Iterator[LocalCluster]:
    """Worker processes on this machine.

    They are ended by force when they do not end in time, as one that is just being restarted after
    its death may not: Dask would wait for it without end, and so would the interpreter, since the
    workers ignore SIGTERM.
    """
    # Whoever can talk to a scheduler can run code in its workers, and on a shared machine everybody
    # can talk to a port of it: a key of this run alone, in memory, and no pages. What is left of
    # their server listens on any free port, so that several runs go on.
    security = temporary_security()
    with dask.config.set(
        {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    ):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            protocol="tls",
            host="127.0.0.1",
            security=security,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
        )
    try:
        yield cluster
    finally:
        try:
            cluster.close(timeout=CLOSE_SECONDS)
        except TimeoutError:
            for process in multiprocessing.active_children():
                if process.name.startswith(WORKER_NAME):
                    process.kill()


@contextmanager
def workers_for(assignment: Assignment, where: Workers | Scheduler) -> Iterator[ClusterRunner]:
    """Workers that have the encoders loaded: local processes, or those of a scheduler."""
    quiet = logging.getLogger("distributed")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with dask.config.set(SETTINGS):
            if isinstance(where, Workers):
                plugin = WorkerSetup(assignment, local_workers=where.count)
                with local_cluster(where.count) as cluster, Client(cluster) as client:
                    yield _ready(client, plugin)
            else:
                plugin = WorkerSetup(assignment)
                with _connect(where.address) as client:
                    yield _ready(client, plugin)
                    # the workers go on to other things
                    client.unregister_worker_plugin(plugin.name)
    finally:
        quiet.setLevel(level)


@contextmanager
def _connect(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address. Raises DataError when it is not to be used."""
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise DataError(f"--scheduler {address}: cannot be reached ({first_line(error)})") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise DataError(
                f"--scheduler {address}: it has no workers yet; start some, then run the same "
                "command again"
            )
        yield client


def _ready(client: Client, plugin: WorkerSetup) -> ClusterRunner:
    """Register the plugin, which loads the encoders, and wait until every worker has them."""
    try:
        client.register_plugin(plugin, name=plugin.name)
    except MerError:
        raise
    except (OSError, TimeoutError, ImportError) as error:
        raise DataError(f"the workers cannot load the encoders ({first_line(error)})") from None
    return ClusterRunner(client, plugin.assignment, plugin.name)
