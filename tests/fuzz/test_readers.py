"""Damaged and hostile files, by the thousand: a MerError of one line or success; no other error, no
crash, no hang, bounded memory.

`MER_FUZZ_SECONDS` a reader (default 6) and `MER_FUZZ_SEED` (default 0) change how much and which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.mutate import HANG, READERS, mutate

SECONDS = float(os.environ.get("MER_FUZZ_SECONDS", "6"))
SEED = os.environ.get("MER_FUZZ_SEED", "0")


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_any_file_is_read_or_refused(tmp_path, reader):
    command = [sys.executable, "-m", "tests.fuzz.mutate", reader, str(tmp_path), str(SECONDS), SEED]
    root, limit = Path(__file__).parents[2], SECONDS + 2 * HANG
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, (
        f"{reader}: exit {done.returncode}: {done.stdout[-600:]}{done.stderr[-600:]}"
    )
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["refused"] > 0, counts


def test_mutations_change_something_and_follow_from_their_seed():
    raw = bytes(range(256)) * 8
    made = [mutate(raw, np.random.default_rng(seed)) for seed in range(200)]
    assert made == [mutate(raw, np.random.default_rng(seed)) for seed in range(200)]
    assert sum(m != raw for m in made) > 190 and len(set(map(len, made))) > 20


@pytest.mark.slow
@pytest.mark.parametrize("which", ["head", "shard"])
def test_metadata_of_hdf5_that_match_their_checksums_are_read_or_refused(tmp_path, which):
    command = [sys.executable, "-m", "tests.fuzz.hdf5", which, str(tmp_path), str(SECONDS), SEED]
    root, limit = Path(__file__).parents[2], SECONDS + 2 * HANG
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, (
        f"{which}: exit {done.returncode}: {done.stdout[-600:]}{done.stderr[-600:]}"
    )
    assert json.loads(done.stdout.splitlines()[-1])["refused"] > 0
