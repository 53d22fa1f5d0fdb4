"""A measuring process that may die or hang: a kernel that faults takes its process, and that
process's use of the GPU, with it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable

import torch

# seconds without a sign of life after which the child is given up: one peer's compilation and first
# steps
SILENCE = 120
NOBODY = ("start", "reference")  # places that are no peer's, so that there is nobody to leave out


def reason_of(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"[:200]


def serve(pipe, measure: Callable) -> None:
    """The child: measures what it is asked to and tells which peer it is at."""
    while True:
        try:
            args, settings = pipe.recv()
        except EOFError:
            return
        try:
            rows = measure(*args, **settings, note=lambda peer: pipe.send(("at", peer)))
        except Exception as failure:
            pipe.send(("failed", reason_of(failure)))
            os._exit(1)
        gc.collect()
        torch._dynamo.reset()  # with the memory of reduce-overhead's graphs
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        pipe.send(("rows", rows))


class Child:
    """`measure` in a process that may die or hang.

    A peer that hung, or ended it twice, is left out of all that follows: each costs a new process
    and the size measured again. Ours is tried at every size, unless it hung.
    """

    def __init__(self, measure: Callable, silence: float = SILENCE):
        self.measure, self.silence = measure, silence
        self.process = None
        self.deaths: Counter[str] = Counter()
        self.gone: dict[str, str] = {}

    def __call__(
        self, workload: str, rows: int, d: int, device: torch.device, dtype: torch.dtype, **settings
    ) -> list[dict]:
        key = {"workload": workload, "B": rows, "D": d, "dtype": str(dtype)[6:]}
        lost = dict(self.gone)
        while True:
            peer, value = self.ask(
                (workload, rows, d, device, dtype), settings | {"left_out": tuple(lost)}
            )
            if peer:
                again = peer not in lost and peer not in NOBODY
                lost[peer] = value
                if again:
                    continue
            measured = [] if peer else value
            return measured + [
                key | {"peer": name, "what": "failed", "failure": reason}
                for name, reason in lost.items()
            ]

    def ask(self, args: tuple, settings: dict) -> tuple[str, object]:
        """("", rows), or (the peer it was at, what happened)."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.measure))
            self.process.start()
            other.close()
        peer, reason = "start", ""
        try:
            self.pipe.send((args, settings))
            while self.pipe.poll(self.silence):
                kind, value = self.pipe.recv()
                if kind == "rows":
                    return "", value
                if kind == "failed":
                    reason = value
                    break
                peer = value
        except (EOFError, OSError):
            reason = "its process died"
        self.close()
        hung = not reason
        reason = (
            reason or f"no sign of life for {self.silence:g} s at {args[0]} {args[1]}x{args[2]}"
        )
        self.deaths[peer] += 1
        if peer not in NOBODY and (hung or self.deaths[peer] > 1 and not peer.startswith("mer")):
            self.gone[peer] = reason
        return peer, reason

    def close(self) -> None:
        if self.process is not None:
            self.pipe.close()  # which ends a child that is waiting
            self.process.join(5)
            self.process.kill()
            self.process.join()
            self.process = None
