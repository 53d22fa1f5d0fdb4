"""Every example in a docstring gives what it shows."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("commands", "pipeline", "fusion")


def with_examples() -> list[str]:
    """The modules that have examples, by the names that they are imported by."""
    names = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if ">>> " in path.read_text():
                parts = path.relative_to(ROOT).with_suffix("").parts
                names.append(".".join(("mer", *parts)).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", with_examples())
def test_examples_of(name: str):
    results = doctest.testmod(import_module(name))
    assert results.attempted and not results.failed
