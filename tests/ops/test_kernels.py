"""Runs tests/ops/interpreted.py with TRITON_INTERPRET=1 in its own process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def interpret(marker: str, *, least: int) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/ops/interpreted.py",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        f"addopts=-m '{marker}'",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= least, f"only {passed} cases ran"


def test_kernels_interpreted():
    interpret("not slow and not exhaustive", least=20)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kernels_interpreted_on_a_grid():
    interpret("slow and not exhaustive", least=100)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_kernels_interpreted_on_every_size():
    interpret("exhaustive", least=50)
