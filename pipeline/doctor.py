"""`mer doctor`: what works on this machine, and what to do about the rest.

Every check catches its own failure, so that one that fails hides none of the others.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from mer.pipeline.errors import DependencyError
from mer.pipeline.runtime.terminal import first_line

# the two must be of one release: torchaudio's wheel is linked against torch
PAIRED = ("torch", "torchaudio")
FREE_DISK_GB = 10  # what an extraction of MELD may need at its peak
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


def check_pair() -> None:
    """Raise DependencyError when the installed torchaudio does not belong to the installed torch.

    Reads metadata only: importing a mismatched torchaudio (which transformers does) ends in an
    OSError from the dynamic linker.
    """
    found = {}
    for name in PAIRED:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            raise DependencyError(
                f"{name} is not installed; run `pip install -r requirements.txt`"
            ) from None
    if found["torch"].split(".")[:2] != found["torchaudio"].split(".")[:2]:
        raise DependencyError(
            f"torch {found['torch']} and torchaudio {found['torchaudio']} do not fit together; "
            "run `pip install torch==2.11.0 torchaudio==2.11.0`"
        )


def examine(kernels: Callable[[], str]) -> Iterator[Finding]:
    """Look at this machine.

    Args:
        kernels: What keeps the GPU kernels from being compiled, with its remedy; "" if nothing.

    Yields:
        The findings, quick ones first.
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
        check_pair()
    except DependencyError as error:
        yield Finding("bad", "torch pair", str(error))
        return  # importing either would end in the words of the dynamic linker
    yield from accelerator(kernels)
    yield from decoders()
    yield models()
    yield disk()


def disk() -> Finding:
    """Free space of the working folder."""
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    needs = "MELD's features take about 4.5 GB and, while they are made, twice that"
    state = "ok" if free_gb > FREE_DISK_GB else "note"
    return Finding(state, "disk", f"{free_gb:.0f} GB free here ({needs})")


def packages() -> Iterator[Finding]:
    """Versions of the packages that mer needs, and which of them are absent."""
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


def accelerator(kernels: Callable[[], str]) -> Iterator[Finding]:
    """The GPUs, what the kernels for them need, and whether the CPU computes in bfloat16."""
    try:
        torch = import_module("torch")
        import_module("torchaudio")
    except (ImportError, OSError) as error:
        yield Finding("bad", "torch", f"{first_line(error)}; run `pip install -r requirements.txt`")
        return
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            chip = torch.cuda.get_device_properties(number)
            detail = (
                f"{chip.name}, {chip.total_memory / 2**30:.0f} GiB, sm_{chip.major}{chip.minor}, "
                f"CUDA {torch.version.cuda}"
            )
            yield Finding("ok", f"cuda:{number}", detail)
        yield _launcher(kernels(), "training takes the chunked path, which is slower")
    else:
        yield Finding(
            "note",
            "gpu",
            "none: extraction and training run on the CPU, where full-size encoders are slow",
        )
        yield _launcher(kernels(), "of no account without a GPU")
    flags = _cpu_flags()
    half = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    advice = "no instructions for it: --precision fp32 is as fast"
    if half:
        advice = f"{half[0]}: --precision bf16 pays"
    yield Finding("ok", "cpu bf16", advice)


def _launcher(obstacle: str, otherwise: str) -> Finding:
    """Whether the C compiler and Python's headers are there that GPU kernels are started with."""
    if obstacle:
        return Finding("note", "C compiler", f"{obstacle} ({otherwise})")
    return Finding("ok", "C compiler", "works with Python's headers, as GPU kernels need")


def decoders() -> Iterator[Finding]:
    """The media libraries, and which codecs they lack."""
    try:
        av, soundfile = import_module("av"), import_module("soundfile")
    except (ImportError, OSError) as error:
        yield Finding(
            "bad",
            "decoders",
            f"{first_line(error)}; run `pip install -r requirements.txt`",
        )
        return
    wanted = ("aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
    absent = [codec for codec in wanted if codec not in av.codecs_available]
    missing = f"; missing: {', '.join(absent)}" if absent else ""
    yield Finding(
        "note" if absent else "ok",
        "decoders",
        f"libsndfile {soundfile.__libsndfile_version__}, PyAV {av.__version__}{missing}",
    )


def models() -> Finding:
    """Encoders in the local Hugging Face cache: the ones `--offline` can use by hub id."""
    try:
        home = Path(import_module("huggingface_hub.constants").HF_HUB_CACHE)
    except ImportError as error:
        return Finding(
            "bad", "encoders", f"{first_line(error)}; run `pip install -r requirements.txt`"
        )
    folders = [folder.name.removeprefix("models--") for folder in home.glob("models--*")]
    names = sorted(name.replace("--", "/") for name in folders)
    if names:
        return Finding("ok", "encoders", f"in {home}: {', '.join(names)}")
    remedy = (
        "they are downloaded at first use, or named as a local folder; the built-in tiny ones "
        "need nothing"
    )
    return Finding("note", "encoders", f"none in {home}; {remedy}")


def _cpu_flags() -> set[str]:
    """What the processor says that it can do; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()
