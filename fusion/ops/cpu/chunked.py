"""The chunked path: exact, plain PyTorch, any device and dtype.

Memory is O(R·D), two tiles of TILE_ROWS x TILE_COLS, and at most KEEP_BYTES of exponentials carried
from forward to backward; what does not fit there is computed again.

With z = x/|x|, s = z z^T, l = s/tau and P the softmax of l over an anchor's candidates, the
gradient of sum_i a_i loss_i is dz = G z / tau with G_ij = a_i (P_ij - y_ij) + a_j (P_ji - y_ji):
one matrix product where autograd does two. Two-directional terms visit every unordered pair of rows
once. While |l| <= MAX_LOGIT no shift is needed, P_ij = e^l / sum_j e^l, and one exponential serves
both directions, forward and backward. The temperature's gradient costs nothing: sum_ij G_ij l_ij is
half of sum_i z_i·dz_i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mer.fusion.ops.terms import Block, Strip, TermLayout

EPS = 1e-12  # rows shorter than this are divided by it, as torch.nn.functional.normalize does
# 512 KiB of float32: two of them and their rows stay in a core's second-level cache
TILE_ROWS, TILE_COLS = 256, 512
KEEP_BYTES = 64 << 20  # of exponentials, from forward to backward
ROWS = 256  # of (R, D) in one go where a temporary is needed
# Layouts of up to so many rows have their tiles listed once; beyond, listing them costs nothing
# beside the work.
LISTED_ROWS = 4096
# e^60 * 1e8 candidates < 3.4e38; e^-60 is normal
MAX_LOGIT = {torch.float32: 60.0, torch.float64: 300.0}


class Tile(NamedTuple):
    """Rows a0:a1 meet rows b0:b1 (flat numbers) in one term.

    `both`: either are the other's anchors; on the `diagonal` (a0 == b0) the tile holds each such
    pair twice, elsewhere once. `positives`: (columns, its entries that pair a row anchor, or a
    column anchor, with its positive by index: first row, first column, length). `own`: first
    diagonal with rows that meet themselves.
    """

    term: int
    a0: int
    a1: int
    b0: int
    b1: int
    both: bool
    diagonal: bool
    own: int | None
    positives: tuple[tuple[bool, int, int, int], ...]

    @property
    def size(self) -> int:
        return (self.a1 - self.a0) * (self.b1 - self.b0)


def compute_dtype(views: Sequence[Tensor]) -> torch.dtype:
    """float64 where a view is float64, else float32."""
    return torch.float64 if any(v.dtype == torch.float64 for v in views) else torch.float32


def normalised(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(R, D) unit rows of all views in compute dtype, (R, 1) their floored norms."""
    dtype = compute_dtype(views)
    x = torch.cat([v if v.dtype == dtype else v.to(dtype) for v in views])
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(EPS)
    return x.div_(norm), norm


# --- tiles


def tiles_of(layout: TermLayout) -> Iterator[Tile] | tuple[Tile, ...]:
    """In an order that forward and backward share, term by term."""
    if layout.total <= LISTED_ROWS:
        return _listed(layout, TILE_ROWS, TILE_COLS)
    return _generated(layout)


@lru_cache(maxsize=64)
def _listed(layout: TermLayout, rows: int, cols: int) -> tuple[Tile, ...]:
    return tuple(_generated(layout))


def _generated(layout: TermLayout) -> Iterator[Tile]:
    for block in layout.blocks:
        square = block.i0 == block.j0 and block.both
        strips = [strip for strip in layout.strips if strip.term == block.term]
        for a0 in range(block.i0, block.i1, TILE_ROWS):
            a1 = min(a0 + TILE_ROWS, block.i1)
            start = block.j0
            # the block on the diagonal holds both triangles, to its right every pair is new
            if square:
                yield _tile(strips, block, a0, a1, a0, a1)
                start = a1
            for b0 in range(start, block.j1, TILE_COLS):
                yield _tile(strips, block, a0, a1, b0, min(b0 + TILE_COLS, block.j1))


