"""`mer doctor`: what works on this machine, and what to do about the rest.

Every check catches its own failure.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from mer.pipeline.errors import MerError

PACKAGES = (
    "torch",
    "torchaudio",
    "transformers",
    "numpy",
    "h5py",
    "dask",
    "distributed",
    "click",
    "pyarrow",
    "av",
    "soundfile",
    "safetensors",
    "rich",
)


@dataclass(frozen=True)
class Finding:
    """`state`: ok, note (works, with a limit worth knowing) or bad (something mer needs does not
    work).
    """

    state: str
    what: str
    detail: str


def examine(pair: Callable[[], None]) -> Iterator[Finding]:
    """Yield the findings, quick ones first.

    `pair` raises MerError when torch and torchaudio do not fit together.
    """
    machine = f"{platform.system()} {platform.machine()}"
    tested = platform.system() == "Linux" and platform.machine() == "x86_64"
    limit = "" if tested else "; mer is tested on Linux x86_64 only"
    yield Finding(
        "ok" if tested else "note",
        "machine",
        f"{machine}, {os.cpu_count()} cores, Python {platform.python_version()}{limit}",
    )
    yield from packages()
    try:
        pair()
    except MerError as error:
        yield Finding("bad", "torch pair", str(error))
        return  # importing either would end in the dynamic linker's words, not ours
    yield from accelerator()
    yield from decoders()
    yield models()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    needs = "MELD's features take about 4.5 GB and, while they are made, twice that"
    yield Finding("ok" if free > 10 else "note", "disk", f"{free:.0f} GB free here ({needs})")


def packages() -> Iterator[Finding]:
    found, absent = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    yield Finding("ok", "packages", ", ".join(found))
    if absent:
        yield Finding(
            "bad",
            "packages",
            f"not installed: {', '.join(absent)}; run `pip install -r requirements.txt`",
        )


def accelerator() -> Iterator[Finding]:
    try:
        torch = import_module("torch")
        import_module("torchaudio")
    except (ImportError, OSError) as error:
        yield Finding(
            "bad", "torch", f"{str(error).splitlines()[0]}; run `pip install -r requirements.txt`"
        )
        return
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            chip = (
                f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}, CUDA "
                f"{torch.version.cuda}"
            )
            yield Finding("ok", f"cuda:{i}", chip)
    else:
        yield Finding(
            "note",
            "gpu",
            "none: extraction and training run on the CPU, where full-size encoders are slow",
        )
    flags = _cpu_flags()
    half = [f for f in ("amx_bf16", "avx512_bf16") if f in flags]
    yield Finding(
        "ok",
        "cpu bf16",
        f"{half[0]}: --precision bf16 pays"
        if half
        else "no instructions for it: --precision fp32 is as fast",
    )


def decoders() -> Iterator[Finding]:
    try:
        av, soundfile = import_module("av"), import_module("soundfile")
    except (ImportError, OSError) as error:
        yield Finding(
            "bad",
            "decoders",
            f"{str(error).splitlines()[0]}; run `pip install -r requirements.txt`",
        )
        return
    wanted = ("aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
    absent = [c for c in wanted if c not in av.codecs_available]
    missing = f"; missing: {', '.join(absent)}" if absent else ""
    yield Finding(
        "note" if absent else "ok",
        "decoders",
        f"libsndfile {soundfile.__libsndfile_version__}, PyAV {av.__version__}{missing}",
    )


def models() -> Finding:
    """Encoders in the local Hugging Face cache: the ones `--offline` can use by hub id."""
    home = Path(
        os.environ.get("HF_HUB_CACHE")
        or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    )
    names = sorted(
        p.name.removeprefix("models--").replace("--", "/") for p in home.glob("models--*")
    )
    if names:
        return Finding("ok", "encoders", f"in {home}: {', '.join(names)}")
    remedy = (
        "they are downloaded at first use, or named as a local folder; the built-in tiny ones "
        "need nothing"
    )
    return Finding("note", "encoders", f"none in {home}; {remedy}")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(
        next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    )
