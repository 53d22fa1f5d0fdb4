"""torch.compile and the operator's contract on the dense and chunked paths; the kernels' are in
interpreted.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mer.fusion.ops.function as function
import mer.fusion.ops.limits as limits
from mer.fusion.ops.cpu import chunked, strips
from mer.fusion.ops.function import contrastive_op, encode

from tests.ops import cases

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_light_import_and_training_step_compiled_into_one_frame(backend):
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.compiled", backend],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "frames 1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", ["dense", "chunked"])
@pytest.mark.parametrize(
    ("name", "mode"), [("queue", "none"), ("queue", "supcon"), ("one way", "none")]
)
def test_operator_contract(name, mode, path):
    views, terms, labels = cases.make(name, 6, 5)
    tau = torch.tensor(0.2, requires_grad=True)
    flat = torch.cat(labels) if mode != "none" else None
    views = [v.requires_grad_() for v in views]
    need = [True] * (len(views) + 1)
    with cases.forced(path) as impl:
        args = (views, tau, flat, encode(terms), mode, "auto", impl, need)
        torch.library.opcheck(contrastive_op, args)


def test_compiled_code_on_disk_is_not_taken_for_another_layouts(monkeypatch):
    """Inductor's cache knows an operator's results by its arguments alone, so whatever decides
    their shapes must be in an argument.
    """
    seen = {encode(())}
    sizes = [(chunked, name) for name in ("TILE_ROWS", "TILE_COLS", "KEEP_BYTES")] + [
        (strips, name) for name in ("STRIP", "FEWEST_ROWS")
    ]
    for module, name in (
        *sizes,
        (limits, "DENSE_ROWS"),
        (limits, "TINY_ROWS"),
        (function, "LAYOUT"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) + 1)
        seen.add(encode(()))
    monkeypatch.setattr(limits, "MID_ROWS", {256: 4096, 1024: 2048})
    assert len(seen | {encode(())}) == 10
