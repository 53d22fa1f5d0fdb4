"""torch.compile and the operator's contract on the dense and chunked paths; the kernels' are in
interpreted.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mer.fusion.ops import chunked, function, paths, strips
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
@pytest.mark.parametrize("impl", ["dense", "chunked"])
@pytest.mark.parametrize(
    ("name", "mode"), [("one rank", "none"), ("one rank", "supcon"), ("one way", "none")]
)
def test_operator_contract(name, mode, impl):
    views, terms, labels, anchor_rows = cases.make(name, 6, 5)
    tau = torch.tensor(0.2, requires_grad=True)
    flat = torch.cat(labels) if mode != "none" else None
    args = (
        [v.requires_grad_() for v in views],
        tau,
        flat,
        encode(terms, anchor_rows),
        mode,
        "auto",
        impl,
        [True] * 3,
    )
    torch.library.opcheck(contrastive_op, args)


def test_compiled_code_on_disk_is_not_taken_for_another_layouts(monkeypatch):
    """Inductor's cache knows an operator's results by its arguments alone, so whatever decides
    their shapes must be in an argument.
    """
    seen = {encode((), None)}
    sizes = [(chunked, name) for name in ("TILE_ROWS", "TILE_COLS", "KEEP_BYTES")] + [
        (strips, name) for name in ("STRIP", "FEWEST_ROWS")
    ]
    for module, name in (*sizes, (paths, "DENSE_ROWS"), (paths, "TINY_ROWS"), (function, "LAYOUT")):
        monkeypatch.setattr(module, name, getattr(module, name) + 1)
        seen.add(encode((), None))
    monkeypatch.setattr(paths, "MID_ROWS", {256: 4096, 1024: 2048})
    assert len(seen | {encode((), None)}) == 10
