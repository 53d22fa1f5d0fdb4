"""FeatureStore -> padded batches on the device.

`batch_source` reads the rows it is given, and no others: sequences pooled to `data.pool_hz`, packed
end to end and kept on the device when they fit. A batch is then one index gather per modality;
otherwise a thread reads ahead. For a model that looks at nothing but mean and deviation, each
sequence is reduced to them once, when it is read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mer.fusion.batch import Batch, DataSpec
from mer.fusion.config import DataConfig
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.background import prefetch
from mer.pipeline.store import FeatureStore

ORDER = ("audio", "text", "vision")
CHUNK = 256  # rows read from the store at a time
AHEAD = 4  # streamed batches that wait for the trainer at most
TOGETHER = 16  # batches of one-step sequences that are gathered at once
# shuffled batches within which rows are sorted by length: little padding, still random
POOL_OF_BATCHES = 16


def spec(store: FeatureStore, config: DataConfig) -> DataSpec:
    """What the model is built for: the chosen modalities and their frame rates after pooling."""
    header = store.header
    chosen = _chosen(list(header.modalities), config.modalities)
    rates = {}
    for m in chosen:
        rate = header.modalities[m].frame_rate
        rates[m] = None if rate is None else rate / pool_factor(rate, config.pool_hz)
    widths = {m: header.modalities[m].dim for m in chosen}
    return DataSpec(widths, rates, header.task, tuple(header.labels))


def _chosen(stored: list[str], wanted: str) -> list[str]:
    """Those modalities of a store that the setting `wanted` names, in the fixed order."""
    present = [m for m in ORDER if m in stored]
    present += [m for m in stored if m not in ORDER]
    if wanted.strip() == "all":
        return present
    names = {name.strip() for name in wanted.split(",")} - {""}
    if not names or not names <= set(present):
        raise DataError(
            f"data.modalities = {wanted!r}: no such features; the store has {', '.join(present)}"
        )
    return [m for m in present if m in names]


def pool_factor(frame_rate: float | None, pool_hz: float) -> int:
    """How many steps become one.

    Tokens, utterance-level vectors and stores at or below `pool_hz` stay as they are.

    >>> pool_factor(50.0, 12.5), pool_factor(12.5, 12.5), pool_factor(None, 12.5)
    (4, 1, 1)
    """
    if frame_rate is None or not np.isfinite(pool_hz):
        return 1
    return max(1, round(frame_rate / pool_hz))


def pool(packed: np.ndarray, lengths: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over windows of `factor` steps inside each sequence; the last window may be shorter.

    (sum T, D) -> (sum ceil(T/factor), D).
    """
    if factor == 1 or not len(packed):
        return packed, lengths
    shorter = -(-lengths // factor)
    offset = np.cumsum(lengths) - lengths
    inside = np.arange(shorter.sum()) - np.repeat(np.cumsum(shorter) - shorter, shorter)
    start = np.repeat(offset, shorter) + inside * factor
    size = np.minimum(factor, np.repeat(offset + lengths, shorter) - start)
    return np.add.reduceat(packed, start, axis=0) / size[:, None].astype(packed.dtype), shorter


def summarise(packed: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each sequence as one step, its mean and standard deviation side by side: (sum T, D), (B,) ->
    (sum min(T, 1), 2D), (B,). The same as `mer.fusion.modules.pooling.masked_mean_std`.
    """
    there = lengths > 0
    n = lengths[there]
    x = packed.astype(np.float64)
    if len(n):
        start = np.cumsum(n) - n
        mean = np.add.reduceat(x, start, axis=0) / n[:, None]
        variance = (
            np.add.reduceat(np.square(x - np.repeat(mean, n, axis=0)), start, axis=0) / n[:, None]
        )
        x = np.concatenate([mean, np.sqrt(variance + 1e-8)], axis=1)
    else:
        x = np.zeros((0, 2 * packed.shape[1]))
    return x.astype(np.float32), there.astype(lengths.dtype)


@dataclass
class Checked:
    """What it took to hold features against their checksums, once each."""

    bytes: int = 0
    seconds: float = 0.0


@dataclass
class BatchSource:
    """Some rows of a store, ready to be asked for batches.

    `n[m]` (N,) steps after pooling; `target` as in `Batch`.
    """

    store: FeatureStore
    spec: DataSpec
    config: DataConfig
    rows: np.ndarray
    target: Tensor
    device: torch.device
    n: dict[str, np.ndarray]
    summary: bool = False  # each sequence as one step, (mean, standard deviation)
    # (sum T + 1, D); the last row is zero and serves the padding. Empty: streamed
    packed: dict[str, Tensor] = field(default_factory=dict)
    offset: dict[str, Tensor] = field(default_factory=dict)
    length: dict[str, Tensor] = field(default_factory=dict)
    checked: Checked = field(default_factory=Checked)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def resident(self) -> bool:
        return bool(self.packed)

    def width(self, modality: str) -> int:
        """Numbers per step."""
        return self.spec.modalities[modality] * (2 if self.summary else 1)

    def nbytes(self) -> int:
        """What residence takes: float32."""
        return sum(4 * (int(self.n[m].sum()) + 1) * self.width(m) for m in self.spec.modalities)

    def read(self, rows: np.ndarray, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """(packed (sum T, D) float32, lengths (B,)) of `rows` of the store, pooled or summarised.

        What is read for the first time is held against its checksums.
        """
        started = time.perf_counter()
        self.checked.bytes += self.store.check(modality, rows)
        self.checked.seconds += time.perf_counter() - started
        packed, lengths = self.store.batch(modality, rows)
        packed, lengths = pool(
            packed,
            lengths,
            pool_factor(self.store.header.modalities[modality].frame_rate, self.config.pool_hz),
        )
        return summarise(packed, lengths) if self.summary else (packed, lengths)

    def make_resident(self) -> BatchSource:
        for m in self.spec.modalities:
            total = int(self.n[m].sum())
            packed = np.zeros((total + 1, self.width(m)), dtype=np.float32)
            at = 0
            for i in range(0, len(self.rows), CHUNK):
                x = self.read(self.rows[i : i + CHUNK], m)[0]
                packed[at : at + len(x)] = x
                at += len(x)
            self.packed[m] = torch.from_numpy(packed).to(self.device)
            self.offset[m] = torch.from_numpy(np.cumsum(self.n[m]) - self.n[m]).to(self.device)
            self.length[m] = torch.from_numpy(self.n[m]).to(self.device)
        self.target = self.target.to(self.device)
        return self

    def batch(self, index: np.ndarray) -> Batch:
        """The rows at positions `index` (B,) of this part."""
        return self._gather(index) if self.resident else self._assemble(index).to(self.device)

    def batches(self, order: list[np.ndarray]) -> Iterator[Batch]:
        """One batch for every index array; streamed parts are read ahead in a thread."""
        if not self.resident:
            yield from (b.to(self.device) for b in prefetch(map(self._assemble, order), AHEAD))
        elif any(n.max(initial=0) > 1 for n in self.n.values()):
            yield from map(self._gather, order)
        # nothing to pad; a model of such batches does so little that gathering one by one would be
        # 6 % of its step
        else:
            for i in range(0, len(order), TOGETHER):
                group = order[i : i + TOGETHER]
                sizes = [len(index) for index in group]
                yield from self._gather(np.concatenate(group)).split(sizes)

    def in_order(self, batch_size: int) -> list[np.ndarray]:
        """Index arrays that cover all rows once, longest first: little padding, and too large a
        batch shows at once.
        """
        order = np.argsort(-self._total_length(), kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def shuffled(self, batch_size: int, seed: tuple[int, ...]) -> list[np.ndarray]:
        """Random batches of rows of similar length, every row once, the last batch maybe smaller; a
        function of `seed` alone.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        total, batches = self._total_length(), []
        for i in range(0, len(order), batch_size * POOL_OF_BATCHES):
            pool = order[i : i + batch_size * POOL_OF_BATCHES]
            pool = pool[np.argsort(total[pool], kind="stable")]
            batches += [pool[j : j + batch_size] for j in range(0, len(pool), batch_size)]
        return [batches[k] for k in rng.permutation(len(batches))]

    def _total_length(self) -> np.ndarray:
        return np.sum([self.n[m] for m in self.spec.modalities], axis=0)

    def _gather(self, index: np.ndarray) -> Batch:
        at = torch.from_numpy(index).to(self.device, non_blocking=True)
        x, lengths = {}, {}
        for m, packed in self.packed.items():
            longest = max(int(self.n[m][index].max()), 1)
            step = torch.arange(longest, device=self.device)
            n = self.length[m].index_select(0, at)
            place = torch.where(
                step < n[:, None],
                self.offset[m].index_select(0, at)[:, None] + step,
                len(packed) - 1,
            )
            x[m] = packed.index_select(0, place.flatten()).view(
                len(index), longest, packed.shape[1]
            )
            lengths[m] = n
        row = torch.from_numpy(self.rows[index]).to(self.device, non_blocking=True)
        return Batch(x, lengths, self.target.index_select(0, at), row)

    def _assemble(self, index: np.ndarray) -> Batch:
        x, lengths = {}, {}
        for m in self.spec.modalities:
            packed, n = self.read(self.rows[index], m)
            padded = np.zeros((len(index), max(int(n.max()), 1), self.width(m)), dtype=np.float32)
            padded[np.arange(padded.shape[1]) < n[:, None]] = packed
            x[m] = torch.from_numpy(padded)
            lengths[m] = torch.from_numpy(np.asarray(n, dtype=np.int64))
        target = self.target[torch.from_numpy(index)]
        return Batch(x, lengths, target, torch.from_numpy(self.rows[index]))


def batch_source(
    store: FeatureStore,
    spec: DataSpec,
    config: DataConfig,
    rows: np.ndarray,
    target: np.ndarray,
    *,
    device: torch.device | str,
    room: int | None = None,
    summary: bool = False,
) -> BatchSource:
    """Rows of a store, ready to be asked for batches.

    Args:
        store: Where they are.
        spec: Which modalities are read.
        config: How they are pooled, and where they live.
        rows: (N,) int64.
        target: Of these rows only.
        device: Where batches go.
        room: Bytes that a resident part may take; None: half of what is free.
        summary: Each sequence as its mean and deviation, which is all that some models look at.

    Returns:
        The part, its features on the device if there is room.
    """
    device = torch.device(device)
    n = {}
    for m in spec.modalities:
        factor = pool_factor(store.header.modalities[m].frame_rate, config.pool_hz)
        n[m] = -(-np.asarray(store.lengths(m), dtype=np.int64)[rows] // factor)
        if summary:
            n[m] = np.minimum(n[m], 1)
    made = BatchSource(
        store,
        spec,
        config,
        np.asarray(rows, dtype=np.int64),
        torch.from_numpy(target),
        device,
        n,
        summary,
    )
    room = free_bytes(device) // 2 if room is None else room
    if config.residence == "device" or (config.residence == "auto" and made.nbytes() <= room):
        made.make_resident()
    return made


def free_bytes(device: torch.device) -> int:
    """Bytes that a resident part may count on: of the GPU, or of this process's machine or
    container.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
