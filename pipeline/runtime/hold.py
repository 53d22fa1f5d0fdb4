"""One run at a time at one output; the shares of `--shard i/n` together.

A hold is an advisory lock on a file, so it ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mer.pipeline.errors import DataError

LATE_SECONDS = 90.0  # NFS clients keep what they know of a folder for up to 60 s (acdirmax)


@contextmanager
def hold(path: Path, *, shared: bool = False) -> Iterator[str | None]:
    """Hold `path`, or raise DataError that says who does.

    Yields a line about a hold left behind by a run that was killed, if any. `shared` holds go
    together with each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            raise DataError(
                f"{path.parent}: {holder} is writing there; wait for it, stop it, or choose "
                "another --out"
            ) from None
        if shared:
            yield None
            return
        left = _holder(descriptor) if os.fstat(descriptor).st_size else None
        mine = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        try:
            yield f"taking over from {left}, which was killed" if left else None
        finally:
            os.ftruncate(descriptor, 0)  # an empty file says: ended in order
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether somebody holds `path`."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Ledger:
    """A few words in the file of a lock, which whoever has the lock can rely on: network file
    systems keep a locked file coherent, where names in a folder may be seen late.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def read(self) -> dict:
        try:
            found = json.loads(os.pread(self._descriptor, 1 << 20, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: dict) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)


@contextmanager
def turn(path: Path) -> Iterator[Ledger]:
    """Wait for the lock on `path`: for moments that the shares of a run take one after
    the other.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Ledger(descriptor)
    finally:
        os.close(descriptor)


def appear(paths: Sequence[Path]) -> list[Path]:
    """Wait until files that have been published, perhaps by another machine, can be seen here,
    `LATE_SECONDS` at most: a network file system may remember for a while that there was no such
    name. Reading the folder makes it look again. Returns those still unseen.
    """
    deadline = time.monotonic() + LATE_SECONDS
    while (unseen := [path for path in paths if not path.exists()]) and time.monotonic() < deadline:
        for folder in {path.parent for path in unseen}:
            os.listdir(folder)
        if unseen[0].exists():
            continue
        time.sleep(0.2)
    return unseen


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {found['pid']} on {found['host']} (since {found['started']})"
    except (ValueError, KeyError, TypeError):
        return "another run"
