"""One input at a time in a process of its own, with limits on time and memory; and what became of
it.

Classes: `ok`; `line`, refused in one line, or in one for each mistake; `long`, in a line longer
than LINE; `internal`, an internal error, a traceback, no message or one told twice; `hang`;
`crash`, ended by a signal; `wrong`, a wrong answer, or something changed that was none of its
business; `mutator`, a fault of the harness.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import resource
import select
import shutil
import signal
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.errors import MerError
from mer.pipeline.media.workers import Decoders

from tests.fuzz.kinds import KINDS, Case
from tests.fuzz.stock import Stock

CPU_SECONDS = 10  # of one input, reading only
WALL_SECONDS = 40  # likewise: a wait that never ends uses no CPU, a busy machine is no hang
MAKING_SECONDS = 60  # for the mutator itself
MEMORY = 2 << 30  # bytes of address space above those of the process that has imported everything
LINE = 300  # characters of a message
MISTAKES = 8  # messages of one command at most: more are no longer read
NOTE = 1000  # characters of any other line on stderr
IMPORTED = (
    "matplotlib.pyplot", "pyarrow.csv", "torch._dynamo", "torchaudio.functional",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.wav2vec2.modeling_wav2vec2", "mer.fusion.training.experiment",
    "mer.fusion.report.figures", "mer.fusion.report", "mer.pipeline.encoders.wav2vec2",
    "mer.pipeline.encoders.bert", "mer.pipeline.extraction.clips", "mer.pipeline.extraction.steps",
    "mer.pipeline.interchange.mmsa", "mer.pipeline.interchange.npydir",
    "mer.pipeline.interchange.npz", "mer.pipeline.interchange.parquet",
)  # fmt: skip
CLASSES = ("ok", "line", "long", "internal", "hang", "crash", "wrong", "mutator")


@dataclass(frozen=True)
class Outcome:
    kind: str
    seed: int
    outcome: str
    detail: str
    seconds: float
    mebibytes: int  # at most, resident


def prepare() -> None:
    """Import what reading needs, so that every input finds it there."""
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("mer.fusion.evaluation.evaluate").RESAMPLES = 20
    # clips are decoded in this process, so that its limits hold for them
    original = Decoders.__init__
    Decoders.__init__ = lambda self, workers, **rest: original(self, 0, **rest)


def run(kind: str, seed: int, stock: Stock, folder: Path) -> Outcome:
    """Make the input of `kind` and `seed` in `folder`, read it, and judge what happened."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("in", "out", "tmp", "cwd", "canary"):
        (folder / name).mkdir(parents=True)
    fill_canary(folder / "canary")
    ours, theirs = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(ours)
        serve(kind, seed, stock, folder, theirs)
    os.close(theirs)
    said, late = listen(ours, child)
    os.close(ours)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, status, usage = os.wait4(child, 0)
    outcome, detail = judge(said, late, status)
    if outcome in ("ok", "line", "long"):
        changed = changes(folder, said)
        if changed:
            outcome, detail = "wrong", f"changed: {', '.join(changed)[:200]}"
    seconds = said.get("seconds", time.monotonic() - began)
    return Outcome(kind, seed, outcome, detail, round(seconds, 3), usage.ru_maxrss >> 10)


def listen(pipe: int, child: int) -> tuple[dict, bool]:
    """(everything the child said, whether it was still at work when its time was up)."""
    said: dict = {}
    text, deadline = b"", time.monotonic() + MAKING_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            break
        data = os.read(pipe, 1 << 16)
        if not data:
            return said, False
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            said |= json.loads(line)
            if "made" in said:
                deadline = time.monotonic() + WALL_SECONDS
    os.kill(child, signal.SIGKILL)
    return said, True


def judge(said: dict, late: bool, status: int) -> tuple[str, str]:
    if "made" not in said:
        return "mutator", str(said.get("failed", status))
    if late:
        return "hang", f"more than {WALL_SECONDS} s"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return "hang", f"more than {CPU_SECONDS} s of CPU"
        return "crash", signal.Signals(number).name
    return said.get("outcome", "crash"), said.get("detail", "no word")


# ---- In the child


