"""A disk that is full, or a limit on the size of files, while a run folder is written: one line
that names the file, wherever the write fails.

safetensors, matplotlib and Arrow have errors of their own for it, in which the cause is words only.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors import SafetensorError

from mer.cli import main
from mer.fusion import report
from mer.fusion.evaluation import evaluate
from mer.fusion.report import figures as pictures
from mer.fusion.runs import result_files
from mer.fusion.runtime import files, pool
from mer.fusion.training import experiment
from mer.pipeline.datasets import prepare

from tests.disk import files_of_at_most
from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_resamples):
    folder = tmp_path_factory.mktemp("full")
    return experiment.train(
        make_store(folder), settings("train.epochs=1"), folder / "run", note=quiet
    )


@pytest.mark.parametrize(
    ("size", "name"),
    [(100, "config.toml"), (700, "split.json"), (1200, "run.json"), (2500, "last.safetensors")],
)
def test_training_names_the_file_and_goes_on_afterwards(tmp_path, size, name):
    store = make_store(tmp_path)
    with files_of_at_most(size), pytest.raises(OSError) as raised:
        experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    assert (raised.value.errno, raised.value.filename) == (
        errno.EFBIG,
        str(tmp_path / "run" / name),
    )
    left = [path.name for path in (tmp_path / "run").iterdir() if ".tmp" in path.name]
    assert not left
    assert experiment.train(
        store, settings("train.epochs=1"), tmp_path / "run", note=quiet
    ).finished


def test_figures_predictions_and_reports_name_the_file(run, tmp_path):
    found = evaluate.evaluate(run, note=quiet)
    page = report.page([run])
    calls = {
        "": lambda: pictures.write(run, found, tmp_path / "figures"),
        "predictions.parquet": lambda: evaluate.evaluate(run, note=quiet),
        "p.parquet": lambda: result_files.write_parquet(
            result_files.read_predictions(run).table, tmp_path / "p.parquet"
        ),
        "report.html": lambda: files.write_text(tmp_path / "report.html", page),
    }
    for name, call in calls.items():
        with files_of_at_most(600), pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.EFBIG and str(raised.value.filename).endswith(name), name
    assert not (tmp_path / "report.html").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        pa.ArrowException(
            "[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"
        ),
        RuntimeError(
            "Can't write data (file write failed: errno = 28, error message = 'No space left on "
            "device')"
        ),
        OSError("[Errno 28] No space left on device"),
    ],
)
def test_a_cause_that_a_library_has_in_words_is_found(tmp_path, error):
    with pytest.raises(OSError) as raised, files.publishing(tmp_path / "x"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert raised.value.strerror == os.strerror(errno.ENOSPC)
    assert not list(tmp_path.iterdir())


def test_what_is_no_failed_write_stays_itself(tmp_path):
    with pytest.raises(ZeroDivisionError), files.publishing(Path(tmp_path / "x")):
        raise ZeroDivisionError


def test_in_a_process_of_its_own_it_is_the_same_error():
    """With --jobs it was an internal error, with a traceback."""

    def failing(task: str, tell) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), task)

    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        theirs.send(pool._answer(failing, "runs/x/last.safetensors", "x", theirs))
        kind, error = ours.recv()
    assert kind == "failed" and type(error) is OSError
    assert (error.errno, error.filename) == (errno.ENOSPC, "runs/x/last.safetensors")


def test_a_corpus_made_by_code_names_the_clip(tmp_path):
    """soundfile says "System error." only."""
    with files_of_at_most(4_000), pytest.raises(OSError) as raised:
        prepare("synthetic", tmp_path / "x")
    assert raised.value.errno == errno.EFBIG and raised.value.filename.endswith(".wav")


@pytest.mark.parametrize("words", [["runs"], ["inspect", "--json"]])
def test_a_closed_output_is_no_error_of_ours(tmp_path, monkeypatch, words):
    """`mer runs FOLDER >&-`, as a job without an output starts it."""
    store = make_store(tmp_path).path
    named = {"runs": tmp_path, "inspect": store}[words[0]]
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        main([words[0], str(named), *words[1:]])
    sys.stdout.close()
    sys.stderr.close()
    assert not ended.value.code
