"""Why a clip is not in a store, and what is noted of one that is.

Both are stored: a stage by its name, a flag by its bit. So names and bits never change, and new
ones are added at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Self


class Stage(StrEnum):
    """The step at which an utterance failed."""

    OPEN = "open"  # no such file, not readable, no media
    DECODE = "decode"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    CHANNEL = "channel"  # the channel asked for is not there
    TRACK = "track"  # the audio track asked for is not there
    RATE = "rate"
    TIMES = "times"  # start and end do not fit the file
    NAN = "nan"  # values that are not finite, in the file or from the encoder
    TOO_LONG = "too_long"
    OOM = "oom"  # not enough memory
    TIMEOUT = "timeout"  # the decoder did not answer
    KILLED = "killed"  # the decoder was killed
    CHANGED = "changed"  # the file changed during the run, which stops it
    FACE = "face"  # its box lies outside the picture, or there is none and that is to fail


STAGES = frozenset(Stage)  # as texts that come from a file are looked for
# failures that are tried again by the next run: the clip may not be to blame
AGAIN = frozenset({Stage.TIMEOUT, Stage.KILLED})


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something could not be read or computed: where it failed, and one line that says so."""

    stage: Stage
    reason: str


class Flag(IntFlag):
    """What is noted of an utterance in the store's flags, one bit each."""

    short = 1 << 0
    chunked = 1 << 1
    text_cut = 1 << 2
    clipped = 1 << 3
    silent = 1 << 4
    resampled = 1 << 5
    rate_rounded = 1 << 6
    start_clipped = 1 << 7
    end_beyond = 1 << 8
    late = 1 << 9
    gap = 1 << 10
    tracks = 1 << 11
    unsized = 1 << 12
    damaged = 1 << 13
    trailing = 1 << 14
    wordless = 1 << 15
    no_picture = 1 << 20
    picture_late = 1 << 21
    picture_short = 1 << 22
    no_face = 1 << 23
    picture_long = 1 << 24

    @classmethod
    def of(cls, names: tuple[str, ...]) -> Self:
        """The flags of these names. Raises KeyError for a name that is none."""
        found = cls(0)
        for name in names:
            found |= cls[name]
        return found

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All names, in the order of their bits."""
        return tuple(cls.__members__)

    @property
    def meaning(self) -> str:
        """What a single flag says, for people."""
        return MEANING[self]


MEANING = {
    Flag.short: "shorter than the encoder's first frame, padded with zeros",
    Flag.chunked: "longer than --max-seconds or than the encoder takes, encoded in overlapping "
    "pieces",
    Flag.text_cut: "a transcript longer than the encoder takes, cut at its end",
    Flag.clipped: "overdriven: many samples at full scale",
    Flag.silent: "no sample above -80 dB",
    Flag.resampled: "not at 16 kHz",
    Flag.rate_rounded: "resampled by a ratio that was rounded",
    Flag.start_clipped: "a start before 0 s, taken as 0",
    Flag.end_beyond: "an end beyond the end of the file",
    Flag.late: "sound that begins after the file's time line, silence before it",
    Flag.gap: "a gap in the time stamps, filled with silence",
    Flag.tracks: "several audio tracks in the file, of which one was read",
    Flag.unsized: "a header without its true length, decoded to the end of the data",
    Flag.damaged: "frames that could not be decoded, left out",
    Flag.trailing: "data behind the end of the audio, not read",
    Flag.wordless: "a transcript that the tokenizer makes no token of: without text features",
    Flag.no_picture: "no picture in the file, or none in that part of it",
    Flag.picture_late: "a picture that begins later, its first frame stands before it",
    Flag.picture_short: "a picture that ends before the utterance does, or before its sound",
    Flag.no_face: "pictures without a face, cropped as --vision-no-face says",
    Flag.picture_long: "a picture that goes on behind its sound, in a row without an end",
}
