"""Host side of the Triton path: which kernels for which sizes, their tables on the device, and the
launches.

Sizes and tiles come from one fixed table: tuning at run time would recompile, break graph capture
and make results depend on the machine's mood. None of it has been measured on a GPU yet;
tests/ops/test_aot.py holds every entry to "compiles for sm_80, sm_90 and sm_100, no spills, shared
memory within the chip's limit".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from itertools import chain

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mer.fusion.ops.gpu import kernels
from mer.fusion.ops.limits import MAX_VIEWS, TINY_ROWS
from mer.fusion.ops.terms import NEVER, Band, Strip, TermLayout, Visit

SCRATCH_BYTES = 256 << 20  # coefficients of one chunk in the large path
# of a chunk at most: a product of few rows and hundreds of thousands of columns would leave most of
# the chip idle
SCRATCH_COLS = 16384
# float16 coefficients: 2 * 4096 is far from overflow, 1e-6 * 4096 far from subnormal
G_SCALE = 4096.0
MODES = {"none": 0, "exclude": 1, "supcon": 2}
TIERS = {"ieee": 0, "tf32": 1, "fast": 2}
INTERPRETED = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class KernelTile:
    """Kernel sizes: rows, columns, depth of one product, width of the gradient slice."""

    bm: int
    bn: int
    bk: int
    bd: int = 0
    warps: int = 4
    stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def _cdiv(n: int, d: int) -> int:
    # Triton's own cdiv and next_power_of_2 cost microseconds per call, outside of kernels
    return -(-n // d)


def _power(n: int, low: int, high: int) -> int:
    return max(low, min(high, 1 << (n - 1).bit_length()))


def tiny_tile(rows: int, d: int) -> KernelTile:
    rp = _power(rows, 16, TINY_ROWS)
    return KernelTile(
        rp,
        rp,
        _power(d, 16, 64 if rp == 16 else 32),
        _power(d, 16, {16: 64, 32: 32, 64: 16}[rp]),
        8 if rp == 64 else 4,
        2,
    )


def mid_tile(rows: int, d: int, dot: int, mode: str) -> KernelTile:
    # label masks cost registers, and so do three products for one
    bm = 16 if rows <= 2048 or mode != "none" else 32
    return KernelTile(
        bm,
        32,
        _power(d, 16, 32),
        _power(d, 16, 128 if bm == 32 and dot == TIERS["ieee"] else 256),
        8,
        3,
    )


def large_tile(dot: int, mode: str) -> KernelTile:
    if dot == TIERS["ieee"]:
        return KernelTile(64, 64, 32, 0, 4, 3)
    # label masks are held in registers
    return KernelTile(128, 128, 64, 0, 8, 3) if mode == "none" else KernelTile(64, 32, 64, 0, 8, 3)


def capability(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter takes the descriptor path
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


# --- tables, made once per layout and device

_in_graphs: set[TermLayout] = set()


def ready(layout: TermLayout, device: torch.device) -> AbstractContextManager:
    """Around forward and backward: Triton launches on the current device, so that is the views' one
    inside. What a CUDA graph is captured with is never dropped: the graph remembers addresses.
    """
    if device.type != "cuda":
        return nullcontext()
    if torch.cuda.is_current_stream_capturing():
        _in_graphs.add(layout)
    return (
        nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device)
    )


def _once(make: Callable) -> Callable:
    """Kept with the layout, so that they go when it goes."""

    @wraps(make)
    def table(layout: TermLayout, *key):
        if (make, *key) not in layout.tables:
            layout.tables[make, *key] = make(layout, *key)
        return layout.tables[make, *key]

    return table


def _kept(table: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that outlives this call.

    Another thread makes it: the warm-up of torch.compile(mode="reduce-overhead") sends this
    thread's allocations to the memory of its graph, where the next replay would overwrite them.
    """
    if device.type != "cuda":
        return table.to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "contrastive_terms: first call with these sizes inside a CUDA graph capture; run one "
            "step before capturing"
        )
    with ThreadPoolExecutor(1) as other:
        return other.submit(table.to, device).result()


def _ints(rows: Sequence, device: torch.device) -> Tensor:
    return _kept(torch.tensor(rows, dtype=torch.int32), device)


@_once
def scales(layout: TermLayout, device: torch.device) -> Tensor:
    """(T,) `TermLayout.shares`."""
    return _kept(torch.tensor(layout.shares, dtype=torch.float32), device)