def _tile(strips: list[Strip], block: Block, a0: int, a1: int, b0: int, b1: int) -> Tile:
    positives: list[tuple[bool, int, int, int]] = []
    for strip in strips:
        for anchor, positive, n in _paired(strip, (a0, a1), (b0, b1)):
            positives.append((False, anchor, positive, n))
    if block.both:
        for strip in strips:
            for anchor, positive, n in _paired(strip, (b0, b1), (a0, a1)):
                positives.append((True, positive, anchor, n))
    own = a0 - b0 if a0 < b1 and b0 < a1 else None
    diagonal = block.both and a0 == b0
    return Tile(block.term, a0, a1, b0, b1, block.both, diagonal, own, tuple(positives))


def _paired(
    strip: Strip, anchors: tuple[int, int], others: tuple[int, int]
) -> Iterator[tuple[int, int, int]]:
    """(first anchor, its positive, how many), counted from the starts of the two ranges, where
    anchors of this strip lie in `anchors` and their positives in `others`.
    """
    low = max(anchors[0], strip.r0, others[0] - strip.rel)
    high = min(anchors[1], strip.r1, others[1] - strip.rel)
    if low < high:
        yield low - anchors[0], low + strip.rel - others[0], high - low


def kept_size(layout: TermLayout, bytes_each: int) -> int:
    """Entries carried from forward to backward: those of the first tiles that fit into
    KEEP_BYTES.
    """
    size = 0
    for tile in tiles_of(layout):
        if (size + tile.size) * bytes_each > KEEP_BYTES:
            break
        size += tile.size
    return size


