"""`--slow-sample K/M`: of the tests marked slow the K-th part of M, for CI."""

from __future__ import annotations

import re

import pytest


def sample_of(text: str) -> tuple[int, int]:
    """K and M of `K/M`.

    Raises:
        pytest.UsageError: The text is no such pair, or K is not one of 1 … M.
    """
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise pytest.UsageError(f"--slow-sample {text}: K/M is meant, with 1 ≤ K ≤ M, as in 2/4")
    return part, parts


def left_out(slow: list[str], part: int, parts: int) -> set[str]:
    """Those of the slow tests, by their ids, that the other parts have.

    They are dealt out in the order of their ids: parts are level, and the cases of one long test
    are in different parts.
    """
    return {test for place, test in enumerate(sorted(slow)) if place % parts != part - 1}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow-sample",
        metavar="K/M",
        help="of the tests marked slow only the K-th part of M",
    )


@pytest.hookimpl(trylast=True)  # after -m: what that leaves out is dealt to no part
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.getoption("--slow-sample")
    if asked is None:
        return
    slow = [item.nodeid for item in items if item.get_closest_marker("slow")]
    others = left_out(slow, *sample_of(asked))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in others])
    items[:] = [item for item in items if item.nodeid not in others]