@_once
def forward_tables(
    layout: TermLayout, bm: int, device: torch.device, merge: bool
) -> tuple[Tensor, Tensor]:
    """(blocks, 9), (ranges, 4) of mid_forward; with `merge` those of large_forward: flat row
    numbers, touching ranges joined.
    """
    blocks: list[tuple[int, ...]] = []
    ranges: list[tuple[int, ...]] = []
    seen: set[tuple[int, int]] = set()
    for strip in layout.strips:
        begin = len(ranges)
        ranges += _joined_ranges(strip) if merge else _ranges_by_view(strip, layout.base)
        base = 0 if merge else layout.base[strip.view]
        of_strip = (strip.term, strip.rel, begin, len(ranges))
        for r in range(strip.r0 - base, strip.r1 - base, bm):
            first = (strip.view, r) not in seen
            seen.add((strip.view, r))
            blocks.append((strip.view, r, strip.r1 - base, base, *of_strip, int(first)))
    if not merge:  # rows that are nobody's anchors still need their norms
        anchored = {strip.view for strip in layout.strips}
        for view, n in enumerate(layout.rows):
            if view not in anchored:
                base = layout.base[view]
                blocks += [(view, r, n, base, -1, 0, 0, 0, 1) for r in range(0, n, bm)]
    return _ints(blocks, device), _ints(ranges, device)


def _ranges_by_view(strip: Strip, base: tuple[int, ...]) -> list[tuple[int, ...]]:
    """(view, first row, end, first flat row of the view) of a strip's candidates."""
    return [(view, c0 - base[view], c1 - base[view], base[view]) for view, c0, c1 in strip.ranges]


def _joined_ranges(strip: Strip) -> list[tuple[int, ...]]:
    """(a view, first flat row, end, 0) of a strip's candidates, touching ranges joined."""
    joined: list[tuple[int, ...]] = []
    for view, c0, c1 in strip.ranges:
        if joined and joined[-1][2] == c0:
            joined[-1] = (*joined[-1][:2], c1, 0)
        else:
            joined.append((view, c0, c1, 0))
    return joined


