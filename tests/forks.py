"""Programs in processes of their own, which may be killed or run out of what they are allowed,
without the half second that each would take to import NumPy, HDF5, Arrow and the store.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = """
import json, os, select, signal, sys, traceback
import numpy, h5py, pyarrow, pyarrow.compute, pyarrow.parquet
import mer.pipeline.store

def work(asked):
    signal.alarm(asked["seconds"])
    status = 1
    sys.argv = ["-c", *asked["words"]]
    try:
        exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

def run(asked):
    # pipes and no files, which a program may have made too large to write
    ends = [os.pipe(), os.pipe()]
    child = os.fork()
    if not child:
        for number, (_, writing) in enumerate(ends, 1):
            os.dup2(writing, number)
        work(asked)
    said = {reading: b"" for reading, _ in ends}
    for _, writing in ends:
        os.close(writing)
    unfinished = set(said)
    while unfinished:
        for reading in select.select(list(unfinished), [], [])[0]:
            more = os.read(reading, 1 << 16)
            said[reading] += more
            if not more:
                unfinished.remove(reading)
                os.close(reading)
    _, status = os.waitpid(child, 0)
    return [os.waitstatus_to_exitcode(status), *(text.decode() for text in said.values())]

for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
"""


class Forks:
    """A process that has imported the store, and forks one for each program."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, *words: object, seconds: int = 60) -> subprocess.CompletedProcess[str]:
        """What `python -c CODE WORDS` in the project's folder gives; it is killed after `seconds`,
        by SIGALRM.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        asked = {"code": code, "words": [str(word) for word in words], "seconds": seconds}
        print(json.dumps(asked), file=stdin, flush=True)
        status, out, err = json.loads(stdout.readline())
        return subprocess.CompletedProcess([code, *asked["words"]], status, out, err)

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
