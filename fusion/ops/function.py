"""Autograd and torch.compile around the implementations.

Eager code goes through an autograd.Function (a third of a custom op's call overhead on the host);
under torch.compile the same computation is the operator `mer::contrastive_terms`, which the
compiler treats as one opaque node with known shapes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from mer.fusion.ops import chunked, dense, paths, strips
from mer.fusion.ops.paths import path_for
from mer.fusion.ops.plan import Plan, Term, make_plan

LAYOUT = 3  # of what _forward keeps for _backward; see encode
# plain PyTorch on any device, in float32 or float64; they keep what they need of the views
ON_HOST = ("dense", "chunked")
TWICE = (
    "contrastive_terms: second derivatives are not implemented; for create_graph=True write it in "
    "plain PyTorch (in mer: impl='eager')"
)


def _forward(
    views: list[Tensor],
    tau: Tensor,
    labels: Tensor | None,
    plan: Plan,
    mode: str,
    precision: str,
    path: str,
    need: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor]]:
    """(T,) losses and what backward wants."""
    with _no_autocast(views[0].device.type):
        if _striped(plan, mode, path, need):
            loss, *saved = strips.forward(plan, tuple(views), tau, need)
            return loss, saved
        if path == "chunked":
            loss, *saved = chunked.forward(
                plan, tuple(views), tau, labels, mode, gradients=any(need)
            )
            return loss, saved
        if path == "dense":
            loss, *saved = dense.forward(plan, tuple(views), tau, labels, mode)
            return loss, saved
        from mer.fusion.ops import launch  # imports Triton

        with launch.ready(plan, views[0].device):
            loss, *saved = launch.forward(
                plan,
                _common(views),
                tau.float(),
                labels,
                mode,
                precision,
                path,
                gradients=any(need),
            )
        return loss, saved


def _backward(
    views: list[Tensor],
    tau: Tensor,
    labels: Tensor | None,
    saved: list[Tensor],
    grad: Tensor,
    plan: Plan,
    mode: str,
    precision: str,
    path: str,
    need: tuple[bool, ...],
) -> tuple[Tensor, Tensor]:
    """(R, D) gradient to all rows, gradient to tau in its shape and dtype.

    `need`: each view, then tau.
    """
    with _no_autocast(tau.device.type):
        if _striped(plan, mode, path, need):
            dx, dtau = strips.backward(tuple(saved), grad)
            return dx, dtau.to(tau.dtype)
        if path == "chunked":
            dx, dtau = chunked.backward(plan, tau, labels, mode, tuple(saved), grad, need)
            return dx, dtau.to(tau.dtype)
        if path == "dense":
            dx, dtau = dense.backward(plan, tau, labels, mode, tuple(saved), grad)
            return dx, dtau.to(tau.dtype)
        from mer.fusion.ops import launch

        with launch.ready(plan, tau.device):
            dx, dtau = launch.backward(
                plan,
                _common(views),
                tau.float(),
                labels,
                mode,
                precision,
                path,
                tuple(saved),
                grad,
                need[:-1],
            )
        return dx, dtau.to(tau.dtype)


def _striped(plan: Plan, mode: str, path: str, need: tuple[bool, ...] | list[bool]) -> bool:
    return path == "chunked" and any(need) and strips.serves(plan, mode)


def _no_autocast(device: str) -> AbstractContextManager:
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    )


def _common(views: list[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous views of one dtype: the kernels choose among their pointers."""
    dtype = views[0].dtype
    for v in views[1:]:
        dtype = torch.promote_types(dtype, v.dtype)
    return tuple(v.to(dtype).contiguous() for v in views)


def _split(
    dx: Tensor, dtypes: list[torch.dtype], plan: Plan, need: tuple[bool, ...]
) -> list[Tensor | None]:
    if not any(need[:-1]):
        return [None] * len(dtypes)
    parts = dx.split(plan.rows)
    return [
        part.to(dtype) if wanted else None
        for part, dtype, wanted in zip(parts, dtypes, need, strict=False)
    ]


def values(
    plan: Plan,
    labels: Tensor | None,
    mode: str,
    precision: str,
    path: str,
    tau: Tensor,
    views: tuple[Tensor, ...],
) -> Tensor:
    """(T,) losses alone, for when no gradient is wanted: nothing is kept for a backward pass."""
    return _forward(
        list(views), tau, labels, plan, mode, precision, path, (False,) * (len(views) + 1)
    )[0]


class Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, labels, mode, precision, path, tau, *views):
        need = (*ctx.needs_input_grad[6:], ctx.needs_input_grad[5])
        loss, saved = _forward(views, tau, labels, plan, mode, precision, path, need)
        kernels = path not in ON_HOST
        ctx.save_for_backward(tau, *(views if kernels else ()), *saved)
        ctx.settings = (
            plan,
            labels,
            mode,
            precision,
            path,
            need,
            [v.dtype for v in views],
            len(views) if kernels else 0,
        )
        return loss

    @staticmethod
    def backward(ctx, grad):
        # create_graph=True; once_differentiable would drop the second-order part in silence
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE)
        plan, labels, mode, precision, path, need, dtypes, views = ctx.settings
        tau, *rest = ctx.saved_tensors
        dx, dtau = _backward(
            rest[:views], tau, labels, rest[views:], grad, plan, mode, precision, path, need
        )
        return (
            None,
            None,
            None,
            None,
            None,
            dtau if need[-1] else None,
            *_split(dx, dtypes, plan, need),
        )


# --- the operator torch.compile sees


def _numbers(values: tuple[int, ...]) -> str:
    return ",".join([str(value) for value in values])


