"""An extraction as a whole, on tiny untrained encoders: `python -m tests.bench scale_out --only
memory workers dask write idle finished`.

memory    peak memory of an extraction of 600 and of 20,000 short utterances, beyond that of its
          imports
workers   two Dask workers of one thread each against one, and one against the plain run: from the
          first part to the last shard
dask      what a task costs that does nothing, against the parts of `workers`
write     bytes a second of a shard, fsynced, against the same bytes copied raw
idle      the share of the encode threads' time that is not spent in an encoder
finished  a finished store of MELD's size asked for again, and its fingerprint, as commands: from
          start to end of the process

Workers and extractions run in processes of their own. Clips are noise of even lengths, transcripts
distinct.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.progress import Advance, Silent
from mer.pipeline.store import ShardWriter

from tests.bench.machine import save

TINY = {
    "audio_encoder": "builtin:tiny-wav2vec2",
    "text_encoder": "builtin:tiny-roberta",
    "offline": True,
}
MELD = 13_708  # utterances
CLI = [sys.executable, "-m", "mer.cli"]


def corpus(folder: Path, n: int, seconds: float) -> Path:
    """`n` clips around `seconds` long, in one folder; the manifest's path."""
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(round(seconds * 16_000 * 1.5) + n) * 3000).astype(np.int16)
    rows = []
    for i in range(n):
        length = round(seconds * 16_000 * rng.uniform(0.5, 1.5))
        name = f"clips/{i:05}.wav"
        soundfile.write(folder / name, noise[i : i + length], 16_000)
        os.utime(folder / name, (1e9, 1e9))  # settled: hashes are remembered
        rows.append(
            Utterance(
                f"u{i:05}",
                name,
                f"what is said in number {i}",
                ("train", "dev", "test")[i % 3],
                "ab"[i % 2],
            )
        )
    Manifest("bench", "single", ("a", "b"), tuple(rows), folder).write(folder / "manifest.parquet")
    return folder / "manifest.parquet"


class Timed(Silent):
    """Seconds of the task that encodes and assembles; loading and starting workers come
    before it.
    """

    seconds = 0.0

    @contextmanager
    def task(self, what: str, total: float, unit: str) -> Iterator[Advance]:
        started = time.perf_counter()
        yield lambda amount, fresh=True: None
        if what == "extracting":
            self.seconds = time.perf_counter() - started


def extract_here(folder: Path, out: str, workers: int = 0, **changes) -> Timed:
    from mer.pipeline.extraction import ExtractOptions, Here, Workers, extract

    timed = Timed()
    file = folder / "manifest.parquet"
    extract(
        Manifest.read(file),
        folder / out,
        ExtractOptions(**{**TINY, **changes}),
        source=file,
        progress=timed,
        where=Workers(workers) if workers else Here(),
    )
    return timed


def alone(function: str, **arguments) -> dict:
    """A function of this module in a process of its own: its result."""
    code = "import json\nfrom tests.bench import scale_out\n"
    code += f"if __name__ == '__main__': print(json.dumps(scale_out.{function}(**{arguments!r})))"
    # Dask's workers import the main module: it must be a file
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, script.name], capture_output=True, text=True, env=environment
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# --- the measurements


def memory_of(folder: str, n: int) -> dict:
    """Peaks in MiB beyond the encoders' own: of all, and of what is not mapped from files.

    Small shards and parts: as for a real corpus, there are many of them.
    """
    from mer.pipeline.encoders import configured
    from mer.pipeline.extraction import ExtractOptions, extract  # noqa: F401  # not counted
    from mer.pipeline.extraction.fingerprint import Chosen
    from mer.pipeline.extraction.runner import load_encoders

    options = ExtractOptions(**TINY, device="cpu")
    chosen = [Chosen(m, m.resolve(m.encoder)) for m in configured(options)]
    encoders = load_encoders(chosen, options)
    encoders["audio"].encode([np.zeros(16_000 * 40, np.float32)])  # one batch as large as they come
    peak, stop = [0.0], threading.Event()

    def anonymous() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    before, before_all = anonymous(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    extract_here(
        Path(folder),
        "feats.h5",
        threads=1,
        decoders=1,
        shard_bytes=1 << 20,
        part_seconds=60.0,
        part_tokens=5000,
    )
    stop.set()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "utterances": n,
        "peak_mib": round(after - before_all),
        "anonymous_mib": round(peak[0] - before),
        "seconds": round(time.perf_counter() - started, 1),
    }


