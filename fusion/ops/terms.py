"""Which rows meet which rows: a set of contrastive terms over shared views, reduced once to row
ranges and visits.

All views lie one under another in one virtual matrix of R = sum(rows) rows ("flat" row numbers);
nothing is copied for that. Pure Python and cached: a training step looks its layout up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

NEVER = 1 << 30  # an offset that no pair of rows has


class Term(NamedTuple):
    """One InfoNCE-type term: mean over anchor rows of log-sum-exp over their candidates minus the
    positive's logit.

    Candidates of an anchor row are all rows of the views `candidates`. Where the anchor's own view
    is among them, the row itself is masked (`mask_self=True`, NT-Xent) or the whole view is skipped
    (`mask_self=False`, InfoNCE, so `Term((0, 1), (0, 1), mask_self=False)` is the symmetric
    InfoNCE). The positive is the row of the same index in the first candidate view that is not the
    anchor's own. Rows of further candidate views are negatives only.
    """

    anchors: tuple[int, ...]
    candidates: tuple[int, ...]
    mask_self: bool = True

    def seen_by(self, view: int) -> tuple[int, ...]:
        """Candidate views of an anchor in `view`."""
        if self.mask_self:
            return self.candidates
        return tuple(c for c in self.candidates if c != view)

    def positive_of(self, view: int) -> int:
        """The view in which anchors of `view` have their positives."""
        return next(c for c in self.candidates if c != view)

    def anchor_rows(self, rows: tuple[int, ...]) -> int:
        """Anchor rows of all anchor views, given the rows of every view."""
        return sum(rows[view] for view in self.anchors)

    def candidate_rows(self, view: int, rows: tuple[int, ...]) -> int:
        """Candidates of one anchor row of `view`, given the rows of every view."""
        seen = self.seen_by(view)
        return sum(rows[c] for c in seen) - (view in seen)


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

    @property
    def width(self) -> int:
        """Columns that the anchors of this strip meet, their own row included."""
        return sum(c1 - c0 for _, c0, c1 in self.ranges)


class Block(NamedTuple):
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
    """What a row r of a view meets in one term in the backward pass: rows c0:c1 (flat) of `view`.

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


class Band(NamedTuple):
    """Rows r0:r1 (flat), all rows of one view, and the visits that each of them has."""

    view: int
    r0: int
    r1: int
    visits: tuple[Visit, ...]


# compared by identity: lay_out returns the same object for the same request
@dataclass(frozen=True, eq=False)
class TermLayout:
    """The terms over views of given sizes, in the forms in which the paths walk over them."""

    terms: tuple[Term, ...]
    rows: tuple[int, ...]  # of each view
    base: tuple[int, ...]  # first flat row of each view
    total: int  # R
    anchors: tuple[int, ...]  # anchor rows of each term, n_t
    candidates: tuple[int, ...]  # candidates of each anchor row, N_t
    strips: tuple[Strip, ...]  # by anchor view
    blocks: tuple[Block, ...]  # every similarity once
    bands: tuple[Band, ...]  # by the view whose gradient is made
    # what a path derives from the layout once
    tables: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def shares(self) -> list[float]:
        """Weight of one anchor's loss in each term's mean: 1/n_t, or 0 where the positive is the
        only candidate, so that loss and gradient are exactly 0 whatever the rows are.
        """
        counts = zip(self.anchors, self.candidates, strict=True)
        return [1 / anchors if candidates > 1 else 0.0 for anchors, candidates in counts]


@lru_cache(maxsize=256)
def lay_out(terms: tuple[Term, ...], rows: tuple[int, ...]) -> TermLayout:
    """The layout of `terms` over views of `rows` rows; ValueError where they define no loss."""
    _demand_terms(terms, rows)
    base = tuple(sum(rows[:view]) for view in range(len(rows)))
    ends = tuple(start + n for start, n in zip(base, rows, strict=True))
    spans = tuple(zip(base, ends, strict=True))
    candidates = tuple(term.candidate_rows(term.anchors[0], rows) for term in terms)
    return TermLayout(
        terms=terms,
        rows=rows,
        base=base,
        total=sum(rows),
        anchors=tuple(term.anchor_rows(rows) for term in terms),
        candidates=candidates,
        strips=tuple(_strips(terms, spans)),
        blocks=tuple(_blocks(terms, spans)),
        bands=tuple(_bands(terms, spans)),
    )


# --- what defines a loss


