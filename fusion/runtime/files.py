"""Files of a run folder: written whole or not at all, read within bounds, and sealed, so that one
changed bit is noticed before anything is believed.

A sealed JSON file has the key `sha256`: the digest of all its other keys and values, whatever the
white space. Files made before there were seals have no such key and are read as they are.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from mer.fusion.runtime.typed import Misfit, convert
from mer.pipeline.errors import DataError
from mer.pipeline.runtime import files as runtime_files
from mer.pipeline.runtime.limits import JSON_LEVELS, JSON_NUMBER_DIGITS, RUN_JSON_BYTES
from mer.pipeline.runtime.terminal import shown

T = TypeVar("T")
SEAL = "sha256"
# The files of a run folder (checkpoint.py says what each holds).
MODEL, LAST, INFO = "model.safetensors", "last.safetensors", "run.json"
CONFIG, SPLIT, LOG = "config.toml", "split.json", "log.jsonl"
METRICS, PREDICTIONS, TEST_LOG = "metrics.json", "predictions.parquet", "test_log.jsonl"
SEARCH = "tune.json"  # of the folder of a search, whose trials are runs in folders within it
TRIAL = "trial-"  # begins the folder of a trial: SEARCH's folder, model, trial-000
LOCK_SECONDS = 5.0  # for which a writer of a line waits for another one
HOLD = ".hold"  # who trains into the folder now
AGAIN = "put it back as it was, or train again into a new folder"  # what helps against damage
# safetensors wrote through `.tmpXXXXXX`, mer through `.NAME.tmp-PID`; a kill leaves them behind.
LEFT_BEHIND = re.compile(r"\.tmp[A-Za-z0-9]{6}|\..+\.tmp-\d+")


def damaged(path: Path, why: Any, remedy: str) -> DataError:
    """The error for a file that is not as it was written.

    Args:
        path: The file.
        why: What is wrong with it; only its beginning is shown.
        remedy: What helps.

    Returns:
        The error, to be raised.
    """
    return DataError(f"{path}: damaged ({shown(why)}); {remedy}")


def check_run(path: Path) -> None:
    """Raise DataError for what is no run folder, without reading what is in one: torch is not
    needed to say so.
    """
    if (path / INFO).exists():
        return
    if not path.exists():
        guess = runtime_files.near(path, "folder")
        raise DataError(
            f"{path}: not a run folder, there is none of that name{guess}; `mer runs` lists those "
            "that there are"
        )
    inside = next(path.glob(f"*/{INFO}"), None)
    remedy = "make one with `mer train`, or leave it out"
    if inside is not None:
        remedy = f"the runs are in it: {path}/*"
    raise DataError(f"{path}: not a run folder (no {INFO}); {remedy}")


@contextmanager
def opened(
    path: Path, remedy: str, *, missing: str = "no such file"
) -> Iterator[io.BufferedReader]:
    """A regular file to read. A pipe or device is refused instead of being waited for.

    Raises:
        DataError: There is no such file, or it is something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DataError(f"{path}: {missing}; {remedy}") from None
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "a device or pipe"
            raise DataError(f"{path}: {what} where a file should be; {remedy}")
        yield file


def digest(path: Path, remedy: str = "put it back, or train again into a new folder") -> str:
    """sha256 of a file."""
    with opened(path, remedy) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, remedy: str, *, most: int = RUN_JSON_BYTES) -> str:
    """A text file of at most `most` bytes.

    Raises:
        DataError: It is not there, larger, or not UTF-8.
    """
    with opened(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        # no more than there is: Python sets aside all the bytes that it is asked for
        raw = file.read(size) if size <= most else b""
    if size > most:
        raise DataError(
            f"{path}: more than {most:,} bytes, which no such file of mer has; {remedy}"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise damaged(path, "not UTF-8", remedy) from None


def read_json(
    path: Path, kind: type[T], remedy: str, *, text: str | None = None, most: int = RUN_JSON_BYTES
) -> T:
    """The JSON of a file of a run folder as `kind`, without its seal.

    Args:
        path: The file; its name opens every message.
        kind: What it must hold: a class of `mer.fusion.runs.records`, or dict.
        remedy: What helps when it does not.
        text: A line of the file, when that alone is to be read.
        most: Bytes of the file at most.

    Returns:
        The value.

    Raises:
        DataError: It is not JSON, not of that shape, or not as it was sealed.
    """
    text = read_text(path, remedy, most=most) if text is None else text
    try:
        value = json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_constant)
        said = value.pop(SEAL, None) if isinstance(value, dict) else None
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate can be printed nowhere
        if not _within(value, JSON_LEVELS):
            raise ValueError(f"more than {JSON_LEVELS} lists and objects within each other")
        if said is not None and said != seal(value):
            raise ValueError("its content does not match its checksum")
    except UnicodeEncodeError:
        raise damaged(path, "half a surrogate pair", remedy) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, error if text.strip() else "empty", remedy) from None
    try:
        return convert(kind, value)
    except Misfit as error:
        raise damaged(path, error, remedy) from None


