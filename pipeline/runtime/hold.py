"""One run at a time at one output; the shares of `--shard i/n` together.

A hold is an advisory lock on a file, so it ends with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.files import naming
from mer.pipeline.runtime.limits import ECHO_CHARACTERS, LOCK_BYTES

LATE_SECONDS = 90.0  # NFS clients keep what they know of a folder for up to 60 s (acdirmax)


@contextmanager
def hold(path: Path, *, shared: bool = False, lock: bool = True) -> Iterator[str | None]:
    """Hold `path`, or raise DataError that says who does.

    Yields a line about a hold left behind by a run that was killed, if any. `shared` holds go
    together with each other. `lock` False, for a file system that has no locks (`--no-lock`):
    nothing is held and nothing written; the user sees to it that one run works there at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not lock:
        yield None
        return
    descriptor = _open(path)
    try:
        if not _lock(
            descriptor, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, alone=not shared
        ):
            holder = _holder(descriptor)
            raise DataError(
                f"{path.parent}: {holder} is writing there; wait for it, stop it, or choose "
                "another --out"
            )
        if shared:
            yield None
            return
        left = _holder(descriptor) if os.fstat(descriptor).st_size else None
        mine = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        _put(descriptor, path, mine)
        try:
            yield f"taking over from {left}, which was killed" if left else None
        finally:
            os.ftruncate(descriptor, 0)  # an empty file says: ended in order
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether somebody holds `path`."""
    try:
        descriptor = _open(path)
    except DataError:
        return False  # nobody can hold what is no file of ours
    try:
        return not _lock(descriptor, path, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def busy(path: Path) -> bool:
    """Whether somebody holds `path`, as far as can be told without writing: unlike `held` it makes
    no file, so that a list of other people's folders leaves them as they are.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not os.fstat(descriptor).st_size:
            return False  # an empty file says: ended in order
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no locks there
    finally:
        os.close(descriptor)
    return False


def _open(path: Path) -> int:
    """A file of our own to lock and to write a few words into.

    What somebody else has put in its place is neither opened through a link nor emptied.
    """
    try:
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
        )
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise DataError(
            f"{path}: not a file of mer's own (a link, folder or pipe); remove it, or choose "
            "another --out"
        ) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or (found.st_nlink > 1 and not _is_ours(descriptor)):
        os.close(descriptor)
        raise DataError(
            f"{path}: not a file of mer's own (a pipe, or linked to another file); remove it, or "
            "choose another --out"
        )
    return descriptor


def _put(descriptor: int, path: Path, words: dict) -> None:
    """Write a few words in place of those that a file of ours has. Raises OSError, which names the
    file: the disk may be full.
    """
    with naming(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(words).encode(), 0)


def _is_ours(descriptor: int) -> bool:
    """Whether a file holds what a hold or a ledger does; an empty one does."""
    raw = os.pread(descriptor, LOCK_BYTES, 0)
    try:
        return not raw or isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def _lock(
    descriptor: int, path: Path, kind: int, *, wait: bool = False, alone: bool = True
) -> bool:
    """Lock a file; False when somebody else has it.

    Raises DataError on a file system that has no locks; `alone`: a user who starts one run at a
    time can do without.
    """
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        way = (
            "add --no-lock if no other run works in that folder"
            if alone
            else "shares of a run need locks"
        )
        raise DataError(
            f"{path}: cannot be locked there ({error.strerror}); {way}, or choose another --out"
        ) from None
    return True


class Ledger:
    """A few words in the file of a lock, which whoever has the lock can rely on: network file
    systems keep a locked file coherent, where names in a folder may be seen late.
    """

    def __init__(self, descriptor: int, path: Path):
        self._descriptor, self._path = descriptor, path

    def read(self) -> dict:
        try:
            found = json.loads(os.pread(self._descriptor, LOCK_BYTES, 0))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: dict) -> None:
        _put(self._descriptor, self._path, content)


@contextmanager
def turn(path: Path) -> Iterator[Ledger]:
    """Wait for the lock on `path`: for moments that the shares of a run take one after
    the other.
    """
    descriptor = _open(path)
    try:
        _lock(descriptor, path, fcntl.LOCK_EX, wait=True, alone=False)
        yield Ledger(descriptor, path)
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
        return f"process {found['pid']} on {found['host']} (since {found['started']})"[
            :ECHO_CHARACTERS
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another run"
