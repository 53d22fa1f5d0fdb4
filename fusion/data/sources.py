"""FeatureStore -> padded batches on the device.

`batch_source` reads the rows it is given, and no others: sequences pooled to `data.pool_hz`, packed
end to end and kept on the device when they fit. A batch is then one index gather per modality;
otherwise a thread reads ahead. For a model that looks at nothing but mean and deviation, each
sequence is reduced to them once, when it is read. Where the layers of such a model are mixed, the
utterance mean of every layer takes the place of the mean. A modality may be joined from several
feature sets: side by side in each step, a set of one step per utterance repeated over the others'.
With `data.context` a batch also brings the neighbours of each row (context.py), one step each,
which are always kept in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mer.fusion.batch import Batch, DataSpec, FeatureSet
from mer.fusion.config import DataConfig
from mer.fusion.data import context, splits, unimodal
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.background import prefetch
from mer.pipeline.runtime.terminal import did_you_mean, plural, shown
from mer.pipeline.store import FeatureStore, ModalityInfo

ORDER = ("audio", "text", "vision")
CHUNK = 256  # rows read from the store at a time
AHEAD = 4  # streamed batches that wait for the trainer at most
TOGETHER = 16  # batches of one-step sequences that are gathered at once
# shuffled batches within which rows are sorted by length: little padding, still random
POOL_OF_BATCHES = 16


def spec(store: FeatureStore, config: DataConfig, *, summary: bool = False) -> DataSpec:
    """What the model is built for: the chosen modalities, what each is read from, and their frame
    rates after pooling.

    Args:
        store: The features.
        config: Which of them, and how layers are used.
        summary: The model looks at nothing but mean and deviation of a sequence.

    Raises:
        DataError: There are no such features, they cannot be joined, or there are no layers to mix.
    """
    header = store.header
    chosen = _chosen(list(header.modalities), config.modalities)
    mixes = layers_of(store, config, summary=summary) == "mix"
    widths, rates, sets = {}, {}, {}
    for m, names in chosen.items():
        feature_sets = tuple(
            _feature_set(header.modalities[name], name, mixes, summary) for name in names
        )
        if feature_sets != (FeatureSet(m, feature_sets[0].width),):
            sets[m] = feature_sets
        widths[m] = sum(feature_set.width for feature_set in feature_sets)
        rates[m] = _rate(store, names, config)
    labels, around = tuple(header.labels), context.spec(config)
    made = DataSpec(widths, rates, header.task, labels, sets, context=around)
    for m in made.modalities:
        steps(store, made, config, m, summary=summary)
    return made


def layers_of(
    store: FeatureStore, config: DataConfig, *, summary: bool
) -> Literal["auto", "stored", "mix"]:
    """How the layers of a store are used: `data.layers`, decided where it is auto; it stays auto
    where the store has one layer of everything.

    Raises:
        DataError: They are to be mixed, and there are none.
    """
    stored = store.header.modalities
    chosen = chain.from_iterable(_chosen(list(stored), config.modalities).values())
    mixable = any(_several(stored[name], summary) for name in chosen)
    if config.layers == "mix" and not mixable:
        what = "layer means" if summary else "layers side by side"
        remedy = "--layer-means" if summary else "--audio-layer stack:A-B (or --text-layer)"
        remedy += " --force"
        raise DataError(
            f"data.layers = mix: {store.path} has no {what} of what this model reads; extract "
            f"again with {remedy}, or leave data.layers out"
        )
    return "mix" if config.layers == "auto" and mixable else config.layers


def _several(info: ModalityInfo, summary: bool) -> bool:
    """Whether a model of this kind can mix layers of a feature set."""
    return len(info.stack) > 1 or (summary and info.layers > 1)


def _feature_set(info: ModalityInfo, name: str, mixes: bool, summary: bool) -> FeatureSet:
    if not (mixes and _several(info, summary)):
        return FeatureSet(name, info.dim)
    stack = tuple(info.stack) if len(info.stack) > 1 else ()
    means = info.layers if summary and info.layers > 1 else 0
    return FeatureSet(name, info.dim // max(len(stack), 1), means, stack)


def _chosen(stored: list[str], wanted: str | tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Modality -> the feature sets of the store that the setting `wanted` reads it from, in the
    fixed order.
    """
    text = wanted if isinstance(wanted, str) else ",".join(wanted)
    tokens = [token.strip(" []\"'") for token in text.split(",")]
    if tokens == ["all"]:
        return _every(stored)
    found: dict[str, tuple[str, ...]] = {}
    for token in dict.fromkeys(filter(None, tokens)):
        names = tuple(name.strip() for name in token.split("+"))
        if len(names) == 1 and names[0] in map(modality_of, stored):
            names = _own(names[0], stored)
        if not set(names) <= set(stored):
            raise _no_such(text, stored)
        stems = {modality_of(name) for name in names}
        if len(stems) > 1 or len(set(names)) < len(names):
            raise DataError(
                f"data.modalities: {shown(token, 80)} joins what is not several feature sets of "
                "one modality; write for example text,audio+audio.egemaps"
            )
        m = stems.pop()
        if m in found:
            raise DataError(
                f"data.modalities names {m} twice; to join feature sets write "
                f"{shown('+'.join((*found[m], *names)), 80)}"
            )
        found[m] = names
    if not found:
        raise _no_such(text, stored)
    return {m: found[m] for m in _in_order(found)}


