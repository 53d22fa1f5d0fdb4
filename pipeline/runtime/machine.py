"""What this machine has and how a process uses it: cores, threads, memory, devices.

torch is imported inside the functions that need it, so that this module costs nothing to import.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean

if TYPE_CHECKING:
    import torch

# parameters of glibc's mallopt
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 64 << 20, 32 << 20


@functools.cache  # its metadata are parsed once: 10 ms
def installed_version(package: str) -> str:
    """The version of an installed package."""
    from importlib import metadata

    return metadata.version(package)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def choose_device(device: str) -> torch.device:
    """The device that `auto` (the GPU where there is one), `cpu`, `cuda` or `cuda:N` names.

    Raises DataError for another name, or a GPU that this machine does not have.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        guess = did_you_mean(device, ("auto", "cpu", "cuda"))
        raise DataError(f"device '{device}' is not auto, cpu, cuda or cuda:N{guess}")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DataError(
            f"device '{device}': this machine offers {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu or auto"
        )
    return chosen


def pin(device: str, name: int | str) -> str:
    """The device of worker number `name`: the GPUs in turn for `auto` and `cuda`, otherwise what
    was asked for.
    """
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available() and str(name).isdecimal():
        return f"cuda:{int(name) % torch.cuda.device_count()}"
    return device


def single_threaded() -> None:
    """Operations of this thread run on one core."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, operations of this thread run on one core, as everywhere in an extraction: with
    another number of threads they round differently.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's allocator raises a class of its own; the host's is told by its message only."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(text in str(error).lower() for text in ("out of memory", "can't allocate memory"))


def release_device_memory() -> None:
    """Give the device memory that nobody uses back to it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_memory() -> float:
    """The share of this machine's (or container's) memory that is free, 0 to 1; 1 where it cannot
    be told.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return 1.0
    try:
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current")
        )
        return min(free / total, 1 - used / limit)
    except (OSError, ValueError):  # "max": no limit
        return free / total


def processor() -> str:
    """What the processor calls itself; "cpu" where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "cpu"


def trim() -> None:
    """Give freed memory back to the system.

    glibc keeps it, in pieces between what lives on, and ever more of it: without this the size of a
    process grows with the number of clips it has seen.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let this process keep freed memory until `trim`.

    Dask's nannies start workers with MALLOC_TRIM_THRESHOLD_=65536: every tensor would come from the
    system anew, page by page, and extraction take twice as long. These are the thresholds that
    glibc grows to by itself.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
