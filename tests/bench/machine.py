"""What a benchmark's figures were taken on, and where they are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def describe() -> dict:
    """Machine, versions and commit: goes beside every committed figure."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": {
            name: version
            for name in ("torch", "transformers", "triton", "numpy", "h5py")
            if (version := installed(name))
        },
    }


def commit() -> str:
    """Of the checkout; `-dirty` where something beside results differs from it. Where there is no
    git or no history (a copy on another machine), what MER_COMMIT says.
    """
    said = git("describe", "--always")
    if not said:
        return os.environ.get("MER_COMMIT", "unknown")
    changed = git("status", "--porcelain", "--untracked-files=no", ":/", f":(exclude){RESULTS}")
    return f"{said}-dirty" if changed else said


def computes_in_bf16() -> bool:
    """Whether the processor computes in it; elsewhere it is emulated, many times slower, and nobody
    would ask for it.
    """
    return bool({"amx_bf16", "avx512_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))


def git(*args: str) -> str:
    """What git says of this checkout; nothing where there is none."""
    try:
        return subprocess.run(
            ["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except FileNotFoundError:
        return ""


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def save(name: str, rows: list[dict], *, command: str, folder: Path = RESULTS) -> Path:
    """Write `name.json`: the command, the machine and one object a row."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps({"command": command, "machine": describe(), "rows": rows}, indent=1) + "\n"
    )
    return path
