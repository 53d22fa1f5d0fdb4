"""Damaged and hostile files by the thousand end in a result or in one line.

CI takes a few of each kind; `make test-all` takes them for `MER_FUZZ_MINUTES` (10 by default), from
`MER_FUZZ_SEED` on. A failure is made again by `python -m tests.fuzz --replay KIND:SEED`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.mutate import raw

ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("MER_FUZZ_MINUTES", "10"))
SEED = os.environ.get("MER_FUZZ_SEED", "100000")
SAMPLE = "3"  # inputs of each kind in CI: half a minute of one core


def fuzz(out: Path, *options: str, seconds: float) -> dict:
    command = [sys.executable, "-m", "tests.fuzz", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert out.exists(), done.stderr[-2000:]
    return json.loads(out.read_text(encoding="utf-8"))


def assert_well(summary: dict) -> None:
    classes = summary["classes"]
    assert not summary["failures"], json.dumps(summary["failures"][:20], indent=1)
    assert classes["line"] > 0 and classes["ok"] > 0, classes


@pytest.mark.slow
def test_a_few_of_every_kind_are_read_or_refused(tmp_path):
    assert_well(fuzz(tmp_path / "s.json", "--count", SAMPLE, "--seed", "0", seconds=280))


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_any_file_is_read_or_refused(tmp_path):
    asked = ["--minutes", str(MINUTES), "--seed", SEED]
    assert_well(fuzz(tmp_path / "s.json", *asked, seconds=MINUTES * 60 + 600))


def test_mutations_change_something_and_follow_from_their_seed():
    data = bytes(range(256)) * 8
    made = [raw.mutate(data, np.random.default_rng(seed)) for seed in range(200)]
    assert made == [raw.mutate(data, np.random.default_rng(seed)) for seed in range(200)]
    assert sum(m != data for m in made) > 190 and len(set(map(len, made))) > 20
