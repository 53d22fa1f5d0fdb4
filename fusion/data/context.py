"""The turns around an utterance: which rows of the store they are, and what a model is shown of
them.

Neighbours are of the same dialogue and of the same part (train, dev or test), whether they have a
label or not. Each has the slot of its place in the dialogue (the column `position`): a turn that is
missing leaves its slot empty and moves no other. A neighbour is shown as one step: the mean over
the utterance, or the summary that a pooled model reads. Training rows are shuffled as without
context.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mer.fusion.batch import OTHER, SAME, UNKNOWN, Context, ContextSpec
from mer.fusion.config import DataConfig
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import plural, shown

ROWS = 256  # of the store that are read at a time
NOBODY = -1  # the place of a neighbour that is not there
STRIDE = 1 << 33  # from one dialogue's numbers to the next: more than positions and widths take
# The remedies that are always there: of a training, and of a run that is trained.
WITHOUT = "or leave data.context out"
OTHER_RUN = "or take a run that was trained without context"
NAMED_APART = "and name dialogues of other parts differently"  # as rows of all parts are in one


def spec(config: DataConfig) -> ContextSpec | None:
    """What `data.context` and `data.context_width` ask for; None: nothing."""
    if config.context == "none":
        return None
    return ContextSpec(config.context, config.context_width)


def check(table: pa.Table, asked: ContextSpec, where: str, remedy: str = WITHOUT) -> None:
    """Raise DataError for a store that does not say which turn follows which.

    Args:
        table: The store's.
        asked: Which neighbours are asked for.
        where: The store, for the message.
        remedy: What can be done but to mend the store.
    """
    wanted = f"data.context = {asked.kind}: {shown(where, 100)}"
    dialogue, position = table["dialogue"].to_pylist(), table["position"].to_pylist()
    if not any(dialogue):
        raise DataError(
            f"{wanted} names no dialogues; give its table the columns dialogue and position, "
            f"{remedy}"
        )
    ids = table["id"]
    unplaced = [
        row
        for row, (name, place) in enumerate(zip(dialogue, position, strict=True))
        if name and place is None
    ]
    if unplaced:
        some = plural(len(unplaced), "utterance of a dialogue has", "utterances of dialogues have")
        raise DataError(
            f"{wanted}: {some} no position (first: {shown(ids[unplaced[0]].as_py(), 40)}); prepare "
            f"it with --column position=NAME, {remedy}"
        )
    for row, (name, place) in enumerate(zip(dialogue, position, strict=True)):
        if name and place < 0:  # where it stands for "not known" it would be the turn before 0
            raise DataError(
                f"{wanted}: {shown(ids[row].as_py(), 40)} has position {place}; positions count "
                f"from 0: mend them, {remedy}"
            )
    _check_positions(table, np.arange(len(table)), wanted, remedy, by_split=True)


def _check_positions(
    table: pa.Table, rows: np.ndarray, wanted: str, remedy: str, *, by_split: bool
) -> None:
    """Raise DataError for two turns of one dialogue at one position; `by_split`: of one split, as
    corpora number the dialogues of each split anew.
    """
    seen: dict[tuple, int] = {}
    columns = [table[name].to_pylist() for name in ("split", "dialogue", "position")]
    for row in rows.tolist():
        split, dialogue, position = (column[row] for column in columns)
        if not dialogue:
            continue
        key = (split if by_split else None, dialogue, position)
        if key in seen:
            first, second = (shown(table["id"][one].as_py(), 40) for one in (seen[key], row))
            raise DataError(
                f"{wanted}: {first} and {second} both have position {position} of dialogue "
                f"{shown(dialogue, 40)}; number the turns of each dialogue, {remedy}"
            )
        seen[key] = row


def key(table: pa.Table) -> str:
    """sha256 of what decides who is a neighbour, beside the columns of `checkpoint.store_key`."""
    return hashlib.sha256(json.dumps(table["position"].to_pylist()).encode()).hexdigest()


@dataclass(frozen=True)
class Neighbours:
    """For each of N rows and each of W slots: `place` (N, W) int64, which of the rows of `pool` the
    neighbour is, or NOBODY; `speaker` (N, W) int64, UNKNOWN, SAME or OTHER; `offset` (W,) int64.
    """

    pool: np.ndarray
    place: np.ndarray
    speaker: np.ndarray
    offset: np.ndarray

    @property
    def count(self) -> np.ndarray:
        """(N,) how many neighbours each row has."""
        return (self.place != NOBODY).sum(1)


def neighbours(
    table: pa.Table, rows: np.ndarray, pool: np.ndarray, asked: ContextSpec
) -> Neighbours:
    """Who stands around some rows.

    Args:
        table: The store's.
        rows: (N,) the rows, all of them of one part.
        pool: The rows of that part: nobody else is a neighbour.
        asked: Which places are looked at.

    Returns:
        The neighbours; a row without a dialogue has none.

    Raises:
        DataError: Two rows of the pool have the same place in a dialogue.
    """
    wanted = f"data.context = {asked.kind}"
    _check_positions(table, pool, wanted, NAMED_APART, by_split=False)
    names = np.array([name or "" for name in table["dialogue"].to_pylist()], dtype=object)
    _, dialogue = np.unique(names.astype(str), return_inverse=True)
    in_one = names != ""
    position = np.array([-1 if p is None else p for p in table["position"].to_pylist()])
    number = dialogue.astype(np.int64) * STRIDE + position
    offset = np.array(asked.offsets, dtype=np.int64)
    usable = pool[in_one[pool] & (position[pool] >= 0)]
    order = np.argsort(number[usable], kind="stable")
    known = number[usable][order]
    wanted = number[rows][:, None] + offset
    at = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
    met = np.zeros(wanted.shape, dtype=bool)
    place = np.full(wanted.shape, NOBODY, dtype=np.int64)
    if len(known):
        met = (known[at] == wanted) & (in_one & (position >= 0))[rows][:, None]
        in_pool = np.flatnonzero(in_one[pool] & (position[pool] >= 0))[order]
        place = np.where(met, in_pool[at], NOBODY)
    speakers = np.array([name or "" for name in table["speaker"].to_pylist()], dtype=object)
    theirs = speakers[pool[place]] if len(pool) else np.full(place.shape, "", dtype=object)
    mine = speakers[rows][:, None]
    told = met & (theirs != "") & (mine != "")
    speaker = np.where(told, np.where(theirs == mine, SAME, OTHER), UNKNOWN)
    return Neighbours(pool, place, speaker.astype(np.int64), offset)


def note(found: Neighbours, asked: ContextSpec, what: str) -> str:
    """A line on what was found around the rows of a part."""
    count = found.count
    there = found.place != NOBODY
    line = f"context of {what}: {asked.title}, {count.mean() if len(count) else 0:.1f} turns each"
    lonely = int((count == 0).sum())
    if lonely:
        line += f"; {lonely:,} of {plural(len(count), 'utterance')} without any"
    if lonely and not there.any():
        line += ": data.context changes nothing there"
    unknown = (there & (found.speaker == UNKNOWN)).any(1)
    if unknown.any():
        line += f"; {int(unknown.sum()):,} with turns of an unknown speaker"
    return line


@dataclass
class Around:
    """The neighbours of the rows of a part, ready for its batches.

    `x[m]` (P + 1, D_m) float32 a step for each row of the pool, the last one zero and for nobody;
    `there[m]` (P + 1,) bool. `place`, `speaker` and `offset` as in `Neighbours`.
    """

    x: dict[str, Tensor]
    there: dict[str, Tensor]
    place: Tensor
    speaker: Tensor
    offset: Tensor

    def to(self, device: torch.device) -> Around:
        """The same on a device."""
        x = {m: t.to(device) for m, t in self.x.items()}
        there = {m: t.to(device) for m, t in self.there.items()}
        return Around(
            x, there, self.place.to(device), self.speaker.to(device), self.offset.to(device)
        )

    def gather(self, index: Tensor) -> Context:
        """The context of a batch of the rows at positions `index` (B,)."""
        place = self.place.index_select(0, index)
        b, w = place.shape
        flat = place.flatten()  # NOBODY is the last row
        x = {m: t[flat].view(b, w, t.shape[1]) for m, t in self.x.items()}
        there = {m: t[flat].view(b, w) for m, t in self.there.items()}
        return Context(x, there, self.offset.expand(b, w), self.speaker.index_select(0, index))


def around(
    found: Neighbours,
    widths: dict[str, int],
    read: Callable[[np.ndarray, str], tuple[np.ndarray, np.ndarray]],
) -> Around:
    """Read what a model is shown of the neighbours.

    Args:
        found: Who they are.
        widths: Modality -> numbers per step.
        read: (rows, modality) -> (packed (sum T, D), lengths (B,)), as `BatchSource.read`.

    Returns:
        Their means, in memory.
    """
    size = len(found.pool)
    needed = np.unique(found.place[found.place != NOBODY])
    x, there = {}, {}
    for m, width in widths.items():
        steps = np.zeros((size + 1, width), dtype=np.float32)
        present = np.zeros(size + 1, dtype=bool)
        for at in range(0, len(needed), ROWS):
            some = needed[at : at + ROWS]
            packed, n = read(found.pool[some], m)
            present[some] = n > 0
            steps[some[n > 0]] = means(packed, n[n > 0])
        x[m], there[m] = torch.from_numpy(steps), torch.from_numpy(present)
    return Around(
        x,
        there,
        torch.from_numpy(found.place),
        torch.from_numpy(found.speaker),
        torch.from_numpy(found.offset),
    )


def means(packed: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(sum T, D) float32, (B,) of at least one step each -> (B, D) float32 means, summed in double
    precision.

    >>> means(np.array([[1.0], [3.0], [5.0]], dtype=np.float32), np.array([2, 1]))[:, 0]
    array([2., 5.], dtype=float32)
    """
    if not len(lengths):
        return np.zeros((0, packed.shape[1]), dtype=np.float32)
    start = np.cumsum(lengths) - lengths
    total = np.add.reduceat(packed.astype(np.float64), start, axis=0)
    return (total / lengths[:, None]).astype(np.float32)
