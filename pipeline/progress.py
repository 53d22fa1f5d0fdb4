"""How far a long run is, on stderr: a bar on a terminal, one plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[[float], None]


class Silent:
    """Says nothing: the default of the Python API."""

    def note(self, text: str) -> None:
        """One line for the user."""

    @contextmanager
    def task(self, what: str, total: float, unit: str) -> Iterator[Advance]:
        """A stretch of work of `total` units; call the result with how many more are done."""
        yield lambda amount: None


class Lines(Silent):
    """Plain lines, at most one every `every` seconds a task."""

    def __init__(self, stream: TextIO | None = None, *, every: float = 10.0):
        self.stream, self.every = stream or sys.stderr, every

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    @contextmanager
    def task(self, what: str, total: float, unit: str) -> Iterator[Advance]:
        started = last = time.monotonic()
        done = 0.0

        def advance(amount: float) -> None:
            nonlocal done, last
            done += amount
            now = time.monotonic()
            if now - last >= self.every:
                last = now
                self.note(f"{what}: {describe(done, total, unit, now - started)}")

        yield advance


class Bars(Lines):
    """A rich progress bar a task."""

    def note(self, text: str) -> None:
        from rich.console import Console

        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)

    @contextmanager
    def task(self, what: str, total: float, unit: str) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        started = time.monotonic()
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[state]}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total or None, state="")
            done = 0.0

            def advance(amount: float) -> None:
                nonlocal done
                done += amount
                bar.update(task, completed=done, state=describe(done, total, unit, time.monotonic() - started))

            yield advance


def choose(stream: TextIO | None = None) -> Silent:
    """Bars on a terminal that may move its cursor, lines elsewhere."""
    import os

    stream = stream or sys.stderr
    fancy = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Bars(stream) if fancy else Lines(stream)


def describe(done: float, total: float, unit: str, seconds: float) -> str:
    """`done` of `total`, rate and time left. Unit "s" is seconds of audio, told in audio-hours."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {clock((total - done) / rate)} left" if rate > 0 and total > done else ""
    if unit == "s":
        return f"{done / 3600:.2f} of {total / 3600:.2f} audio-hours, {rate:.1f} audio-hours an hour{left}"
    return f"{done:,.0f} of {total:,.0f} {unit}, {rate:,.0f} a second{left}"


def clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
