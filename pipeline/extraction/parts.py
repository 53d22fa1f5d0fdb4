"""Parts of the plan → files: decode ahead, encode, write behind.

Each finished part is one atomic file, and so is the beginning of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mer.pipeline.encoders.modality import Encoder, Item, Kept, ReadItem, States
from mer.pipeline.errors import DataError, MerError, StoreError
from mer.pipeline.extraction.plan import Part
from mer.pipeline.extraction.sound import check_failures, is_damaged, read_row
from mer.pipeline.media.stages import Problem, Stage
from mer.pipeline.runtime.background import Writer, prefetch
from mer.pipeline.runtime.machine import (
    is_out_of_memory,
    release_device_memory,
    single_threaded,
    trim,
)
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.store import Shard, ShardWriter
from mer.pipeline.store.schema import HALF_MAX, is_count
from mer.pipeline.store.shard import largest

BATCHES_AHEAD = 2  # decoded and padded before they are encoded

# why an item has no features, when its encoder is to blame
ENCODING_PROBLEMS = {
    Stage.OOM: "does not fit into memory even alone; use a smaller --max-seconds",
    Stage.NAN: "the encoder gives values that are not finite",
}


class Done(Protocol):
    """Is told that `length` of a part is done; not `fresh`: an earlier run did it."""

    def __call__(self, part: Part, length: int, fresh: bool = True) -> None: ...


def nobody_listens(part: Part, length: int, fresh: bool = True) -> None:
    """A `Done` that tells nobody."""


@dataclass(frozen=True)
class Source:
    """Where the items of a modality come from, and what they go through.

    `read` gives each item as the encoder takes it, in order.
    """

    encoder: Encoder
    read: Callable[[Iterable[Item]], Iterator[ReadItem]]
    pool: int = 1
    one_by_one: bool = False


@dataclass(frozen=True)
class Tally:
    """What happened while encoding, for the report.

    `fp32_batches` were computed again because half precision overflowed.
    """

    batches: int = 0
    oom_splits: int = 0
    fp32_batches: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.batches + other.batches,
            self.oom_splits + other.oom_splits,
            self.fp32_batches + other.fp32_batches,
        )


class PartRow(NamedTuple):
    """An encoded item: its key, its steps (T, D), its flags, and the mean of every layer over the
    steps that are kept, before pooling (L, width), None where the encoder gives none.
    """

    key: str
    steps: np.ndarray
    flags: int
    layer_means: np.ndarray | None = None


class PartFailure(NamedTuple):
    """An item that has no features: its row in the manifest, and why."""

    row: int
    stage: str
    reason: str


@dataclass(frozen=True)
class ForwardPass:
    """What one forward pass needs.

    `collated` is None where items go one by one; `last` marks the end of a part.
    """

    part: Part
    items: list[Item]
    inputs: list[ReadItem]
    collated: tuple | None
    last: bool


@dataclass(frozen=True)
class Encoded:
    """What one forward pass gave."""

    rows: list[PartRow]
    failures: list[PartFailure]
    tally: Tally


@dataclass
class Begun:
    """The first `batches` batches of a part, as they are being collected."""

    batches: int = 0
    rows: list[PartRow] = field(default_factory=list)
    failures: list[PartFailure] = field(default_factory=list)

    @classmethod
    def read(cls, part: Part, folder: Path) -> Begun | None:
        """What a run that was asked to end has left of `part`, if anything."""
        path = folder / part.begun
        if not path.exists():
            return None
        try:
            shard = Shard(path)
            batches: Any = shard.meta.get("batches")
            if not is_count(batches) or list(shard.modalities) != [part.modality]:
                return None
            check_failures(shard, int)
            of_this_part = shard.key == part.key and 0 < batches < len(part.batches)
            if not of_this_part:
                return None
            rows = []
            for at, key in enumerate(shard.ids):
                frames, means = read_row(shard, part.modality, at)
                rows.append(PartRow(key, frames, int(shard.flags[at]), means))
        except (MerError, ValueError):
            return None
        return cls(batches, rows, [PartFailure(*failure) for failure in shard.meta["failures"]])

    def add(self, encoded: Encoded) -> None:
        """One batch more is done."""
        self.batches += 1
        self.rows += encoded.rows
        self.failures += encoded.failures

    def write(self, part: Part, folder: Path, encoder: Encoder) -> None:
        """In float32: what the whole part is stored in, and with it every last bit, is decided when
        the whole is there.
        """
        meta = {"failures": self.failures, "batches": self.batches}
        self._publish(folder / part.begun, part, encoder, "float32", meta)

    def publish(self, part: Part, folder: Path, encoder: Encoder, dtype: str) -> None:
        """All batches are there: the part itself."""
        self._publish(folder / part.name, part, encoder, dtype, {"failures": self.failures})
        (folder / part.begun).unlink(missing_ok=True)
        self.rows.clear()
        trim()

    def _publish(self, path: Path, part: Part, encoder: Encoder, dtype: str, meta: dict) -> None:
        """Layer means in float32: those of pieces are still to be joined."""
        name = part.modality
        with ShardWriter(
            path,
            {name: encoder.dim},
            dtype=dtype,
            meta=meta,
            key=part.key,
            layers={name: encoder.layer_count},
            layer_dtype="float32",
        ) as writer:
            for key, steps, flags, layer_means in self.rows:
                means = {} if layer_means is None else {name: layer_means}
                writer.add(key, {name: steps}, flags=flags, layer_means=means)


def run_parts(
    parts: Sequence[Part],
    sources: Mapping[str, Source],
    folder: Path,
    *,
    dtype: str,
    threads: int,
    done: Done = nobody_listens,
    stop: Stop | None = None,
) -> Tally:
    """Encode `parts` and publish each as `folder / part.name`.

    `threads` batches are computed side by side, each by operations of one thread: on a CPU that is
    faster than sharing every operation among all cores, and the result does not depend on how many
    cores there are. The modalities take turns, so that there are transcripts to encode while clips
    are being decoded. Asked to stop, the batches that are being computed are the last, and what
    there is of their parts is published as `folder / part.begun`, from where the next call goes on.

    Args:
        parts: what to encode, of one window.
        sources: by modality, where the items come from and what they go through.
        folder: where the parts are published.
        dtype: float16 or float32, as stored.
        threads: batches that are computed side by side.
        done: is told after every batch.
        stop: asks for an early end.

    Returns:
        What happened while encoding.

    Raises:
        DataError: a media file changed during the run.
        OSError: the disk is full.
    """
    stop = stop or Stop()
    opened = {part.name: begun for part in parts if (begun := Begun.read(part, folder))}
    for part in parts:
        if part.name in opened:
            finished = part.batches[: opened[part.name].batches]
            done(part, sum(item.length for batch in finished for item in batch), fresh=False)
    begun_batches = {name: begun.batches for name, begun in opened.items()}
    passes = _feed(parts, sources, begun_batches)
    feed = prefetch(passes, BATCHES_AHEAD, until=lambda: stop.asked)
    running: deque[tuple[ForwardPass, Future[Encoded | None]]] = deque()
    touched: dict[str, Part] = {}  # parts with batches of this call that are not published yet
    tallies: list[Tally] = []

    def take(writer: Writer) -> None:
        batch, future = running.popleft()
        encoded = future.result()
        if encoded is None:
            running.clear()
            return
        part, encoder = batch.part, sources[batch.part.modality].encoder
        opened.setdefault(part.name, Begun()).add(encoded)
        tallies.append(encoded.tally)
        touched[part.name] = part
        done(part, sum(item.length for item in batch.items))
        if batch.last:
            del touched[part.name]
            writer.put(partial(opened.pop(part.name).publish, part, folder, encoder, dtype))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=single_threaded)
    try:
        with Writer() as writer:
            for batch in feed:
                source = sources[batch.part.modality]
                running.append((batch, pool.submit(_encode, batch, source, dtype, stop)))
                if len(running) > threads:  # one more than can run waits, so that no thread does
                    take(writer)
            while running:
                take(writer)
            for name, part in touched.items():
                encoder = sources[part.modality].encoder
                writer.put(partial(opened[name].write, part, folder, encoder))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        feed.close()
    return sum(tallies, Tally())


def _encode(batch: ForwardPass, source: Source, dtype: str, stop: Stop) -> Encoded | None:
    """What one batch gives; None, for it and all later ones, when asked to stop."""
    if stop.asked:
        return None
    pairs = list(zip(batch.items, batch.inputs, strict=True))
    good = [(item, read) for item, read in pairs if read.problem is None]
    failures = [
        PartFailure(item.row, read.problem.stage, read.problem.reason)
        for item, read in pairs
        if read.problem is not None
    ]
    kept = [kept_of(item) for item, _ in good]
    outputs, tally = compute(source, [read.value for _, read in good], batch.collated, kept)
    rows = []
    for (item, read), output in zip(good, outputs, strict=True):
        if isinstance(output, Problem):
            failures.append(PartFailure(item.row, output.stage, output.reason))
            continue
        frames = output.frames
        if item.keep and item.keep != len(frames):
            frames = frames[item.skip : item.skip + item.keep]
        steps = stored(pooled(frames, source.pool), dtype)
        # a view would keep those of the whole batch alive
        means = None if output.layer_means is None else output.layer_means.copy()
        rows.append(PartRow(item.key, steps, int(read.flags), means))
    return Encoded(rows, failures, tally)


def _feed(
    parts: Sequence[Part], sources: Mapping[str, Source], begun: dict[str, int]
) -> Iterator[ForwardPass]:
    """Batches with their inputs decoded and padded, without the first `begun[name]` of a part. The
    next batch is always of the modality that has done the smallest share of its work.
    """
    by_modality: dict[str, list[Part]] = {m: [] for m in sources}
    length = dict.fromkeys(sources, 0)
    for part in parts:
        by_modality[part.modality].append(part)
        length[part.modality] += part.length
    lanes = {m: _lane(by_modality[m], sources[m], begun) for m in sources if length[m]}
    fed = dict.fromkeys(lanes, 0)
    while lanes:
        modality = min(lanes, key=lambda m: fed[m] / length[m])
        batch = next(lanes[modality], None)
        if batch is None:
            del lanes[modality]
        else:
            fed[modality] += sum(item.length for item in batch.items)
            yield batch


def _lane(parts: Sequence[Part], source: Source, begun: dict[str, int]) -> Iterator[ForwardPass]:
    """Batches of one modality."""
    left = [
        (part, batch, number == len(part.batches) - 1)
        for part in parts
        for number, batch in enumerate(part.batches)
        if number >= begun.get(part.name, 0)
    ]
    stream = source.read([item for _, batch, _ in left for item in batch])
    for part, batch, last in left:
        inputs = [next(stream) for _ in batch]
        good = [(item, x.value) for item, x in zip(batch, inputs, strict=True) if not x.problem]
        collated = None
        if good and not source.one_by_one:
            kept = [kept_of(item) for item, _ in good]
            collated = source.encoder.collate([value for _, value in good], kept)
        yield ForwardPass(part, batch, inputs, collated, last)


def kept_of(item: Item) -> Kept | None:
    """The steps of an item that are kept; None: all."""
    return (item.skip, item.keep) if item.keep else None


def compute(
    source: Source,
    items: list[np.ndarray],
    collated: tuple | None,
    kept: Sequence[Kept | None] | None = None,
) -> tuple[list[States | Problem], Tally]:
    """The states of each item, or why it has none; and what happened.

    `kept` are the steps that layer means are over, for items that are not `collated`.

    A batch that does not fit into memory is halved until it does.
    """
    if not items:
        return [], Tally()
    kept = kept or [None] * len(items)
    if source.one_by_one and len(items) > 1:
        pairs = zip(items, kept, strict=True)
        return _joined([compute(source, [item], None, [span]) for item, span in pairs])
    outputs, tally = _forward(source.encoder, items, collated, kept)
    if outputs is not None:
        return [x if _finite(x) else _encoding_problem(Stage.NAN) for x in outputs], tally
    collated = None
    release_device_memory()
    if len(items) == 1:
        return [_encoding_problem(Stage.OOM)], tally
    half = len(items) // 2
    halves = [
        compute(source, items[part], None, kept[part])
        for part in (slice(None, half), slice(half, None))
    ]
    found, counted = _joined(halves)
    return found, tally + Tally(oom_splits=1) + counted


def _joined(
    results: list[tuple[list[States | Problem], Tally]],
) -> tuple[list[States | Problem], Tally]:
    found: list[States | Problem] = []
    for outputs, _ in results:
        found += outputs
    return found, sum((tally for _, tally in results), Tally())


def _forward(
    encoder: Encoder,
    items: list[np.ndarray],
    collated: tuple | None,
    kept: Sequence[Kept | None],
) -> tuple[list[States] | None, Tally]:
    """One forward pass, in fp32 again where half precision overflows; None when memory runs out.

    The caller makes room: here the error's traceback still holds the tensors that did not fit.
    """
    try:
        if collated is not None:
            outputs = encoder.forward(collated)
        else:
            outputs = encoder.encode(items, kept)
        if encoder.precision == "fp32" or all(_finite(x) for x in outputs):
            return outputs, Tally(batches=1)
        return encoder.encode(items, kept, precision="fp32"), Tally(batches=1, fp32_batches=1)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None, Tally(batches=1)


def _encoding_problem(stage: Stage) -> Problem:
    return Problem(stage, ENCODING_PROBLEMS[stage])


def _finite(states: States) -> bool:
    arrays = [x for x in (states.frames, states.layer_means) if x is not None and x.size]
    return all(largest(x) < np.inf for x in arrays)


def pooled(frames: np.ndarray, pool: int) -> np.ndarray:
    """(T, D) → (ceil(T / pool), D): means over `pool` frames; the last one over what is left."""
    if pool == 1:
        return frames
    starts = np.arange(0, len(frames), pool)
    counts = np.diff(np.append(starts, len(frames)))
    return np.add.reduceat(frames, starts, axis=0) / counts[:, None].astype(np.float32)


def stored(frames: np.ndarray, dtype: str) -> np.ndarray:
    """A copy of `frames` (T, D), in float16 where that is `dtype` and they fit.

    A view would keep the whole padded batch alive until the part is written; and here, beside the
    next batch, the rounding costs no time.
    """
    import torch

    if dtype == "float16" and frames.size and largest(frames) <= HALF_MAX:
        # as NumPy rounds, several times as fast
        return torch.from_numpy(frames).to(torch.float16).numpy()
    return frames.copy()


def _check_part(shard: Shard, part: Part) -> None:
    """Raise StoreError unless a part has every item of the plan, or says why not."""
    if list(shard.modalities) != [part.modality]:
        raise StoreError(f"{shard.path}: holds {', '.join(shard.modalities)}, not {part.modality}")
    check_failures(shard, int)
    there, failed = set(shard.ids), {row for row, _, _ in shard.meta["failures"]}
    if not all(item.key in there or item.row in failed for item in part.items):
        raise StoreError(f"{shard.path}: lacks items of the plan")


class Finished:
    """The finished parts of a window: where each item's frames are, and which items failed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.frames: dict[tuple[str, str], tuple[Shard, int]] = {}
        self.failures: dict[tuple[str, int], Problem] = {}
        self.kept: dict[tuple[str, str], int] = {}  # steps, before pooling, of a piece of an item

    def add(self, part: Part, *, read: bool = True) -> bool:
        """Take in a part's file.

        False, and the file removed, when it is absent, damaged or of another plan. `read`: hold all
        frames against their checksums now; otherwise each when it is asked for.
        """
        path = self.folder / part.name
        try:
            shard = Shard(path)
            differs = read and is_damaged(shard, part.modality)
            if shard.key != part.key or differs:
                raise DataError("not this part")
            _check_part(shard, part)
        except MerError:
            path.unlink(missing_ok=True)
            return False
        for at, key in enumerate(shard.ids):
            self.frames[part.modality, key] = shard, at
        for item in part.items:
            self.kept[part.modality, item.key] = item.keep
        for row, stage, reason in shard.meta["failures"]:
            self.failures.setdefault((part.modality, row), Problem(Stage(stage), reason))
        return True

    def get(self, modality: str, key: str) -> PartRow:
        """An item as stored.

        Raises StoreError when they are not there or do not match their checksum.
        """
        if (modality, key) not in self.frames:
            raise StoreError(
                f"{self.folder}: lacks {modality} of item {key}; remove that folder and run the "
                "same command again"
            )
        shard, at = self.frames[modality, key]
        try:
            frames, means = read_row(shard, modality, at)
        except ValueError:
            raise StoreError(f"{shard.path}: damaged; run the same command again") from None
        return PartRow(key, frames, int(shard.flags[at]), means)

    def layer_means(self, modality: str, rows: Sequence[PartRow]) -> np.ndarray | None:
        """The layer means of an utterance (L, width) float32 from those of its pieces, each of
        which counts by its kept steps; None where there are none.
        """
        found = [row.layer_means for row in rows if row.layer_means is not None]
        if len(found) < 2:
            return found[0].copy() if found else None
        steps = [self.kept[modality, row.key] for row in rows]
        return np.average(found, axis=0, weights=steps).astype(np.float32)
