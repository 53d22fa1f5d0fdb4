"""Shared by every room's tests: where the real data is, and a quiet, deterministic process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.slow_sample"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tiny tensors: a second thread costs more than it brings
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
