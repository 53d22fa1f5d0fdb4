"""A name of somebody else's in a progress bar is neither a format nor markup (found by review)."""

from __future__ import annotations

import re

import pytest

from mer.pipeline.runtime.progress import Bars

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]")
NAMES = ["runs/a{b}", "runs/{}", "runs/[x]", "runs/[/x]", "runs/[red]", "a{0} [b] {task}", "100 %s"]


@pytest.fixture
def terminal(monkeypatch):
    """What rich takes for a terminal of 200 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(terminal, capsys, name):
    with Bars().task(name, 3, "runs") as advance:
        advance(2)
    with Bars().follow(3) as show:
        show(1, f"at {name}")
    said = CONTROL.sub("", capsys.readouterr().err)
    assert f"{name} ━" in said  # in front of the bar
    assert f"{name}: 2 of 3 runs" in said  # the line at its end
    assert f" at {name}" in said  # behind the bar


def test_a_name_cannot_move_the_cursor(terminal, capsys):
    with Bars().task("a\x1b[2Jb", 3, "runs") as advance:
        advance(1)
    with Bars().follow(3) as show:
        show(1, "c\x1b[2Jd")
    raw = capsys.readouterr().err
    assert "\x1b[2J" not in raw and "a\\x1b[2Jb" in raw and "c\\x1b[2Jd" in raw
