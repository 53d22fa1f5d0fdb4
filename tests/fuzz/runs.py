"""Run folders with mutated files: `python -m tests.fuzz.runs FOLDER SECONDS SEED`.

Mutations know the structure: values of JSON and TOML, headers and tensors of safetensors, or what
lies in place of a file. Half of them are sealed again, as somebody with intent would do, so that
they get beyond the checksums. Every command is to answer, or to refuse in one line. Prints how
often which, and ends with 1 for the first input that is neither.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mer.fusion import checkpoint, config, evaluate, experiment, files, report
from mer.fusion import figures as pictures
from mer.fusion.checkpoint import Run
from mer.fusion.typed import tree
from mer.pipeline.errors import MerError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings
from tests.fuzz.mutate import mutate

MEMORY = 4 << 30  # bytes of address space above what the sound run needs
HANG = 30  # seconds for all commands on one input
LONGEST = 300  # characters of a line, the folder's own name apart
FILES = (
    "run.json",
    "config.toml",
    "split.json",
    "log.jsonl",
    "metrics.json",
    "predictions.parquet",
    "test_log.jsonl",
    "model.safetensors",
    "last.safetensors",
    ".hold",
)
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    "",
    "x" * 10_000,
    "\x1b[31m",
    "\ud800",
    "../..",
    "/dev/zero",
    [],
    {},
    [[]],
    {"": {}},
    2**31,
    2**63,
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    ["a"] * 1000,
    "none",
    "mer-run",
    "<script>",
)


def mutate_value(value: Any, rng: np.random.Generator) -> Any:
    """`value` with one place of it replaced, removed, repeated or nested deep."""
    value = copy.deepcopy(value)
    inner, parent, key = value, None, None
    while isinstance(inner, dict | list) and inner and (parent is None or rng.random() < 0.8):
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        parent, key = inner, keys[rng.integers(len(keys))]
        inner = parent[key]
    if parent is None:
        return value
    match rng.integers(5):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent["y" * int(rng.choice([1, 5000]))] = parent.pop(key)
        case 2 if isinstance(parent, list):
            parent.extend(parent[:5])
        case 3:
            deep: Any = inner
            for _ in range(int(rng.choice([1, 20, 900]))):
                deep = [deep] if rng.integers(2) else {"a": deep}
            parent[key] = deep
        case _:
            parent[key] = ODD[rng.integers(len(ODD))]
    return value


def mutate_json(raw: bytes, rng: np.random.Generator, *, sealed: bool) -> bytes:
    value = json.loads(raw)
    value.pop(files.SEAL, None)
    for _ in range(rng.integers(1, 3)):
        value = mutate_value(value, rng)
    if not sealed:
        return json.dumps(value).encode()
    return json.dumps({**value, files.SEAL: files.seal(value)}).encode()


def mutate_toml(raw: bytes, rng: np.random.Generator) -> bytes:
    lines = raw.decode().splitlines()
    place = int(rng.integers(len(lines)))
    key = lines[place].partition("=")[0] or "x "
    odd = [
        "nan",
        "inf",
        "-inf",
        "9" * 5000,
        "0x" + "f" * 5000,
        "1e400",
        '"' + "x" * 60_000 + '"',
        "[" * 2000 + "]" * 2000,
        "[" + "1," * 5000 + "]",
        "1979-05-27T07:32:00Z",
        "true",
        "''",
        '"\\u0000"',
        "{a.b.c=1}",
        "[[1],[2]]",
        "-1",
        "9223372036854775807",
        "99999",
        "0.5",
        '"none"',
        '"concat"',
        '"drkf"',
        "{" + ".".join("a" * 20_000) + "=1}",
    ]
    match rng.integers(5):
        case 0:
            lines[place] = ".".join("a" * int(rng.choice([5, 33, 25_000]))) + " = 1"
        case 1:
            lines[place] = "[" + ".".join("b" * int(rng.choice([2, 25_000]))) + "]"
        case 2:
            del lines[place]
        case _:
            lines[place] = f"{key}= {odd[rng.integers(len(odd))]}"
    return "\n".join(lines).encode()


def mutate_tensors(raw: bytes, rng: np.random.Generator, folder: Path, *, sealed: bool) -> bytes:
    """The header as bytes and JSON, or the tensors and what travels with them."""
    if sealed:
        path = folder / "x.safetensors"
        path.write_bytes(raw)
        tensors, meta = checkpoint.load_tensors(path)
        path.unlink()
        name = list(tensors)[rng.integers(len(tensors))]
        match rng.integers(6):
            case 0:
                tensors[name] = tensors[name].to(
                    [torch.float64, torch.int64, torch.bfloat16, torch.uint8, torch.bool][
                        rng.integers(5)
                    ]
                )
            case 1:
                tensors[name] = tensors[name].reshape(-1)[:1].clone()
            case 2:
                tensors[name] = torch.full_like(tensors[name], float("nan"))
            case 3:
                del tensors[name]
            case 4:
                tensors["z" * int(rng.choice([1, 10_000]))] = tensors.pop(name)
            case 5:
                meta = mutate_value(meta, rng)
        try:
            return checkpoint.pack(tensors, meta)
        except (UnicodeError, ValueError, TypeError, RecursionError):
            return raw
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    match rng.integers(4):
        case 0:
            length = int(rng.choice([0, 1, size - 1, size + 1, 1 << 31, 1 << 62, (1 << 63) - 1]))
            return struct.pack("<Q", length) + raw[8:]
        case 1:
            text = b"[" * 50_000
            return struct.pack("<Q", len(text)) + text + raw[8 + size :]
        case 2:
            header = mutate_value(header, rng)
        case 3:
            names = [name for name in header if name != "__metadata__"]
            one, other = (names[rng.integers(len(names))] for _ in range(2))
            header[one]["data_offsets"] = header[other]["data_offsets"]
            header[other]["dtype"] = ["F64", "I8", "BF16", "F8_E4M3", "F4", "Z9"][rng.integers(6)]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def replace_file(path: Path, outside: Path, rng: np.random.Generator) -> None:
    """Something else in place of a file: a pipe, a directory, a link to somebody else's file or
    folder.
    """
    path.unlink()
    match rng.integers(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(outside / "thesis.tex")
        case 3:
            path.symlink_to(outside)
        case 4:
            path.symlink_to("nowhere")


def commands(store, folder: Path, done: Path):
    """(name, call) of everything that reads a run folder."""
    yield "report", lambda: report.page([Run.open(folder)])
    yield "compare", lambda: report.compare(Run.open(folder), Run.open(done))
    yield "predict", lambda: Run.open(folder).trained().model()
    yield "dev", lambda: report.plain(report.dev_table(Run.open(folder).trained()))
    yield "pictures", lambda: pictures.read_log(Run.open(folder).trained().children[0])
    yield "train", lambda: experiment.train(store, settings("train.epochs=2"), folder, note=quiet)
    yield "tables", lambda: shown(evaluate.stored_metrics(Run.open(folder)))
    yield "evaluate", lambda: shown(evaluate.evaluate(folder, store.path, note=quiet))


def shown(found: dict[str, Any] | None) -> None:
    if found is not None:
        assert report.tables(found)
        report.remarks(found)


def main(folder: Path, seconds: float, seed: int) -> int:
    evaluate.RESAMPLES = 3
    outside = folder / "outside"
    outside.mkdir(parents=True)
    (outside / "thesis.tex").write_text("mine")
    store = make_store(folder, n=60)
    done = experiment.train(store, settings("train.epochs=2"), folder / "done", note=quiet).path
    evaluate.evaluate(done, note=quiet)
    cut = shutil.copytree(done, folder / "cut")
    info = tree(Run.open(cut).info)
    kept = {
        k: v
        for k, v in info.items()
        if k not in ("best_epoch", "dev", "thresholds", "model_sha256", "log_sha256")
    }
    files.write_json(cut / "run.json", kept | {"finished": False})
    for name in ("log.jsonl", "metrics.json", "predictions.parquet"):
        (cut / name).unlink()
    held = (
        int(
            next(
                line.split()[1]
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmSize")
            )
        )
        * 1024
    )
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY,) * 2)
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rng = np.random.default_rng(seed)
        trial = folder / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        source = [done, cut][rng.integers(2)]
        shutil.copytree(source, trial)
        name = [f for f in FILES if (trial / f).exists()][
            rng.integers(sum((trial / f).exists() for f in FILES))
        ]
        path, sealed = trial / name, bool(rng.integers(2))
        raw = path.read_bytes()
        kind = rng.integers(8)
        try:
            if kind == 0:
                replace_file(path, outside, rng)
            elif kind == 1:
                path.write_bytes(mutate(raw, rng))
            elif name.endswith(".json"):
                path.write_bytes(mutate_json(raw, rng, sealed=sealed))
            elif name.endswith(".toml"):
                path.write_bytes(mutate_toml(raw, rng))
            elif name.endswith(".safetensors"):
                path.write_bytes(mutate_tensors(raw, rng, folder, sealed=sealed))
            else:
                path.write_bytes(mutate(raw, rng))
        except (UnicodeError, ValueError, RecursionError):
            path.write_bytes(b"[" * 100_000)
        if sealed and path.is_file() and name in checkpoint.DIGESTS:
            info = tree(Run.open(trial).info)
            if info.get(checkpoint.DIGESTS[name]):
                files.write_json(
                    trial / "run.json", info | {checkpoint.DIGESTS[name]: files.digest(path)}
                )
        for what, call in commands(store, trial, done):
            signal.alarm(HANG)
            try:
                call()
                counts["ok"] += 1
            except (MerError, OSError) as error:
                said = str(error).replace(str(folder), "")
                if len(said) > LONGEST or not said.isprintable():
                    print(f"seed {seed}: {name}: {what}: {len(said)} characters: {said[:600]!r}")
                    return 1
                counts["one line"] += 1
            except BaseException as error:  # whatever it is, it is the finding
                if os.environ.get("MER_DEBUG"):
                    raise
                print(
                    f"seed {seed}: {name} (kind {kind}, sealed {sealed}): {what}: "
                    f"{type(error).__name__}: {str(error)[:300]}"
                )
                return 1
            finally:
                signal.alarm(0)
        assert sorted(p.name for p in outside.iterdir()) == ["thesis.tex"], (
            f"seed {seed}: {name}: outside changed"
        )
        assert (outside / "thesis.tex").read_text() == "mine", (
            f"seed {seed}: {name}: outside changed"
        )
        seed += 1
    print(json.dumps(counts))
    return 0


def preset_trials(folder: Path, seconds: float, seed: int) -> int:
    """The same for `--preset FILE` and `--set`."""
    raw = (
        config.presets()["concat"].read_bytes()
        if "concat" in config.presets()
        else b'model = "concat"\n[optim]\nlr = 1e-3\n'
    )
    raw = config.to_toml(config.load(model="concat")).encode() if len(raw) < 60 else raw
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rng = np.random.default_rng(seed)
        path = folder / "preset.toml"
        path.write_bytes(mutate_toml(raw, rng) if rng.integers(2) else mutate(raw, rng))
        signal.alarm(HANG)
        try:
            config.load(preset=str(path), sets=["optim.lr=1e-3"])
            counts["ok"] += 1
        except (MerError, OSError) as error:
            said = str(error).replace(str(folder), "")
            if len(said) > LONGEST or not said.isprintable():
                print(f"seed {seed}: preset: {len(said)} characters: {said[:600]!r}")
                return 1
            counts["one line"] += 1
        finally:
            signal.alarm(0)
        seed += 1
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    where, long, first = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    sys.exit(main(where, long, first) or preset_trials(where, long / 5, first))
