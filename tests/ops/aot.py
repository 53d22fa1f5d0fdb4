"""Compile, without a GPU, exactly the kernels that launch.py would launch: its launches are
recorded with their arguments, and every recorded one goes through Triton's compiler for another
chip. Run in a process where Triton is not interpreting.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from mer.fusion.ops.gpu import kernels, launch
from mer.fusion.ops.terms import lay_out

from tests.ops.oracle import DRKF

# bytes a block may opt in to, CUDA guide
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
DTYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
NAMES = [
    "tiny_values_and_gradients", "tiny_scale", "mid_forward", "mid_backward",
    "normalise", "large_forward", "large_coefficients", "large_finish",
]  # fmt: skip


class Recorder:
    """Stands in for a kernel: notes what it is launched with and launches nothing."""

    def __init__(self, kernel, out: list):
        self.kernel, self.out = kernel, out

    def __getitem__(self, grid):
        return lambda *args, **named: self.out.append((self.kernel, args, named))


def launches(
    rows: int,
    d: int,
    dtype: torch.dtype,
    *,
    capability: int,
    path: str,
    precision: str = "auto",
    mode: str = "none",
) -> list:
    """(kernel, arguments, named arguments) of forward and backward of DRKF's three terms, each
    kernel once.
    """
    layout = lay_out(DRKF, (rows,) * 4)
    views = tuple(torch.empty(rows, d, dtype=dtype) for _ in range(4))
    tau, labels = (
        torch.ones(()),
        torch.zeros(4 * rows, dtype=torch.int64) if mode != "none" else None,
    )
    out: list = []
    patches = [
        mock.patch.object(kernels, name, Recorder(getattr(kernels, name), out)) for name in NAMES
    ]
    patches += [
        mock.patch.object(launch, "capability", lambda device: capability),
        mock.patch.object(launch, "SCRATCH_BYTES", 1 << 20),
    ]
    patches += [
        mock.patch.object(launch, "_product", lambda g, z, dot: torch.zeros(g.shape[0], z.shape[1]))
    ]
    for patch in patches:
        patch.start()
    try:
        _, *saved = launch.forward(
            layout, views, tau, labels, mode, precision, path, gradients=True
        )
        launch.backward(
            layout,
            views,
            tau,
            labels,
            mode,
            precision,
            path,
            tuple(saved),
            torch.ones(3),
            (True,) * 4,
        )
    finally:
        for patch in patches:
            patch.stop()
    return list(
        {
            (kernel.__name__, str(sorted(named.items()))): (kernel, args, named)
            for kernel, args, named in out
        }.values()
    )


def _signature(kernel, args: tuple, named: dict) -> tuple[dict, dict, dict]:
    """(types, constants, attributes) as the run-time specialiser would have them."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {
        k: v for k, v in named.items() if k in kernel.arg_names
    }
    types, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value, parameter = values[name], kernel.params[i]
        if parameter.is_constexpr or (
            isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        ):
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, TensorDescriptor):
            types[name] = f"tensordesc<{DTYPES[value.base.dtype]}{value.block_shape}>"
        elif isinstance(value, Tensor):
            types[name] = "*" + DTYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            types[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def compile_for(capability: int, kernel, args: tuple, named: dict) -> dict:
    """Registers, stack bytes (spills), shared bytes, matrix instructions, global scratch and PTX of
    one launch.
    """
    types, constants, attributes = _signature(kernel, args, named)
    options = {k: named[k] for k in ("num_warps", "num_stages") if k in named}
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    matrix = [
        name
        for name in ("tcgen05.mma", "wgmma.mma_async", "mma.sync")
        if name in compiled.asm["ptx"]
    ]
    return {
        "kernel": kernel.__name__,
        "sm": capability,
        "registers": registers,
        "stack": stack,
        "shared": compiled.metadata.shared,
        "matrix": matrix,
        "scratch": compiled.metadata.global_scratch_size,
        "ptx": compiled.asm["ptx"],
    }