def memory(folder: Path, args) -> list[dict]:
    rows = []
    for n in args.utterances:
        corpus(folder / str(n), n, 0.2)
        rows.append({"what": "memory", **alone("memory_of", folder=str(folder / str(n)), n=n)})
    return rows


def seconds_of(folder: str, out: str, workers: int, cores: int = 0) -> dict:
    """Of encoding and assembling, with one thread a process; `cores`: on so many of the cores (0:
    all).
    """
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    timed = extract_here(
        Path(folder), out, workers, threads=1, decoders=0, part_seconds=120.0, shard_bytes=8 << 20
    )
    return {"seconds": timed.seconds}


# A worker of one thread encodes with one; decoding, writing and Dask's own loop go on beside it, on
# another core where there is one.
RUNS = {
    "plain, one thread": (0, 0),
    "one worker of one thread": (1, 0),
    "the same on one core": (1, 1),
    "two workers of one thread": (2, 0),
}


def workers(folder: Path, args) -> list[dict]:
    corpus(folder / "w", args.clips, 4.0)
    best = dict.fromkeys(RUNS, float("inf"))
    for turn in range(args.rounds):
        for number, (name, (count, cores)) in enumerate(RUNS.items()):
            out = f"{turn}-{number}"
            found = alone(
                "seconds_of", folder=str(folder / "w"), out=f"{out}.h5", workers=count, cores=cores
            )["seconds"]
            best[name] = min(best[name], found)
            shutil.rmtree(folder / "w" / f"{out}.shards")
    one, one_core = (best[name] for name in list(RUNS)[1:3])
    return [
        {
            "what": "workers",
            "run": name,
            "clips": args.clips,
            "seconds": round(seconds, 2),
            "times_one_worker": round(one / seconds, 3),
            "times_one_on_one_core": round(one_core / seconds, 3),
        }
        for name, seconds in best.items()
    ]


def dask_overhead(tasks: int) -> dict:
    """Milliseconds of a task that does nothing, one after the other on one worker, as
    `ClusterRunner` runs them.
    """
    from distributed import Client, LocalCluster

    from mer.pipeline.extraction.cluster import ClusterRunner
    from mer.pipeline.runtime.signals import Stop

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as local,
        Client(local) as client,
    ):
        cluster = ClusterRunner(client, None, "none")
        for _ in cluster._run(nothing, 0, list(range(20)), Stop()):
            pass
        started = time.perf_counter()
        for _ in cluster._run(nothing, 0, list(range(tasks)), Stop()):
            pass
        return {
            "tasks": tasks,
            "ms_a_task": round((time.perf_counter() - started) / tasks * 1e3, 3),
        }


def nothing(plugin: str, window: int, number: int) -> None:
    """A task."""


def dask(folder: Path, args) -> list[dict]:
    return [{"what": "dask", **alone("dask_overhead", tasks=500)}]


def write(folder: Path, args) -> list[dict]:
    """96 MB of float16 in utterances of MELD's mean length: through a ShardWriter from float32 and
    from float16, as an extraction hands them over, and the finished file copied with fsync.
    """
    rng, dim, steps = np.random.default_rng(0), 1024, 160
    frames = rng.standard_normal((steps, dim), np.float32)
    count = (96 << 20) // (frames.size * 2)
    kinds = {"from_float32": frames, "from_float16": frames.astype(np.float16)}
    best = dict.fromkeys([*kinds, "raw"], float("inf"))
    for _ in range(args.rounds + 2):
        for name, x in kinds.items():
            started = time.perf_counter()
            with ShardWriter(folder / "shard.h5", {"audio": dim}) as writer:
                for i in range(count):
                    writer.add(f"u{i}", {"audio": x})
            best[name] = min(best[name], time.perf_counter() - started)
        content = (folder / "shard.h5").read_bytes()
        started = time.perf_counter()
        with (folder / "raw.bin").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        best["raw"] = min(best["raw"], time.perf_counter() - started)
    mb = len(content) / 1e6
    return [
        {
            "what": "write",
            "mb": round(mb),
            **{f"{name}_mb_s": round(mb / seconds) for name, seconds in best.items()},
        }
    ]


