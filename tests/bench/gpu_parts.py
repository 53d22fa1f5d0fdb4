"""The parts of `python -m tests.bench gpu`, each in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import torch

from tests.bench.parts import ROOT, keeper

RATE = 16_000  # samples per second
PROBE_ITEMS = 512  # by whose rate the number of items is chosen
LOOP_ITEMS = 192  # of the loop of transformers, evenly spaced by length
DECODING = ("av", "soundfile")  # imported at the top of modules here; nothing here decodes
Keep = Callable[[dict], None]


def run(part: str, out: Path, seconds: float, *, tiny: bool) -> None:
    """Run one part; it should begin nothing that it cannot end within the seconds."""
    deadline = time.monotonic() + seconds
    device = torch.device("cpu" if tiny else "cuda")
    keep = keeper(out / f"{part}.json")
    try:
        FUNCTIONS[part](keep, out, deadline, device, tiny)
    except ModuleNotFoundError as error:
        traceback.print_exc()
        keep({"not measured": f"{error.name} is not installed"})


def left(deadline: float) -> float:
    return deadline - time.monotonic()


# ---- What is right


def parity(keep: Keep, out: Path, deadline: float, device: torch.device, tiny: bool) -> None:
    if find_spec("pytest") is None:
        keep({"tests": "none", "why": "pytest is not installed"})
        return
    for name in ("tests/ops/test_gpu.py", "tests/extract/test_gpu.py"):
        report = out / "parity.xml"
        report.unlink(missing_ok=True)
        addopts = "--import-mode=importlib --strict-markers"
        command = [sys.executable, "-m", "pytest", name, "-q", "-p", "no:cacheprovider"]
        command += ["-o", f"addopts={addopts}", "-o", "timeout=0", f"--junitxml={report}"]
        if find_spec("pytest_timeout") is None:
            command += ["-W", "ignore::pytest.PytestConfigWarning"]
        seconds = max(1.0, left(deadline) / (2 if "ops" in name else 1))
        try:
            subprocess.run(command, cwd=ROOT, timeout=seconds)
        except subprocess.TimeoutExpired:
            keep({"tests": name, "passed": 0, "failed": 0, "skipped": 0, "why": "ran out of time"})
            continue
        keep(counts(name, report))
    (out / "parity.xml").unlink(missing_ok=True)


def counts(name: str, report: Path) -> dict:
    """How many of the tests passed, and the first that failed."""
    row = {"tests": name, "passed": 0, "failed": 0, "skipped": 0, "why": ""}
    if not report.exists():
        return row | {"why": "pytest wrote no report"}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "passed"
        row["skipped" if "skipped" in kinds else kind] += 1
        if kind == "failed":
            row["why"] = row["why"] or str(case.get("name"))
    return row


CASE = """
import sys
import torch
import mer.fusion.ops.paths as paths
from mer.fusion.losses import nt_xent
path, rows, d, device, impl = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]
paths.kernel_path = lambda total, width: path
x, y = (torch.randn(rows, d, device=device, requires_grad=True) for _ in range(2))
loss = nt_xent(x, y, temperature=0.1, impl=impl)
loss.backward()
print("loss", loss.item(), bool(x.grad.isfinite().all() and y.grad.isfinite().all()))
"""
CASES = {"tiny": (4, 64), "mid": (33, 64), "large": (130, 72)}


def sanitizer(keep: Keep, out: Path, deadline: float, device: torch.device, tiny: bool) -> None:
    """memcheck over one call of each path, forward and backward."""
    places = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer")
    found = shutil.which("compute-sanitizer") or next(filter(shutil.which, places), None)
    if found is None and not tiny:
        keep({"path": "none", "errors": "", "why": "compute-sanitizer is not installed"})
        return
    before = [] if tiny else [str(found), "--tool", "memcheck", "--error-exitcode", "9"]
    impl = "chunked" if tiny else "triton"
    for path, (rows, d) in CASES.items():
        command = [*before, sys.executable, "-c", CASE, path, str(rows), str(d), str(device), impl]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=max(1, left(deadline))
            )
        except subprocess.TimeoutExpired:
            keep({"path": path, "errors": "", "why": "ran out of time"})
            continue
        print(done.stdout, done.stderr)
        told = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
        errors = told[-1].split(":")[1].strip() if told else f"exit {done.returncode}"
        keep({"path": path, "errors": errors, "why": "" if done.returncode == 0 else "see the log"})


# ---- Extraction


@contextmanager
def without_decoding() -> Iterator[None]:
    """Modules that decode can be imported where their libraries are missing; nothing of them is
    called here.
    """
    absent = [name for name in DECODING if find_spec(name) is None]
    for name in absent:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__getattr__ = lambda attribute: type(attribute, (Exception,), {})  # type: ignore
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def meld_lengths() -> np.ndarray:
    """Samples of 13,706 clips with the quantiles of MELD's lengths, in a shuffled order."""
    table = json.loads((ROOT / "tests" / "extract" / "meld_quantiles.json").read_text())
    places = np.random.default_rng(0).permutation(np.linspace(0, 1, 13_706))
    seconds = np.interp(places, np.linspace(0, 1, len(table)), table)
    return np.maximum(np.round(seconds * RATE), 400).astype(np.int64)


