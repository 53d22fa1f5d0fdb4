"""Triton's launcher needs a C compiler and Python's headers: what is missing is said with its
remedy, and training goes on without the kernels.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mer.fusion.ops.contrastive as contrastive
import mer.fusion.ops.paths as paths
import mer.fusion.ops.toolchain as toolchain
from mer.fusion.ops import Term, path_for
from mer.pipeline import doctor

HERE = shutil.which("gcc") and Path(toolchain._headers(), "Python.h").is_file()


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    caches = (toolchain.launcher_obstacle, paths._triton_obstacle, contrastive._announce)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.skipif(not HERE, reason="no gcc, or no headers of this Python")
def test_a_machine_that_has_both():
    assert toolchain.launcher_obstacle() == ""


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("nothing", "there is no gcc or clang; install gcc"),
        ("another CC", "$CC is 'no-such-cc', which is none; install gcc"),
        ("empty CC", "$CC is '', which is none; install gcc"),
        ("no headers", "no Python.h; install python3-dev"),
        (
            "no libc",
            "(stdlib.h: fatal error: no such file); install gcc, libc6-dev and python3-dev",
        ),
        ("no words", "(?); install gcc, libc6-dev and python3-dev"),
    ],
)
def test_what_is_missing_is_said(case, says, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    headers = tmp_path / "include"
    headers.mkdir()
    monkeypatch.setattr(toolchain, "_headers", lambda: str(headers))
    fault = "echo 'In file x:' >&2; echo 'stdlib.h: fatal error: no such file' >&2; "
    if case != "nothing":
        program(tmp_path, "clang", f"{fault if case == 'no libc' else ''}exit 1")
    if case in ("no libc", "no words"):
        (headers / "Python.h").touch()
    if case.endswith("CC"):
        monkeypatch.setenv("CC", "" if case == "empty CC" else "no-such-cc")
    line = toolchain.launcher_obstacle()
    assert line.startswith("Triton needs") and line.endswith(says)
    assert "\n" not in line and len(line) <= 300


def on_a_gpu(monkeypatch, obstacle: str) -> list:
    """A GPU that could run the kernels, and views on it as far as a path is chosen by them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(paths, "_interpreting", lambda: False)
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(paths, "launcher_obstacle", lambda: obstacle)
    shape, device = (100, 8), torch.device("cuda")
    return [SimpleNamespace(shape=shape, device=device, dtype=torch.float32) for _ in range(2)]


def test_the_fallback_takes_the_chunked_path_and_says_why_in_one_line(monkeypatch, caplog):
    terms = [Term((0, 1), (0, 1))]
    views = on_a_gpu(monkeypatch, "")
    assert path_for(views, terms) == "mid" and paths.mendable(views, "auto") == ""
    paths._triton_obstacle.cache_clear()
    views = on_a_gpu(monkeypatch, "there is no C compiler; install gcc")
    assert path_for(views, terms) == "chunked"
    assert paths.mendable(views, "auto") == "there is no C compiler; install gcc"
    assert paths.mendable(views, "chunked") == ""  # as it was asked for
    with caplog.at_level("INFO", "mer.fusion.ops"):
        contrastive._announce("chunked", "auto", 1, paths.mendable(views, "auto"))
    assert [record.getMessage() for record in caplog.records] == [
        "contrastive loss: 1 term on path chunked (impl=auto), not on the GPU kernels: "
        "there is no C compiler; install gcc"
    ]


@pytest.mark.parametrize("gpu", [False, True])
def test_doctor_tells_of_both(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = {f.what: f for f in doctor.examine(lambda: "")}
    assert found["C compiler"].state == "ok"
    found = {f.what: f for f in doctor.examine(lambda: "none; install gcc")}
    assert found["C compiler"].state == "note" and "install gcc" in found["C compiler"].detail
    assert ("chunked path" in found["C compiler"].detail) == gpu
