"""Triton kernels of the contrastive terms.

Imported only where they are launched or compiled; launch.py owns tables and sizes.

Notation: x raw rows, z = x/|x|, s cosine, l = s/tau, P softmax of l over an anchor's candidates.
Rows carry "flat" numbers through all views (terms.py); a kernel reaches a view by selecting among
at most eight pointers, so nothing is concatenated. Every output element is written by exactly one
program; sums across programs are taken in a fixed order by the last one to finish. The log-sum-exp
is running (Milakov & Gimelshein, arXiv 1805.02867): no bound on the temperature is assumed.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
EPS = tl.constexpr(1e-12)
LOW = tl.constexpr(-1e30)  # finite stand-in for -inf: keeps (LOW - LOW) a number
HIGH = tl.constexpr(1e30)
LOG2E = tl.constexpr(1.4426950408889634)
EXCLUDE, SUPCON = tl.constexpr(1), tl.constexpr(2)  # MODE; 0 is no labels
IEEE, TF32, NATIVE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # DOT
# Arguments a kernel is not compiled anew for when they become 1 or divisible by 16: the last batch
# of an epoch takes the same code.
SIZES = ["R", "T", "N", "G_STRIDE"]


@triton.jit
def _select(v, x0, x1, x2, x3, x4, x5, x6, x7, NV: tl.constexpr):
    p = x0
    if NV > 1:
        if v == 1:
            p = x1
    if NV > 2:
        if v == 2:
            p = x2
    if NV > 3:
        if v == 3:
            p = x3
    if NV > 4:
        if v == 4:
            p = x4
    if NV > 5:
        if v == 5:
            p = x5
    if NV > 6:
        if v == 6:
            p = x6
    if NV > 7:
        if v == 7:
            p = x7
    return p


@triton.jit
def _tf32(a):
    """float32 rounded to the 10 explicit mantissa bits of tf32; the tensor core itself would cut
    them off, which biases the loss. NaN is kept as it is: all bits of a GPU's NaN are set, and
    rounding up would carry it over into -0.
    """
    wide = a.to(tl.float32)
    rounded = ((wide.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(wide == wide, rounded, wide)


@triton.jit
def _dot(a, b, acc, DOT: tl.constexpr):
    if INTERPRETED:  # its dot multiplies bfloat16 bit patterns as integers and does not know tf32
        if DOT == TF32:
            a, b = _tf32(a), _tf32(b)
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    if DOT == IEEE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32x3")
    if DOT == TF32:
        return tl.dot(_tf32(a), _tf32(b), acc, input_precision="tf32")
    return tl.dot(a, b, acc)


@triton.jit
def _same(labels, flat, rmask, cflat, cmask):
    """(rows, columns) labelled alike; a negative label is unlike every other."""
    lr = tl.load(labels + flat, mask=rmask, other=-1)
    lc = tl.load(labels + cflat, mask=cmask, other=-2)
    return (lr[:, None] == lc[None, :]) & (lr[:, None] >= 0)


@triton.jit
def _meets(r0, c0, offset, BM: tl.constexpr, BN: tl.constexpr):
    """Whether some column c of the tile is r + offset for some row r of it: most tiles hold neither
    self nor positive.
    """
    return (c0 < r0 + offset + BM) & (r0 + offset < c0 + BN)


@triton.jit
def _advance(
    s,
    bits,
    labels,
    r0,
    r1,
    c0,
    c1,
    rel,
    top,
    mass,
    mean,
    gain,
    hits,
    BM: tl.constexpr,
    BN: tl.constexpr,
    MODE: tl.constexpr,
):
    """Fold one tile of cosines into the running maximum of l, sum e^(l-max), sum e^(l-max) s, sum
    of positive s, count of positives. `bits` = log2(e)/tau: l is kept in units of log 2, which
    makes the exponential one instruction. r0, c0: first flat row and column.
    """
    flat, cflat = r0 + tl.arange(0, BM), c0 + tl.arange(0, BN)
    x = s
    if MODE == 0:
        if (c0 + BN > c1) | _meets(r0, c0, 0, BM, BN):
            x = tl.where((cflat < c1)[None, :] & (cflat[None, :] != flat[:, None]), s, LOW)
        if _meets(r0, c0, rel, BM, BN):
            pair = (cflat[None, :] == (flat + rel)[:, None]) & (cflat < c1)[None, :]
            gain += tl.sum(tl.where(pair, s, 0.0), 1)
    else:
        keep = (cflat < c1)[None, :] & (cflat[None, :] != flat[:, None])
        pair = (cflat[None, :] == (flat + rel)[:, None]) & keep
        same = _same(labels, flat, flat < r1, cflat, cflat < c1)
        if MODE == EXCLUDE:
            keep = keep & (pair | (same == 0))
        if MODE == SUPCON:
            pair = (pair | same) & keep
            hits += tl.sum(pair.to(tl.float32), 1)
        gain += tl.sum(tl.where(pair, s, 0.0), 1)
        x = tl.where(keep, s, LOW)
    new = tl.maximum(top, tl.max(x, 1) * bits)
    weight = tl.exp2(x * bits - new[:, None])
    rescale = tl.exp2(top - new)
    return (
        new,
        mass * rescale + tl.sum(weight, 1),
        mean * rescale + tl.sum(weight * x, 1),
        gain,
        hits,
    )


@triton.jit
def _coefficients(
    s,
    bits,
    lse,
    count,
    labels,
    r0,
    r1,
    c0,
    c1,
    row_on,
    col_on,
    row_rel,
    col_rel,
    BM: tl.constexpr,
    BN: tl.constexpr,
    MODE: tl.constexpr,
):
    """G of one tile: P - y seen from the row anchors plus from the column anchors. `lse`, `count`
    point at this term's rows. Entries outside r0:r1 x c0:c1 are meaningless and may be infinite.
    """
    flat, cflat = r0 + tl.arange(0, BM), c0 + tl.arange(0, BN)
    rmask, cmask = flat < r1, cflat < c1
    row_anchor = rmask & ((flat * 0 + row_on) != 0)
    col_anchor = cmask & ((cflat * 0 + col_on) != 0)
    # where no anchor is, e^(l - HIGH) = 0
    lse_r = tl.load(lse + flat, mask=row_anchor, other=HIGH) * LOG2E
    lse_c = tl.load(lse + cflat, mask=col_anchor, other=HIGH) * LOG2E
    if MODE == 0:
        g = tl.exp2(s * bits - lse_r[:, None]) + tl.exp2(s * bits - lse_c[None, :])
        if _meets(r0, c0, 0, BM, BN):
            g = tl.where(cflat[None, :] == flat[:, None], 0.0, g)
        if _meets(r0, c0, row_rel, BM, BN):
            g -= tl.where(
                (cflat[None, :] == (flat + row_rel)[:, None]) & row_anchor[:, None], 1.0, 0.0
            )
        if _meets(r0, c0, col_rel, BM, BN):
            g -= tl.where(
                (cflat[None, :] == (flat + col_rel)[:, None]) & col_anchor[None, :], 1.0, 0.0
            )
    else:
        keep = cflat[None, :] != flat[:, None]
        same = _same(labels, flat, rmask, cflat, cmask)
        row_pair = (cflat[None, :] == (flat + row_rel)[:, None]) & row_anchor[:, None]
        col_pair = (cflat[None, :] == (flat + col_rel)[:, None]) & col_anchor[None, :]
        row_keep, col_keep = keep, keep
        inv_r, inv_c = tl.full((BM,), 1.0, tl.float32), tl.full((BN,), 1.0, tl.float32)
        if MODE == EXCLUDE:
            row_keep = keep & (row_pair | (same == 0))
            col_keep = keep & (col_pair | (same == 0))
        if MODE == SUPCON:
            row_pair = (row_pair | same) & keep & row_anchor[:, None]
            col_pair = (col_pair | same) & keep & col_anchor[None, :]
            inv_r = 1.0 / tl.maximum(tl.load(count + flat, mask=row_anchor, other=1.0), 1.0)
            inv_c = 1.0 / tl.maximum(tl.load(count + cflat, mask=col_anchor, other=1.0), 1.0)
        g = tl.exp2(tl.where(row_keep, s * bits - lse_r[:, None], LOW)) - tl.where(
            row_pair, inv_r[:, None], 0.0
        )
        g += tl.exp2(tl.where(col_keep, s * bits - lse_c[None, :], LOW)) - tl.where(
            col_pair, inv_c[None, :], 0.0
        )
    return g


@triton.jit
def _close_row(top, mass, mean, gain, hits, inv_tau, rmask, lse, count, MODE: tl.constexpr):
    """Store the log-sum-exp (and the number of positives) of anchor rows, at pointers `lse`,
    `count`; their summed loss and its derivative to tau.
    """
    total = (top + tl.log2(mass)) / LOG2E
    if MODE == SUPCON:
        gain = gain / tl.maximum(hits, 1.0)
        tl.store(count, hits, mask=rmask)
    tl.store(lse, total, mask=rmask)
    loss = tl.sum(tl.where(rmask, total - gain * inv_tau, 0.0), 0)
    slope = tl.sum(tl.where(rmask, (gain - mean / mass) * (inv_tau * inv_tau), 0.0), 0)
    return loss, slope


@triton.jit
def _reduce_terms(part, terms, stride, done, scale, loss, slope, T, N):
    """The last of N programs adds all partial sums in the order of the blocks, so the result does
    not depend on who was last.
    """
    tl.debug_barrier()  # every thread's partial is written before the ticket is drawn
    ticket = tl.atomic_add(done, 1, sem="acq_rel")
    if ticket == N - 1:
        for t in range(0, T):
            a = tl.zeros((128,), tl.float32)
            b = tl.zeros((128,), tl.float32)
            for j in range(0, N, 128):
                i = j + tl.arange(0, 128)
                mine = (i < N) & (tl.load(terms + i * stride, mask=i < N, other=-1) == t)
                a += tl.load(part + i, mask=mine, other=0.0, cache_modifier=".cg")
                b += tl.load(part + N + i, mask=mine, other=0.0, cache_modifier=".cg")
            share = tl.load(scale + t)
            tl.store(loss + t, tl.sum(a, 0) * share)
            tl.store(slope + t, tl.sum(b, 0) * share)
        tl.store(done, 0)  # ready for the next launch


@triton.jit
def _temperature_gradient(grad, G_STRIDE, slope, dtau, T, TAU_N: tl.constexpr):
    """dtau from the forward pass's slopes, by one program."""
    total = 0.0
    for t in range(0, T):
        d = tl.load(grad + t * G_STRIDE) * tl.load(slope + t)
        if TAU_N == 1:
            tl.store(dtau + t, d)
        total += d
    if TAU_N == 0:
        tl.store(dtau, total)