def token_lengths(count: int) -> np.ndarray:
    """As words and marks are spread over MELD's transcripts (tests/bench/extract.py)."""
    random = np.random.default_rng(1)
    return np.clip(3 + random.gamma(1.3, 7.9, count), 3, 92).astype(np.int64)


def extraction(keep: Keep, out: Path, deadline: float, device: torch.device, tiny: bool) -> None:
    with without_decoding():
        from mer.pipeline.encoders.bert import TextEncoder
        from mer.pipeline.encoders.loading import resolve
        from mer.pipeline.encoders.wav2vec2 import AudioEncoder

        from tests.bench import gpu_encoders
    folder = Path(tempfile.mkdtemp())
    try:
        half = time.monotonic() + left(deadline) / 2
        for modality, until in (("audio", half), ("text", deadline)):
            made = gpu_encoders.checkpoint(modality, folder / modality, tiny)
            kind = AudioEncoder if modality == "audio" else TextEncoder
            encoder = kind(resolve(modality, str(made)), device=str(device), precision="auto")
            lengths = meld_lengths() if modality == "audio" else token_lengths(13_706)
            lengths = lengths[:24] if tiny else lengths
            sides = gpu_encoders.Sides(modality, encoder, made, folder / "parts")
            race(keep, sides, lengths, until)
            del encoder, sides
            if device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def race(keep: Keep, sides, lengths: np.ndarray, deadline: float) -> None:
    """Ours over as many items as there is time for, and a loop over some of them."""
    modality, device = sides.modality, sides.device
    spread = np.argsort(lengths, kind="stable")
    some = spread[np.linspace(0, len(spread) - 1, min(PROBE_ITEMS, len(spread))).astype(int)]
    few = some[np.linspace(0, len(some) - 1, min(LOOP_ITEMS, len(some))).astype(int)]
    sides.ours(lengths[some[:: max(1, len(some) // 32)]])  # warms up
    sides.loop(lengths[few[:: max(1, len(few) // 8)]])
    loop_rate = len(few) / sides.loop(lengths[few])
    rate = len(some) / sides.ours(lengths[some])
    busy = sides.busy_share(lengths[some])
    fits = int(rate * 0.8 * max(0.0, left(deadline)))
    count = min(len(lengths), max(len(some), fits))
    taken = lengths[:count]
    seconds = sides.ours(taken)
    sound = modality == "audio"
    valid = float(taken.sum()) / (RATE if sound else 1)
    measure = "seconds_of_sound_per_second" if sound else "tokens_per_second"
    row = {
        "modality": modality,
        "encoder": sides.name,
        "precision": sides.encoder.precision,
        "items": f"{count} of {len(lengths)}",
        "utterances_per_second": round(count / seconds, 1),
        measure: round(valid / seconds, 1),
        "loop_fp16_utterances_per_second": round(loop_rate, 1),
        "times_the_loop": round(count / seconds / loop_rate, 2),
        "device_busy_share": busy,
    }
    if device.type == "cuda":
        row["peak_GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    keep(row)


# ---- Training


def drkf(keep: Keep, out: Path, deadline: float, device: torch.device, tiny: bool) -> None:
    """Features of MELD's shape, as many utterances as fit the time, the paper's preset."""
    from mer.fusion import config
    from mer.fusion.training import experiment
    from mer.pipeline.store import FeatureStore

    from tests.bench import gpu_store

    count, epochs, seeds = (48, 1, 2) if tiny else (2000, 30, 5)
    folder = Path(tempfile.mkdtemp())
    try:
        gpu_store.make(folder, count, narrow=tiny)
        sets = [f"train.epochs={epochs}", f"train.patience={epochs}"]
        if tiny:
            sets += ["model_args.d=16", "model_args.layers=1", "model_args.heads=2"]
        settings = config.load(preset="drkf", sets=sets)
        marks: list[tuple[float, str]] = []

        def note(text: str) -> None:
            marks.append((time.monotonic(), text))
            print(text, flush=True)

        for n in (1, seeds):
            begun = time.monotonic()
            with FeatureStore(folder / "feats.h5") as store:
                experiment.train(
                    store, settings, folder / f"run{n}", seeds=n, device=device, note=note
                )
            taken = time.monotonic() - begun
            keep(
                {
                    "preset": "drkf",
                    "utterances": count,
                    "epochs": epochs,
                    "seeds": n,
                    "seconds": round(taken, 2),
                    "seconds_per_epoch_and_seed": round(taken / epochs / n, 4),
                    "utterances_per_second": round(count * epochs * n / taken, 1),
                }
            )
            if taken * seeds > left(deadline) and n == 1:
                print("no time is left for the seeds")
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- The loss


def contrastive(keep: Keep, out: Path, deadline: float, device: torch.device, tiny: bool) -> None:
    options = ["--device", device.type, "--out", str(out)]
    if tiny:
        options += ["--size", "4x8", "--rounds", "1", "--no-compile", "--workload", "nt_xent"]
    else:
        options += ["--minutes", str(max(0.1, left(deadline) / 60 - 0.3))]
    measured(keep, out, options, deadline)


# The launcher's own, changed in one size: rows, columns, depth, the gradient's width, warps, stages
TILES = (
    "mid:16x32x32x256x4x3",
    "mid:16x64x32x256x8x3",
    "mid:32x32x32x128x8x3",
    "mid:32x32x32x256x8x2",
    "large:64x64x32x0x4x2",
    "large:64x128x32x0x8x3",
    "large:128x64x32x0x8x3",
)


def tiles(keep: Keep, out: Path, deadline: float, device: torch.device, tiny: bool) -> None:
    folder = out / "tiles"
    folder.mkdir(exist_ok=True)
    options = ["--device", device.type, "--out", str(folder), "--no-compile"]
    if tiny:
        options += ["--size", "4x8", "--rounds", "1", "--workload", "nt_xent"]
    else:
        options += ["--minutes", str(max(0.1, left(deadline) / 60 - 0.2)), "--paths"]
        options += ["--workload", "nt_xent", "--size", "512x256", "--size", "8192x256"]
        options += [word for tile in TILES for word in ("--tile", tile)]
    measured(keep, folder, options, deadline)


SHOWN = ("workload", "B", "D", "dtype", "peer", "min_ms", "times_eager")


def measured(keep: Keep, folder: Path, options: list[str], deadline: float) -> None:
    """`tests.bench contrastive`, and of its CSV what a reader wants first."""
    command = [sys.executable, "-m", "tests.bench", "contrastive", *options]
    failure = None
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=max(1.0, left(deadline)))
        failure = f"exit {done.returncode}" if done.returncode else None
    except subprocess.TimeoutExpired:
        failure = "ran out of time"
    for path in sorted(folder.glob("contrastive_*.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row["what"] == "forward+backward":
                    keep({name: row.get(name, "") for name in SHOWN})
    if failure:
        print(failure)
        os._exit(1)


FUNCTIONS = {
    "parity": parity,
    "sanitizer": sanitizer,
    "extraction": extraction,
    "drkf": drkf,
    "contrastive": contrastive,
    "tiles": tiles,
}
