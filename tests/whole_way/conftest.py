"""One small synthetic store and one trained run, shared by the tests of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.whole_way.mer import mer

QUICK = (
    "--set",
    "model_args.d=32",
    "--set",
    "model_args.layers=1",
    "--set",
    "model_args.heads=2",
    "--set",
    "train.epochs=2",
)


@dataclass(frozen=True)
class Desk:
    """A working folder as a user has it after the first commands."""

    folder: Path
    features: Path
    run: Path
    clip: Path  # one wav of the corpus


@pytest.fixture(scope="session")
def desk(tmp_path_factory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    mer("prepare", "synthetic", "--root", "data/synthetic", "--size", "48", cwd=folder)
    mer("extract", "--dataset", "synthetic", cwd=folder)
    mer("train", "--features", "feats.h5", *QUICK, cwd=folder)
    clip = sorted((folder / "data" / "synthetic").rglob("*.wav"))[0]
    return Desk(folder, folder / "feats.h5", folder / "runs" / "synthetic-drkf-1", clip)
