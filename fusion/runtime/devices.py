"""Where a training computes, and how: the device, deterministic kernels, and which of them run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch

from mer.fusion.runtime.notes import Note
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.machine import choose_device


def pick_device(name: str = "auto") -> torch.device:
    """The device of a `--device`.

    Args:
        name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Returns:
        The device.

    Raises:
        DataError: It is not there.
    """
    try:
        device = choose_device(name)
        torch.empty(0, device=device)
    except (DataError, RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"--device {name}: not usable here ({why})") from None
    return device


class _Announcer(logging.Handler):
    """Passes on what is logged."""

    def __init__(self, note: Note) -> None:
        super().__init__(logging.INFO)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage())


@contextlib.contextmanager
def announcements(note: Note) -> Iterator[None]:
    """Pass on what the fused losses log, once per process: which implementation runs."""
    handler = _Announcer(note)
    logger = logging.getLogger("mer.fusion.ops")
    was = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(was)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic kernels where PyTorch has them; the former settings come back.

    A setting that is there already is not made again: making one imports PyTorch's compiler, which
    costs a training on a CPU more than a second.
    """
    was = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    wanted = device.type == "cuda" or was
    if not wanted or (was and warn):
        yield
        return
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn)