# --- middle sizes: a program owns BM rows of one view

# view, row0, row1 (in the view), base, term or -1 (norms only), rel, first range, last range, owns
# the norm
BLOCK_FIELDS = tl.constexpr(9)
RANGE_FIELDS = tl.constexpr(4)  # view, c0, c1 (in the view), base
VISIT_FIELDS = tl.constexpr(9)  # term, view, c0, c1, base, row, col, row_rel, col_rel


@triton.jit(do_not_specialize=SIZES)
def mid_forward(
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    tau,
    labels,
    blocks,
    ranges,
    scale,
    lse,
    count,
    norm,
    part,
    done,
    loss,
    slope,
    R,
    D,
    T,
    N,
    NV: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    MODE: tl.constexpr,
    TAU_N: tl.constexpr,
):
    pid = tl.program_id(0)
    rec = blocks + pid * BLOCK_FIELDS
    view, row0, row1, base = tl.load(rec), tl.load(rec + 1), tl.load(rec + 2), tl.load(rec + 3)
    term, rel, first, last = tl.load(rec + 4), tl.load(rec + 5), tl.load(rec + 6), tl.load(rec + 7)
    x = _select(view, x0, x1, x2, x3, x4, x5, x6, x7, NV)
    rows = row0 + tl.arange(0, BM)
    rmask = rows < row1
    flat = base + rows
    k = tl.arange(0, BK)
    square = tl.zeros((BM,), tl.float32)
    for d in range(0, D, BK):
        a = tl.load(
            x + rows[:, None] * D + (d + k)[None, :],
            mask=rmask[:, None] & ((d + k) < D)[None, :],
            other=0.0,
        ).to(tl.float32)
        square += tl.sum(a * a, 1)
    rnorm = tl.maximum(tl.sqrt(square), EPS)
    tl.store(norm + flat, rnorm, mask=rmask & ((rows * 0 + tl.load(rec + 8)) != 0))
    if term >= 0:
        inv_tau = 1.0 / tl.load(tau + term * TAU_N)
        bits = inv_tau * LOG2E
        top = tl.full((BM,), LOW, tl.float32)
        mass = tl.zeros((BM,), tl.float32)
        mean = tl.zeros((BM,), tl.float32)
        gain = tl.zeros((BM,), tl.float32)
        hits = tl.zeros((BM,), tl.float32)
        for q in range(first, last):
            other = ranges + q * RANGE_FIELDS
            c0, c1, cbase = tl.load(other + 1), tl.load(other + 2), tl.load(other + 3)
            y = _select(tl.load(other), x0, x1, x2, x3, x4, x5, x6, x7, NV)
            for c in range(c0, c1, BN):
                cols = c + tl.arange(0, BN)
                cmask = cols < c1
                s = tl.zeros((BM, BN), tl.float32)
                length = tl.zeros((BN,), tl.float32)
                for d in range(0, D, BK):
                    kmask = (d + k) < D
                    a = tl.load(
                        x + rows[:, None] * D + (d + k)[None, :],
                        mask=rmask[:, None] & kmask[None, :],
                        other=0.0,
                    )
                    b = tl.load(
                        y + cols[:, None] * D + (d + k)[None, :],
                        mask=cmask[:, None] & kmask[None, :],
                        other=0.0,
                    )
                    s = _dot(a, tl.trans(b), s, DOT)
                    wide = b.to(tl.float32)
                    length += tl.sum(wide * wide, 1)
                cosine = (
                    s * (1.0 / rnorm)[:, None] * (1.0 / tl.maximum(tl.sqrt(length), EPS))[None, :]
                )
                top, mass, mean, gain, hits = _advance(
                    cosine,
                    bits,
                    labels,
                    base + row0,
                    base + row1,
                    cbase + c,
                    cbase + c1,
                    rel,
                    top,
                    mass,
                    mean,
                    gain,
                    hits,
                    BM,
                    BN,
                    MODE,
                )
        at = term * R + flat
        a, b = _close_row(top, mass, mean, gain, hits, inv_tau, rmask, lse + at, count + at, MODE)
        tl.store(part + pid, a)
        tl.store(part + N + pid, b)
    _reduce_terms(part, blocks + 4, BLOCK_FIELDS, done, scale, loss, slope, T, N)


