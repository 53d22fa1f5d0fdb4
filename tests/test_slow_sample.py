"""The sample of the slow tests that CI runs: its parts are all of them, and other tests stay."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.slow_sample import left_out, pytest_collection_modifyitems, sample_of

SLOW = [f"tests/test_{name}.py::test_it[{case}]" for name in "cab" for case in range(7)]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 30])
def test_every_slow_test_is_in_one_part(parts):
    taken = [set(SLOW) - left_out(SLOW, part, parts) for part in range(1, parts + 1)]
    assert sorted(test for part in taken for test in part) == sorted(SLOW)
    sizes = [len(part) for part in taken]
    assert max(sizes) - min(sizes) <= 1


def test_cases_of_one_test_are_in_different_parts():
    for part in range(1, 5):
        taken = set(SLOW) - left_out(SLOW, part, 4)
        assert {test.split("_")[1][0] for test in taken} == {"a", "b", "c"}


@pytest.mark.parametrize("wrong", ["", "4", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", " 1/2"])
def test_what_is_no_part_is_refused(wrong):
    assert sample_of("2/4") == (2, 4)
    with pytest.raises(pytest.UsageError, match="1 ≤ K ≤ M"):
        sample_of(wrong)


@pytest.mark.parametrize(("asked", "stay"), [(None, "qrst"), ("1/2", "qrt"), ("2/2", "qs")])
def test_other_tests_stay(asked, stay):
    """q is no slow test; r, s and t are."""
    items = [
        SimpleNamespace(nodeid=name, get_closest_marker=lambda mark, slow=name != "q": slow)
        for name in "tsrq"
    ]
    told = []
    hook = SimpleNamespace(pytest_deselected=lambda items: told.extend(items))
    config = SimpleNamespace(getoption=lambda option: asked, hook=hook)
    pytest_collection_modifyitems(config, items)
    assert sorted(item.nodeid for item in items) == sorted(stay)
    assert len(items) + len(told) == 4