@lru_cache(maxsize=64)
def _shares(layout: TermLayout, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(T,) weight of one anchor's loss in its term, 0 where the positive is the only candidate and
    the loss is 0 whatever the rows are; (T, R) bool, rows that are no anchors of the term.
    """
    others = torch.ones(len(layout.terms), layout.total, dtype=torch.bool)
    for strip in layout.strips:
        others[strip.term, strip.r0 : strip.r1] = False
    return torch.tensor(layout.shares, dtype=dtype, device=device), others.to(device)


class _Tiles:
    """The plan's tiles one after another: e^l with 0 where a row meets itself, or l with -inf there
    where e^l might overflow.
    """

    def __init__(self, layout: TermLayout, z: Tensor, tau: Tensor, simple: bool, kept: Tensor):
        self.z, self.tau, self.simple, self.kept = z, tau, simple, kept
        self.cursor, self.term, self.scaled = 0, -1, z
        self.inverse: list[float] | None = None
        if tau.device.type == "cpu":
            each = tau.expand(len(layout.terms)).tolist()
            self.inverse = [1 / t if t else torch.inf for t in each]
        tiles = tiles_of(layout)
        size = max(t.size for t in tiles) if isinstance(tiles, tuple) else TILE_ROWS * TILE_COLS
        self.scratch = z.new_empty(2 * size)

    def spare(self, tile: Tile, which: int = 0) -> Tensor:
        start = which * (len(self.scratch) // 2)
        return self.scratch[start : start + tile.size].view(tile.a1 - tile.a0, tile.b1 - tile.b0)

    def place(self, tile: Tile) -> tuple[Tensor, bool]:
        """Where this tile's entries belong, and whether they stay there.

        Called once per tile, in order.
        """
        end = self.cursor + tile.size
        if end > len(self.kept):
            # no later, smaller tile fits either: only the first ones are kept
            self.cursor = len(self.kept) + 1
            return self.spare(tile, 1), False
        out = self.kept[self.cursor : end].view(tile.a1 - tile.a0, tile.b1 - tile.b0)
        self.cursor = end
        return out, True

    def stored_or_again(self, tile: Tile) -> Tensor:
        """What the forward pass made of this tile; read only."""
        out, stored = self.place(tile)
        return out if stored else self.finish(tile, self.logits(tile, out))

    def logits(self, tile: Tile, out: Tensor) -> Tensor:
        if self.inverse is not None:  # on the host the temperature is a factor of the product
            return out.addmm_(
                self.z[tile.a0 : tile.a1],
                self.z[tile.b0 : tile.b1].T,
                beta=0,
                alpha=self.inverse[tile.term],
            )
        # elsewhere one product of it into (R, D) instead of a pass over every tile
        if tile.term != self.term:
            if self.term < 0 or self.tau.ndim:
                self.scaled = self.z / (self.tau[tile.term] if self.tau.ndim else self.tau)
            self.term = tile.term
        return torch.mm(self.scaled[tile.a0 : tile.a1], self.z[tile.b0 : tile.b1].T, out=out)

    def finish(self, tile: Tile, out: Tensor) -> Tensor:
        if self.simple:
            out.exp_()
        if tile.own is not None:
            out.diagonal(tile.own).fill_(0.0 if self.simple else -torch.inf)
        return out


# --- labels


def _diagonals(tile: Tile, entries: Tensor, *, columns: bool) -> Iterator[Tensor]:
    """Views of the entries that pair row anchors (or with `columns` column anchors) with their
    positives by index.
    """
    for side, i, j, n in tile.positives:
        if side == columns:
            yield entries[i : i + n, j : j + n].diagonal()


def _alike(tile: Tile, labels: Tensor | None, *, columns: bool, paired: bool) -> Tensor:
    """(rows, cols) bool: labelled alike (a negative label is unlike every other), the anchor's
    positive by index set to `paired`, and no row with itself.
    """
    assert labels is not None  # as every label mode has them
    a, b = labels[tile.a0 : tile.a1, None], labels[None, tile.b0 : tile.b1]
    same = (a == b) & (a >= 0)
    for entries in _diagonals(tile, same, columns=columns):
        entries.fill_(paired)
    if tile.own is not None:
        same.diagonal(tile.own).fill_(False)
    return same


# --- forward and backward


def unshifted(tau: Tensor, dtype: torch.dtype) -> bool:
    """Whether e^l needs no shift.

    Reads the temperature on the host, so only where that costs no synchronisation.
    """
    return tau.device.type == "cpu" and all(
        abs(t) * MAX_LOGIT[dtype] >= 1 for t in tau.reshape(-1).tolist()
    )


def _sides(tile: Tile) -> tuple[tuple[bool, int, int, int], ...]:
    """(columns, first anchor, last, the dimension their candidates lie along) of each direction in
    which the tile is to be summed.
    """
    rows = (False, tile.a0, tile.a1, 1)
    return (rows, (True, tile.b0, tile.b1, 0)) if tile.both and not tile.diagonal else (rows,)


def forward(
    layout: TermLayout,
    views: Sequence[Tensor],
    tau: Tensor,
    labels: Tensor | None,
    mode: str,
    *,
    gradients: bool,
) -> tuple[Tensor, ...]:
    """(T,) mean losses; then for the backward pass (R, D) unit rows, (R, 1) norms, (T, R) sum of
    e^l (or its logarithm where it might overflow) over each anchor's candidates, (T, R) positives
    of each anchor (empty unless supcon), and entries of the first tiles.
    """
    z, norm = normalised(views)
    tau = tau.to(z.dtype)
    simple, supcon = unshifted(tau, z.dtype), mode == "supcon"
    kept = z.new_empty(kept_size(layout, z.element_size()) if gradients else 0)
    tiles = _Tiles(layout, z, tau, simple, kept)
    shape = len(layout.terms), layout.total
    total = z.new_zeros(shape) if simple else z.new_full(shape, -torch.inf)
    # logit of the positive, or the sum over the positives
    pull, count = z.new_zeros(shape), z.new_zeros(shape if supcon else 0)
    for tile in tiles_of(layout):
        out = tiles.logits(tile, tiles.place(tile)[0])
        if supcon:
            _add_alike(tile, labels, out, pull[tile.term], count[tile.term])
        else:
            _take_positives(tile, out, pull[tile.term])
        tiles.finish(tile, out)
        _add_candidates(tile, labels if mode == "exclude" else None, out, simple, total[tile.term])
    each = (total.log() if simple else total).sub(pull.div_(count) if supcon else pull)
    shares, others = _shares(layout, z.dtype, z.device)
    losses = each.masked_fill_(others, 0.0).sum(1).mul_(shares)
    # a NaN that is a factor of a product does not come out of it everywhere
    return losses + tau * 0, z, norm, total, count, tiles.kept


def _take_positives(tile: Tile, logits: Tensor, pull: Tensor) -> None:
    for columns, i, j, n in tile.positives:
        first = tile.b0 + j if columns else tile.a0 + i
        pull[first : first + n] = logits[i : i + n, j : j + n].diagonal()


def _add_alike(
    tile: Tile, labels: Tensor | None, logits: Tensor, pull: Tensor, count: Tensor
) -> None:
    """Supcon: the logits of all same-label candidates, and how many there are."""
    for columns, r0, r1, dim in _sides(tile):
        hit = _alike(tile, labels, columns=columns, paired=True)
        pull[r0:r1] += torch.where(hit, logits, 0).sum(dim)
        count[r0:r1] += hit.sum(dim)


def _add_candidates(
    tile: Tile, excluded: Tensor | None, out: Tensor, simple: bool, total: Tensor
) -> None:
    """The denominators; with the labels `excluded`, without false negatives."""
    nothing = 0.0 if simple else -torch.inf
    for columns, r0, r1, dim in _sides(tile):
        entries = out
        if excluded is not None:
            alike = _alike(tile, excluded, columns=columns, paired=False)
            entries = out.masked_fill(alike, nothing)
        if simple:
            total[r0:r1] += entries.sum(dim)
        else:
            total[r0:r1] = torch.logaddexp(total[r0:r1], entries.logsumexp(dim))


class _Sums(NamedTuple):
    """What the coefficients of every tile are made of: `share` (T,), the gradient that one anchor's
    loss gets, over tau; `factor` (T, R), the same over the anchor's denominator where e^l is not
    shifted; `total` and `positives` (T, R), the denominators and counts of the forward pass.
    """

    share: Tensor
    factor: Tensor
    total: Tensor
    positives: Tensor


class _RowGradient:
    """dz (R, D) over all terms and, with `by_term`, z·dz of each term by itself, which is what a
    temperature of its own needs.
    """

    def __init__(self, z: Tensor, terms: int, *, by_term: bool):
        self.z, self.by_term, self.term = z, by_term, 0
        self.dz = torch.zeros_like(z)
        self.part = torch.zeros_like(z) if by_term else self.dz
        self.radial_sums = z.new_zeros(terms)

    def add(self, tile: Tile, g: Tensor, wanted: list[tuple[int, int]]) -> None:
        """Both products of the tile's coefficients, where a row of the ranges `wanted` is met."""
        if self.by_term and tile.term != self.term:
            self.close_term()
            self.part.zero_()
            self.term = tile.term
        rows, cols = slice(tile.a0, tile.a1), slice(tile.b0, tile.b1)
        if _touches(wanted, tile.a0, tile.a1):
            self.part[rows].addmm_(g, self.z[cols])
        if not tile.diagonal and _touches(wanted, tile.b0, tile.b1):
            self.part[cols].addmm_(g.T, self.z[rows])

    def close_term(self) -> None:
        self.radial_sums[self.term] = radial(self.part, self.z).sum()
        self.dz.add_(self.part)


def backward(
    layout: TermLayout,
    tau: Tensor,
    labels: Tensor | None,
    mode: str,
    saved: tuple[Tensor, ...],
    grad: Tensor,
    need: tuple[bool, ...],
) -> tuple[Tensor, Tensor]:
    """(R, D) gradient of sum_t grad_t loss_t to the rows of all views, and to the temperature in
    its shape, in compute dtype. `need`: each view's, then the temperature's; rows of views that
    need none are left wrong.
    """
    z, norm, total, count, kept = saved
    tau = tau.to(z.dtype)
    tiles = _Tiles(layout, z, tau, unshifted(tau, z.dtype), kept)
    # (T,) of one anchor's loss
    share = grad.to(z.dtype) * _shares(layout, z.dtype, z.device)[0] / tau
    # Rows that are no anchors have a factor, too, which no tile uses.
    factor = share[:, None] / total if tiles.simple else share[:, None].expand_as(total)
    sums = _Sums(share, factor, total, count)
    by_term = need[-1] and tau.ndim > 0 and len(layout.terms) > 1
    gradient = _RowGradient(z, len(layout.terms), by_term=by_term)
    wanted = [(0, layout.total)] if need[-1] else _row_ranges(layout, need[:-1])
    for tile in tiles_of(layout):
        gradient.add(tile, _coefficients(tiles, tile, labels, mode, sums), wanted)
    if by_term:
        gradient.close_term()
    dz = gradient.dz
    inward = radial(dz, z)
    dtau = (gradient.radial_sums if by_term else inward.sum().expand(tau.shape)) / (-2 * tau)
    return project(dz, z, norm, inward), dtau


def project(dz: Tensor, z: Tensor, norm: Tensor, radial: Tensor) -> Tensor:
    """dx = (dz - z (z·dz)) / |x| in place of dz."""
    radial.masked_fill_(norm <= EPS, 0.0)  # below the floor the norm is a constant
    return dz.addcmul_(z, radial, value=-1).div_(norm)


def radial(dz: Tensor, z: Tensor) -> Tensor:
    """(R, 1) z·dz of every row, without a second (R, D)."""
    parts = [
        (dz[a : a + ROWS] * z[a : a + ROWS]).sum(1, keepdim=True) for a in range(0, len(z), ROWS)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _row_ranges(layout: TermLayout, need: tuple[bool, ...]) -> list[tuple[int, int]]:
    """Flat rows of the views that need a gradient."""
    by_view = zip(layout.base, layout.rows, need, strict=True)
    return [(base, base + n) for base, n, wanted in by_view if wanted]


def _touches(ranges: list[tuple[int, int]], low: int, high: int) -> bool:
    return any(a < high and low < b for a, b in ranges)


def _coefficients(
    tiles: _Tiles, tile: Tile, labels: Tensor | None, mode: str, sums: _Sums
) -> Tensor:
    """G/tau of one tile: a_i (P_ij - y_ij), plus a_j (P_ji - y_ji) when both directions count.

    The positives' -y is taken here, not from dz later: where P is close to 1 their difference is
    all that is left.
    """
    t, a, b = tile.term, slice(tile.a0, tile.a1), slice(tile.b0, tile.b1)
    entries = tiles.stored_or_again(tile)
    g = tiles.spare(tile)
    if tiles.simple and mode != "exclude" and tile.both:
        torch.add(sums.factor[t, a, None], sums.factor[t, None, b], out=g).mul_(entries)
    else:
        excluded = labels if mode == "exclude" else None
        _weighted_softmax(tile, entries, tiles.simple, excluded, sums, columns=False, out=g)
        if tile.both:
            back = torch.empty_like(g)
            _weighted_softmax(tile, entries, tiles.simple, excluded, sums, columns=True, out=back)
            g.add_(back)
    for columns in (False, True)[: 1 + tile.both]:
        if mode == "supcon":
            count = sums.positives[t, None, b] if columns else sums.positives[t, a, None]
            hit = _alike(tile, labels, columns=columns, paired=True)
            g.sub_(hit * (sums.share[t] / count))
        else:
            for pair in _diagonals(tile, g, columns=columns):
                pair.sub_(sums.share[t])
    return g


def _weighted_softmax(
    tile: Tile,
    entries: Tensor,
    simple: bool,
    excluded: Tensor | None,
    sums: _Sums,
    *,
    columns: bool,
    out: Tensor,
) -> None:
    """a_i P_ij into `out`, or with `columns` a_j P_ji; 0 at the false negatives of the labels
    `excluded`.
    """
    rows, cols = slice(tile.a0, tile.a1), slice(tile.b0, tile.b1)
    side = (tile.term, None, cols) if columns else (tile.term, rows, None)
    if simple:
        torch.mul(entries, sums.factor[side], out=out)
    else:
        torch.sub(entries, sums.total[side], out=out).exp_().mul_(sums.factor[side])
    if excluded is not None:
        out.masked_fill_(_alike(tile, excluded, columns=columns, paired=False), 0.0)
