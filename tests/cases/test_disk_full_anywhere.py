"""A disk that is full where nobody had thought of it: the words in the file of a hold, the ledger
of shares, the syncing of a folder, what is printed into a file. The line named nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.training import experiment
from mer.pipeline.extraction import Share, extract
from mer.pipeline.interchange.joining import join
from mer.pipeline.runtime import files
from mer.pipeline.runtime.hold import hold, turn

from tests.disk import files_of_at_most
from tests.extract import corpus
from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


def test_training_that_cannot_say_who_holds_its_folder_names_the_file(tmp_path):
    store = make_store(tmp_path)
    with files_of_at_most(0), pytest.raises(OSError) as raised:
        experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    assert raised.value.filename == str(tmp_path / "run" / ".hold")
    assert raised.value.errno == errno.EFBIG


@pytest.mark.parametrize("where", [None, Share(1, 1)])
def test_an_extraction_that_goes_on_names_the_file(tmp_path, where):
    """Its folder is there, so that the first thing to be written is who holds it."""
    manifest, _ = corpus.make(tmp_path, 3)
    (tmp_path / "feats.shards").mkdir()
    given = {} if where is None else {"where": where}
    with files_of_at_most(0), pytest.raises(OSError) as raised:
        extract(manifest, tmp_path / "feats.h5", corpus.options(), **given)
    assert Path(raised.value.filename).parent == tmp_path / "feats.shards"


def test_the_ledger_of_shares_names_its_file(tmp_path):
    with files_of_at_most(0), pytest.raises(OSError) as raised, turn(tmp_path / ".turn") as ledger:
        ledger.write({"2": [1]})
    assert raised.value.filename == str(tmp_path / ".turn")


def test_a_hold_names_its_file_and_an_error_within_it_stays_itself(tmp_path):
    with files_of_at_most(0), pytest.raises(OSError) as raised, hold(tmp_path / ".hold"):
        raise AssertionError
    assert raised.value.filename == str(tmp_path / ".hold")
    with pytest.raises(OSError, match="of the block") as raised, hold(tmp_path / ".hold"):
        raise OSError(errno.ENOSPC, "of the block")
    assert raised.value.filename is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_cannot_be_synced_is_named(tmp_path, monkeypatch, number):
    """Folders, too, whose syncing comes when the file has its name."""

    def full(descriptor):
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        if place == str(tmp_path):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as raised, files.publishing(tmp_path / "x") as temporary:
        temporary.write_text("words")
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path))


@pytest.mark.parametrize(
    ("command", "number", "remedy"),
    [
        ("join", errno.EDQUOT, "free some space of yours and run the same command again"),
        ("prepare", errno.ENOSPC, "free some space and run the same command again"),
        (
            "dataset",
            errno.EFBIG,
            "raise the limit on the size of files (ulimit -f), or write elsewhere",
        ),
    ],
)
def test_every_command_says_what_helps(tmp_path, monkeypatch, command, number, remedy):
    """`mer prepare` told to name a file that can be written, and `extract --dataset` likewise."""
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path, name="a.h5", modalities={"audio": 4})
    make_store(tmp_path, name="b.h5", modalities={"text": 4})
    words, name = {
        "join": (["join", "a.h5", "b.h5", "--out", "c.h5"], "c.h5"),
        "prepare": (["prepare", "synthetic", "--size", "12", "--out", "m.parquet"], "m.parquet"),
        "dataset": (["fingerprint", "--dataset", "synthetic", "--size", "12"], "manifest.parquet"),
    }[command]

    def full(descriptor):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    done = CliRunner().invoke(main, words)
    *_, line = done.stderr.splitlines()
    assert done.exit_code == 1
    assert line.endswith(f"{name}: {os.strerror(number)}; {remedy}"), done.stderr


def test_what_is_printed_into_a_full_file_is_named(monkeypatch, capsys):
    """`mer version > list.txt`; /dev/full is a disk without space."""
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main(["version"])
        assert ended.value.code == 1 and capsys.readouterr().err == (
            "mer: standard output: No space left on device; free some space and run the same "
            "command again\n"
        )
        monkeypatch.setattr(sys, "stderr", full)  # nowhere to say it
        with pytest.raises(SystemExit) as ended:
            main(["version"])
        assert ended.value.code == 1


def test_join_names_the_store(tmp_path):
    one = make_store(tmp_path, name="a.h5", modalities={"audio": 4}).path
    two = make_store(tmp_path, name="b.h5", modalities={"text": 4}).path
    with files_of_at_most(900), pytest.raises(OSError) as raised:
        join([one, two], tmp_path / "c.h5")
    assert raised.value.filename == str(tmp_path / "c.h5")
