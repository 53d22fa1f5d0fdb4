"""One flipped bit in any file of a folder, and what may become of it; shared by the trials on
stores, work folders and runs.

A trial is a seed: it names a file (all alike, whatever their size), a byte of it and a bit.
`outcome` is told what the command made of the folder: the values that matter must be those of the
sound folder whenever it ended with 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.errors import MerError


@dataclass(frozen=True)
class Flip:
    """A bit of a file of `folder`, and how to put it back."""

    folder: Path
    name: str
    at: int
    bit: int

    def apply(self) -> None:
        """Flip the bit in place; the time of modification stays, as with bit rot."""
        path = self.folder / self.name
        raw = bytearray(path.read_bytes())
        raw[self.at] ^= 1 << self.bit
        path.write_bytes(raw)


def flips(
    folder: Path, count: int, seed: int, *, without: Callable[[Path], bool] = lambda path: False
) -> Iterator[Flip]:
    """`count` flips in the files under `folder` that are not empty, except those that `without`
    holds for. Every second flip is among the bytes that are not zero, since files are full of gaps.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and not without(path)
    )
    assert files, f"{folder}: no file to damage"
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = files[int(rng.integers(len(files)))]
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        used = np.flatnonzero(raw)
        at = int(rng.choice(used)) if number % 2 and len(used) else int(rng.integers(len(raw)))
        yield Flip(folder, path.relative_to(folder).as_posix(), at, int(rng.integers(8)))


@dataclass
class Trials:
    """Counts of what became of the flips, and the first ones that went wrong in silence."""

    counts: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def record(self, flip: Flip, command: Callable[[], object], sound: Callable[[], bool]) -> None:
        """Run `command` over the damaged folder.

        A MerError or OSError is a refusal; anything else that it raises fails the test; what it
        left must be `sound` when it raised nothing.
        """
        try:
            command()
        except (MerError, OSError) as error:
            assert "\n" not in str(error), f"{flip}: more than a line: {error}"
            self.counts["refused"] += 1
            return
        if sound():
            self.counts["as it was"] += 1
        else:
            self.wrong.append(f"{flip.name}, byte {flip.at}, bit {flip.bit}")
