"""Shared by every room's tests: where the real data is, and a quiet, deterministic process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mer.pipeline.media import workers

from tests.forks import Forks

pytest_plugins = ["tests.slow_sample"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tiny tensors: a second thread costs more than it brings
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# or each process of the tests, and each run of them, compiles 700 modules anew
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real annotation, features and speech that the project may not ship.

    Skips where it is absent.
    """
    root = os.environ.get("MER_TEST_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip(
            "MER_TEST_DATA does not name a folder with the real test data (MELD rows, MOSI "
            "features, nEMO speech)"
        )
    return Path(root)


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory) -> None:
    """No test writes into the state folder of whoever runs it."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def decoders_kept() -> Iterator[None]:
    """A decoding process that one test has started serves the next ones, too."""

    def environment() -> frozenset[tuple[str, str]]:
        return frozenset(pair for pair in os.environ.items() if pair[0] != "PYTEST_CURRENT_TEST")

    with pytest.MonkeyPatch.context() as patch, workers.workers_kept():
        patch.setattr(workers, "_environment", environment)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_synced() -> Iterator[None]:
    """No power fails during a test: files are written in full, and the disk is not waited for.

    Tests of what is left after a crash run `mer` in processes of their own, which wait for it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # a descriptor that is closed is still an error
        yield


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs programs that need the store in processes of their own."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals from 20 draws, not 1,000, where a test is about something else."""
    from mer.fusion.evaluation import scoring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "RESAMPLES", 20)
        yield
