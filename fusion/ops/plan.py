"""Which rows meet which rows: a set of contrastive terms over shared views, reduced once to row
ranges and visits.

All views lie one under another in one virtual matrix of R = sum(rows) rows ("flat" row numbers);
nothing is copied for that. Pure Python, cached: a training step looks its plan up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

NEVER = 1 << 30  # an offset that no pair of rows has


class Term(NamedTuple):
    """One InfoNCE-type term: mean over anchor rows of log-sum-exp over their candidates minus the
    positive's logit.

    Candidates of an anchor row are all rows of the views `candidates`. Where the anchor's own view
    is among them, the row itself is masked (`mask_self=True`, NT-Xent) or the whole view is skipped
    (`mask_self=False`, InfoNCE, so `Term((0, 1), (0, 1), mask_self=False)` is the symmetric
    InfoNCE). The positive is the row of the same index in the first candidate view that is not the
    anchor's own. Further candidate views (a queue) hold negatives only.
    """

    anchors: tuple[int, ...]
    candidates: tuple[int, ...]
    weight: float = 1.0
    mask_self: bool = True

    def seen_by(self, view: int) -> tuple[int, ...]:
        """Candidate views of an anchor in `view`."""
        return self.candidates if self.mask_self else tuple(c for c in self.candidates if c != view)

    def positive_of(self, view: int) -> int:
        return next(c for c in self.candidates if c != view)


class Strip(NamedTuple):
    """Anchor rows r0:r1 (flat) of one view in one term; the positive of row r is r + rel; `ranges`
    are candidates (view, c0, c1), flat.
    """

    term: int
    view: int
    r0: int
    r1: int
    rel: int
    ranges: tuple[tuple[int, int, int], ...]


class Pair(NamedTuple):
    """Rows i0:i1 are anchors over the candidates j0:j1; `both` also the other way round (the same
    similarities serve twice). i0 == j0 only in a square block over all of whose unordered pairs
    `both` holds.
    """

    term: int
    i0: int
    i1: int
    j0: int
    j1: int
    both: bool


class Visit(NamedTuple):
    """What a row r of a piece meets in one term in the backward pass: rows c0:c1 (flat) of `view`.

    `row`: r is an anchor and they are its candidates (its positive is r + row_rel); `col`: they are
    anchors and r their candidate (the positive of c is r where c == r + col_rel).
    """

    term: int
    view: int
    c0: int
    c1: int
    row: bool
    col: bool
    row_rel: int
    col_rel: int


class Piece(NamedTuple):
    """Rows r0:r1 (flat) of one view that have the same visits."""

    view: int
    r0: int
    r1: int
    visits: tuple[Visit, ...]


# compared by identity: make_plan returns the same object for the same request
@dataclass(frozen=True, eq=False)
class Plan:
    terms: tuple[Term, ...]
    rows: tuple[int, ...]  # of each view
    base: tuple[int, ...]  # first flat row of each view
    total: int  # R
    anchors: tuple[int, ...]  # anchor rows of each term, n_t
    candidates: tuple[int, ...]  # candidates of each anchor row, N_t
    strips: tuple[Strip, ...]
    pairs: tuple[Pair, ...]
    pieces: tuple[Piece, ...]
    anchor_rows: tuple[int, int] | None
    tables: dict = field(default_factory=dict, repr=False)  # what a path derives from the plan once


def check(
    terms: tuple[Term, ...], rows: tuple[int, ...], anchor_rows: tuple[int, int] | None
) -> None:
    """ValueError where a term does not define a loss over views of these sizes."""
    if not terms:
        raise ValueError("contrastive_terms: no terms given")
    for n, view in zip(rows, range(len(rows)), strict=True):
        if n < 1:
            raise ValueError(
                f"contrastive_terms: view {view} has no rows; a contrastive loss needs at least one"
            )
    for t, term in enumerate(terms):
        used = (*term.anchors, *term.candidates)
        if not term.anchors or any(not 0 <= v < len(rows) for v in used):
            raise ValueError(
                f"contrastive_terms: term {t} names views {used} but there are {len(rows)}"
            )
        if len(set(term.anchors)) != len(term.anchors) or len(set(term.candidates)) != len(
            term.candidates
        ):
            raise ValueError(f"contrastive_terms: term {t} names a view twice")
        for a in term.anchors:
            if not any(c != a for c in term.candidates):
                raise ValueError(
                    f"contrastive_terms: term {t}: anchors of view {a} have no candidate view "
                    "with a positive"
                )
            if rows[a] != rows[term.positive_of(a)]:
                p = term.positive_of(a)
                raise ValueError(
                    f"contrastive_terms: term {t}: view {a} has {rows[a]} rows, the view {p} of "
                    f"its positives has {rows[p]}"
                )
            if anchor_rows and not 0 <= anchor_rows[0] < anchor_rows[1] <= rows[a]:
                raise ValueError(
                    f"contrastive_terms: anchor_rows {anchor_rows} outside view {a} of {rows[a]} "
                    "rows"
                )
        counts = {
            sum(rows[c] for c in term.seen_by(a)) - (a in term.seen_by(a)) for a in term.anchors
        }
        if len(counts) > 1:
            raise ValueError(
                f"contrastive_terms: term {t}: anchors of different views see different numbers "
                f"of candidates {sorted(counts)}"
            )


@lru_cache(maxsize=256)
def make_plan(
    terms: tuple[Term, ...], rows: tuple[int, ...], anchor_rows: tuple[int, int] | None = None
) -> Plan:
    """`anchor_rows` (start, stop) restricts the anchors to these rows of every anchor view (one
    rank's share of gathered views).
    """
    check(terms, rows, anchor_rows)
    base = tuple(sum(rows[:v]) for v in range(len(rows)))

    def whole(v: int) -> tuple[int, int]:
        return base[v], base[v] + rows[v]

    def anchored(v: int) -> tuple[int, int]:
        restricted = anchor_rows and any(v in term.anchors for term in terms)
        return (base[v] + anchor_rows[0], base[v] + anchor_rows[1]) if restricted else whole(v)

    strips = tuple(
        Strip(
            t,
            a,
            *anchored(a),
            base[term.positive_of(a)] - base[a],
            tuple((c, *whole(c)) for c in term.seen_by(a)),
        )
        for t, term in enumerate(terms)
        for a in term.anchors
    )
    return Plan(
        terms=terms,
        rows=rows,
        base=base,
        total=sum(rows),
        strips=strips,
        anchor_rows=anchor_rows,
        anchors=tuple(sum(s.r1 - s.r0 for s in strips if s.term == t) for t in range(len(terms))),
        candidates=tuple(
            sum(rows[c] for c in term.seen_by(a)) - (a in term.seen_by(a))
            for term in terms
            for a in term.anchors[:1]
        ),
        pairs=tuple(
            p
            for t, term in enumerate(terms)
            for p in _pairs(t, term, whole, anchored, anchor_rows is None)
        ),
        pieces=tuple(p for v in range(len(rows)) for p in _pieces(v, terms, base, whole, anchored)),
    )


def _pairs(t: int, term: Term, whole, anchored, mutual: bool) -> list[Pair]:
    """Unordered where both directions exist, so that each similarity is computed once."""
    views = sorted(set(term.anchors))
    adjacent = all(whole(a)[1] == whole(b)[0] for a, b in zip(views, views[1:], strict=False))
    # NT-Xent: one square block over all anchor views
    if mutual and term.mask_self and adjacent and set(views) <= set(term.candidates):
        low, high = whole(views[0])[0], whole(views[-1])[1]
        rest = [c for c in term.candidates if c not in views]
        return [Pair(t, low, high, low, high, True)] + [
            Pair(t, low, high, *whole(c), False) for c in rest
        ]
    pairs = []
    for a in term.anchors:
        for c in term.seen_by(a):
            back = mutual and c in term.anchors and a in term.seen_by(c)
            if not back or a <= c:
                pairs.append(Pair(t, *anchored(a), *whole(c), back))
    return pairs


def _pieces(v: int, terms: tuple[Term, ...], base: tuple[int, ...], whole, anchored) -> list[Piece]:
    cuts = sorted({*whole(v), *anchored(v)})
    pieces = []
    for r0, r1 in zip(cuts, cuts[1:], strict=False):
        visits = []
        for t, term in enumerate(terms):
            is_anchor = v in term.anchors and anchored(v)[0] <= r0 < anchored(v)[1]
            for u in range(len(base)):
                row = is_anchor and u in term.seen_by(v)
                col = u in term.anchors and v in term.seen_by(u)
                row_rel = base[term.positive_of(v)] - base[v] if row else NEVER
                col_rel = base[u] - base[v] if col and term.positive_of(u) == v else NEVER
                edges = sorted({*whole(u), *anchored(u)})
                for c0, c1 in zip(edges, edges[1:], strict=False):
                    here = col and anchored(u)[0] <= c0 < anchored(u)[1]
                    if row or here:
                        visits.append(Visit(t, u, c0, c1, row, here, row_rel, col_rel))
        pieces.append(Piece(v, r0, r1, tuple(visits)))
    return pieces
