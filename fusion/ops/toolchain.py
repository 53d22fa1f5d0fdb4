"""What Triton needs beside itself: it compiles the C that starts a kernel when it first does so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from functools import lru_cache
from pathlib import Path

COMPILE_SECONDS = 60  # after which a compiler counts as one that does not work


@lru_cache(maxsize=1)
def launcher_obstacle() -> str:
    """Why Triton cannot compile the C of its launcher, and the remedy; empty if it can.

    Looks where Triton 3.6 looks (triton/runtime/build.py): $CC, gcc, clang, and the headers of this
    Python.
    """
    named = os.environ.get("CC")
    if named is None:
        compiler, absent = shutil.which("gcc") or shutil.which("clang"), "there is no gcc or clang"
    else:
        compiler, absent = shutil.which(named), f"$CC is '{named[:40]}', which is none"
    if compiler is None:
        return f"Triton needs a C compiler and {absent}; install gcc"
    headers = Path(_headers())
    if not (headers / "Python.h").is_file():
        return f"Triton needs Python's headers and {headers} has no Python.h; install python3-dev"
    try:
        asked = [compiler, "-fsyntax-only", "-x", "c", f"-I{headers}", "-"]
        source = "#include <stdlib.h>\n#include <Python.h>\n"
        done = subprocess.run(
            asked, input=source, capture_output=True, text=True, timeout=COMPILE_SECONDS
        )
        said, works = done.stderr, done.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        said, works = str(error), False
    if works:
        return ""
    faults = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["?"]
    return (
        f"Triton needs a C compiler and {compiler} cannot compile against Python's headers "
        f"({faults[0][:100]}); install gcc, libc6-dev and python3-dev"
    )


def _headers() -> str:
    """The folder of Python's headers; that of Debian's scheme for local packages is empty."""
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
