"""What is said of a media file's length once its own bytes have been looked at (containers.py)."""

from __future__ import annotations

from dataclasses import dataclass

# Why a file is decoded otherwise than by the first version: for the output, not for the key.
NO_LENGTH = "a header without its true length"
SEVERAL = "streams that follow one another in one file"
NEW = "a format that was not read before"
CODED = "a compressed stream inside WAV"
CUT = "a file that is cut off"
LAYOUT = "channels that the file names itself"


@dataclass(frozen=True, slots=True)
class Look:
    """What a file's own bytes say of its length.

    Attributes:
        kind: The container, "" where nothing here knows it.
        exact: The header's length agrees with the bytes.
        why: The reason that it is decoded otherwise than by the first version; None where nothing
            changed.
        missing: What says that it is cut off.
        samples: The length that the header claims, where that says something.
        flags: Names of `stages.Flag`.
        parts: (begin, end) in bytes of streams that follow one another.
        patch: (place, bytes) of a length to be read instead of the one in the header.
    """

    kind: str
    exact: bool = False
    why: str | None = None
    missing: str | None = None
    samples: int | None = None
    flags: tuple[str, ...] = ()
    parts: tuple[tuple[int, int], ...] = ()
    patch: tuple[int, bytes] | None = None
