"""Reading a store: by utterance, by batch, or a whole split at once, and without a copy where the
format allows it.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import did_you_mean, plural
from mer.pipeline.store.head import Head, MemberRecord, ShardRecord, content_of, read_head
from mer.pipeline.store.schema import LAYERS, Damage, Header, ModalityInfo
from mer.pipeline.store.shard import Shard
from mer.pipeline.store.verify import damages

# Shards mapped at a time: Linux allows a process 65,530 maps, and a shard has one per modality.
OPEN_SHARDS = 4096


class FeatureStore:
    """A head file and, once touched, its shards.

    It can be pickled, and is safe under fork, spawn and threads; it reads from read-only mounts.

    Opening reads the head and looks at the size of every shard. A shard is opened, and held against
    what the head recorded of it, when one of its rows is first read. Only `verify` reads whole
    shards.

    Attributes:
        path: The head file.
        header: What the store says of itself.
        shards: What the head recorded of each shard, in the order of their numbers; empty in a
            joined store.
        members: What the head of a joined store recorded of the stores that hold its features;
            empty in any other.
        flags: What was noted of each utterance: (N,) uint32, bits of the writer's.

    Args:
        path: The head file.
        check: False opens a store whose shards or members may be missing, to see what is wrong
            with it.
        head: What its head file says or is to say, where that is known already.

    Raises:
        DataError: There is no such file, or it is not finished.
        StoreError: The head is damaged, a shard is missing or of another size, or a member of a
            joined store is missing, damaged or not the one that was joined.
        StoreVersionError: It is of a format version that this code does not read.
    """

    def __init__(
        self, path: str | os.PathLike, *, check: bool = True, head: Head | None = None
    ) -> None:
        self.path = Path(path)
        head = head or read_head(self.path)
        self.header: Header = head.header
        self.shards: list[ShardRecord] = head.shards
        self.members: list[MemberRecord] = head.members
        self.flags = head.flags
        self._table = head.table
        if not self.members:
            self._table_shard = self._table["shard"].to_numpy()
            self._table_row = self._table["shard_row"].to_numpy()
        self._lengths = {
            name: self._table[f"n_{name}"].to_numpy() for name in self.header.modalities
        }
        self._checked: dict[str, np.ndarray] = {}
        self._open: dict[int, Shard] = {}
        self._joined: dict[int, FeatureStore] = {}
        self._pid = os.getpid()
        if check:
            self._check_files()

    def _check_files(self) -> None:
        """Raise StoreError unless every shard is there, of its size, and every member fits."""
        for record in self.shards:
            check_file(record, self.path, self.remedy)
        for number in range(len(self.members)):
            self.member(number)._check_files()

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
        self._joined = {}

    @property
    def flags_known(self) -> bool:
        """Whether `flags` are those of `mer extract`: of a store that was extracted, or joined,
        its features copied or not. In any other they are another writer's, or none.
        """
        made = self.header.recipe or self.members or "joined" in self.header.provenance
        return bool(made)

    @property
    def remedy(self) -> str:
        """What mends a damaged shard of this store, in the words of a message."""
        made = self.header.provenance.get("imported")
        if any(not record.sha256 for record in self.shards):  # one file, `mer export --to single`
            return "export it again from the store that it came from"
        if made == "join":
            return "join again with --copy and --force"
        if made is not None:
            return "import it again with --force"
        return f"run `mer verify --repair {self.path}`"

    def table(self) -> pa.Table:
        """The index: a row per utterance, N rows.

        Returns:
            The columns id, split, session, dialogue, speaker, position, label, targets, text, tags,
            duration (seconds), n_<modality> for each modality (steps), and, unless the store is
            joined, shard and shard_row.
        """
        return self._table

    def lengths(self, modality: str) -> np.ndarray:
        """Steps of each utterance.

        Args:
            modality: One of the header's.

        Returns:
            (N,) int64; 0 where the modality is absent.

        Raises:
            DataError: The store has no such modality.
        """
        self._known(modality)
        return self._lengths[modality]

    def features(
        self, modality: str, row: int, dtype: str | None = None, *, check: bool = False
    ) -> np.ndarray:
        """The features of one utterance.

        Args:
            modality: One of the header's.
            row: The utterance's row in the table.
            dtype: None gives a float32 copy, "stored" a read-only view of the file as it is stored,
                any other a copy of that dtype.
            check: Hold the frames against their checksum.

        Returns:
            (T, D): T steps of D numbers; T is 0 where the modality is absent.

        Raises:
            DataError: The store has no such modality.
            StoreError: The shard is missing or damaged, or, with `check`, the frames are.
        """
        self._known(modality)
        if self.members:
            member, name, rows = self._places(modality, np.array([operator.index(row)]))
            if not len(rows):
                info = self.header.modalities[modality]
                kind = info.dtype if dtype == "stored" else dtype or np.float32
                return np.empty((0, info.dim), kind)
            return member.features(name, int(rows[0]), dtype, check=check)
        number, at = int(self._table_shard[operator.index(row)]), int(self._table_row[row])
        shard = self.shard(number)
        x = shard.frames(modality, at, at + 1)
        if check:
            shard.check(modality, x, at, at + 1, remedy=self.remedy)
        return x if dtype == "stored" else x.astype(dtype or np.float32)

    def batch(
        self,
        modality: str,
        rows: Sequence[int] | np.ndarray,
        dtype: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Utterances end to end, in the order of `rows`.

        Args:
            modality: One of the header's.
            rows: B rows of the table.
            dtype: Of the result: float32 by default, or "stored".
            check: As for `packed`.

        Returns:
            packed (sum T, D) and lengths (B,) int64 in steps.

        Raises:
            DataError: As for `packed`.
            StoreError: As for `packed`.
        """
        packed, offsets = self.packed(modality, rows, dtype=dtype or "float32", check=check)
        return packed, np.diff(offsets)

    def packed(
        self,
        modality: str,
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        dtype: str = "stored",
        out: np.ndarray | None = None,
        check: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Utterances end to end, in the order of `rows`, read shard by shard whatever that order.

        Args:
            modality: One of the header's.
            rows: B rows of the table; None is all of them.
            dtype: Of the result, where it is allocated here.
            out: (sum T, D), an array of the caller's to fill; without it the result is the only
                large allocation.
            check: Hold what this object reads for the first time against its checksums.

        Returns:
            packed (sum T, D) and offsets (B+1,) int64 in steps.

        Raises:
            DataError: The store has no such modality, or `out` is of another shape.
            StoreError: A shard is missing or damaged, or, with `check`, frames are.
        """
        self._known(modality)
        places = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        there = self._places(modality, places) if self.members else None
        offsets = np.concatenate([[0], np.cumsum(self._lengths[modality][places])])
        info = self.header.modalities[modality]
        shape = (int(offsets[-1]), info.dim)
        if out is None:
            out = np.empty(shape, info.dtype if dtype == "stored" else dtype)
        elif out.shape != shape:
            raise DataError(
                f"packed({modality!r}): out has shape {out.shape}, the rows need {shape}"
            )
        if not len(places):
            return out, offsets
        if there is not None:
            member, name, at = there
            member.packed(name, at, out=out, check=check)
            return out, offsets
        done = self._done(modality) if check else None
        unchecked = np.zeros(len(places), bool) if done is None else ~done[places]
        shard, at = self._table_shard[places], self._table_row[places]
        order = np.lexsort((at, shard))
        # A run is a stretch of utterances that are neighbours both in their shard and in the
        # result.
        same = (np.diff(shard[order]) == 0) & (np.diff(at[order]) == 1) & (np.diff(order) == 1)
        starts = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(order)]])
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            i, j = order[first], order[last - 1]
            source = self.shard(int(shard[i]))
            x = source.frames(modality, int(at[i]), int(at[j]) + 1)
            if unchecked[order[first:last]].any():
                source.check(modality, x, int(at[i]), int(at[j]) + 1, remedy=self.remedy)
            out[offsets[i] : offsets[j + 1]] = x
        if done is not None:
            done[places] = True
        return out, offsets

    def pooled(self, modality: str) -> np.ndarray:
        """The mean over each utterance's steps, as the shards hold it.

        Args:
            modality: One of the header's.

        Returns:
            (N, D) float32; zeros where the modality is absent.

        Raises:
            DataError: The store has no such modality.
            StoreError: A shard is missing, or damaged, its means included.
        """
        self._known(modality)
        out = np.zeros((len(self), self.header.modalities[modality].dim), np.float32)
        if self.members:
            member, name, at = self._places(modality, np.arange(len(self)))
            out[self.members[self._holder(modality)].rows >= 0] = member.pooled(name)[at]
            return out
        for number in np.unique(self._table_shard).tolist():
            here = self._table_shard == number
            out[here] = self.shard(number).pooled(modality)[self._table_row[here]]
        return out

    def layer_means(
        self, modality: str, rows: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """The mean of every layer of the encoder over each utterance's steps, held against their
        checksums where this object reads them for the first time.

        Args:
            modality: One of the header's.
            rows: B rows of the table; None is all of them.

        Returns:
            (B, L, width) float32; zeros where the modality is absent.

        Raises:
            DataError: The store has no such modality, or no layer means of it.
            StoreError: A shard is missing, or damaged, its layer means included.
        """
        self._known(modality)
        info = self.header.modalities[modality]
        if not info.layers:
            raise DataError(
                f"{self.path}: keeps no layer means of {modality}; make it again with `mer extract "
                "--layer-means --force`, or import features that have them"
            )
        places = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        out = np.zeros((len(places), info.layers, info.width), np.float32)
        if self.members:
            member, name, at = self._places(modality, places)
            known = self.members[self._holder(modality)].rows[places] >= 0
            out[known] = member.layer_means(name, at)
            return out
        done = self._done(f"{modality}.{LAYERS}")
        numbers = self._table_shard[places]
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            shard, at = self.shard(number), self._table_row[places[here]]
            means = shard.layer_means(modality)
            if not means.size:
                continue
            shard.check_layer_means(modality, at[~done[places[here]]], remedy=self.remedy)
            out[here] = means[at]
        done[places] = True
        return out

    def check(self, modality: str, rows: Sequence[int] | np.ndarray | None = None) -> int:
        """Hold frames against their checksums, those that this object has not checked yet.

        Training calls it once for what it uses.

        Args:
            modality: One of the header's.
            rows: Rows of the table; None is all of them.

        Returns:
            The bytes read.

        Raises:
            DataError: The store has no such modality.
            StoreError: Frames are damaged; it names the shard, the utterance and the remedy.
        """
        self._known(modality)
        places = np.arange(len(self)) if rows is None else np.unique(np.asarray(rows, np.int64))
        if self.members:
            member, name, at = self._places(modality, places)
            return member.check(name, at)
        done = self._done(modality)
        places = places[~done[places]]
        total = 0
        for number in np.unique(self._table_shard[places]).tolist():
            here = places[self._table_shard[places] == number]
            shard, at = self.shard(number), np.sort(self._table_row[here])
            for run in np.split(at, np.flatnonzero(np.diff(at) != 1) + 1):
                first, last = int(run[0]), int(run[-1]) + 1
                x = shard.frames(modality, first, last)
                shard.check(modality, x, first, last, remedy=self.remedy)
                total += x.nbytes
            done[here] = True
        return total

    def verify(self) -> None:
        """Read every byte of every shard.

        Raises:
            StoreError: A shard is missing or damaged; it names the first one, and how many there
                are.
        """
        damaged = damages(self)
        if damaged:
            more = (
                f" ({plural(len(damaged), 'file is', 'files are')} damaged)"
                if len(damaged) > 1
                else ""
            )
            # What is wrong with a member as such says itself what helps; of its shards the command
            # says it.
            itself = self.members and damaged[0].store == str(self.path)
            mend = f"run `mer verify {self.path}`" if self.members else self.remedy
            remedy = "" if itself else f"; {mend}"
            raise StoreError(f"{damaged[0].path}: {damaged[0].reason}{more}{remedy}")

    def content(self) -> str:
        """What the store holds, as a sha256 in hexadecimal; not where it lies, nor when or where it
        was made.
        """
        return content_of(self.path)

    def member(self, number: int) -> FeatureStore:
        """A store that was joined, opened on first use.

        Args:
            number: Its place in `members`.

        Returns:
            The store, which is the one that was joined. Its shards may be missing.

        Raises:
            StoreError: It is missing, damaged, or not the one that was joined.
        """
        if number not in self._joined:
            self._joined[number] = self._opened_member(self.members[number])
        return self._joined[number]

    def _opened_member(self, record: MemberRecord) -> FeatureStore:
        """The member, after a check that it is the store that was joined and matches the head.
        Raises StoreError otherwise.
        """
        try:
            head = read_head(record.path, with_content=True)
            store = FeatureStore(record.path, check=False, head=head)
        except DataError as error:
            raise StoreError(
                f"{error}; {self.path} was joined from it: put it back, or join again with "
                "--force, naming where it is now"
            ) from None
        except PermissionError:
            raise
        except (OSError, ValueError):
            raise StoreError(
                f"{self.path}: names a member by what is no name; join again with --force"
            ) from None
        if head.content != record.content or store.members or not self._fits_member(record, store):
            raise StoreError(
                f"{record.path}: not what it was when {self.path} was joined from it; put that "
                "back, or join again with --force"
            )
        return store

    def _fits_member(self, record: MemberRecord, store: FeatureStore) -> bool:
        """Whether a member matches what the head says of it; then no index of the head is outside
        the member's arrays.
        """
        here = np.flatnonzero(record.rows >= 0)
        at = record.rows[here]
        if at.size and at.max() >= len(store):
            return False
        for name, there in record.modalities.items():
            if store.header.modalities.get(there) != self.header.modalities[name]:
                return False
            if not np.array_equal(store.lengths(there)[at], self._lengths[name][here]):
                return False
        return store.table()["id"].take(at).equals(self._table["id"].take(here))

    def _holder(self, modality: str) -> int:
        """The number of the member of a joined store that holds a modality."""
        held = (modality in record.modalities for record in self.members)
        return list(held).index(True)

    def _places(self, modality: str, rows: np.ndarray) -> tuple[FeatureStore, str, np.ndarray]:
        """Where a joined store has a modality of these rows: the member, its name there, and its
        rows there, those that the member does not have left out.
        """
        number = self._holder(modality)
        record = self.members[number]
        at = record.rows[rows]
        return self.member(number), record.modalities[modality], at[at >= 0]

    def shard(self, number: int) -> Shard:
        """The shard of that number, opened on first use in this process.

        Args:
            number: Its place in `shards`.

        Returns:
            The open shard, which is the one that the head was built over.

        Raises:
            StoreError: It is missing, damaged, or another one.
        """
        if self._pid != os.getpid():
            self._open, self._pid = {}, os.getpid()
        shard = self._open.get(number)
        if shard is None:
            if len(self._open) >= OPEN_SHARDS:
                # The one opened first is let go, unless another thread was faster.
                self._open.pop(list(self._open)[0], None)
            shard = self._open[number] = self._opened(number)
        return shard

    def _opened(self, number: int) -> Shard:
        """A shard, which is the one that the head was built over; StoreError otherwise."""
        record = self.shards[number]
        check_file(record, self.path, self.remedy)
        shard = Shard(record.path, record.group, remedy=self.remedy)
        if shard.identity != record.identity:
            raise StoreError(
                f"{record.path}: not the shard that {self.path.name} was built over; {self.remedy}"
            )
        if not self._fits(number, shard):
            raise StoreError(
                f"{record.path}: its utterances are not the ones the head file lists; {self.remedy}"
            )
        return shard

    def _fits(self, number: int, shard: Shard) -> bool:
        """Whether a shard matches what the head says of it; then no index of the head is outside
        the shard's arrays.
        """
        # One shard holds every row, which need not be looked for.
        several = len(self.shards) > 1
        rows = np.flatnonzero(self._table_shard == number) if several else np.arange(len(self))
        at = self._table_row[rows]
        if at.size and at.max() >= len(shard):
            return False
        for name, info in self.header.modalities.items():
            kind = shard.modalities.get(name)
            if kind is None or kind["dim"] != info.dim:
                return False
            if (info.dtype, kind["dtype"]) == ("float16", "float32"):
                return False
            if not _fit_layers(info, kind):
                return False
            if not np.array_equal(np.diff(shard.offsets[name])[at], self._lengths[name][rows]):
                return False
        return [shard.ids[i] for i in at.tolist()] == self._table["id"].take(rows).to_pylist()

    def _done(self, modality: str) -> np.ndarray:
        """(N,) bool: which rows this object has checked against their checksums. Callers set what
        they check.
        """
        return self._checked.setdefault(modality, np.zeros(len(self), bool))

    def _known(self, modality: str) -> None:
        """Raise DataError for a modality that the store does not have."""
        if modality not in self.header.modalities:
            known = self.header.modalities
            raise DataError(
                f"{self.path}: no modality '{modality}'; it has {', '.join(known)}"
                f"{did_you_mean(modality, known)}"
            )


def _fit_layers(info: ModalityInfo, kind: dict) -> bool:
    """Whether a shard keeps the layer means that the head says, or none of width 0."""
    layers = kind.get(LAYERS)
    if layers is None or not info.layers:
        return layers is None and not info.layers
    narrowed = (info.layer_dtype, layers["dtype"]) == ("float16", "float32")
    return layers["count"] == info.layers and layers["width"] in (0, info.width) and not narrowed


def verify_shards(
    store: FeatureStore | str | os.PathLike, progress: Silent = SILENT
) -> list[Damage]:
    """Read every byte of every shard of a store.

    Args:
        store: An open store, or its head file.
        progress: Shows how far it is.

    Returns:
        The damaged shards and why; empty when every byte is as written.

    Raises:
        DataError: There is no such file.
        StoreError: The head file itself is unusable.
    """
    if not isinstance(store, FeatureStore):
        store = FeatureStore(Path(store), check=False)
    return damages(store, progress)


def check_file(record: ShardRecord, store: Path, remedy: str) -> None:
    """Raise StoreError, which names the remedy, unless the shard is there and of the recorded size
    (one inside the head file has none recorded).
    """
    if record.group != "/":
        return
    try:
        size = record.path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{record.path}: shard is missing; {remedy}") from None
    except ValueError:
        raise StoreError(
            f"{store}: names a shard by what is no name; make it again with `mer extract --force` "
            "or an import"
        ) from None
    if size != record.bytes:
        sizes = f"shard has {plural(size, 'byte')}, {record.bytes:,} were written"
        raise StoreError(f"{record.path}: {sizes}; {remedy}")
