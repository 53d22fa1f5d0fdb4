"""The command line in this process: what a user sees, without a second import of torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main

TINY = ("--audio-encoder", "builtin:tiny-wav2vec2", "--text-encoder", "builtin:tiny-roberta")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def mer(*args: str | Path, code: int | None = 0, cwd: Path | None = None) -> Outcome:
    """Run `mer ARGS`; fail the test on another exit code than `code` (None: any), and on a
    traceback always.
    """
    was = Path.cwd()
    os.chdir(cwd or was)
    try:
        result = CliRunner().invoke(main, [str(a) for a in args])
    finally:
        os.chdir(was)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    outcome = Outcome(result.exit_code, result.stdout, result.stderr)
    assert "internal error" not in outcome.err and "Traceback" not in outcome.err, outcome.err
    if code is not None and outcome.code != code:
        pytest.fail(
            f"mer {' '.join(map(str, args))}: exit {outcome.code}, expected "
            f"{code}\n{outcome.out}\n{outcome.err}"
        )
    return outcome


def refused(
    *args: str | Path, code: int = 1, says: Sequence[str] = (), cwd: Path | None = None
) -> str:
    """Run a command that must fail with `code` and one line on stderr that names all of `says`;
    returns that line.
    """
    outcome = mer(*args, code=code, cwd=cwd)
    lines = [line for line in outcome.err.splitlines() if line.startswith("mer: ")]
    assert len(lines) == 1, outcome.err
    for words in says:
        assert words in lines[0], f"'{words}' is not in: {lines[0]}"
    return lines[0]