@triton.jit(do_not_specialize=SIZES)
def mid_backward(
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    tau,
    labels,
    blocks,
    visits,
    scale,
    lse,
    count,
    norm,
    grad,
    slope,
    dx,
    dtau,
    R,
    D,
    T,
    G_STRIDE,
    NV: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DOT: tl.constexpr,
    MODE: tl.constexpr,
    TAU_N: tl.constexpr,
):
    """Program (i, j): columns j*BD.. of the gradient of row block i.

    The radial part z (z·dz) comes from sum_c G s, so that no program waits for another's columns.
    """
    rec = blocks + tl.program_id(0) * BLOCK_FIELDS
    view, row0, row1, base = tl.load(rec), tl.load(rec + 1), tl.load(rec + 2), tl.load(rec + 3)
    first, last = tl.load(rec + 6), tl.load(rec + 7)
    x = _select(view, x0, x1, x2, x3, x4, x5, x6, x7, NV)
    rows = row0 + tl.arange(0, BM)
    rmask = rows < row1
    flat = base + rows
    k = tl.arange(0, BK)
    out = tl.program_id(1) * BD + tl.arange(0, BD)
    omask = out < D
    rnorm = tl.load(norm + flat, mask=rmask, other=1.0)
    acc = tl.zeros((BM, BD), tl.float32)
    radial = tl.zeros((BM,), tl.float32)
    for q in range(first, last):
        rec = visits + q * VISIT_FIELDS
        term, c0, c1, cbase = tl.load(rec), tl.load(rec + 2), tl.load(rec + 3), tl.load(rec + 4)
        row_on, col_on, row_rel, col_rel = (
            tl.load(rec + 5),
            tl.load(rec + 6),
            tl.load(rec + 7),
            tl.load(rec + 8),
        )
        y = _select(tl.load(rec + 1), x0, x1, x2, x3, x4, x5, x6, x7, NV)
        inv_tau = 1.0 / tl.load(tau + term * TAU_N)
        share = tl.load(grad + term * G_STRIDE).to(tl.float32) * tl.load(scale + term) * inv_tau
        at = term * R
        for c in range(c0, c1, BN):
            cols = c + tl.arange(0, BN)
            cmask = cols < c1
            s = tl.zeros((BM, BN), tl.float32)
            for d in range(0, D, BK):
                kmask = (d + k) < D
                a = tl.load(
                    x + rows[:, None] * D + (d + k)[None, :],
                    mask=rmask[:, None] & kmask[None, :],
                    other=0.0,
                )
                b = tl.load(
                    y + cols[:, None] * D + (d + k)[None, :],
                    mask=cmask[:, None] & kmask[None, :],
                    other=0.0,
                )
                s = _dot(a, tl.trans(b), s, DOT)
            inv_norm = 1.0 / tl.load(norm + cbase + cols, mask=cmask, other=1.0)
            cosine = s * (1.0 / rnorm)[:, None] * inv_norm[None, :]
            g = share * _coefficients(
                cosine,
                inv_tau * LOG2E,
                lse + at,
                count + at,
                labels,
                base + row0,
                base + row1,
                cbase + c,
                cbase + c1,
                row_on,
                col_on,
                row_rel,
                col_rel,
                BM,
                BN,
                MODE,
            )
            if (c + BN > c1) | (row0 + BM > row1):
                g = tl.where(rmask[:, None] & cmask[None, :], g, 0.0)
            radial += tl.sum(g * cosine, 1)
            values = tl.load(
                y + cols[:, None] * D + out[None, :],
                mask=cmask[:, None] & omask[None, :],
                other=0.0,
            )
            # 16-bit values are exact in tf32, whose exponent range G needs: float16 would lose
            # coefficients below 6e-8.
            acc = _dot(
                g * inv_norm[None, :], values.to(tl.float32), acc, IEEE if DOT == IEEE else TF32
            )
    where = rows[:, None] * D + out[None, :]
    mask = rmask[:, None] & omask[None, :]
    z = tl.load(x + where, mask=mask, other=0.0).to(tl.float32) / rnorm[:, None]
    radial = tl.where(rnorm > EPS, radial, 0.0)  # below the floor the norm is a constant
    result = (acc - z * radial[:, None]) / rnorm[:, None]
    tl.store(dx + base * D + where, result.to(dx.dtype.element_ty), mask=mask)
    if tl.program_id(0) + tl.program_id(1) == 0:
        _temperature_gradient(grad, G_STRIDE, slope, dtau, T, TAU_N)


