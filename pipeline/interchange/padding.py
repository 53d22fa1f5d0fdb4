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
from mer.pipeline.runtime.terminal import plural, shown


@dataclass
class Spans:
    """Utterance i is steps [start[i], stop[i]) of the padded array; `notes` for the user."""

    start: np.ndarray
    stop: np.ndarray
    notes: list[str] = field(default_factory=list)


def extents(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, one past the last) step that is not all zero or missing, of each utterance of
    (N, T, D); (0, 0) where all are. Some files pad with NaN.
    """
    first, last = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    for i, one in enumerate(x):  # row by row: a copy of one utterance, not of the file
        there = np.flatnonzero(((one != 0) & (one == one)).any(axis=1))
        if len(there):
            first[i], last[i] = there[0], there[-1] + 1
    return first, last


def spans(
    path: Path, what: str, x: np.ndarray, ids: list[str], lengths: np.ndarray | None, *, strip: bool
) -> Spans:
    """The steps of each utterance in a padded array.

    Args:
        path: The file, for messages.
        what: What the user is told this is, e.g. "train: audio".
        x: (N, T, D) features.
        ids: (N,) for messages.
        lengths: (N,) steps as the file gives them, each from 0 to T; None when it gives none.
        strip: Without lengths, zeros at the padded end are padding; else every step counts.

    Returns:
        Where each utterance lies, and notes for the user.

    Raises:
        DataError: A length leaves out every step that is not zero, and the array is not padded in
            front either.
    """
    steps = x.shape[1]
    first, last = extents(x)
    if lengths is None:
        return _by_zeros(what, steps, first, last) if strip else _whole(what, steps, first, last)
    if (lengths < steps).any():
        return _by_lengths(path, what, steps, ids, lengths, first, last)
    return _full(what, steps, first, last)


def _padded_in_front(what: str, first: np.ndarray, stop: np.ndarray) -> Spans:
    note = (
        f"{what}: padded in front in {int((first > 0).sum())} of "
        f"{plural(len(first), 'utterance')}; "
        f"{plural(int(first.sum()), 'step')} of zeros there left out"
    )
    return Spans(first, stop, [note])


def _zeros_at_the_ends(steps: int, first: np.ndarray, last: np.ndarray) -> tuple[int, int]:
    """How many utterances begin and how many end with steps that are all zero."""
    return int((first > 0).sum()), int(((last < steps) & (last > 0)).sum())


def _whole(what: str, steps: int, first: np.ndarray, last: np.ndarray) -> Spans:
    """Every step, for want of lengths."""
    out = Spans(np.zeros(len(first), np.int64), np.full(len(first), steps, np.int64))
    leading, trailing = _zeros_at_the_ends(steps, first, last)
    if leading or trailing:
        out.notes.append(
            f"{what}: {plural(leading, 'utterance begins', 'utterances begin')} and "
            f"{trailing:,} end with steps that are all zero; kept, for no lengths are given"
        )
    return out


def _by_zeros(what: str, steps: int, first: np.ndarray, last: np.ndarray) -> Spans:
    """Without the zeros at the end where most utterances are padded."""
    leading, trailing = _zeros_at_the_ends(steps, first, last)
    if leading and leading >= trailing:
        return _padded_in_front(what, first, last)
    out = Spans(np.zeros(len(first), np.int64), last)
    _note_leading(out, what, leading)
    return out


def _full(what: str, steps: int, first: np.ndarray, last: np.ndarray) -> Spans:
    """Lengths that all say "full" say nothing of padding in front."""
    stop = np.full(len(first), steps, np.int64)
    leading, trailing = _zeros_at_the_ends(steps, first, last)
    if leading and leading >= trailing:
        return _padded_in_front(what, first, stop)
    out = Spans(np.zeros(len(first), np.int64), stop)
    if trailing:
        out.notes.append(
            f"{what}: {trailing:,} of {plural(len(first), 'utterance ends', 'utterances end')} "
            "with steps that are all zero; kept, as their lengths say"
        )
    _note_leading(out, what, leading)
    return out


def _note_leading(out: Spans, what: str, leading: int) -> None:
    if leading:
        out.notes.append(
            f"{what}: {leading:,} of "
            f"{plural(len(out.start), 'utterance begins', 'utterances begin')} with steps that are "
            "all zero; kept, as most are padded behind"
        )


def _by_lengths(
    path: Path,
    what: str,
    steps: int,
    ids: list[str],
    lengths: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> Spans:
    """As the lengths say: in front, or behind where the data lie there."""
    behind = last > lengths
    some = lengths > 0  # 0 says that there is nothing, whatever lies there
    front = behind & some & (first >= steps - lengths)
    lost = behind & some & ~front & (first >= lengths)
    if lost.any():
        i = int(lost.argmax())
        raise DataError(
            f"{path}: {what} of '{shown(ids[i], 40)}' has length {lengths[i]}, but its data are "
            f"steps {first[i] + 1} to {last[i]} of {steps}, "
            f"neither in front nor behind ({plural(int(lost.sum()), 'such utterance')}); mend the "
            "lengths, "
            "or cut the padding off"
        )
    start = np.where(front, steps - lengths, 0)
    out = Spans(start, start + lengths)
    if front.any():
        out.notes.append(
            f"{what}: padded in front in {int(front.sum())} of {plural(len(ids), 'utterance')}; "
            "their last "
            "steps were taken"
        )
    cut = behind & ~front
    if cut.any():
        out.notes.append(
            f"{what}: {int(cut.sum()):,} of "
            f"{plural(len(ids), 'utterance has', 'utterances have')} data behind their length, "
            "which were left out"
        )
    return out
