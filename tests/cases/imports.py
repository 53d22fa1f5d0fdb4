"""Small foreign files, by arithmetic, for the cases of imports."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.importing import write_store
from mer.pipeline.store import FeatureStore

LENGTHS = [2, 6, 1, 4]  # steps of the four utterances of a split, of 6
DIMS = {"audio": 5, "text": 8, "vision": 3}


def mer(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    return result.exit_code, result.stdout, result.stderr


def imported(kind: str, path: Path, out: Path, **options) -> FeatureStore:
    options = ImportOptions(**options)
    return write_store(
        import_module(f"mer.pipeline.interchange.{kind.replace('-', '')}").read(path, options),
        out,
        options,
    )[0]


def steps(dim: int, seed: int) -> np.ndarray:
    """(4, 6, dim) float32 without a zero."""
    return np.random.default_rng(seed).uniform(0.5, 2, (4, 6, dim)).astype(np.float32)


def split_of(name: str, *, pad: bool = False, front: bool = False, **changes) -> dict:
    """One split of an MMSA pickle with four utterances, padded to 6 steps behind or in front, or
    not at all."""
    part = {
        "id": [f"{name}{i}" for i in range(4)],
        "raw_text": ["said"] * 4,
        "regression_labels": np.array([-1.5, 0, 0.5, 2], np.float32),
    }
    for seed, (m, dim) in enumerate(DIMS.items()):
        x = steps(dim, seed)
        for one, n in zip(x, LENGTHS, strict=True):
            if pad:
                one[n:] = 0
            if front:
                one[: 6 - n] = 0
        part[m] = x
    return part | changes