def encode(terms: tuple[Term, ...], anchor_rows: tuple[int, int] | None) -> str:
    """Operators take tensors, numbers and strings, so the terms travel as a string:
    "layout/anchors|candidates|mask_self;.../rows". Plain joins, which torch.compile can follow;
    weights stay outside of the operator.

    The layout is in it because Inductor's cache on disk remembers the shapes an operator returned
    by its arguments alone: code compiled with another version of mer, or other sizes, would be
    taken for this one's. Count LAYOUT up when what _forward keeps changes.
    """
    each = [
        "|".join([_numbers(t.anchors), _numbers(t.candidates), str(int(t.mask_self))])
        for t in terms
    ]
    layout = f"{LAYOUT}:{paths.DENSE_ROWS}:{chunked.TILE_ROWS}:{chunked.TILE_COLS}"
    layout += f":{chunked.KEEP_BYTES}:{strips.STRIP}:{strips.FEWEST_ROWS}"
    layout += (
        f":{paths.TINY_ROWS}:{','.join([f'{d}={rows}' for d, rows in paths.MID_ROWS.items()])}"
    )
    return (
        layout
        + "/"
        + ";".join(each)
        + "/"
        + (",".join([str(r) for r in anchor_rows]) if anchor_rows else "")
    )


@lru_cache(maxsize=256)
def _decode(spec: str) -> tuple[tuple[Term, ...], tuple[int, int] | None]:
    def ints(text: str) -> tuple[int, ...]:
        return tuple(int(v) for v in text.split(",")) if text else ()

    _, each, rows = spec.split("/")
    terms = [part.split("|") for part in each.split(";")]
    return tuple(Term(ints(a), ints(c), 1.0, m == "1") for a, c, m in terms), ints(rows) or None


def _plan(views: list[Tensor], spec: str) -> Plan:
    terms, anchor_rows = _decode(spec)
    return make_plan(terms, tuple(int(v.shape[0]) for v in views), anchor_rows)


@torch.library.custom_op("mer::contrastive_terms", mutates_args=())
def contrastive_op(
    views: list[Tensor],
    tau: Tensor,
    labels: Tensor | None,
    spec: str,
    mode: str,
    precision: str,
    impl: str,
    need: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    loss, saved = _forward(
        views, tau, labels, _plan(views, spec), mode, precision, path_for(views, impl), tuple(need)
    )
    return loss, saved


@contrastive_op.register_fake
def _(views, tau, labels, spec, mode, precision, impl, need):
    x, plan, path = views[0], _plan(views, spec), path_for(views, impl)
    t, rows = len(plan.terms), plan.total
    if path in ON_HOST:
        wide = x.new_empty((), dtype=chunked.compute_dtype(views))
        if _striped(plan, mode, path, need):
            return wide.new_empty(1), [wide.new_empty(rows, x.shape[1]), wide.new_empty(tau.shape)]
        unit = [wide.new_empty(rows, x.shape[1]), wide.new_empty(rows, 1)]
        if path == "dense":
            return wide.new_empty(t), [*unit, wide.new_empty(t, rows, rows)]
        count = wide.new_empty(t, rows) if mode == "supcon" else wide.new_empty(0)
        kept = wide.new_empty(chunked.kept_size(plan, wide.element_size()) if any(need) else 0)
        return wide.new_empty(t), [*unit, wide.new_empty(t, rows), count, kept]
    wide = x.new_empty((), dtype=torch.float32)
    loss, slope = wide.new_empty(t), wide.new_empty(t)
    if path == "tiny":
        return loss, [
            slope,
            wide.new_empty(t, rows, x.shape[1]) if any(need) else wide.new_empty(t),
        ]
    table = wide.new_empty(t, rows)
    return loss, [
        slope,
        table,
        wide.new_empty(rows),
        *([wide.new_empty(t, rows)] if mode == "supcon" else []),
    ]


@torch.library.custom_op("mer::contrastive_terms_backward", mutates_args=())
def contrastive_backward_op(
    views: list[Tensor],
    tau: Tensor,
    labels: Tensor | None,
    saved: list[Tensor],
    grad: Tensor,
    spec: str,
    mode: str,
    precision: str,
    impl: str,
    need: list[bool],
) -> tuple[Tensor, Tensor]:
    return _backward(
        views,
        tau,
        labels,
        saved,
        grad,
        _plan(views, spec),
        mode,
        precision,
        path_for(views, impl),
        tuple(need),
    )


@contrastive_backward_op.register_fake
def _(views, tau, labels, saved, grad, spec, mode, precision, impl, need):
    plan, path = _plan(views, spec), path_for(views, impl)
    dtype = chunked.compute_dtype(views) if path in ON_HOST else _common(views)[0].dtype
    rows = plan.total if path in ON_HOST or any(need[:-1]) else 0
    return views[0].new_empty(rows, views[0].shape[1], dtype=dtype), torch.empty_like(tau)


def _setup_context(ctx, inputs, output):
    views, tau, labels, *settings = inputs
    ctx.save_for_backward(*views, tau, *output[1])
    ctx.labels, ctx.settings, ctx.views = labels, settings, len(views)


def _op_backward(ctx, grad, _):
    spec, mode, precision, impl, need = ctx.settings
    tensors = list(ctx.saved_tensors)
    views, tau, saved = tensors[: ctx.views], tensors[ctx.views], tensors[ctx.views + 1 :]
    dx, dtau = contrastive_backward_op(
        views, tau, ctx.labels, saved, grad, spec, mode, precision, impl, need
    )
    parts = _split(dx, [v.dtype for v in views], _plan(views, spec), tuple(need))
    return parts, dtau if need[-1] else None, None, None, None, None, None, None


contrastive_op.register_autograd(_op_backward, setup_context=_setup_context)
