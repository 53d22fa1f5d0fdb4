"""Which of the implementations runs for given tensors and terms, here and now."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

import mer.fusion.ops.cpu.strips as strips
import mer.fusion.ops.limits as limits
from mer.fusion.ops.terms import Term, TermLayout, lay_out
from mer.fusion.ops.toolchain import launcher_obstacle
from mer.pipeline.errors import DependencyError

Impl = Literal["auto", "eager", "chunked", "triton"]
LabelMode = Literal["none", "exclude", "supcon"]
# Plain PyTorch on any device, in float32 or float64; what they keep of the views is their own.
PLAIN_PATHS = ("eager", "dense", "chunked", "strips")
KERNEL_PATHS = ("tiny", "mid", "large")


def available() -> dict[str, str]:
    """Implementation -> "yes", or why not, here and now: for `mer doctor` and the log."""
    return {"eager": "yes", "chunked": "yes", "triton": _triton_obstacle() or "yes"}


def path_for(
    views: Sequence[Tensor],
    terms: Sequence[Term | tuple],
    impl: Impl = "auto",
    *,
    label_mode: LabelMode = "none",
) -> str:
    """What `contrastive_terms` runs for these views and terms.

    Args:
        views: (rows, D) each; only sizes, dtypes and devices are read.
        terms: as given to `contrastive_terms`.
        impl: as given to `contrastive_terms`.
        label_mode: as given to `contrastive_terms`.

    Returns:
        One of `PLAIN_PATHS` (eager, dense, chunked, strips) or `KERNEL_PATHS` (tiny, mid, large).

    Raises:
        ValueError: the terms define no loss over views of these sizes, or `impl` is unknown.
        DependencyError: `impl="triton"` where kernels cannot run.
    """
    rows = tuple(int(view.shape[0]) for view in views)
    return path_of_layout(views, lay_out(as_terms(terms), rows), impl, label_mode)


def as_terms(terms: Sequence[Term | tuple]) -> tuple[Term, ...]:
    """Terms whose views are tuples, as a layout is looked up by them."""
    return tuple(
        Term(tuple(anchors), tuple(candidates), *more) for anchors, candidates, *more in terms
    )


def path_of_layout(
    views: Sequence[Tensor], layout: TermLayout, impl: Impl, label_mode: LabelMode
) -> str:
    """`path_for`, once the terms are laid out."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl={impl!r}: one of {', '.join(get_args(Impl))}")
    if impl == "eager":
        return "eager"
    obstacle = "plain PyTorch was asked for" if impl == "chunked" else _obstacle(views, impl)
    if not obstacle:
        return kernel_path(layout.total, int(views[0].shape[1]))
    if impl == "triton":
        raise DependencyError(f"impl=triton: {obstacle}; use impl=auto or impl=chunked")
    if impl == "auto" and layout.total <= limits.DENSE_ROWS:
        return "dense"
    return "strips" if strips.serves(layout, label_mode) else "chunked"


def kernel_path(rows: int, d: int) -> str:
    """tiny | mid | large, by the rows of all views together and their width."""
    if rows <= limits.TINY_ROWS:
        return "tiny"
    fits = any(d <= width and rows <= most for width, most in limits.MID_ROWS.items())
    return "mid" if fits else "large"


def mendable(views: Sequence[Tensor], impl: Impl) -> str:
    """What keeps the kernels from a GPU that could run them, and its remedy; empty if nothing does,
    or nothing that an installation would mend.
    """
    if impl != "auto" or views[0].device.type != "cuda" or not _triton_obstacle():
        return ""
    return launcher_obstacle() if _triton_obstacle() == launcher_obstacle() else ""


@lru_cache(maxsize=1)
def _triton_obstacle() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if _interpreting():
        return ""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.version.hip or torch.cuda.get_device_capability() < limits.MIN_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name()} is not an NVIDIA GPU of compute capability 8.0 or "
            "later"
        )
    return launcher_obstacle()


def _interpreting() -> bool:
    import triton

    return triton.knobs.runtime.interpret


def _obstacle(views: Sequence[Tensor], impl: Impl) -> str:
    """Why the kernels cannot take these views; empty if they can."""
    if views[0].device.type == "cpu" and impl == "auto":
        return "tensors on the CPU"
    if reason := _triton_obstacle():
        return reason
    if views[0].device.type != "cuda" and not _interpreting():
        return f"tensors on {views[0].device}"
    if any(view.dtype not in limits.KERNEL_DTYPES for view in views):
        return f"kernels take {', '.join(str(dtype) for dtype in limits.KERNEL_DTYPES)}"
    if len(views) > limits.MAX_VIEWS:
        return f"{len(views)} views, kernels take at most {limits.MAX_VIEWS}"
    return ""