# --- tiny sizes: every program holds all similarities


@triton.jit
def _gather(x0, x1, x2, x3, x4, x5, x6, x7, base, r, cols, D, NV: tl.constexpr, DOT: tl.constexpr):
    """(RP, BK) float32 entries of all views' rows, one below another."""
    a = tl.zeros((r.shape[0], cols.shape[0]), tl.float32)
    for v in tl.static_range(NV):
        x = _select(v, x0, x1, x2, x3, x4, x5, x6, x7, NV)
        low, high = tl.load(base + v), tl.load(base + v + 1)
        mask = ((r >= low) & (r < high))[:, None] & (cols < D)[None, :]
        a += tl.load(x + (r - low)[:, None] * D + cols[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    return a


@triton.jit(do_not_specialize=SIZES)
def tiny_values_and_gradients(
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    tau,
    labels,
    base,
    adjacency,
    scale,
    loss,
    slope,
    dz,
    R,
    D,
    T,
    NV: tl.constexpr,
    RP: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    MODE: tl.constexpr,
    TAU_N: tl.constexpr,
    GRADIENTS: tl.constexpr,
):
    """Losses, their slopes in tau and, per term, the gradient of its loss to columns pid*BD.. of
    every row.

    `adjacency` (T, R, 2): bits of the candidate views of an anchor row (0: no anchor), flat number
    of its positive.
    """
    pid = tl.program_id(0)
    r = tl.arange(0, RP)
    inside = r < R
    k = tl.arange(0, BK)
    s = tl.zeros((RP, RP), tl.float32)
    square = tl.zeros((RP,), tl.float32)
    for d in range(0, D, BK):
        a = _gather(x0, x1, x2, x3, x4, x5, x6, x7, base, r, d + k, D, NV, 0)
        s = _dot(a, tl.trans(a), s, IEEE)
        square += tl.sum(a * a, 1)
    norm = tl.maximum(tl.sqrt(square), EPS)
    inv_norm = 1.0 / norm
    # The same numbers along the other axis: a reshaped copy would need a layout change, a sum over
    # a masked diagonal does not.
    diagonal = r[:, None] == r[None, :]
    cosine = s * inv_norm[:, None] * tl.sum(tl.where(diagonal, inv_norm[:, None], 0.0), 0)[None, :]
    view = tl.zeros((RP,), tl.int32)
    for v in tl.static_range(1, NV):
        view += (r >= tl.load(base + v)).to(tl.int32)
    same = diagonal
    if MODE != 0:
        same = _same(labels, r, inside, r, inside)
    out = pid * BD + tl.arange(0, BD)
    own = tl.zeros((RP, BD), tl.float32)
    if GRADIENTS:
        own = _gather(x0, x1, x2, x3, x4, x5, x6, x7, base, r, out, D, NV, 0) * inv_norm[:, None]
    for t in range(0, T):
        inv_tau = 1.0 / tl.load(tau + t * TAU_N)
        share = tl.load(scale + t)
        bits = tl.load(adjacency + (t * R + r) * 2, mask=inside, other=0)
        positive = tl.load(adjacency + (t * R + r) * 2 + 1, mask=inside, other=-1)
        keep = (
            (((bits[:, None] >> view[None, :]) & 1) == 1)
            & inside[None, :]
            & (r[:, None] != r[None, :])
        )
        pair = positive[:, None] == r[None, :]
        if MODE == EXCLUDE:
            keep = keep & (pair | (same == 0))
        if MODE == SUPCON:
            pair = pair | same
        pair = pair & keep
        logit = cosine * inv_tau
        anchor = bits > 0
        top = tl.max(tl.where(keep, logit, LOW), 1)
        weight = tl.exp(tl.where(keep, logit - top[:, None], LOW))
        mass = tl.where(anchor, tl.sum(weight, 1), 1.0)
        hits = tl.maximum(tl.sum(pair.to(tl.float32), 1), 1.0)
        pull = tl.sum(tl.where(pair, logit, 0.0), 1) / hits
        # d loss / d logit
        g = (weight / mass[:, None] - tl.where(pair, 1.0 / hits[:, None], 0.0)) * share
        if pid == 0:
            tl.store(loss + t, tl.sum(tl.where(anchor, top + tl.log(mass) - pull, 0.0), 0) * share)
            tl.store(slope + t, -tl.sum(tl.sum(g * logit, 1), 0) * inv_tau)
        if GRADIENTS:
            g = (g + tl.trans(g)) * inv_tau
            radial = tl.where(norm > EPS, tl.sum(g * cosine, 1), 0.0)
            result = _dot(g, own, tl.zeros((RP, BD), tl.float32), IEEE)
            result = (result - own * radial[:, None]) * inv_norm[:, None]
            tl.store(
                dz + (t * R + r)[:, None] * D + out[None, :],
                result,
                mask=inside[:, None] & (out < D)[None, :],
            )


@triton.jit(do_not_specialize=SIZES)
def tiny_scale(
    dz, grad, slope, dx, dtau, RD, T, G_STRIDE, BLOCK: tl.constexpr, TAU_N: tl.constexpr
):
    """Backward of the tiny path: gradients per term times what arrives from above."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for t in range(0, T):
        total += tl.load(grad + t * G_STRIDE) * tl.load(dz + t * RD + i, mask=i < RD, other=0.0)
    tl.store(dx + i, total.to(dx.dtype.element_ty), mask=i < RD)
    if tl.program_id(0) == 0:
        _temperature_gradient(grad, G_STRIDE, slope, dtau, T, TAU_N)


# --- large sizes: unit rows prepared once, tiles of similarities, matrix products by cuBLAS


@triton.jit
def normalise(
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    blocks,
    z,
    norm,
    D,
    DP,
    NV: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Unit rows of all views in one (R, DP) matrix of z's dtype, zero beyond D; their floored
    norms.
    """
    rec = blocks + tl.program_id(0) * BLOCK_FIELDS
    view, row0, row1, base = tl.load(rec), tl.load(rec + 1), tl.load(rec + 2), tl.load(rec + 3)
    x = _select(view, x0, x1, x2, x3, x4, x5, x6, x7, NV)
    rows = (row0 + tl.arange(0, BM)).to(tl.int64)
    rmask = rows < row1
    k = tl.arange(0, BK)
    square = tl.zeros((BM,), tl.float32)
    for d in range(0, D, BK):
        a = tl.load(
            x + rows[:, None] * D + (d + k)[None, :],
            mask=rmask[:, None] & ((d + k) < D)[None, :],
            other=0.0,
        ).to(tl.float32)
        square += tl.sum(a * a, 1)
    rnorm = tl.maximum(tl.sqrt(square), EPS)
    tl.store(norm + base + rows, rnorm, mask=rmask)
    for d in range(0, DP, BK):
        a = tl.load(
            x + rows[:, None] * D + (d + k)[None, :],
            mask=rmask[:, None] & ((d + k) < D)[None, :],
            other=0.0,
        ).to(tl.float32)
        a = a / rnorm[:, None]
        if ROUND:
            a = _tf32(a)
        tl.store(
            z + (base + rows)[:, None] * DP + (d + k)[None, :],
            a.to(z.dtype.element_ty),
            mask=rmask[:, None] & ((d + k) < DP)[None, :],
        )


@triton.jit
def _tile(z, row, d, R, DP, BM: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr):
    """Rows row..row+BM, columns d..d+BK of z; zero outside.

    Rows of a neighbouring range may appear: callers mask by row number.
    """
    if TMA:
        tile = z.load([row, d])
    else:
        rows = (row + tl.arange(0, BM)).to(tl.int64)
        k = d + tl.arange(0, BK)
        tile = tl.load(
            z + rows[:, None] * DP + k[None, :],
            mask=(rows < R)[:, None] & (k < DP)[None, :],
            other=0.0,
        )
    return tile


@triton.jit
def _similarities(
    zr,
    zc,
    row,
    col,
    R,
    DP,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    TMA: tl.constexpr,
):
    s = tl.zeros((BM, BN), tl.float32)
    for d in range(0, DP, BK):
        s = _dot(
            _tile(zr, row, d, R, DP, BM, BK, TMA),
            tl.trans(_tile(zc, col, d, R, DP, BN, BK, TMA)),
            s,
            DOT,
        )
    return s


@triton.jit(do_not_specialize=SIZES)
def large_forward(
    zr,
    zc,
    tau,
    labels,
    blocks,
    ranges,
    scale,
    lse,
    count,
    part,
    done,
    loss,
    slope,
    R,
    DP,
    T,
    N,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    MODE: tl.constexpr,
    TAU_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """One program: the log-sum-exp of BM anchors of one term.

    Row numbers in the tables are flat.
    """
    pid = tl.program_id(0)
    rec = blocks + pid * BLOCK_FIELDS
    row0, row1, term, rel = tl.load(rec + 1), tl.load(rec + 2), tl.load(rec + 4), tl.load(rec + 5)
    first, last = tl.load(rec + 6), tl.load(rec + 7)
    flat = row0 + tl.arange(0, BM)
    inv_tau = 1.0 / tl.load(tau + term * TAU_N)
    bits = inv_tau * LOG2E
    top = tl.full((BM,), LOW, tl.float32)
    mass = tl.zeros((BM,), tl.float32)
    mean = tl.zeros((BM,), tl.float32)
    gain = tl.zeros((BM,), tl.float32)
    hits = tl.zeros((BM,), tl.float32)
    for q in range(first, last):
        c0, c1 = tl.load(ranges + q * RANGE_FIELDS + 1), tl.load(ranges + q * RANGE_FIELDS + 2)
        for c in range(c0, c1, BN):
            s = _similarities(zr, zc, row0, c, R, DP, BM, BN, BK, DOT, TMA)
            top, mass, mean, gain, hits = _advance(
                s, bits, labels, row0, row1, c, c1, rel, top, mass, mean, gain, hits, BM, BN, MODE
            )
    at = term * R.to(tl.int64) + flat
    a, b = _close_row(top, mass, mean, gain, hits, inv_tau, flat < row1, lse + at, count + at, MODE)
    tl.store(part + pid, a)
    tl.store(part + N + pid, b)
    _reduce_terms(part, blocks + 4, BLOCK_FIELDS, done, scale, loss, slope, T, N)


@triton.jit(
    do_not_specialize=[
        *SIZES,
        "row0",
        "row1",
        "c0",
        "c1",
        "term",
        "row_on",
        "col_on",
        "row_rel",
        "col_rel",
    ]
)
def large_coefficients(
    zr,
    zc,
    tau,
    labels,
    lse,
    count,
    g,
    row0,
    row1,
    c0,
    c1,
    term,
    row_on,
    col_on,
    row_rel,
    col_rel,
    R,
    DP,
    G_COLS,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    MODE: tl.constexpr,
    TAU_N: tl.constexpr,
    TMA: tl.constexpr,
    SCALE: tl.constexpr,
    ROUND: tl.constexpr,
):
    """One tile of SCALE * G for rows row0:row1 against rows c0:c1, in g's dtype; the factor grad/(n
    tau) would cost it range.
    """
    row = row0 + tl.program_id(0) * BM
    col = c0 + tl.program_id(1) * BN
    s = _similarities(zr, zc, row, col, R, DP, BM, BN, BK, DOT, TMA)
    at = term * R.to(tl.int64)
    bits = LOG2E / tl.load(tau + term * TAU_N)
    tile = SCALE * _coefficients(
        s,
        bits,
        lse + at,
        count + at,
        labels,
        row,
        row1,
        col,
        c1,
        row_on,
        col_on,
        row_rel,
        col_rel,
        BM,
        BN,
        MODE,
    )
    if ROUND:
        tile = _tf32(tile)
    # known to start at whole vectors
    i, j = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    where = i.to(tl.int64)[:, None] * G_COLS + j[None, :]
    tl.store(
        g + where,
        tile.to(g.dtype.element_ty),
        mask=(i < row1 - row0)[:, None] & (j < G_COLS)[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
def large_finish(
    x0, x1, x2, x3, x4, x5, x6, x7, blocks, norm, dz, dx, grad, slope, dtau, D, DP, T, G_STRIDE,
    NV: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, TAU_N: tl.constexpr,
):  # fmt: skip
    """dx = (dz - z (z·dz)) / |x| for BM rows of one view."""
    rec = blocks + tl.program_id(0) * BLOCK_FIELDS
    view, row0, row1, base = tl.load(rec), tl.load(rec + 1), tl.load(rec + 2), tl.load(rec + 3)
    x = _select(view, x0, x1, x2, x3, x4, x5, x6, x7, NV)
    rows = (row0 + tl.arange(0, BM)).to(tl.int64)
    rmask = rows < row1
    k = tl.arange(0, BK)
    rnorm = tl.load(norm + base + rows, mask=rmask, other=1.0)
    radial = tl.zeros((BM,), tl.float32)
    for d in range(0, D, BK):
        mask = rmask[:, None] & ((d + k) < D)[None, :]
        z = (
            tl.load(x + rows[:, None] * D + (d + k)[None, :], mask=mask, other=0.0).to(tl.float32)
            / rnorm[:, None]
        )
        radial += tl.sum(
            z * tl.load(dz + (base + rows)[:, None] * DP + (d + k)[None, :], mask=mask, other=0.0),
            1,
        )
    radial = tl.where(rnorm > EPS, radial, 0.0)
    for d in range(0, D, BK):
        mask = rmask[:, None] & ((d + k) < D)[None, :]
        z = (
            tl.load(x + rows[:, None] * D + (d + k)[None, :], mask=mask, other=0.0).to(tl.float32)
            / rnorm[:, None]
        )
        up = tl.load(dz + (base + rows)[:, None] * DP + (d + k)[None, :], mask=mask, other=0.0)
        result = (up - z * radial[:, None]) / rnorm[:, None]
        tl.store(
            dx + (base + rows)[:, None] * D + (d + k)[None, :],
            result.to(dx.dtype.element_ty),
            mask=mask,
        )
    if tl.program_id(0) == 0:
        _temperature_gradient(grad, G_STRIDE, slope, dtau, T, TAU_N)
