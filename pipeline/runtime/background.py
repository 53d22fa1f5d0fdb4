"""Two small threads: one that prepares what is needed next, one that writes what is finished.

Both bounded, both stop when told.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

END = object()
T = TypeVar("T")
POLL_SECONDS = 0.2


def prefetch(
    source: Iterable[T], depth: int, *, until: Callable[[], bool] = lambda: False
) -> Generator[T, None, None]:
    """The items of `source`, up to `depth` of them computed ahead by a thread.

    Exceptions arrive where the items would. Ends early, within `POLL_SECONDS`, when `until` becomes
    true.
    """
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        iterator = iter(source)
        try:
            for item in iterator:
                if not put((item, None)):
                    break
            else:
                put((END, None))
        except BaseException as error:  # handed to the reader
            put((END, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while not until():
            try:
                item, error = ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        stop.set()
        thread.join(1.0)  # it may be waiting for a decoder that hangs; ending the decoders ends it


class Writer:
    """Calls, in order, what it is given, in one thread; `depth` calls may wait.

    An exception is raised at the next `put` or at the end.
    """

    def __init__(self, depth: int = 4):
        self._calls: queue.Queue = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self._error = self._error or kind()  # what still waits is dropped
        self._calls.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, call: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        self._calls.put(call)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error is None:
                try:
                    call()
                except BaseException as error:  # handed to the caller
                    self._error = error