@_once
def backward_tables(
    layout: TermLayout, bm: int, need: tuple[bool, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(blocks, 9), (visits, 9) of mid_backward for the views that need a gradient."""
    blocks: list[tuple[int, ...]] = []
    visits: list[tuple[int, ...]] = []
    for band in layout.bands:
        if not need[band.view]:
            continue
        base, begin = layout.base[band.view], len(visits)
        for v in band.visits:
            at = layout.base[v.view]
            sides = (int(v.row), int(v.col), v.row_rel, v.col_rel)
            visits.append((v.term, v.view, v.c0 - at, v.c1 - at, at, *sides))
        of_band = (0, 0, begin, len(visits), 0)
        for r in range(band.r0 - base, band.r1 - base, bm):
            blocks.append((band.view, r, band.r1 - base, base, *of_band))
    return _ints(blocks, device), _ints(visits or [(0,) * 9], device)


@_once
def row_table(layout: TermLayout, bm: int, device: torch.device) -> Tensor:
    """(blocks, 9): all rows of all views, bm at a time."""
    blocks: list[tuple[int, ...]] = []
    for view, n in enumerate(layout.rows):
        blocks += [(view, r, n, layout.base[view], 0, 0, 0, 0, 0) for r in range(0, n, bm)]
    return _ints(blocks, device)


@_once
def tiny_tables(layout: TermLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """(V+1,) first flat row of each view and R; (T, R, 2) bits of the candidate views of an anchor
    row, flat number of its positive.
    """
    adjacency = torch.zeros(len(layout.terms), layout.total, 2, dtype=torch.int32)
    adjacency[..., 1] = -1
    for s in layout.strips:
        adjacency[s.term, s.r0 : s.r1, 0] = sum(1 << v for v, _, _ in s.ranges)
        adjacency[s.term, s.r0 : s.r1, 1] = torch.arange(
            s.r0 + s.rel, s.r1 + s.rel, dtype=torch.int32
        )
    return _ints([*layout.base, layout.total], device), _ints(adjacency.tolist(), device)


_tickets: dict[tuple[torch.device, int], Tensor] = {}


def ticket(device: torch.device) -> Tensor:
    """A counter at 0 that the kernel leaves at 0.

    One per stream, as launches of one stream do not overlap; a captured graph may be replayed on
    any stream and gets its own.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _tickets:
        _tickets[key] = _kept(torch.zeros(1, dtype=torch.int32), device)
    return _tickets[key]


# --- launches


def tier(precision: str, dtype: torch.dtype) -> int:
    """What `auto` means: 16-bit inputs are multiplied as they are, float32 as PyTorch would
    (torch.set_float32_matmul_precision or torch.backends.cuda.matmul.fp32_precision; the latter
    tells both, the former's getter raises where the other was set).
    """
    if precision == "auto":
        if dtype in (torch.float16, torch.bfloat16):
            precision = "fast"
        else:
            precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return TIERS[precision]


def _mid_dot(dot: int, dtype: torch.dtype) -> int:
    # raw float32 rows may not fit 16 bits
    return TIERS["tf32"] if dot == TIERS["fast"] and dtype == torch.float32 else dot


def _pad(views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (*views, *(views[0],) * (MAX_VIEWS - len(views)))


def forward(
    layout: TermLayout,
    views: tuple[Tensor, ...],
    tau: Tensor,
    labels: Tensor | None,
    mode: str,
    precision: str,
    path: str,
    *,
    gradients: bool,
) -> tuple[Tensor, ...]:
    """(T,) losses, (T,) slopes d loss/d tau, then what the backward pass of this path wants.

    `views` contiguous, of one dtype.
    """
    device, d = views[0].device, views[0].shape[1]
    terms, rows = len(layout.terms), layout.total
    args = dict(MODE=MODES[mode], TAU_N=tau.ndim)
    labels = views[0] if labels is None else labels
    # whatever PyTorch's default type is
    empty = partial(torch.empty, device=device, dtype=torch.float32)
    loss, slope = empty(terms), empty(terms)
    dot = tier(precision, views[0].dtype)
    if path == "tiny":
        tile = tiny_tile(rows, d)
        base, adjacency = tiny_tables(layout, device)
        # an operator's results share no storage
        dz = empty((terms, rows, d) if gradients else (terms,))
        kernels.tiny_values_and_gradients[(_cdiv(d, tile.bd) if gradients else 1,)](
            *_pad(views),
            tau,
            labels,
            base,
            adjacency,
            scales(layout, device),
            loss,
            slope,
            dz,
            rows,
            d,
            terms,
            NV=len(views),
            RP=tile.bm,
            BK=tile.bk,
            BD=tile.bd,
            GRADIENTS=gradients,
            **args,
            **tile.options,
        )
        return loss, slope, dz
    lse = empty(terms, rows)
    count = torch.empty_like(lse) if mode == "supcon" else lse
    norm = empty(rows)
    if path == "mid":
        dot = _mid_dot(dot, views[0].dtype)
        tile = mid_tile(rows, d, dot, mode)
        blocks, ranges = forward_tables(layout, tile.bm, device, False)
        part = empty(2, len(blocks))
        kernels.mid_forward[(len(blocks),)](
            *_pad(views),
            tau,
            labels,
            blocks,
            ranges,
            scales(layout, device),
            lse,
            count,
            norm,
            part,
            ticket(device),
            loss,
            slope,
            rows,
            d,
            terms,
            len(blocks),
            NV=len(views),
            BM=tile.bm,
            BN=tile.bn,
            BK=tile.bk,
            DOT=dot,
            **args,
            **tile.options,
        )
    else:
        tile = large_tile(dot, mode)
        z = _unit_rows(
            layout, views, norm, torch.float32 if dot == TIERS["ieee"] else torch.float16
        )
        blocks, ranges = forward_tables(layout, tile.bm, device, True)
        part = empty(2, len(blocks))
        kernels.large_forward[(len(blocks),)](
            *_operands(z, tile),
            tau,
            labels,
            blocks,
            ranges,
            scales(layout, device),
            lse,
            count,
            part,
            ticket(device),
            loss,
            slope,
            rows,
            z.shape[1],
            terms,
            len(blocks),
            BM=tile.bm,
            BN=tile.bn,
            BK=tile.bk,
            DOT=_large_dot(dot),
            TMA=_uses_tma(z),
            **args,
            **tile.options,
        )
    return loss, slope, lse, norm, *((count,) if mode == "supcon" else ())


def backward(
    layout: TermLayout,
    views: tuple[Tensor, ...],
    tau: Tensor,
    labels: Tensor | None,
    mode: str,
    precision: str,
    path: str,
    saved: tuple[Tensor, ...],
    grad: Tensor,
    need: tuple[bool, ...],
) -> tuple[Tensor, Tensor]:
    """(R, D) gradient to the rows of all views that need one (the others' rows are left unwritten),
    gradient to tau in tau's shape.
    """
    device, d = views[0].device, views[0].shape[1]
    terms, rows = len(layout.terms), layout.total
    slope, rest = saved[0], saved[1:]
    dtau = torch.empty_like(tau)
    if not any(need):
        dtau = grad * slope
        return views[0].new_empty(0, d), dtau if tau.ndim else dtau.sum()
    dx = torch.empty(rows, d, device=device, dtype=views[0].dtype)
    if path == "tiny":
        block = 1024
        kernels.tiny_scale[(_cdiv(rows * d, block),)](
            rest[0],
            grad,
            slope,
            dx,
            dtau,
            rows * d,
            terms,
            grad.stride(0),
            BLOCK=block,
            TAU_N=tau.ndim,
        )
        return dx, dtau
    args = dict(MODE=MODES[mode], TAU_N=tau.ndim)
    lse, norm = rest[:2]
    count = rest[2] if mode == "supcon" else lse
    labels = views[0] if labels is None else labels
    dot = tier(precision, views[0].dtype)
    if path == "large":
        return _large_backward(
            layout,
            views,
            tau,
            labels,
            mode,
            args,
            dot,
            lse,
            count,
            norm,
            slope,
            grad,
            need,
            dx,
            dtau,
        )
    dot = _mid_dot(dot, views[0].dtype)
    tile = mid_tile(rows, d, dot, mode)
    blocks, visits = backward_tables(layout, tile.bm, need, device)
    kernels.mid_backward[(len(blocks), _cdiv(d, tile.bd))](
        *_pad(views),
        tau,
        labels,
        blocks,
        visits,
        scales(layout, device),
        lse,
        count,
        norm,
        grad,
        slope,
        dx,
        dtau,
        rows,
        d,
        terms,
        grad.stride(0),
        NV=len(views),
        BM=tile.bm,
        BN=tile.bn,
        BK=tile.bk,
        BD=tile.bd,
        DOT=dot,
        **args,
        **tile.options,
    )
    return dx, dtau


# --- large path

ROW_BLOCK = 8  # rows per program of the two row-wise kernels


def _large_dot(dot: int) -> int:
    # similarities of unit rows: float16 has tf32's mantissa at twice its rate
    return TIERS["ieee"] if dot == TIERS["ieee"] else TIERS["fast"]


def _uses_tma(z: Tensor) -> bool:
    return z.dtype == torch.float16 and capability(z.device) >= 90


def _operands(z: Tensor, tile: KernelTile) -> tuple[object, object]:
    """z as the kernels take it: tensor-map descriptors for row and column tiles where the chip has
    them, else the plain tensor.
    """
    if not _uses_tma(z):
        return z, z
    shape, strides = list(z.shape), list(z.stride())
    return TensorDescriptor(z, shape, strides, [tile.bm, tile.bk]), TensorDescriptor(
        z, shape, strides, [tile.bn, tile.bk]
    )


def _unit_rows(
    layout: TermLayout,
    views: tuple[Tensor, ...],
    norm: Tensor,
    dtype: torch.dtype,
    *,
    rounded: bool = False,
) -> Tensor:
    """(R, DP) unit rows, DP a multiple of 16 so that rows start where a tensor map wants them;
    fills `norm`.
    """
    device, d = views[0].device, views[0].shape[1]
    z = torch.empty(layout.total, _aligned(d), dtype=dtype, device=device)
    blocks = row_table(layout, ROW_BLOCK, device)
    kernels.normalise[(len(blocks),)](
        *_pad(views),
        blocks,
        z,
        norm,
        d,
        z.shape[1],
        NV=len(views),
        BM=ROW_BLOCK,
        BK=_power(d, 16, 256),
        ROUND=rounded,
        num_warps=4,
    )
    return z


@contextmanager
def _matmul_precision(name: str):
    """The tier asked for, whatever the process-wide setting is."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, name
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _product(g: Tensor, z: Tensor, dot: int) -> Tensor:
    """G z with float32 accumulation and result."""
    if not g.is_cuda:
        return g.float() @ z.float()
    if g.dtype == torch.float16:
        return torch.mm(g, z, out_dtype=torch.float32)
    with _matmul_precision("ieee" if dot == TIERS["ieee"] else "tf32"):
        return g @ z


def _large_backward(
    layout: TermLayout,
    views: tuple[Tensor, ...],
    tau: Tensor,
    labels: Tensor,
    mode: str,
    args: dict,
    dot: int,
    lse: Tensor,
    count: Tensor,
    norm: Tensor,
    slope: Tensor,
    grad: Tensor,
    need: tuple[bool, ...],
    dx: Tensor,
    dtau: Tensor,
) -> tuple[Tensor, Tensor]:
    """Per chunk of rows and columns: a tile kernel writes coefficients into the scratch, one matrix
    product takes them to dz.
    """
    device = dx.device
    tile = large_tile(dot, mode)
    z = _unit_rows(layout, views, norm, torch.float32 if dot == TIERS["ieee"] else torch.float16)
    values = (
        _unit_rows(layout, views, norm, torch.float32, rounded=True) if dot == TIERS["tf32"] else z
    )
    half = values.dtype == torch.float16
    share = grad * scales(layout, device) / (tau * G_SCALE if half else tau)
    dz = torch.zeros(layout.total, z.shape[1], dtype=torch.float32, device=device)
    bands = [p for p in layout.bands if need[p.view]]
    visits = chain.from_iterable(_merged(band) for band in bands)
    widths = [visit.c1 - visit.c0 for visit in visits]
    widest = _aligned(min(SCRATCH_COLS, max(widths, default=1)))
    chunk = max(tile.bm, SCRATCH_BYTES // (widest * values.element_size()) // tile.bm * tile.bm)
    scratch = torch.empty(min(chunk, layout.total) * widest, dtype=values.dtype, device=device)
    operands = _operands(z, tile)
    for p in bands:
        for r0, r1, v, c0, c1 in _chunks(p, chunk):
            cols = _aligned(c1 - c0)  # of the scratch; the product takes those that are there
            g = scratch[: (r1 - r0) * cols].view(r1 - r0, cols)
            kernels.large_coefficients[(_cdiv(r1 - r0, tile.bm), _cdiv(cols, tile.bn))](
                *operands,
                tau,
                labels,
                lse,
                count,
                g,
                r0,
                r1,
                c0,
                c1,
                v.term,
                int(v.row),
                int(v.col),
                v.row_rel,
                v.col_rel,
                layout.total,
                z.shape[1],
                cols,
                BM=tile.bm,
                BN=tile.bn,
                BK=tile.bk,
                DOT=_large_dot(dot),
                TMA=_uses_tma(z),
                SCALE=G_SCALE if half else 1.0,
                ROUND=dot == TIERS["tf32"],
                **args,
                **tile.options,
            )
            dz[r0:r1].addcmul_(_product(g[:, : c1 - c0], values[c0:c1], dot), share[v.term])
    blocks = row_table(layout, ROW_BLOCK, device)
    kernels.large_finish[(len(blocks),)](
        *_pad(views),
        blocks,
        norm,
        dz,
        dx,
        grad,
        slope,
        dtau,
        views[0].shape[1],
        z.shape[1],
        len(layout.terms),
        grad.stride(0),
        NV=len(views),
        BM=ROW_BLOCK,
        BK=_power(views[0].shape[1], 16, 256),
        TAU_N=tau.ndim,
        num_warps=4,
    )
    return dx, dtau


def _aligned(n: int) -> int:
    """The next multiple of 16: rows of such a length start where vector stores and cuBLAS's
    tensor-core kernels want them.
    """
    return _cdiv(n, 16) * 16


def _chunks(p: Band, rows: int) -> Iterator[tuple[int, int, Visit, int, int]]:
    """(r0, r1, visit, c0, c1) of a band, in the order in which they are added up."""
    for r0 in range(p.r0, p.r1, rows):
        for v in _merged(p):
            for c0 in range(v.c0, v.c1, SCRATCH_COLS):
                yield r0, min(r0 + rows, p.r1), v, c0, min(c0 + SCRATCH_COLS, v.c1)


@lru_cache(maxsize=256)
def _merged(band: Band) -> tuple[Visit, ...]:
    """Visits to touching ranges joined where one offset to the anchor column serves both (NT-Xent:
    one product over both views).
    """
    merged: list[Visit] = []
    for visit in band.visits:
        joined = _joined(merged[-1], visit) if merged else None
        if joined is None:
            merged.append(visit)
        else:
            merged[-1] = joined
    return tuple(merged)


def _joined(last: Visit, visit: Visit) -> Visit | None:
    """One visit for both, where they touch and one offset to the anchor column serves both."""
    if (last.term, last.c1, last.row, last.col) != (visit.term, visit.c0, visit.row, visit.col):
        return None
    offsets = {visit.col_rel, last.col_rel} - {NEVER}
    if len(offsets) > 1:
        return None
    return last._replace(
        c1=visit.c1,
        row_rel=min(last.row_rel, visit.row_rel),
        col_rel=offsets.pop() if offsets else visit.col_rel,
    )
