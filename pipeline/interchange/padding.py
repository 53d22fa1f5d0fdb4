"""Where the steps of each utterance lie in an array that is padded to one length.

Most files pad behind; some pad in front (Multi-modal Transformer's, and what was made from them),
with the lengths beside it or without. Which it is can be told by the steps that are zero: taking
the first L steps of an array padded in front takes the padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import shown


@dataclass
class Spans:
    """Utterance i is steps [start[i], stop[i]) of the padded array; `notes` for the user."""

    start: np.ndarray
    stop: np.ndarray
    notes: list[str] = field(default_factory=list)


def extents(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last step that is not all zero, of each utterance of (N, T, D); (0, 0)
    where all are."""
    first, last = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    for i, one in enumerate(x):  # row by row: a copy of one utterance, not of the file
        there = np.flatnonzero((one != 0).any(axis=1))
        if len(there):
            first[i], last[i] = there[0], there[-1] + 1
    return first, last


def spans(
    path: Path, what: str, x: np.ndarray, ids: list[str], lengths: np.ndarray | None, *, strip: bool
) -> Spans:
    """The steps of each utterance in `x` (N, T, D).

    Args:
        what: What the user is told this is, e.g. "train: audio".
        ids: (N,) for messages.
        lengths: (N,) as the file gives them, each from 0 to T; None when it gives none.
        strip: Without lengths, zeros at the padded end are padding; else every step counts.

    Raises:
        DataError: A length leaves out every step that is not zero, and the array is not padded in
            front either.
    """
    n, steps = x.shape[:2]
    first, last = extents(x)
    known = lengths is not None and bool(
        (lengths < steps).any()
    )  # lengths that all say "full" say nothing of padding
    if known:
        return _given(path, what, steps, ids, lengths, first, last)
    leading, trailing = int((first > 0).sum()), int(((last < steps) & (last > 0)).sum())
    if not strip and lengths is None:
        out = Spans(np.zeros(n, np.int64), np.full(n, steps, np.int64))
        if leading or trailing:
            out.notes.append(
                f"{what}: {leading} utterances begin and {trailing} end with steps that are all "
                "zero; kept, for no lengths are given"
            )
        return out
    stop = last if lengths is None else np.full(n, steps, np.int64)
    if leading and leading >= trailing:
        zeros = int(first.sum())
        note = (
            f"{what}: padded in front in {leading} of {n} utterances; "
            f"{zeros:,} steps of zeros there were left out"
        )
        return Spans(first, stop, [note])
    out = Spans(np.zeros(n, np.int64), stop)
    if trailing and lengths is not None:
        out.notes.append(
            f"{what}: {trailing} of {n} utterances end with steps that are all zero; kept, as "
            "their lengths say"
        )
    if leading:
        out.notes.append(
            f"{what}: {leading} of {n} utterances begin with steps that are all zero; kept, as "
            "most are padded behind"
        )
    return out


def _given(
    path: Path,
    what: str,
    steps: int,
    ids: list[str],
    lengths: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> Spans:
    behind = last > lengths
    some = lengths > 0  # 0 says that there is nothing, whatever lies there
    front = behind & some & (first >= steps - lengths)
    lost = behind & some & ~front & (first >= lengths)
    if lost.any():
        i = int(lost.argmax())
        raise DataError(
            f"{path}: {what} of '{shown(ids[i], 40)}' has length {lengths[i]}, but its data are "
            f"steps {first[i] + 1} to {last[i]} of {steps}, "
            f"neither in front nor behind ({int(lost.sum())} such utterances); mend the lengths, "
            "or cut the padding off"
        )
    start = np.where(front, steps - lengths, 0)
    out = Spans(start, start + lengths)
    if front.any():
        out.notes.append(
            f"{what}: padded in front in {int(front.sum())} of {len(ids)} utterances; their last "
            "steps were taken"
        )
    cut = behind & ~front
    if cut.any():
        out.notes.append(
            f"{what}: {int(cut.sum())} of {len(ids)} utterances have data behind their length, "
            "which were left out"
        )
    return out
