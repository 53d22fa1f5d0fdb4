"""Autograd and torch.compile around the implementations.

Eager code goes through an autograd.Function (a third of a custom op's call overhead on the host);
under torch.compile the same computation is the operator `mer::contrastive_terms`, which the
compiler treats as one opaque node with known shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mer.fusion.ops.limits as limits
from mer.fusion.ops.cpu import chunked, dense, strips
from mer.fusion.ops.paths import PLAIN_PATHS, path_of_layout
from mer.fusion.ops.terms import Term, TermLayout, lay_out

LAYOUT = 4  # of what _forward keeps for _backward; see encode
TWICE = (
    "contrastive_terms: second derivatives are not implemented; for create_graph=True use "
    "impl='eager'"
)


class Settings(NamedTuple):
    """What a call is about, beside its tensors."""

    layout: TermLayout
    label_mode: str
    precision: str
    path: str


def _forward(
    settings: Settings,
    views: Sequence[Tensor],
    tau: Tensor,
    labels: Tensor | None,
    need: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor]]:
    """(T,) losses and what backward wants. `need`: each view, then tau."""
    layout, mode, precision, path = settings
    with _no_autocast(views[0].device.type):
        if path == "strips":
            loss, *saved = strips.forward(layout, views, tau, need)
        elif path == "chunked":
            loss, *saved = chunked.forward(layout, views, tau, labels, mode, gradients=any(need))
        elif path == "dense":
            loss, *saved = dense.forward(layout, views, tau, labels, mode)
        else:
            from mer.fusion.ops.gpu import launch  # imports Triton

            same = _common(views)
            with launch.ready(layout, views[0].device):
                loss, *saved = launch.forward(
                    layout, same, tau.float(), labels, mode, precision, path, gradients=any(need)
                )
    return loss, saved


def _backward(
    settings: Settings,
    views: Sequence[Tensor],
    tau: Tensor,
    labels: Tensor | None,
    saved: Sequence[Tensor],
    grad: Tensor,
    need: tuple[bool, ...],
) -> tuple[Tensor, Tensor]:
    """(R, D) gradient to all rows, gradient to tau in its shape and dtype."""
    layout, mode, precision, path = settings
    saved = tuple(saved)
    with _no_autocast(tau.device.type):
        if path == "strips":
            dx, dtau = strips.backward(saved, grad)
        elif path == "chunked":
            dx, dtau = chunked.backward(layout, tau, labels, mode, saved, grad, need)
        elif path == "dense":
            dx, dtau = dense.backward(layout, tau, labels, mode, saved, grad)
        else:
            from mer.fusion.ops.gpu import launch

            options = (mode, precision, path)
            with launch.ready(layout, tau.device):
                dx, dtau = launch.backward(
                    layout, _common(views), tau.float(), labels, *options, saved, grad, need[:-1]
                )
    return dx, dtau.to(tau.dtype)


def _no_autocast(device: str) -> AbstractContextManager:
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _common(views: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous views of one dtype: the kernels select among their pointers."""
    dtype = views[0].dtype
    for view in views[1:]:
        dtype = torch.promote_types(dtype, view.dtype)
    return tuple(view.to(dtype).contiguous() for view in views)