def _no_such(wanted: str, stored: list[str]) -> DataError:
    known = shown(", ".join(_in_order(stored)), 120)
    asked = shown(wanted, 60)
    words = (word.strip() for token in wanted.split(",") for word in token.split("+"))
    odd = next((word for word in words if word not in stored), "")
    guess = did_you_mean(odd, stored)
    return DataError(f"data.modalities = {asked!r}: no such features; the store has {known}{guess}")


def _every(stored: list[str]) -> dict[str, tuple[str, ...]]:
    """Each modality from its own features; further feature sets are only read where they are
    named.
    """
    found = dict.fromkeys(map(modality_of, stored))
    return {m: _own(m, stored) for m in _in_order(found)}


def _own(modality: str, stored: list[str]) -> tuple[str, ...]:
    """The feature set of the modality's own name, else the only one that it has."""
    names = [name for name in stored if modality_of(name) == modality]
    if modality in names:
        return (modality,)
    if len(names) > 1:
        raise DataError(
            f"the store has {shown(', '.join(names), 120)} and no {modality}: say which with --set "
            f"data.modalities={shown(names[0], 40)}, or join them with +"
        )
    return tuple(names)


def _in_order(names: Iterable[str]) -> list[str]:
    """The known modalities first, each with its feature sets; the others as they come."""
    given = list(names)
    known = [name for m in ORDER for name in given if modality_of(name) == m]
    return known + [name for name in given if name not in known]


def modality_of(feature_set: str) -> str:
    """The modality that a feature set belongs to.

    >>> modality_of("audio.egemaps"), modality_of("audio")
    ('audio', 'audio')
    """
    return feature_set.partition(".")[0]


def unread(store: FeatureStore, spec: DataSpec) -> list[str]:
    """The store's feature sets of the same modalities that the model does not read."""
    read = spec.sources
    stored = store.header.modalities
    return [m for m in stored if m not in read and modality_of(m) in spec.modalities]


def _rate(store: FeatureStore, names: Sequence[str], config: DataConfig) -> float | None:
    """Steps per second after pooling, of the first set that has such a rate."""
    for name in names:
        rate = store.header.modalities[name].frame_rate
        if rate is not None:
            return rate / pool_factor(rate, config.pool_hz)
    return None


