"""Lines that the user should know, and who is told them."""

from __future__ import annotations

import re
from collections.abc import Callable

Note = Callable[[str], None]
TOOK = re.compile(r" in \d+\.\d s$")  # what a line says of its own run alone


class Once:
    """Passes on a line the first time only: what the runs of a group have in common is said for the
    first of them. Lines that differ by the seconds at their end alone are one line.

    Args:
        note: Told what the user should know, line by line.
    """

    def __init__(self, note: Note) -> None:
        self.note = note
        self._said: set[str] = set()

    def __call__(self, line: str, of: str = "") -> None:
        """Pass on `line`, with the name `of` its run in front, unless another run has said it."""
        lasting = TOOK.sub("", line)
        if lasting not in self._said:
            self._said.add(lasting)
            self.note(f"{of}: {line}" if of else line)
