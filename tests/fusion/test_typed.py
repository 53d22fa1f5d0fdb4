"""Records from trees and back: what a file must hold, may lack, and may hold besides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pytest

from mer.fusion.runs import records
from mer.fusion.runtime import typed
from mer.fusion.runtime.typed import Misfit, convert, optional, rest, tree
from mer.pipeline.runtime.terms import TASKS


@dataclass(frozen=True)
class Inner:
    n: int
    figures: dict[str, float | None] = rest()


@dataclass(frozen=True)
class Outer:
    name: str
    pair: tuple[int, str]
    inner: tuple[Inner, ...]
    way: Literal["up", "down"]
    flag: bool
    maybe: float | None = optional()
    more: dict[str, Any] = field(default_factory=dict)


GOOD = {
    "name": "a",
    "pair": [1, "x"],
    "inner": [{"n": 2, "wa": 0.5, "ua": None}],
    "way": "up",
    "flag": True,
}


def test_there_and_back():
    made = convert(Outer, GOOD)
    assert made.inner[0] == Inner(2, {"wa": 0.5, "ua": None}) and made.pair == (1, "x")
    assert tree(made) == GOOD | {"more": {}}
    assert convert(Outer, tree(made)) == made
    assert convert(Outer, GOOD | {"a key of a later mer": 1}) == made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 1}, "name is 1, expected text"),
        ({"name": None}, "name is null, expected text"),
        ({"pair": [1]}, "pair is [1], expected 2 values, got 1"),
        ({"pair": [True, "x"]}, "pair[0] is true, expected a whole number"),
        ({"pair": {}}, "pair is {}, expected a list"),
        ({"inner": [{}]}, "inner[0] has no n"),
        ({"inner": [3]}, "inner[0] is 3, expected an object"),
        ({"inner": [{"n": 1.5}]}, "inner[0].n is 1.5, expected a whole number"),
        ({"inner": [{"n": 1, "wa": "x"}]}, 'inner[0].wa is "x", expected a number, or none'),
        ({"way": "left"}, 'way is "left", expected one of up, down'),
        ({"flag": 1}, "flag is 1, expected true or false"),
        ({"maybe": "0.5"}, 'maybe is "0.5", expected a number, or none'),
        ({"pair": [1 << 63, "x"]}, "expected a whole number of at most 64 bits"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change, says):
    with pytest.raises(Misfit) as raised:
        convert(Outer, GOOD | change)
    assert says in str(raised.value)


def test_a_missing_key_is_named():
    with pytest.raises(Misfit, match="^it has no way$"):
        convert(Outer, {key: value for key, value in GOOD.items() if key != "way"})
    with pytest.raises(Misfit, match="^it is 3, expected an object$"):
        convert(Outer, 3)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "7", 7),
        (float, "3e-5", 3e-5),
        (float, "inf", float("inf")),
        (float, 1, 1.0),
        (bool, "False", False),
        (float | None, "none", None),
        (float | None, "2", 2.0),
        (tuple[float, float], "0.8, 0.9", (0.8, 0.9)),
        (list[str], "[a, b]", ["a", "b"]),
        (Literal["a", 2], "2", 2),
    ],
)
def test_what_text_may_spell(kind, text, value):
    found = convert(kind, text, spelled=True)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"), [(int, "2.0"), (bool, "yes"), (bool, "1"), (float, "fast"), (int, True)]
)
def test_what_text_does_not_spell(kind, text):
    with pytest.raises(Misfit):
        convert(kind, text, spelled=True)


def test_numbers_of_a_record_stay_as_they_were_written():
    found = convert(dict[str, float], {"whole": 3, "half": 0.5})
    assert [type(value) for value in found.values()] == [int, float]


def test_undefined_figures_become_none():
    found = records.defined(records.Scores(n=1, figures={"wa": float("nan"), "ua": 0.5}))
    assert typed.tree(found) == {"n": 1, "wa": None, "ua": 0.5}


def test_one_vocabulary_of_tasks():
    assert get_args(records.Task) == TASKS
