"""Files that appear whole or not at all, and what a file's bytes hash to.

Everything mer writes goes through `publishing`: a temporary file beside its final place, synced to
the disk, renamed, and the folder synced, so that neither a kill nor a power loss leaves half a
file under its final name. A killed writer leaves its temporary; the next writer of the same name
clears it away.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Literal

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import ECHO_CHARACTERS
from mer.pipeline.runtime.terminal import closest, did_you_mean

NEAR_ENTRIES = 5_000  # of a folder that are looked through for a name that may have been meant
TEMPORARY = ".tmp-"  # before the number of the process that writes
# How the libraries below Python say which system call failed.
ERRNO = re.compile(r"\[Errno (\d+)\]|os error (\d+)|errno = (\d+)")
# What ends where there is space again, or a larger limit, and not before.
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@contextmanager
def publishing(path: Path, *, durable: bool = True, swept: bool = False) -> Iterator[Path]:
    """Prepare a file, then give it its final name.

    Args:
        path: where the file is to appear; its folder is made if it is not there.
        durable: sync the file and its folder. False for what can be made again, file by file.
        swept: the caller has swept the folder, where it writes many files: to look through all of
            them for each would take time by the square of their number.

    Yields:
        The temporary path to write to. On a clean exit of the block it is synced and renamed to
        `path`, replacing a file of that name; on an exception it is removed and nothing appears.

    Raises:
        DataError: `path` is a device or a pipe.
        OSError: the disk is full, the folder cannot be written, …; it names `path`.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            sync_folder(path.parent.parent)
    temporary = temporary_for(path, swept=swept)
    with naming(path):
        try:
            yield temporary
            if durable:
                sync_file(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block names `path` where it names nothing, or a temporary of ours, and says
    what the system says.
    """
    try:
        yield
    except OSError as error:
        named = error.filename is not None and TEMPORARY not in str(error.filename)
        number = error_number(error)
        if named or number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def error_number(error: BaseException) -> int | None:
    """The errno of a failed system call, also of one that a library tells of in words only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = ERRNO.search(str(error))
    return int(next(filter(None, found.groups()))) if found else None


@contextmanager
def folders_for(out: Path) -> Iterator[None]:
    """The folders above `out`, made; those that were not there before go again when the block
    fails.
    """
    made = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody put something there in the meantime
                folder.rmdir()
        raise


def temporary_for(path: Path, *, swept: bool = False) -> Path:
    """Where this process may prepare `path`, file or folder; what dead writers of it left behind is
    removed, unless the caller has `swept` the folder.

    Raises DataError for a device or pipe (/dev/null, /dev/stdout): a rename would put a file in its
    place.
    """
    if not path.name:  # "." or "/"
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(
            f"{path}: a device or pipe, which cannot be replaced by a file; name another place"
        )
    if not swept:
        sweep(path.parent, path.name)
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """What dead writers in `folder` have left of the file or folder `name`, or of any (None)."""
    begin = "." if name is None else f".{name}{TEMPORARY}"
    try:
        there = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    found = []
    for one in there:
        if one.startswith(begin) and TEMPORARY in one[1:]:
            pid = one.rsplit("-", 1)[1]
            if (name is not None or pid.isdecimal()) and not _alive(pid):
                found.append(folder / one)
    return found


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what dead writers in `folder` have left; of a link the link."""
    for path in leftovers(folder, name):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it; of a link the link. Nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_link(path: Path) -> None:
    """Raise DataError for a symbolic link where mer writes: what it leads to is somebody else's, to
    be neither changed nor removed.
    """
    if path.is_symlink():
        there = shortened(str(path.readlink()))
        raise DataError(
            f"{path}: a symbolic link (to {there}), and mer writes into places of its own; remove "
            "it, or choose another --out"
        )


def sync_file(path: Path) -> None:
    """Make what was written to a file survive a power loss."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power loss."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: str | Path) -> tuple[int, int, int]:
    """(inode, size, mtime_ns): a file that keeps all three is taken for unchanged.

    Raises OSError, also for what is no regular file, since reading a pipe may never end.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_ino, status.st_size, status.st_mtime_ns


def shortened(text: str, most: int = ECHO_CHARACTERS) -> str:
    """`text` as a message repeats it, `most` characters of it."""
    return text if len(text) <= most else f"{text[:most]} …"


def _alive(pid: str) -> bool:
    """Whether another process of that number is at work here; the temporary of a dead one is
    rubbish.
    """
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def near(path: str | os.PathLike, kind: Literal["file", "folder", "any"] = "file") -> str:
    """` (did you mean 'feats.h5'?)` for a path where there is nothing.

    Args:
        path: Where something of that kind should be.
        kind: What alone is meant.

    Returns:
        What lies beside it under nearly that name, or beside the first of its folders that is not
        there; names with one ending are held against each other without it. Empty where nothing
        does, or where it cannot be told.
    """
    place = Path(path)
    with suppress(OSError, ValueError):  # a folder that nobody may read, a zero byte
        while not os.path.lexists(place.parent) and place.parent != place:
            place, kind = place.parent, "folder"
        if os.path.lexists(place):
            return ""
        with os.scandir(place.parent) as entries:
            there = list(islice(entries, NEAR_ENTRIES))
        seen = [entry for entry in there if not entry.name.startswith(".")]
        known = [
            entry.name for entry in seen if kind == "any" or entry.is_dir() == (kind == "folder")
        ]
        alike = {Path(name).stem: name for name in sorted(known) if _ends_as(name, place)}
        close = closest(place.stem, alike)
        if close is not None:
            return did_you_mean(alike[close], [alike[close]])
        return did_you_mean(place.name, sorted(name for name in known if not _ends_as(name, place)))
    return ""


def _ends_as(name: str, place: Path) -> bool:
    return Path(name).suffix.casefold() == place.suffix.casefold()
