from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.runs import Nursery
from tests.extract import corpus


@pytest.fixture(scope="session")
def run() -> Iterator[Nursery]:
    """`run(folder, moment)` → (exit status, publications); `run.start(…)` for a run that goes on
    meanwhile.
    """
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def undisturbed(run, tmp_path_factory) -> tuple[Path, int]:
    """A finished store and the number of publications it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus.make(folder)
    status, count = run(folder)
    assert status == 0 and count > 10, (folder / "stderr").read_text()
    return folder, count
