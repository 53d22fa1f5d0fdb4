"""Stages and flags are in stores and in failures.jsonl: their names and bits stay as they are."""

from __future__ import annotations

import json

from mer.pipeline.media.stages import AGAIN, Flag, Stage

from tests.media.forms import FORMS

# Written down by hand from stores of format version 1.
BITS = {
    "short": 0,
    "chunked": 1,
    "text_cut": 2,
    "clipped": 3,
    "silent": 4,
    "resampled": 5,
    "rate_rounded": 6,
    "start_clipped": 7,
    "end_beyond": 8,
    "late": 9,
    "gap": 10,
    "tracks": 11,
    "unsized": 12,
    "damaged": 13,
    "trailing": 14,
    "wordless": 15,
    "no_picture": 20,
    "picture_late": 21,
    "picture_short": 22,
    "no_face": 23,
    "picture_long": 24,
}
STAGES = (
    "open decode truncated empty channel track rate times nan too_long oom timeout killed changed "
    "face"
)


def test_flags_keep_their_bits():
    assert {name: flag.value for name, flag in Flag.__members__.items()} == {
        name: 1 << bit for name, bit in BITS.items()
    }
    assert all(flag.meaning for flag in Flag)
    assert Flag.of(("late", "short")) == (1 << 9) | 1


def test_stages_keep_their_names():
    assert [str(stage) for stage in Stage] == STAGES.split()
    assert json.dumps(list(AGAIN & {Stage.KILLED})) == '["killed"]'


def test_what_media_notes_of_a_clip_is_a_flag():
    noted = set().union(*(form.flags for form in FORMS))
    assert noted and noted <= BITS.keys()
