"""Names that a person takes for one are told, whatever they differ by: what is not seen, hyphens,
letters of another alphabet, a number as text and as a fraction. Siblings of apple/turicreate#1531.
"""

from __future__ import annotations

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.runtime.cells import warn_near_duplicates

ALIKE = [
    ("joy", "joy\u00ad"),  # soft hyphen
    ("joy", "joy\ufe0f"),  # variation selector
    ("joy", "joy\u3164"),  # Hangul filler
    ("joy", "jo\x07y"),
    ("joy", "j\u043ey"),  # Cyrillic o
    ("joy", "joy."),
    ("\u0130yi", "iyi"),  # Turkish dotted I
    ("very happy", "very_happy"),
    ("very happy", "very-happy"),
    ("1", "1.0"),
    ("7", "07"),
]
APART = [
    ("1", "-1"),
    ("1", "10"),
    ("1-2", "12"),
    ("c", "c++"),
    ("s1", "s-1"),
    ("\u0434\u0430", "da"),
    ("", "a"),
    ("no", "n\u00f6"),
]


@pytest.mark.parametrize("pair", ALIKE, ids=ascii)
def test_alike(pair):
    (line,) = warn_near_duplicates(pair, "speakers")
    assert line.startswith("speakers that ") and len(line) < 300
    assert ("are one number" in line) == pair[0].isdecimal()


@pytest.mark.parametrize("pair", APART, ids=ascii)
def test_apart(pair):
    assert warn_near_duplicates(pair) == []


def test_dialogues_and_sessions_of_a_table(tmp_path):
    rows = "u1,x,D1,S 1\nu2,y,d1,S1\n"
    (tmp_path / "t.csv").write_text("id,text,dialogue,session\n" + rows)
    found = prepare("table", source=tmp_path / "t.csv", split="none")[1]
    said = "\n".join(found.warnings)
    assert "dialogues that differ only by case" in said
    assert "sessions that differ only by case or blanks" in said
