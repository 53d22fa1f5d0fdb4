"""Reading a store: by utterance, by batch, or a whole split at once; without a copy where the
format allows.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.store.head import ShardRecord, read_head
from mer.pipeline.store.schema import Damage, Header
from mer.pipeline.store.shard import Shard
from mer.pipeline.store.verify import damages

# mapped at a time: Linux allows a process 65,530 maps, and each shard has one a modality
OPEN_SHARDS = 4096


class FeatureStore:
    """A head file and, once touched, its shards.

    Picklable; safe under fork, spawn and threads; reads from read-only mounts.

    Opening reads the head and looks at the size of every shard; a shard is opened, and held against
    what the head recorded of it, when one of its rows is first read. Only `verify` reads whole
    shards. `check=False` opens a store whose shards may be missing, to see what is wrong with it.
    """

    def __init__(self, path: str | os.PathLike, *, check: bool = True) -> None:
        self.path = Path(path)
        self.header: Header
        self.header, self._table, self.shards, self.flags = read_head(self.path)
        self._table_shard = self._table["shard"].to_numpy()
        self._table_row = self._table["shard_row"].to_numpy()
        self._lengths = {m: self._table[f"n_{m}"].to_numpy() for m in self.header.modalities}
        self._checked: dict[str, np.ndarray] = {}
        self._open: dict[int, Shard] = {}
        self._pid = os.getpid()
        if check:
            for record in self.shards:
                check_file(record, self.path)

    def __len__(self) -> int:
        return len(self._table)

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __reduce__(self):
        return FeatureStore, (self.path.absolute(),)

    def close(self) -> None:
        """Let go of the shards; reading opens them again."""
        self._open = {}

    def table(self) -> pa.Table:
        """A row an utterance: id, split, session, dialogue, speaker, position, label, targets,
        text, tags, duration, n_<modality>..., shard, shard_row.
        """
        return self._table

    def lengths(self, modality: str) -> np.ndarray:
        """(N,) int64 steps; 0 where the modality is absent."""
        self._known(modality)
        return self._lengths[modality]

    def features(
        self, modality: str, row: int, dtype: str | None = None, *, check: bool = False
    ) -> np.ndarray:
        """(T, D) of one utterance: a float32 copy, or with dtype="stored" a read-only view of the
        file. `check` holds it against its checksum (StoreError).
        """
        self._known(modality)
        number, at = int(self._table_shard[operator.index(row)]), int(self._table_row[row])
        shard = self.shard(number)
        x = shard.frames(modality, at, at + 1)
        if check:
            shard.check(modality, x, at, at + 1, store=self.path)
        return x if dtype == "stored" else x.astype(dtype or np.float32)

    def batch(
        self, modality: str, rows: Sequence[int], dtype: str | None = None, *, check: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Utterances end to end, in the order of `rows`: packed (sum T, D) float32 (dtype="stored":
        as stored), lengths (B,) int64. `check` as in `packed`.
        """
        packed, offsets = self.packed(modality, rows, dtype=dtype or "float32", check=check)
        return packed, np.diff(offsets)

    def packed(
        self,
        modality: str,
        rows: Sequence[int] | None = None,
        *,
        dtype: str = "stored",
        out: np.ndarray | None = None,
        check: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Utterances end to end, in the order of `rows` (all by default): packed (sum T, D),
        offsets (B+1,) int64.

        The result is the only large allocation; pass `out` (sum T, D) to fill an array of yours.
        Shards are read one after the other, neighbours in one piece, whatever the order of `rows`.
        `check` holds what this object reads for the first time against its checksums (StoreError).
        """
        self._known(modality)
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        offsets = np.concatenate([[0], np.cumsum(self._lengths[modality][rows])])
        info = self.header.modalities[modality]
        shape = (int(offsets[-1]), info.dim)
        if out is None:
            out = np.empty(shape, info.dtype if dtype == "stored" else dtype)
        elif out.shape != shape:
            raise DataError(
                f"packed({modality!r}): out has shape {out.shape}, the rows need {shape}"
            )
        if not len(rows):
            return out, offsets
        shard, at = self._table_shard[rows], self._table_row[rows]
        order = np.lexsort((at, shard))
        # A run is a stretch of utterances that are neighbours both in their shard and in the
        # result.
        same = (np.diff(shard[order]) == 0) & (np.diff(at[order]) == 1) & (np.diff(order) == 1)
        starts = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(order)]])
        new = (
            ~self._checked.setdefault(modality, np.zeros(len(self), bool))[rows]
            if check
            else np.zeros(len(rows), bool)
        )
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            i, j = order[first], order[last - 1]
            source = self.shard(int(shard[i]))
            x = source.frames(modality, int(at[i]), int(at[j]) + 1)
            if new[order[first:last]].any():
                source.check(modality, x, int(at[i]), int(at[j]) + 1, store=self.path)
            out[offsets[i] : offsets[j + 1]] = x
        if check:
            self._checked[modality][rows] = True
        return out, offsets

    def pooled(self, modality: str) -> np.ndarray:
        """(N, D) float32, mean over each utterance's steps; zeros where it has none."""
        self._known(modality)
        out = np.zeros((len(self), self.header.modalities[modality].dim), np.float32)
        for number in np.unique(self._table_shard).tolist():
            here = self._table_shard == number
            out[here] = self.shard(number).pooled(modality)[self._table_row[here]]
        return out

    def check(self, modality: str, rows: Sequence[int] | None = None) -> int:
        """Hold the frames of `rows` (all by default) against their checksums, those that this
        object has not checked yet; returns the bytes read. Raises StoreError that names the shard,
        the utterance and the remedy. Training calls it once for what it uses.
        """
        self._known(modality)
        done = self._checked.setdefault(modality, np.zeros(len(self), bool))
        rows = np.arange(len(self)) if rows is None else np.unique(np.asarray(rows, np.int64))
        rows = rows[~done[rows]]
        total = 0
        for number in np.unique(self._table_shard[rows]).tolist():
            here = rows[self._table_shard[rows] == number]
            shard, places = self.shard(number), np.sort(self._table_row[here])
            for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
                first, last = int(run[0]), int(run[-1]) + 1
                x = shard.frames(modality, first, last)
                shard.check(modality, x, first, last, store=self.path)
                total += x.nbytes
            done[here] = True
        return total

    def verify(self) -> None:
        """Read every byte; raises StoreError that names the first damaged shard and how many there
        are.
        """
        damaged = damages(self)
        if damaged:
            more = (
                f" ({len(damaged)} of {len(self.shards)} shards are damaged)"
                if len(damaged) > 1
                else ""
            )
            raise StoreError(
                f"{damaged[0].path}: {damaged[0].reason}{more}; run `mer verify --repair "
                f"{self.path}`"
            )

    def shard(self, number: int) -> Shard:
        """The shard of that number, opened on first use in this process and checked against the
        head.
        """
        if self._pid != os.getpid():
            self._open, self._pid = {}, os.getpid()
        shard = self._open.get(number)
        if shard is None:
            if len(self._open) >= OPEN_SHARDS:
                # the one opened first, unless another thread was faster
                self._open.pop(list(self._open)[0], None)
            shard = self._open[number] = self._opened(number)
        return shard

    def _opened(self, number: int) -> Shard:
        record = self.shards[number]
        check_file(record, self.path)
        shard = Shard(record.path, record.group)
        if shard.identity != record.identity:
            raise StoreError(
                f"{record.path}: not the shard that {self.path.name} was built over; run `mer "
                f"verify --repair {self.path}`"
            )
        if not self._fits(number, shard):
            raise StoreError(
                f"{record.path}: its utterances are not the ones the head file lists; run `mer "
                f"verify --repair {self.path}`"
            )
        return shard

    def _fits(self, number: int, shard: Shard) -> bool:
        """Whether the shard has what the head says of it, so that neither can lead to a place
        outside an array.
        """
        rows = (
            np.flatnonzero(self._table_shard == number)
            if len(self.shards) > 1
            else np.arange(len(self))
        )
        at = self._table_row[rows]
        if at.size and at.max() >= len(shard):
            return False
        for m, info in self.header.modalities.items():
            kind = shard.modalities.get(m)
            if (
                kind is None
                or kind["dim"] != info.dim
                or (info.dtype, kind["dtype"]) == ("float16", "float32")
            ):
                return False
            if not np.array_equal(np.diff(shard.offsets[m])[at], self._lengths[m][rows]):
                return False
        return [shard.ids[i] for i in at.tolist()] == self._table["id"].take(rows).to_pylist()

    def _known(self, modality: str) -> None:
        if modality not in self.header.modalities:
            raise DataError(
                f"{self.path}: no modality '{modality}'; it has {', '.join(self.header.modalities)}"
            )


def verify_shards(store: FeatureStore | str | os.PathLike) -> list[Damage]:
    """The damaged shards and why; empty when every byte is as written.

    Raises StoreError when the head file itself is unusable.
    """
    if not isinstance(store, FeatureStore):
        store = FeatureStore(Path(store), check=False)
    return damages(store)


def check_file(record: ShardRecord, store: Path) -> None:
    """Raise StoreError unless the shard is there and of the recorded size (one inside the head file
    has none recorded).
    """
    if record.group != "/":
        return
    try:
        size = record.path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{record.path}: shard is missing; run `mer verify --repair {store}`"
        ) from None
    except ValueError:
        raise StoreError(
            f"{store}: names a shard by what is no name; make it again with `mer extract --force` "
            "or an import"
        ) from None
    if size != record.bytes:
        raise StoreError(
            f"{record.path}: shard has {size} bytes, {record.bytes} were written; run `mer verify "
            f"--repair {store}`"
        )