def serve(kind: str, seed: int, stock: Stock, folder: Path, pipe: int) -> None:
    """Never returns."""
    os.setpgid(0, 0)

    def say(**words) -> None:
        os.write(pipe, json.dumps(words).encode() + b"\n")

    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # FFmpeg and HDF5 write there by themselves
        os.dup2(quiet, number)
    try:
        os.environ["TMPDIR"] = str(folder / "tmp")
        os.environ["XDG_CACHE_HOME"] = str(folder / "out" / ".cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.chdir(folder / "cwd")
        rng = np.random.default_rng([zlib.crc32(kind.encode()), seed])
        case = KINDS[kind].make(folder / "in", stock, rng)
        say(made=True, writes=case.writes, digests=digests(folder / "in"))
    except BaseException:
        say(failed=traceback.format_exc()[-1500:])
        os._exit(1)
    limit()
    began = time.monotonic()
    outcome, detail = read(case)
    say(outcome=outcome, detail=detail[:2000], seconds=time.monotonic() - began)
    os._exit(0)


def limit() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + CPU_SECONDS + 1, hard))
    held = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    resource.setrlimit(resource.RLIMIT_AS, (int(held[1]) * 1024 + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read(case: Case) -> tuple[str, str]:
    """The worst of what the commands did."""
    worst, detail, outcomes = "ok", "", []
    for command in case.commands:
        code, out, outcome, said = call(command) if callable(command) else tell(command)
        outcomes.append((code, out))
        if CLASSES.index(outcome) >= CLASSES.index(worst):
            worst, detail = outcome, said
    if case.check is not None and worst in ("ok", "line", "long"):
        try:
            case.check(outcomes)
        except MemoryError:
            pass  # of this process, after all that it did; no answer of mer's
        except Exception as error:  # noqa: BLE001 - the finding itself
            said = " ".join(str(error).split())[:300]
            return "wrong", f"{type(error).__name__}: {said}; {detail}"
    return worst, detail


def call(function: Callable[[], object]) -> tuple[int, str, str, str]:
    try:
        function()
    except MerError as error:
        return error.exit_code, "", *weigh(" ".join(str(error).split()))
    except AssertionError as error:
        return 1, "", "wrong", str(error)
    except BaseException as error:  # noqa: BLE001 - the finding itself
        return 1, "", "internal", f"{type(error).__name__}: {error} at {place(error)}"
    return 0, "", "ok", ""


def tell(command: list[str]) -> tuple[int, str, str, str]:
    """Run `mer COMMAND` as a user does, with its words caught."""
    result = CliRunner().invoke(main, command)
    out, said = result.stdout, result.stderr
    name = f"mer {command[0]}: "
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        detail = f"{type(error).__name__}: {error} at {place(error)}"
        return 1, out, "internal", name + detail
    return result.exit_code, out, *sort(name, result.exit_code, said)


def sort(name: str, code: int, said: str) -> tuple[str, str]:
    """The class of a command that ended in `code`, by what it said on stderr; independent mistakes
    are told together, each in a line of its own.
    """
    lines = [line for line in said.splitlines() if line.startswith("mer: ")]
    expected = range(1, MISTAKES + 1) if code else (0,)
    odd = len(set(lines)) < len(lines) or len(lines) not in expected
    if "mer: internal error" in said or "Traceback" in said or odd:
        return "internal", f"{name}exit {code}: {said[-600:]}"
    if code == 0:
        widest = max(map(len, said.splitlines()), default=0)
        return "long" if widest > NOTE else "ok", name + said[:400]
    return max(map(weigh, lines), key=lambda found: CLASSES.index(found[0]))


def weigh(line: str) -> tuple[str, str]:
    """The folder's own name is the user's affair."""
    said = line.replace(str(Path.cwd().parent), "")
    return ("long" if len(said) > LINE else "line"), line


def place(error: BaseException) -> str:
    """Where in mer it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[::-1][:5])


# ---- Somebody else's files


KEPT = dict.fromkeys(("kept.txt", "kept.h5", "shard-00000.h5", "kept.npy"), b"somebody else's\n")


def fill_canary(folder: Path) -> None:
    for name, content in KEPT.items():
        (folder / name).write_bytes(content)


def digests(folder: Path) -> dict[str, str]:
    """What every file in `folder` holds, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and path.stat().st_size < 1 << 30:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder or device"
    return found


def changes(folder: Path, said: dict) -> list[str]:
    """Names outside the output that are not as they were; that a test part was opened is noted
    beside its store, which is no change of the store.
    """
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in KEPT.items()}
    found = [f"canary/{n}" for n in differing(expected, digests(folder / "canary"))]
    found += [f"{n}" for part in ("cwd", "tmp") for n in digests(folder / part)]
    allowed = tuple(said["writes"])
    inside = differing(said["digests"], digests(folder / "in"))
    inside = [n for n in inside if not n.endswith(".ledger.jsonl")]
    return found + [f"in/{n}" for n in inside if not n.split("/")[0].startswith(allowed or "\0")]


def differing(before: dict, now: dict) -> list[str]:
    return [n for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]


def record(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome), ensure_ascii=False)
