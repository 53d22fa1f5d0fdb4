"""Extractions in processes of their own, to be killed, stopped or misled; and what must hold
afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mer.pipeline.extraction import extract
from mer.pipeline.extraction.outcome import ExtractReport
from mer.pipeline.manifest import Manifest
from mer.pipeline.store import FeatureStore

from tests.extract import corpus

ROOT = Path(__file__).parents[2]
LIMIT = 170  # seconds of a run; before it is killed its stderr gets what every thread was at

# Imports what is heavy once, computes nothing itself, and forks `mer extract` for every line of
# JSON: in `folder`, with `options` beside those of the small corpus and the further `arguments`. It
# stops dead just before its `moment`-th publication of a file, which is where its state changes (0:
# never). With `slow`, batches leave a file `batch-N` when they begin, and after that number of them
# they wait for the file `go`; below zero it is the self-test's that do. `environment` is for the
# processes that it starts, `cluster` are constants of `mer.pipeline.extraction.cluster`.
NURSERY = """
import faulthandler, json, os, signal, sys, threading, time
from pathlib import Path
from mer.pipeline.encoders import lean
lean.import_transformers()
from transformers import RobertaModel, Wav2Vec2Model
from mer import cli
from mer.commands import features
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.encoders.bert import TextEncoder
import mer.pipeline.extraction.cluster
import mer.pipeline.extraction.settle
from tests.extract import corpus

def run(folder, moment, options, arguments, slow, count):
    replace, begun = os.replace, []
    forward = {kind: kind.forward for kind in (AudioEncoder, TextEncoder)}

    def counted(*args, **kwargs):
        count.append(1)
        if len(count) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(*args, **kwargs)

    def waiting(self, batch, **keywords):
        encoding = threading.current_thread().name.startswith("encode")
        if encoding or slow < 0:
            begun.append(1)
            (folder / f"batch-{len(begun)}").touch()
            while len(begun) > slow and not (folder / "go").exists():
                time.sleep(0.01)
        return forward[type(self)](self, batch, **keywords)

    os.replace = counted
    if slow is not None:
        AudioEncoder.forward = TextEncoder.forward = waiting
    features.extract_options = lambda manifest, **given: corpus.options(**options)
    manifest, out = str(folder / "manifest.parquet"), str(folder / "feats.h5")
    cli.main(["extract", "--manifest", manifest, "--out", out, *arguments])

for line in sys.stdin:
    request = json.loads(line)
    folder = Path(request["folder"])
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read) as result:
            print(os.waitstatus_to_exitcode(status), result.read() or 0, flush=True)
        continue
    with open(folder / "stderr", "wb") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    count = []
    faulthandler.dump_traceback_later(LIMIT - 20)
    os.setsid()
    os.environ |= request["environment"]
    for name, value in request["cluster"].items():
        setattr(mer.pipeline.extraction.cluster, name, value)
    try:
        moment, options, arguments = (request[k] for k in ("moment", "options", "arguments"))
        run(folder, moment, options, arguments, request["slow"], count)
    except SystemExit as error:
        os.write(write, str(len(count)).encode())
        os._exit(error.code or 0)
    except BaseException as error:
        print(type(error), error, file=sys.stderr, flush=True)
    os._exit(99)
"""


@dataclass
class Run:
    """One `mer extract` under way."""

    pid: int
    folder: Path
    _nursery: subprocess.Popen

    def wait(self) -> tuple[int, int]:
        """(exit status, publications of files)"""
        late = threading.Event()

        def end() -> None:
            late.set()
            os.kill(self.pid, signal.SIGKILL)

        killer = threading.Timer(LIMIT, end)
        killer.start()
        status, count = self._nursery.stdout.readline().split()
        killer.cancel()
        if late.is_set():
            raise AssertionError(f"still running after {LIMIT} s; stderr: {self.stderr}")
        return int(status), int(count)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(12_000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError(f"never came to: {what}; stderr: {self.stderr}")

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


class Nursery:
    """Starts runs without importing torch for each."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"LIMIT = {LIMIT}{NURSERY}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )

    def start(
        self,
        folder: Path,
        *arguments: str,
        moment: int = 0,
        slow: int | None = None,
        environment: dict[str, str] | None = None,
        cluster: dict[str, int] | None = None,
        **options,
    ) -> Run:
        request = {
            "folder": str(folder),
            "moment": moment,
            "options": options,
            "arguments": arguments,
            "slow": slow,
            "environment": environment or {},
            "cluster": cluster or {},
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        return Run(int(self.process.stdout.readline()), folder, self.process)

    def __call__(self, folder: Path, moment: int = 0, **options) -> tuple[int, int]:
        return self.start(folder, moment=moment, **options).wait()

    def close(self) -> None:
        with self.process:
            self.process.stdin.close()


def in_workers(folder: Path, code: str) -> dict[str, str]:
    """An environment in which every Python process that starts runs `code` first, with `folder`
    defined.
    """
    (folder / "sitecustomize.py").write_text(
        f"from pathlib import Path\nfolder = Path({str(folder)!r})\n{code}"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def again(folder: Path, **changes) -> ExtractReport:
    """The same call in this process."""
    manifest = Manifest.read(folder / "manifest.parquet")
    return extract(
        manifest, folder / "feats.h5", corpus.options(**changes), source=folder / "manifest.parquet"
    )


def fresh(made: Path, folder: Path) -> Path:
    """The corpus of `made` without its store."""
    return shutil.copytree(
        made, folder, ignore=shutil.ignore_patterns("feats*", ".mer-files*", "stderr")
    )


def kill_at_random_times(
    run: Nursery,
    place: Path,
    made: Callable[[Path], Path],
    resumed: Callable[[Path], None],
    *,
    trials: int,
    seed: int,
    **options,
) -> None:
    """Kill runs after random parts of the time that an undisturbed one takes.

    Args:
        run: Starts them.
        place: A folder for theirs.
        made: Makes the folder that a run begins with.
        resumed: Finishes the job of a killed one, and checks what came of it.
        trials: So many runs.
        seed: Of the times.
        options: Of the extraction, beside those of the small corpus.
    """
    dice = random.Random(seed)
    folder = made(place / "timing")
    started = time.monotonic()
    assert run(folder, **options)[0] == 0
    length = time.monotonic() - started
    for trial in range(trials):
        folder = made(place / str(trial))
        victim = run.start(folder, **options)
        time.sleep(dice.uniform(0, length))
        with contextlib.suppress(ProcessLookupError):  # it may have been quicker
            os.kill(victim.pid, signal.SIGKILL)
        assert victim.wait()[0] in (0, -signal.SIGKILL), victim.stderr
        resumed(folder)
        shutil.rmtree(folder)


def check(folder: Path, undisturbed: Path) -> None:
    """The store is whole, its shards are those of an undisturbed run to the byte, and nothing is
    left lying about.
    """
    assert corpus.digests(folder / "feats.shards") == corpus.digests(undisturbed / "feats.shards")
    with FeatureStore(folder / "feats.h5") as store:
        store.verify()
    left = {path.name for path in (folder / "feats.shards").iterdir()} - corpus.digests(
        folder / "feats.shards"
    ).keys()
    assert left <= {".hold"}, left


def finished(folder: Path, pattern: str) -> set[str]:
    """Names of the files of that pattern among the parts."""
    return {path.name for path in (folder / "feats.shards" / ".work").glob(pattern)}
