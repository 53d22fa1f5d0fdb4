"""How far a long run is, on stderr: a bar on a terminal, one plain line every ten seconds
elsewhere; at its end one line on both.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from mer.pipeline.runtime.files import naming
from mer.pipeline.runtime.terminal import STDERR, escape, terminal_columns, wrapped

# (amount, fresh=True); not fresh: an earlier run did it, so it says nothing of the rate
Advance = Callable[..., None]
LENGTHS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))  # from so many seconds on
BAR_COLUMNS = 20  # which leaves room for a text on 80 columns
Show = Callable[..., None]  # (done, text, told=False)


@dataclass
class Count:
    """How much of a stretch of work is done. Unit "s" is seconds of audio; other units are nouns in
    the plural.
    """

    total: float
    unit: str
    done: float = 0.0
    fresh: float = 0.0
    started: float = field(default_factory=lambda: time.monotonic())

    def add(self, amount: float, fresh: bool = True) -> None:
        self.done += amount
        self.fresh += amount * fresh

    def __str__(self) -> str:
        """`done` of `total`, rate and time left."""
        seconds = time.monotonic() - self.started
        rate = self.fresh / seconds if seconds > 0 else 0.0
        left = (
            f", {clock((self.total - self.done) / rate)} left"
            if rate > 0 and self.total - self.done > 1e-6 * self.total
            else ""
        )
        if self.unit == "s":
            size, name = next((one for one in LENGTHS if self.total >= one[0]), LENGTHS[-1])
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
            return (
                f"{self.done / size:.1f} of {self.total / size:.1f} {name} of audio, {speed} × "
                f"real time{left}"
            )
        unit = self.unit.removesuffix("s") if self.total == 1 else self.unit
        each = f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"
        return f"{self.done:,.0f} of {self.total:,.0f} {unit}, {each} a second{left}"


class Silent:
    """Says nothing: the default of the Python API."""

    def note(self, text: str) -> None:
        """One line for the user."""

    @contextmanager
    def task(self, what: str, total: float, unit: str, *, brief: bool = False) -> Iterator[Advance]:
        """A stretch of work of `total` units; call the result with how many more are done. `brief`:
        it says nothing at its end when it was done within a few seconds.
        """
        yield lambda amount, fresh=True: None

    @contextmanager
    def follow(self, total: float) -> Iterator[Show]:
        """Work that has its own words for how far it is: call the result with how much of `total`
        is done, a text, and `told=True` where the text is worth a line when there is no bar.
        """
        yield lambda done, text, told=False: None


SILENT = Silent()


class Lines(Silent):
    """Plain lines: for each task at most one every `every` seconds, and one at its end."""

    def __init__(self, stream: TextIO | None = None, *, every: float = 10.0):
        self.stream, self.every = stream or sys.stderr, every

    def note(self, text: str) -> None:
        said = wrapped(escape(text), terminal_columns(self.stream))
        with naming(STDERR):  # it may lead to a file on a full disk
            print(said, file=self.stream, flush=True)

    @contextmanager
    def task(self, what: str, total: float, unit: str, *, brief: bool = False) -> Iterator[Advance]:
        count = Count(total, unit)
        with self.shown(what, count) as show:

            def advance(amount: float, fresh: bool = True) -> None:
                count.add(amount, fresh)
                show()

            yield advance
        said = not brief or time.monotonic() - count.started >= self.every
        if count.fresh and said:
            self.note(f"{what}: {count}")

    @contextmanager
    def follow(self, total: float) -> Iterator[Show]:
        last = -math.inf

        def show(done: float, text: str, told: bool = False) -> None:
            nonlocal last
            now = time.monotonic()
            if told and now - last >= self.every:
                last = now
                self.note(text)

        yield show

    @contextmanager
    def shown(self, what: str, count: Count) -> Iterator[Callable[[], None]]:
        """Call the value whenever `count` has changed."""
        last = count.started

        def show() -> None:
            nonlocal last
            now = time.monotonic()
            # of what is done the line at the end says so
            if now - last >= self.every and count.done < count.total * (1 - 1e-6):
                last = now
                self.note(f"{what}: {count}")

        yield show


class Bars(Lines):
    """A rich progress bar for each task, and the line at its end."""

    def note(self, text: str) -> None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print(wrapped(escape(text), terminal_columns(self.stream)))

    @contextmanager
    def shown(self, what: str, count: Count) -> Iterator[Callable[[], None]]:
        with _bar(what, count.total) as update:
            yield lambda: update(count.done, str(count))

    @contextmanager
    def follow(self, total: float) -> Iterator[Show]:
        with _bar("", total) as update:
            yield lambda done, text, told=False: update(done, text)


@contextmanager
def _bar(what: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """A bar behind `what`, until the block ends; call the value with how much is done and the text
    behind the bar. Both texts may hold names of others, which are neither formats nor markup.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    name = TextColumn("{task.description}", markup=False)
    state = TextColumn("{task.fields[state]}", markup=False)
    columns = (*([name] if what else []), BarColumn(BAR_COLUMNS), state)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(what), total=total or None, state="")
        yield lambda done, text: bar.update(task, completed=done, state=escape(text))


def choose(stream: TextIO | None = None) -> Silent:
    """Bars on a terminal that may move its cursor, lines elsewhere."""
    import os

    stream = stream or sys.stderr
    fancy = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Bars(stream) if fancy else Lines(stream)


def clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
