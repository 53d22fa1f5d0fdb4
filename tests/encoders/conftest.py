from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoders import checkpoints


@pytest.fixture(scope="session")
def group(tmp_path_factory) -> Path:
    return checkpoints.audio(tmp_path_factory.mktemp("ckpt") / "base", norm="group")


@pytest.fixture(scope="session")
def layer(tmp_path_factory) -> Path:
    return checkpoints.audio(tmp_path_factory.mktemp("ckpt") / "large", norm="layer")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory) -> Path:
    return checkpoints.text(tmp_path_factory.mktemp("ckpt") / "roberta")