def _demand_terms(terms: tuple[Term, ...], rows: tuple[int, ...]) -> None:
    if not terms:
        raise ValueError("contrastive_terms: no terms given")
    for view, n in enumerate(rows):
        if n < 1:
            raise ValueError(
                f"contrastive_terms: view {view} has no rows; a contrastive loss needs at least one"
            )
    for number, term in enumerate(terms):
        fault = _fault_of_names(term, len(rows)) or _fault_of_sizes(term, rows)
        if fault:
            raise ValueError(f"contrastive_terms: term {number}{fault}")


def _fault_of_names(term: Term, views: int) -> str:
    """What is wrong with the views that a term names; empty if nothing is."""
    used = (*term.anchors, *term.candidates)
    if not term.anchors or any(not 0 <= view < views for view in used):
        return f" names views {used} but there are {views}"
    if any(len(set(names)) != len(names) for names in (term.anchors, term.candidates)):
        return " names a view twice"
    for view in term.anchors:
        if all(candidate == view for candidate in term.candidates):
            return f": anchors of view {view} have no candidate view with a positive"
    return ""


def _fault_of_sizes(term: Term, rows: tuple[int, ...]) -> str:
    """What is wrong with the sizes of the views that a term names; empty if nothing is."""
    for view in term.anchors:
        positive = term.positive_of(view)
        if rows[view] != rows[positive]:
            return (
                f": view {view} has {rows[view]} rows, the view {positive} of its positives has "
                f"{rows[positive]}"
            )
    counts = {term.candidate_rows(view, rows) for view in term.anchors}
    if len(counts) > 1:
        return f": anchors of different views see different numbers of candidates {sorted(counts)}"
    return ""


# --- the forms in which a layout is walked over

Span = tuple[int, int]  # first flat row of a view, and the one after its last


def _strips(terms: tuple[Term, ...], spans: tuple[Span, ...]) -> Iterator[Strip]:
    for number, term in enumerate(terms):
        for view in term.anchors:
            rel = spans[term.positive_of(view)][0] - spans[view][0]
            ranges = tuple((c, *spans[c]) for c in term.seen_by(view))
            yield Strip(number, view, *spans[view], rel, ranges)


def _blocks(terms: tuple[Term, ...], spans: tuple[Span, ...]) -> Iterator[Block]:
    """Unordered where both directions exist, so that each similarity is computed once."""
    for number, term in enumerate(terms):
        square = _square(term, spans)
        yield from (
            _blocks_by_view(number, term, spans)
            if square is None
            else _blocks_of_square(number, term, spans, square)
        )


def _square(term: Term, spans: tuple[Span, ...]) -> Span | None:
    """All anchor views of an NT-Xent, where they lie one under another and see each other."""
    views = sorted(term.anchors)
    adjacent = all(spans[a][1] == spans[b][0] for a, b in pairwise(views))
    if term.mask_self and adjacent and set(views) <= set(term.candidates):
        return spans[views[0]][0], spans[views[-1]][1]
    return None


def _blocks_of_square(
    number: int, term: Term, spans: tuple[Span, ...], square: Span
) -> Iterator[Block]:
    yield Block(number, *square, *square, True)
    for candidate in term.candidates:
        if candidate not in term.anchors:
            yield Block(number, *square, *spans[candidate], False)


def _blocks_by_view(number: int, term: Term, spans: tuple[Span, ...]) -> Iterator[Block]:
    for anchor in term.anchors:
        for candidate in term.seen_by(anchor):
            back = candidate in term.anchors and anchor in term.seen_by(candidate)
            if not back or anchor <= candidate:
                yield Block(number, *spans[anchor], *spans[candidate], back)


def _bands(terms: tuple[Term, ...], spans: tuple[Span, ...]) -> Iterator[Band]:
    for view, span in enumerate(spans):
        visits: list[Visit] = []
        for number, term in enumerate(terms):
            visits += _visits(number, term, view, spans)
        yield Band(view, *span, tuple(visits))


def _visits(number: int, term: Term, view: int, spans: tuple[Span, ...]) -> Iterator[Visit]:
    for other, span in enumerate(spans):
        row = view in term.anchors and other in term.seen_by(view)
        col = other in term.anchors and view in term.seen_by(other)
        if not (row or col):
            continue
        positive = term.positive_of(view) if row else view
        row_rel = spans[positive][0] - spans[view][0] if row else NEVER
        met = col and term.positive_of(other) == view
        col_rel = span[0] - spans[view][0] if met else NEVER
        yield Visit(number, other, *span, row, col, row_rel, col_rel)
