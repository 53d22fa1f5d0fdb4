"""Long work says how far it is: every command that reads or writes much has a task that counts to
its end.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from mer.pipeline.runtime import progress
from mer.pipeline.runtime.progress import Lines, Silent

from tests.whole_way.mer import mer


class Counted(Silent):
    """The tasks of a command, and how far each came."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[float]] = {}

    @contextmanager
    def task(self, what, total, unit, *, brief=False):
        self.tasks[what] = [0.0, total]

        def advance(amount, fresh=True):
            self.tasks[what][0] += amount

        yield advance


@pytest.fixture
def counted(monkeypatch):
    found = Counted()
    monkeypatch.setattr(progress, "choose", lambda: found)
    return found


def test_every_command_counts_to_its_end(desk, counted, tmp_path):
    asked = {
        "verifying": ["verify", desk.features],
        "exporting": ["export", desk.features, tmp_path / "out.parquet", "--to", "parquet"],
        "importing": ["import", "parquet", tmp_path / "out.parquet", "--out", tmp_path / "in.h5"],
        f"predicting with {desk.run.name}": ["evaluate", desk.run, "--split", "dev"],
        "drawing": ["report", desk.run, "--out", tmp_path / "report.html"],
    }
    for what, words in asked.items():
        mer(*words, cwd=tmp_path)
        done, total = counted.tasks[what]
        assert done == total > 0, what


@pytest.mark.parametrize("to", ["npy", "kaldi", "mmsa", "single"])
def test_every_export_counts_to_its_end(desk, counted, tmp_path, to):
    mer("export", desk.features, tmp_path / "out", "--to", to)
    done, total = counted.tasks["exporting"]
    assert done == total > 0


def test_hashing_counts_files(desk, counted, tmp_path):
    corpus = ("--dataset", "synthetic", "--size", "12", "--root", tmp_path / "corpus")
    mer("fingerprint", *corpus)
    assert counted.tasks["hashing"] == [12, 12]
    mer("extract", *corpus, "--out", tmp_path / "f.h5")
    assert counted.tasks["reading lengths (audio)"] == [12, 12]


def test_the_end_is_said_once(capsys):
    """Also where the last piece took so long that a line was due."""
    lines = Lines(every=0.0)
    with lines.task("audio: layers", 3, "layers") as advance:
        for _ in range(3):
            advance(1)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" of 3")[0].rpartition(" ")[2] for line in said] == ["1", "2", "3"]


def test_what_is_done_in_a_moment_says_nothing(capsys):
    lines = Lines()
    for brief in (True, False):
        with lines.task("verifying", 3, "shards", brief=brief) as advance:
            advance(3)
        assert ("verifying: 3 of 3" in capsys.readouterr().err) == (not brief)