def steps(
    store: FeatureStore, spec: DataSpec, config: DataConfig, modality: str, *, summary: bool
) -> np.ndarray:
    """Steps of each utterance of the store after pooling and joining: (N,) int64.

    Where several feature sets are joined the modality is there only where all of them are.

    Raises:
        DataError: Their steps cannot be joined.
    """
    by_set: dict[str, np.ndarray] = {}
    for feature_set in spec.read_from(modality):
        if _lacks(store, feature_set):
            by_set[feature_set.name] = np.zeros(len(store), dtype=np.int64)
            continue
        factor = pool_factor(store.header.modalities[feature_set.name].frame_rate, config.pool_hz)
        n = -(-np.asarray(store.lengths(feature_set.name), dtype=np.int64) // factor)
        by_set[feature_set.name] = np.minimum(n, 1) if summary else n
    present = np.all([n > 0 for n in by_set.values()], axis=0)
    sequences = {name: n for name, n in by_set.items() if n.max(initial=0) > 1}
    first = next(iter(sequences), None)
    for name, n in sequences.items():
        differs = np.flatnonzero(present & (n != sequences[str(first)]))
        if len(differs):
            row = int(differs[0])
            utterance = shown(store.table()["id"][row].as_py(), 60)
            raise DataError(
                f"{first} and {name} cannot be joined: of {plural(len(differs), 'utterance')} the "
                f"steps differ (first: {utterance}, {sequences[str(first)][row]} and {n[row]}); "
                "name one of them in data.modalities"
            )
    joined = np.max(list(by_set.values()), axis=0)
    return np.where(present, joined, 0)


def _lacks(store: FeatureStore, feature_set: FeatureSet) -> bool:
    """Whether a store has nothing of a set of features, which is then absent in every row: so are
    the stores of new clips. Those that a run is evaluated on are checked beforehand
    (`mer.fusion.runs.checkpoint.check_store`).
    """
    return feature_set.name not in store.header.modalities


def join_notes(store: FeatureStore, spec: DataSpec, rows: np.ndarray) -> list[str]:
    """Lines that count the utterances in which a joined modality is absent although some of its
    feature sets are there.
    """
    notes = []
    lack = ("utterance lacks one of them and counts", "utterances lack one of them and count")
    for m, sets in spec.sets.items():
        present = np.array([store.lengths(feature_set.name)[rows] > 0 for feature_set in sets])
        partly = int((present.any(0) & ~present.all(0)).sum())
        if partly:
            names = " + ".join(feature_set.name for feature_set in sets)
            notes.append(f"{m} ({names}): {partly:,} of {plural(len(rows), *lack)} as without")
    return notes


def present(store: FeatureStore, spec: DataSpec, modality: str) -> np.ndarray:
    """(N,) bool: which utterances of the store have all that a modality is read from."""
    return np.all([store.lengths(one.name) > 0 for one in spec.read_from(modality)], axis=0)


def absent_notes(store: FeatureStore, spec: DataSpec, rows: np.ndarray, what: str) -> list[str]:
    """Of how many rows each modality that a model reads is absent, and of how many all of them:
    what is answered there says nothing of them.

    Args:
        store: The features.
        spec: What the model reads.
        rows: Of the store.
        what: These rows, in words.
    """
    notes = []
    there = []
    for m in spec.modalities:
        there.append(present(store, spec, m)[rows])
        missing = int((~there[-1]).sum())
        if missing:
            notes.append(f"{m}: absent in {missing:,} of {plural(len(rows), what)}")
    nothing = int((~np.any(there, axis=0)).sum())
    if nothing and len(there) > 1:
        has = plural(nothing, "row has", "rows have")
        notes.append(f"{has} no features at all: the answer there is the same for each")
    return notes


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
    # feature set -> (N,) bool, which rows of the store have had their layer means counted
    means: dict[str, np.ndarray] = field(default_factory=dict)


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
    neighbours: context.Neighbours | None = None  # None: each row alone
    around: context.Around | None = None  # the same, read
    soft: Tensor | None = None  # (N, C) as in `Batch`
    unimodal: dict[str, Tensor] | None = None  # (N,) or (N, 1) each, as in `Batch`

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def resident(self) -> bool:
        return bool(self.packed)

    def width(self, modality: str) -> int:
        """Numbers per step."""
        return sum(block.numbers for block in self.spec.blocks(modality, summary=self.summary))

    def nbytes(self) -> int:
        """What residence takes: float32."""
        turns = 0 if self.neighbours is None else len(self.neighbours.pool) + 1
        rows = {m: int(self.n[m].sum()) + 1 + turns for m in self.spec.modalities}
        return sum(4 * rows[m] * self.width(m) for m in self.spec.modalities)

    def read(self, rows: np.ndarray, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """(packed (sum T, D) float32, lengths (B,)) of `rows` of the store, pooled or summarised,
        the feature sets of a modality joined.

        What is read for the first time is held against its checksums.
        """
        found = [self._read_set(rows, feature_set) for feature_set in self.spec.read_from(modality)]
        lengths = [n for _, n in found]
        present = np.all([n > 0 for n in lengths], axis=0)
        joined = np.where(present, np.max(lengths, axis=0), 0)
        parts = [spread(pieces[0], n, joined) for pieces, n in found]
        parts += [spread(x, n, joined) for pieces, n in found for x in pieces[1:]]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)), joined

    def _read_set(
        self, rows: np.ndarray, feature_set: FeatureSet
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """What is read of one feature set: its steps, or their means and deviations, or the means
        of its layers (then no step is read); and the lengths of these.
        """
        if _lacks(self.store, feature_set):
            return self._nothing(feature_set, len(rows))
        if feature_set.means:
            return self._read_means(rows, feature_set)
        started = time.perf_counter()
        self.checked.bytes += self.store.check(feature_set.name, rows)
        self.checked.seconds += time.perf_counter() - started
        packed, lengths = self.store.batch(feature_set.name, rows)
        rate = self.store.header.modalities[feature_set.name].frame_rate
        packed, lengths = pool(packed, lengths, pool_factor(rate, self.config.pool_hz))
        if not self.summary:
            return [packed], lengths
        packed, there = summarise(packed, lengths)
        return np.split(packed, 2, axis=1), there

    def _read_means(
        self, rows: np.ndarray, feature_set: FeatureSet
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The layer means of one feature set side by side, one step for each row that has it."""
        started = time.perf_counter()
        present = self.store.lengths(feature_set.name)[rows] > 0
        means = self.store.layer_means(feature_set.name, rows)[present]
        counted = self.checked.means.setdefault(feature_set.name, np.zeros(len(self.store), bool))
        new = int((present & ~counted[rows]).sum())
        if new:
            dtype = self.store.header.modalities[feature_set.name].layer_dtype
            self.checked.bytes += (
                new * feature_set.means * feature_set.width * np.dtype(dtype).itemsize
            )
            self.checked.seconds += time.perf_counter() - started
            counted[rows] = True
        return [means.reshape(len(means), feature_set.means * feature_set.width)], present.astype(
            np.int64
        )

    def _nothing(self, feature_set: FeatureSet, rows: int) -> tuple[list[np.ndarray], np.ndarray]:
        """What `_read_set` gives where a set is absent in so many rows."""
        stored = feature_set.width * max(len(feature_set.stack), 1)
        widths = [stored]
        if self.summary:
            widths = (
                [feature_set.means * feature_set.width] if feature_set.means else [stored, stored]
            )
        pieces = [np.zeros((0, width), dtype=np.float32) for width in widths]
        return pieces, np.zeros(rows, dtype=np.int64)

    def read_neighbours(self) -> BatchSource:
        """Read what batches show of neighbours, as far as there are any; into memory, wherever the
        part itself is.
        """
        if self.neighbours is not None:
            widths = {m: self.width(m) for m in self.spec.modalities}
            self.around = context.around(self.neighbours, widths, self.read)
        return self

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
        self.soft = None if self.soft is None else self.soft.to(self.device)
        if self.unimodal is not None:
            self.unimodal = {m: t.to(self.device) for m, t in self.unimodal.items()}
        if self.around is not None:
            self.around = self.around.to(self.device)
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

    def passes(self, batch_size: int) -> Passes:
        """All rows in order, as often as they are gone through."""
        return Passes(self, self.in_order(batch_size))

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
        turns = None if self.around is None else self.around.gather(at)
        soft = None if self.soft is None else self.soft.index_select(0, at)
        own = self._own_labels(at)
        return Batch(x, lengths, self.target.index_select(0, at), row, turns, soft, own)

    def _assemble(self, index: np.ndarray) -> Batch:
        x, lengths = {}, {}
        for m in self.spec.modalities:
            packed, n = self.read(self.rows[index], m)
            padded = np.zeros((len(index), max(int(n.max()), 1), self.width(m)), dtype=np.float32)
            padded[np.arange(padded.shape[1]) < n[:, None]] = packed
            x[m] = torch.from_numpy(padded)
            lengths[m] = torch.from_numpy(np.asarray(n, dtype=np.int64))
        at = torch.from_numpy(index)
        turns = None if self.around is None else self.around.gather(at)
        soft = None if self.soft is None else self.soft[at]
        row, own = torch.from_numpy(self.rows[index]), self._own_labels(at)
        return Batch(x, lengths, self.target[at], row, turns, soft, own)

    def _own_labels(self, at: Tensor) -> dict[str, Tensor] | None:
        """The unimodal labels of the rows at these positions."""
        if self.unimodal is None:
            return None
        return {m: values.index_select(0, at) for m, values in self.unimodal.items()}


@dataclass(frozen=True)
class Passes:
    """The batches of a part, from the beginning whenever they are gone through."""

    part: BatchSource
    order: list[np.ndarray]

    def __iter__(self) -> Iterator[Batch]:
        return self.part.batches(self.order)


def spread(packed: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Sequences (sum T, D) of these lengths as sequences of the `wanted` lengths: the same, none
    (0), or one step repeated.

    >>> spread(np.array([[1.0], [2.0], [3.0]]), np.array([1, 2]), np.array([3, 0]))[:, 0]
    array([1., 1., 1.])
    """
    if np.array_equal(lengths, wanted):
        return packed
    begin = np.repeat(np.cumsum(lengths) - lengths, wanted)
    inside = np.arange(wanted.sum()) - np.repeat(np.cumsum(wanted) - wanted, wanted)
    return packed[begin + np.where(np.repeat(lengths == wanted, wanted), inside, 0)]


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
    pool: np.ndarray | None = None,
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
        pool: The rows among which neighbours are, if the spec asks for any: those of the same part,
            labelled or not. None: `rows`.

    Returns:
        The part, its features on the device if there is room.
    """
    device = torch.device(device)
    n = {m: steps(store, spec, config, m, summary=summary)[rows] for m in spec.modalities}
    made = BatchSource(
        store,
        spec,
        config,
        np.asarray(rows, dtype=np.int64),
        torch.from_numpy(spec.scaled(target)),
        device,
        n,
        summary,
    )
    if config.soft_labels:
        shares = splits.soft(store.table(), spec.task, spec.labels)
        made.soft = None if shares is None else torch.from_numpy(shares[made.rows])
    if config.unimodal_labels:
        own = unimodal.targets(store.table(), spec.task, spec.labels)
        read = {m: torch.from_numpy(x[made.rows]) for m, x in own.items() if m in spec.modalities}
        made.unimodal = read or None
    if spec.context is not None:
        pool = made.rows if pool is None else np.asarray(pool, dtype=np.int64)
        made.neighbours = context.neighbours(store.table(), made.rows, pool, spec.context)
        made.read_neighbours()
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
