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

from tests.fuzz import pool

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


# exit code, stderr → the class of the command
A, B = "mer: --seeds 'x': no number", "mer: --folds 'y': no column"
SAID = {
    "one line": (1, A, "line"),
    "a note before it": (1, f"3 rows are left out\n{A}", "line"),
    "two mistakes": (2, f"{A}\n{B}", "line"),
    "as many as are read": (2, "\n".join(f"mer: {k}" for k in range(8)), "line"),
    "more than are read": (2, "\n".join(f"mer: {k}" for k in range(9)), "internal"),
    "a mistake told twice": (2, f"{A}\n{B}\n{A}", "internal"),
    "no message": (1, "3 rows are left out", "internal"),
    "nothing at all": (1, "", "internal"),
    "a traceback": (1, f"Traceback (most recent call last):\n{A}", "internal"),
    "a bug among them": (2, f"{A}\nmer: internal error: KeyError", "internal"),
    "a long line alone": (1, "mer: " + "x" * 296, "long"),
    "a long line first": (2, "mer: " + "x" * 296 + f"\n{A}", "long"),
    "a long line last": (2, f"{A}\nmer: " + "x" * 296, "long"),
    "a line of just the length": (1, "mer: " + "x" * 295, "line"),
    "success": (0, "24 utterances", "ok"),
    "success that is none": (0, A, "internal"),
    "success with a long note": (0, "x" * 1001, "long"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_a_command_said_is_put_in_its_class(name):
    code, said, expected = SAID[name]
    found, detail = pool.sort("mer train: ", code, said)
    assert found == expected, detail


def main(folder: Path) -> None:
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