def idle_of(folder: str, threads: int, decoders: int) -> dict:
    from mer.pipeline.encoders.bert import TextEncoder
    from mer.pipeline.encoders.wav2vec2 import AudioEncoder

    spent: list[float] = []
    for kind in (AudioEncoder, TextEncoder):

        def forward(self, batch, *, forward=kind.forward, **keywords):
            started = time.perf_counter()
            out = forward(self, batch, **keywords)
            if threading.current_thread().name.startswith("encode"):
                spent.append(time.perf_counter() - started)
            return out

        kind.forward = forward
    encoding: list[float] = []
    from mer.pipeline.extraction import runner

    run_parts = runner.run_parts

    def timed(*args, **keywords):
        started = time.perf_counter()
        tally = run_parts(*args, **keywords)
        encoding.append(time.perf_counter() - started)
        return tally

    runner.run_parts = timed
    extract_here(Path(folder), f"i{threads}{decoders}.h5", threads=threads, decoders=decoders)
    busy = sum(spent) / encoding[0] / threads
    return {
        "threads": threads,
        "decoders": decoders,
        "seconds": round(encoding[0], 2),
        "idle": round(1 - busy, 4),
    }


def idle(folder: Path, args) -> list[dict]:
    corpus(folder / "i", args.clips, 4.0)
    return [
        {"what": "idle", **alone("idle_of", folder=str(folder / "i"), threads=n, decoders=1)}
        for n in (1, os.cpu_count())
    ]


def finished(folder: Path, args) -> list[dict]:
    file = corpus(folder / "f", MELD, 0.1)
    alone("seconds_of", folder=str(folder / "f"), out="feats.h5", workers=0)
    encoders = [
        "--audio-encoder",
        TINY["audio_encoder"],
        "--text-encoder",
        TINY["text_encoder"],
        "--offline",
    ]
    rows = []
    for name, tail in (("extract", ["--out", str(folder / "f" / "feats.h5")]), ("fingerprint", [])):
        best = float("inf")
        for _ in range(args.rounds + 1):
            started = time.perf_counter()
            done = subprocess.run(
                [*CLI, name, "--manifest", str(file), *encoders, *tail],
                capture_output=True,
                text=True,
            )
            best = min(best, time.perf_counter() - started)
            assert done.returncode == 0 and (name != "extract" or "nothing to do" in done.stderr), (
                done.stderr
            )
        rows.append(
            {"what": "finished", "command": name, "utterances": MELD, "seconds": round(best, 2)}
        )
    return rows


MODES = {
    "memory": memory,
    "workers": workers,
    "dask": dask,
    "write": write,
    "idle": idle,
    "finished": finished,
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench scale_out", description=__doc__)
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("--only", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--utterances",
        type=int,
        nargs="+",
        default=[600, 20_000],
        help="memory: sizes of the corpora",
    )
    parser.add_argument("--clips", type=int, default=600, help="workers, idle: clips of 4 s")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--save",
        action="store_true",
        help="write tests/bench/results/scale_out-MODE.json, a file a mode",
    )
    args = parser.parse_args(argv)
    for mode in args.only:
        with tempfile.TemporaryDirectory() as folder:
            rows = MODES[mode](Path(folder), args)
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        if args.save:
            print(
                save(
                    f"scale_out-{mode}",
                    rows,
                    command="python -m tests.bench scale_out " + " ".join(argv),
                )
            )