def seal(value: Any) -> str:
    """sha256 of a JSON value, whatever its layout."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def json_text(value: Any) -> str:
    """As it is written to a file."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with its seal."""
    write_text(path, json_text({**value, SEAL: seal(value)}))


def write_text(path: Path, text: str) -> None:
    """Write atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, raw: bytes) -> None:
    """Write atomically."""
    with publishing(path) as file:
        file.write(raw)


@contextmanager
def publishing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `path` on a clean exit, with the mode that the umask allows.

    It is opened exclusively: a link that somebody placed under its name is not followed, and what
    `path` itself links to stays as it is.

    Args:
        path: Where the file is to appear.

    Yields:
        The file to write to.

    Raises:
        OSError: It cannot be written; names `path`, also where a library hid the cause.
        DataError: A device or pipe is there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with runtime_files.publishing(path) as temporary:
            with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
                yield file
    except DataError:
        raise
    except Exception as error:
        number = runtime_files.error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Add a line to a file; a link or pipe in its place is refused, not followed.

    The line appears whole or not at all, whoever else appends: it is written at once, under a lock
    where the file system has locks, and what a full disk takes of it is cut off again. What a crash
    has left of an earlier line is ended first, so that only that one is broken.

    Args:
        path: The file; it is made if it is not there.
        line: Without its line feed.
        durable: Survive a power loss.

    Raises:
        DataError: Something else is there.
        OSError: It cannot be written; names `path`.
    """
    remedy = "move it away"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            what = "a directory, link or pipe where a file should be"
            raise DataError(f"{path}: {what}; {remedy}") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{path}: a device or pipe where a file should be; {remedy}")
        _lock(descriptor)
        found = os.fstat(descriptor)
        size = found.st_size
        ended = not size or os.pread(descriptor, 1, size - 1) == b"\n"
        raw = (b"" if ended else b"\n") + line.encode("utf-8") + b"\n"
        if found.st_nlink > 1:  # what has the file under another name keeps it as it is
            write_bytes(path, path.read_bytes() + raw)
            return
        _add(descriptor, size, raw)
        if durable:
            os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for the lock on an open file, for as long as a line takes; go on without it where there
    are no locks, or somebody keeps it.
    """
    end = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < end:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return


def _add(descriptor: int, size: int, raw: bytes) -> None:
    """Append to a file of `size` bytes; what was written before a failure is cut off again, unless
    somebody else has written behind it.
    """
    done = 0
    try:
        while done < len(raw):
            done += os.write(descriptor, raw[done:])
    except OSError:
        if done and os.fstat(descriptor).st_size == size + done:
            os.ftruncate(descriptor, size)
        raise


def tidy(folder: Path) -> None:
    """Remove the unfinished files of writers that are dead. The caller holds `folder`."""
    for path in folder.iterdir():
        if not LEFT_BEHIND.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        if (found := re.fullmatch(r"\.(.+)\.tmp-\d+", path.name)) is not None:
            runtime_files.sweep(folder, found[1])
        else:
            path.unlink(missing_ok=True)


def _within(value: Any, levels: int) -> bool:
    """Whether a JSON value has at most `levels` lists and objects within each other."""
    nested = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inside: list[Any] = []
        for one in nested:
            inner = one.values() if isinstance(one, dict) else one
            inside += [each for each in inner if isinstance(each, dict | list)]
        nested = inside
    return not nested


def _int(digits: str) -> int:
    if len(digits) > JSON_NUMBER_DIGITS or abs(int(digits)) >= 1 << 63:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
