"""The harness sees what it is there to see: every class of outcome, provoked on purpose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mer.pipeline.errors import DataError

ROOT = Path(__file__).parents[2]


def raises(error: Exception):
    def call() -> None:
        raise error

    return call


def spin() -> None:
    while True:
        pass


# what a reader does → the class it must be put in
FAULTS = {
    "nothing": (lambda: None, "ok"),
    "one line": (raises(DataError("file: wrong; mend it")), "line"),
    "a long line": (raises(DataError("x" * 301)), "long"),
    "a bug": (raises(KeyError("x")), "internal"),
    "a wait without end": (lambda: time.sleep(1000), "hang"),
    "work without end": (spin, "hang"),
    "a segmentation fault": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
    "an exit": (lambda: os._exit(3), "crash"),
    "memory without end": (lambda: bytearray(3 << 30), "internal"),
    "another's file": (lambda: Path("../canary/kept.txt").write_text("mine"), "wrong"),
    "a file elsewhere": (lambda: Path("left.txt").touch(), "wrong"),
    "the input": (lambda: Path("../in/given.txt").write_text("mine"), "wrong"),
    "a temporary": (lambda: Path(os.environ["TMPDIR"], "left").touch(), "wrong"),
}


def main(folder: Path) -> None:
    from tests.fuzz import pool
    from tests.fuzz.kinds import KINDS, Case, Kind
    from tests.fuzz.stock import Stock

    def maker(fault):
        def make(where, stock, rng):
            (where / "given.txt").write_text("given")
            return Case([fault])

        return make

    pool.WALL_SECONDS, pool.CPU_SECONDS = 4, 1
    found = {}
    for name, (fault, _) in FAULTS.items():
        KINDS[name] = Kind(maker(fault))
        found[name] = pool.run(name, 0, Stock(folder / "stock"), folder / "input").outcome
    print(json.dumps(found))


@pytest.mark.slow
def test_every_fault_is_put_in_its_class(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.test_pool", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: expected for name, (_, expected) in FAULTS.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
