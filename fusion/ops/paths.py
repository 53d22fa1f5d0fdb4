"""Which of the implementations runs for given tensors, here and now."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from mer.pipeline.errors import DependencyError

Impl = Literal["auto", "dense", "chunked", "triton"]
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_VIEWS = 8  # pointers a kernel chooses among
MIN_CAPABILITY = (8, 0)
# Rows of all views together up to which the dense path is quicker than the chunked one (one thread,
# D = 256, forward and backward): DRKF's three terms took it 0.9 of the time at 128 rows, one
# NT-Xent 0.7.
DENSE_ROWS = 128
# The kernels' borders; here, as compiled code must know them without Triton (function.encode).
TINY_ROWS = 64  # all views together, so NT-Xent up to B = 32 and DRKF's four views up to B = 16
# largest D -> most rows for which the row-owner kernels are chosen
MID_ROWS = {256: 8192, 1024: 2048}


def available() -> dict[str, str]:
    """Path -> "yes", or why not, here and now: for `mer doctor` and the log."""
    return {"dense": "yes", "chunked": "yes", "triton": _triton_obstacle() or "yes"}


@lru_cache(maxsize=1)
def _triton_obstacle() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    if triton.knobs.runtime.interpret:
        return ""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.version.hip or torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name()} is not an NVIDIA GPU of compute capability 8.0 or "
            "later"
        )
    return ""


def _interpreting() -> bool:
    import triton

    return triton.knobs.runtime.interpret


def path_for(views: Sequence[Tensor], impl: Impl = "auto") -> str:
    """dense | chunked | tiny | mid | large: what `contrastive_terms` runs for these views.

    `impl="triton"` raises where kernels cannot run.
    """
    if impl in ("dense", "chunked"):
        return impl
    if impl not in ("auto", "triton"):
        raise ValueError(f"impl={impl!r}: one of auto, dense, chunked, triton")
    rows = sum(int(v.shape[0]) for v in views)
    obstacle = _obstacle(views, impl)
    if obstacle:
        if impl == "triton":
            raise DependencyError(f"impl=triton: {obstacle}; use impl=auto or impl=chunked")
        return "dense" if rows <= DENSE_ROWS else "chunked"
    from mer.fusion.ops import launch

    return launch.choose(rows, int(views[0].shape[1]))


def _obstacle(views: Sequence[Tensor], impl: Impl) -> str:
    """Why the kernels cannot take these views; empty if they can."""
    if views[0].device.type == "cpu" and impl == "auto":
        return "tensors on the CPU"
    if reason := _triton_obstacle():
        return reason
    if views[0].device.type != "cuda" and not _interpreting():
        return f"tensors on {views[0].device}"
    if any(v.dtype not in KERNEL_DTYPES for v in views):
        return f"kernels take {', '.join(str(d) for d in KERNEL_DTYPES)}"
    if len(views) > MAX_VIEWS:
        return f"{len(views)} views, kernels take at most {MAX_VIEWS}"
    return ""