def _split(
    dx: Tensor, dtypes: Sequence[torch.dtype], layout: TermLayout, need: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradient of each view that needs one, in the dtype of that view."""
    wanted = need[:-1]
    if not any(wanted):
        return [None] * len(dtypes)
    by_view = zip(dx.split(layout.rows), dtypes, wanted, strict=True)
    return [rows.to(dtype) if wants else None for rows, dtype, wants in by_view]


def values(
    settings: Settings, labels: Tensor | None, tau: Tensor, views: tuple[Tensor, ...]
) -> Tensor:
    """(T,) losses alone, for when no gradient is wanted: nothing is kept for a backward pass."""
    nothing = (False,) * (len(views) + 1)
    return _forward(settings, views, tau, labels, nothing)[0]


class Contrastive(torch.autograd.Function):
    """`apply(settings, labels, tau, *views)` -> (T,) losses."""

    @staticmethod
    def forward(ctx: Any, settings, labels, tau, *views):
        need = (*ctx.needs_input_grad[3:], ctx.needs_input_grad[2])
        loss, saved = _forward(settings, views, tau, labels, need)
        read_again = () if settings.path in PLAIN_PATHS else views
        ctx.save_for_backward(tau, *read_again, *saved)
        ctx.call = settings, labels, need, [view.dtype for view in views], len(read_again)
        return loss

    @staticmethod
    def backward(ctx: Any, grad):
        # create_graph=True; once_differentiable would drop the second-order part in silence
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE)
        settings, labels, need, dtypes, n = ctx.call
        tau, *rest = ctx.saved_tensors
        dx, dtau = _backward(settings, rest[:n], tau, labels, rest[n:], grad, need)
        by_view = _split(dx, dtypes, settings.layout, need)
        return None, None, dtau if need[-1] else None, *by_view


# --- the operator torch.compile sees


def _numbers(values: tuple[int, ...]) -> str:
    return ",".join([str(value) for value in values])


def encode(terms: tuple[Term, ...]) -> str:
    """Operators take tensors, numbers and strings, so the terms travel as a string:
    "sizes/anchors|candidates|mask_self;...". Plain joins, which torch.compile can follow.

    The sizes are in it because Inductor's cache on disk remembers the shapes an operator returned
    by its arguments alone: code compiled with another version of mer, or other sizes, would be
    taken for this one's. Count LAYOUT up when what _forward keeps changes.
    """
    each = []
    for term in terms:
        views = [_numbers(term.anchors), _numbers(term.candidates)]
        each.append("|".join([*views, str(int(term.mask_self))]))
    sizes = (
        LAYOUT,
        limits.DENSE_ROWS,
        chunked.TILE_ROWS,
        chunked.TILE_COLS,
        chunked.KEEP_BYTES,
        strips.STRIP,
        strips.FEWEST_ROWS,
        limits.TINY_ROWS,
    )
    borders = [f"{width}={rows}" for width, rows in limits.MID_ROWS.items()]
    return _numbers(sizes) + ":" + ",".join(borders) + "/" + ";".join(each)


@lru_cache(maxsize=256)
def _decode(spec: str) -> tuple[Term, ...]:
    terms = []
    for each in spec.split("/")[1].split(";"):
        anchors, candidates, mask_self = each.split("|")
        terms.append(Term(_views(anchors), _views(candidates), mask_self == "1"))
    return tuple(terms)


def _views(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",")) if text else ()


def _settings(views: Sequence[Tensor], spec: str, mode: Any, precision: str, impl: Any) -> Settings:
    layout = lay_out(_decode(spec), tuple(int(view.shape[0]) for view in views))
    return Settings(layout, mode, precision, path_of_layout(views, layout, impl, mode))


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
    settings = _settings(views, spec, mode, precision, impl)
    return _forward(settings, views, tau, labels, tuple(need))


@contrastive_op.register_fake
def _(views, tau, labels, spec, mode, precision, impl, need):
    settings = _settings(views, spec, mode, precision, impl)
    if settings.path in PLAIN_PATHS:
        return _fake_plain(settings, views, tau, need)
    return _fake_kernels(settings, views, need)


def _fake_plain(
    settings: Settings, views: Sequence[Tensor], tau: Tensor, need: Sequence[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Tensors of the shapes that _forward returns on the paths of plain PyTorch."""
    layout, mode, _, path = settings
    width, terms, rows = views[0].shape[1], len(layout.terms), layout.total
    empty = views[0].new_empty((), dtype=chunked.compute_dtype(views)).new_empty
    if path == "strips":
        return empty(1), [empty(rows, width), empty(tau.shape)]
    unit_rows = [empty(rows, width), empty(rows, 1)]
    if path == "dense":
        return empty(terms), [*unit_rows, empty(terms, rows, rows)]
    count = empty(terms, rows) if mode == "supcon" else empty(0)
    kept = empty(chunked.kept_size(layout, empty(()).element_size()) if any(need) else 0)
    return empty(terms), [*unit_rows, empty(terms, rows), count, kept]


def _fake_kernels(
    settings: Settings, views: Sequence[Tensor], need: Sequence[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Tensors of the shapes that _forward returns on the kernels' paths."""
    layout, mode, _, path = settings
    width, terms, rows = views[0].shape[1], len(layout.terms), layout.total
    empty = views[0].new_empty((), dtype=torch.float32).new_empty
    loss, slope = empty(terms), empty(terms)
    if path == "tiny":
        gradients = empty(terms, rows, width) if any(need) else empty(terms)
        return loss, [slope, gradients]
    count = [empty(terms, rows)] if mode == "supcon" else []
    return loss, [slope, empty(terms, rows), empty(rows), *count]


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
    settings = _settings(views, spec, mode, precision, impl)
    return _backward(settings, views, tau, labels, saved, grad, tuple(need))


@contrastive_backward_op.register_fake
def _(views, tau, labels, saved, grad, spec, mode, precision, impl, need):
    layout, _, _, path = _settings(views, spec, mode, precision, impl)
    plain = path in PLAIN_PATHS
    dtype = chunked.compute_dtype(views) if plain else _common(views)[0].dtype
    rows = layout.total if plain or any(need[:-1]) else 0
    return views[0].new_empty(rows, views[0].shape[1], dtype=dtype), torch.empty_like(tau)


def _setup_context(ctx, inputs, output):
    views, tau, labels, *options = inputs
    ctx.save_for_backward(*views, tau, *output[1])
    ctx.labels, ctx.options, ctx.views = labels, options, len(views)


def _op_backward(ctx, grad, _):
    spec, mode, precision, impl, need = ctx.options
    tensors = list(ctx.saved_tensors)
    views, tau, saved = tensors[: ctx.views], tensors[ctx.views], tensors[ctx.views + 1 :]
    dx, dtau = contrastive_backward_op(
        views, tau, ctx.labels, saved, grad, spec, mode, precision, impl, need
    )
    layout = _settings(views, spec, mode, precision, impl).layout
    by_view = _split(dx, [view.dtype for view in views], layout, tuple(need))
    return by_view, dtau if need[-1] else None, None, None, None, None, None, None


contrastive_op.register_autograd(_op_backward, setup_context=_setup_context)
