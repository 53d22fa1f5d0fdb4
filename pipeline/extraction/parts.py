"""Parts of the plan → files: decode ahead, encode, write behind.

Each finished part is one atomic file, and so is the beginning of one.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from mer.pipeline.errors import DataError, MerError, StoreError
from mer.pipeline.extraction.plan import Item, Part
from mer.pipeline.media.workers import Decoded, Decoders, Job
from mer.pipeline.runtime.background import Writer, prefetch
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.store import Shard, ShardWriter
from mer.pipeline.store.schema import HALF_MAX, is_count
from mer.pipeline.store.shard import largest

# What is recorded of an utterance in the store's flags, one bit each, and what it means; the media
# flags are those of `mer.pipeline.media.audio`. Bits are in stores: append only.
FLAGS = {
    "short": "shorter than the encoder's first frame, padded with zeros",
    "chunked": "longer than --max-seconds, encoded in overlapping pieces",
    "text_cut": "a transcript longer than the encoder takes, cut at its end",
    "clipped": "overdriven: many samples at full scale",
    "silent": "no sample above -80 dB",
    "resampled": "not at 16 kHz",
    "rate_rounded": "resampled by a ratio that was rounded",
    "start_clipped": "a start before 0 s, taken as 0",
    "end_beyond": "an end beyond the end of the file",
    "late": "sound that begins after the file's time line, silence before it",
    "gap": "a gap in the time stamps, filled with silence",
    "tracks": "several audio tracks in the file, of which one was read",
    "unsized": "a header without its true length, decoded to the end of the data",
    "damaged": "frames that could not be decoded, left out",
    "trailing": "data behind the end of the audio, not read",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}
# (part, length, fresh=True): so much of a part is done; not fresh: an earlier run did it
Done = Callable[..., None]


class Encoder(Protocol):
    """What AudioEncoder and TextEncoder share."""

    dim: int
    precision: str

    def collate(self, items: Sequence[np.ndarray]) -> tuple: ...
    def forward(self, batch: tuple, *, precision: str | None = None) -> list[np.ndarray]: ...
    def encode(
        self, items: Sequence[np.ndarray], *, precision: str | None = None
    ) -> list[np.ndarray]: ...


@dataclass
class Source:
    """Where the items of a modality come from, and what they go through."""

    encoder: Encoder
    # waveform or token ids of each item, in order
    inputs: Callable[[Iterable[Item]], Iterator[Decoded]]
    pool: int = 1
    one_by_one: bool = False


@dataclass
class Tally:
    """What happened while encoding, for the report."""

    batches: int = 0
    oom_splits: int = 0
    fp32_batches: int = 0  # computed again because half precision overflowed

    def add(self, other: Tally) -> None:
        for name in ("batches", "oom_splits", "fp32_batches"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def audio_inputs(
    encoder,
    decoders: Decoders,
    jobs: Callable[[int], Job],
    samples: Sequence[int],
    *,
    ahead: int = 64,
) -> Callable[[Iterable[Item]], Iterator[Decoded]]:
    """Items → prepared waveforms, decoded ahead.

    A clip is normalised whole, then cut into its pieces.
    """

    def inputs(items: Iterable[Item]) -> Iterator[Decoded]:
        items = list(items)
        for item, clip in zip(
            items, decoders.run((jobs(item.row) for item in items), ahead=ahead), strict=True
        ):
            if clip.stage is not None:
                if clip.stage == "changed":
                    raise DataError(f"{clip.reason}; run the same command again")
                yield clip
            elif clip.samples != samples[item.row]:
                reason = (
                    f"{jobs(item.row).path}: {clip.samples:,} samples decoded, "
                    f"{samples[item.row]:,} expected"
                )
                yield Decoded(stage="decode", reason=reason)
            else:
                whole = encoder.prepare(clip.waveform)
                # then `whole` may be longer: a short clip is padded
                uncut = (item.first, item.end) == (0, clip.samples)
                yield Decoded(
                    item.length, whole if uncut else whole[item.first : item.end], clip.flags
                )

    return inputs


def text_inputs(ids: Callable[[int], np.ndarray]) -> Callable[[Iterable[Item]], Iterator[Decoded]]:
    """Items → token ids, from `ids(row)`."""

    def inputs(items: Iterable[Item]) -> Iterator[Decoded]:
        for item in items:
            yield Decoded(item.length, ids(item.row))

    return inputs


@dataclass
class Batch:
    """What one forward pass needs.

    `collated` is None where items go one by one; `last` marks the end of a part.
    """

    part: Part
    items: list[Item]
    inputs: list[Decoded]
    collated: tuple | None
    last: bool


@dataclass
class Begun:
    """The first `batches` batches of a part: rows (key, frames, flags) and failures (row, stage,
    reason).
    """

    batches: int = 0
    rows: list[tuple[str, np.ndarray, int]] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, part: Part, folder: Path) -> Begun | None:
        """What a run that was asked to end has left of `part`, if anything."""
        path = folder / part.begun
        if not path.exists():
            return None
        try:
            shard = Shard(path)
            batches = shard.meta.get("batches")
            if not is_count(batches) or list(shard.modalities) != [part.modality]:
                return None
            check_failures(shard, int)
            if (
                shard.key != part.key
                or not 0 < batches < len(part.batches)
                or next(shard.mismatches(part.modality), None) is not None
            ):
                return None
        except MerError:
            return None
        rows = [
            (key, shard.frames(part.modality, at, at + 1), int(shard.flags[at]))
            for at, key in enumerate(shard.ids)
        ]
        return cls(batches, rows, [tuple(failure) for failure in shard.meta["failures"]])

    def write(self, part: Part, folder: Path, dim: int) -> None:
        """In float32: what the whole part is stored in, and with it every last bit, is decided when
        the whole is there.
        """
        meta = {"failures": self.failures, "batches": self.batches}
        with ShardWriter(
            folder / part.begun, {part.modality: dim}, dtype="float32", meta=meta, key=part.key
        ) as writer:
            for key, frames, flags in self.rows:
                writer.add(key, {part.modality: frames}, flags=flags)

    def publish(self, part: Part, folder: Path, dim: int, dtype: str) -> None:
        """All batches are there: the part itself."""
        with ShardWriter(
            folder / part.name,
            {part.modality: dim},
            dtype=dtype,
            meta={"failures": self.failures},
            key=part.key,
        ) as writer:
            for key, frames, flags in self.rows:
                writer.add(key, {part.modality: frames}, flags=flags)
        (folder / part.begun).unlink(missing_ok=True)
        self.rows.clear()
        trim()


def trim() -> None:
    """Give freed memory back to the system. glibc keeps it, in pieces between what lives on, and
    ever more of it: without this the size of a process grows with the number of clips it has seen.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def keep() -> None:
    """Let this process keep freed memory until `trim`.

    Dask's nannies start workers with MALLOC_TRIM_THRESHOLD_=65536: every tensor would come from the
    system anew, page by page, and extraction take twice as long. These are the thresholds that
    glibc grows to by itself.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


def run_parts(
    parts: Sequence[Part],
    sources: dict[str, Source],
    folder: Path,
    *,
    dtype: str,
    threads: int,
    tally: Tally,
    done: Done,
    stop: Stop | None = None,
) -> None:
    """Encode `parts` and publish each as `folder / part.name`.

    `done(part, length)` is called after every batch.

    `threads` batches are computed side by side, each by operations of one thread: on a CPU that is
    faster than sharing every operation among all cores, and the result does not depend on how many
    cores there are. The modalities take turns, so that there are transcripts to encode while clips
    are being decoded. Asked to stop, the batches that are being computed are the last, and what
    there is of their parts is published as `folder / part.begun`, from where the next call goes on.
    """
    stop = stop or Stop()
    opened = {part.name: begun for part in parts if (begun := Begun.read(part, folder))}
    for part in parts:
        if part.name in opened:
            done(
                part,
                sum(
                    item.length
                    for batch in part.batches[: opened[part.name].batches]
                    for item in batch
                ),
                fresh=False,
            )
    feed = prefetch(
        _feed(parts, sources, {name: begun.batches for name, begun in opened.items()}),
        2,
        until=lambda: stop.asked,
    )
    running: deque[tuple[Batch, Future]] = deque()
    touched: dict[str, Part] = {}  # parts with batches of this call that are not published yet

    def take(writer: Writer) -> None:
        batch, future = running.popleft()
        encoded = future.result()
        if encoded is None:
            running.clear()
            return
        rows, failures, counted = encoded
        part, dim = batch.part, sources[batch.part.modality].encoder.dim
        begun = opened.setdefault(part.name, Begun())
        begun.batches += 1
        begun.rows += rows
        begun.failures += failures
        tally.add(counted)
        touched[part.name] = part
        done(part, sum(item.length for item in batch.items))
        if batch.last:
            del touched[part.name]
            writer.put(partial(opened.pop(part.name).publish, part, folder, dim, dtype))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=single_threaded)
    try:
        with Writer() as writer:
            for batch in feed:
                running.append(
                    (batch, pool.submit(_encode, batch, sources[batch.part.modality], dtype, stop))
                )
                if len(running) > threads:  # one more than can run waits, so that no thread does
                    take(writer)
            while running:
                take(writer)
            for name, part in touched.items():
                writer.put(
                    partial(opened[name].write, part, folder, sources[part.modality].encoder.dim)
                )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        feed.close()


def single_threaded() -> None:
    """Operations of this thread run on one core."""
    import torch

    torch.set_num_threads(1)


def _encode(
    batch: Batch, source: Source, dtype: str, stop: Stop
) -> tuple[list[tuple[str, np.ndarray, int]], list[tuple[int, str, str]], Tally] | None:
    """Rows (key, frames, flags) and failures (row, stage, reason) of one batch; None, for it and
    all later ones, when asked to stop.
    """
    if stop.asked:
        return None
    tally = Tally()
    pairs = list(zip(batch.items, batch.inputs, strict=True))
    good = [(item, x) for item, x in pairs if x.stage is None]
    failures = [(item.row, x.stage, x.reason) for item, x in pairs if x.stage is not None]
    rows = []
    for (item, x), output in zip(
        good, compute(source, [x.waveform for _, x in good], batch.collated, tally), strict=True
    ):
        if isinstance(output, str):
            failures.append((item.row, output, WHY[output]))
            continue
        if item.keep and item.keep != len(output):
            output = output[item.skip : item.skip + item.keep]
        rows.append(
            (
                item.key,
                stored(pooled(output, source.pool), dtype),
                sum(BIT[flag] for flag in x.flags if flag in BIT),
            )
        )
    return rows, failures, tally


WHY = {
    "oom": "does not fit into memory even alone; use a smaller --max-seconds",
    "nan": "the encoder gives values that are not finite",
}


def _feed(
    parts: Sequence[Part], sources: dict[str, Source], begun: dict[str, int]
) -> Iterator[Batch]:
    """Batches with their inputs decoded and padded, without the first `begun[name]` of a part; next
    is always the modality of which the smaller share is done.
    """
    length = {m: sum(part.length for part in parts if part.modality == m) for m in sources}
    lanes = {
        m: _lane([part for part in parts if part.modality == m], sources[m], begun)
        for m in sources
        if length[m]
    }
    fed = dict.fromkeys(lanes, 0)
    while lanes:
        modality = min(lanes, key=lambda m: fed[m] / length[m])
        batch = next(lanes[modality], None)
        if batch is None:
            del lanes[modality]
        else:
            fed[modality] += sum(item.length for item in batch.items)
            yield batch


def _lane(parts: Sequence[Part], source: Source, begun: dict[str, int]) -> Iterator[Batch]:
    """Batches of one modality."""
    left = [
        (part, batch, number == len(part.batches) - 1)
        for part in parts
        for number, batch in enumerate(part.batches)
        if number >= begun.get(part.name, 0)
    ]
    stream = source.inputs([item for _, batch, _ in left for item in batch])
    for part, batch, last in left:
        inputs = [next(stream) for _ in batch]
        good = [x.waveform for x in inputs if x.stage is None]
        collated = source.encoder.collate(good) if good and not source.one_by_one else None
        yield Batch(part, batch, inputs, collated, last)


def compute(
    source: Source, items: list[np.ndarray], collated: tuple | None, tally: Tally
) -> list[np.ndarray | str]:
    """Frames of each item, or "oom" or "nan".

    A batch that does not fit into memory is halved until it does.
    """
    if not items:
        return []
    if source.one_by_one and len(items) > 1:
        return [out for item in items for out in compute(source, [item], None, tally)]
    encoder = source.encoder
    tally.batches += 1
    try:
        outputs = encoder.forward(collated) if collated is not None else encoder.encode(items)
        finite = [_finite(x) for x in outputs]
        if encoder.precision != "fp32" and not all(finite):
            tally.fp32_batches += 1
            outputs = encoder.encode(items, precision="fp32")
            finite = [_finite(x) for x in outputs]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        outputs = None
    if outputs is None:  # outside the handler: the traceback holds the tensors that did not fit
        collated = None
        release()
        if len(items) == 1:
            return ["oom"]
        tally.oom_splits += 1
        half = len(items) // 2
        return compute(source, items[:half], None, tally) + compute(
            source, items[half:], None, tally
        )
    return [x if good else "nan" for x, good in zip(outputs, finite, strict=True)]


def _finite(x: np.ndarray) -> bool:
    return not x.size or largest(x) < np.inf


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's allocator raises a class of its own; the host's is told by its message only."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(text in str(error).lower() for text in ("out of memory", "can't allocate memory"))


def release() -> None:
    """Give the device memory that nobody uses back to it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


def check_failures(shard: Shard, kind: type) -> None:
    """Raise StoreError unless a shard lists its failures as extraction does: (row or id, stage,
    reason).
    """
    failures = shard.meta.get("failures")
    sound = isinstance(failures, list) and all(
        isinstance(failure, list) and len(failure) == 3 for failure in failures
    )
    if not sound or not all(
        type(what) is kind and isinstance(stage, str) and isinstance(reason, str)
        for what, stage, reason in failures
    ):
        raise StoreError(f"{shard.path}: its list of failures is not one of mer's")


def _check_part(shard: Shard, part: Part) -> None:
    """Raise StoreError unless a part has every item of the plan, or says why not."""
    if list(shard.modalities) != [part.modality]:
        raise StoreError(f"{shard.path}: holds {', '.join(shard.modalities)}, not {part.modality}")
    check_failures(shard, int)
    there, failed = set(shard.ids), {row for row, _, _ in shard.meta["failures"]}
    if not all(item.key in there or item.row in failed for item in part.items):
        raise StoreError(f"{shard.path}: lacks items of the plan")


class Finished:
    """The finished parts of a window: where each item's frames are, and which rows failed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.frames: dict[tuple[str, str], tuple[Shard, int]] = {}
        self.failures: dict[int, tuple[str, str]] = {}

    def add(self, part: Part, *, read: bool = True) -> bool:
        """Take in a part's file.

        False, and the file removed, when it is absent, damaged or of another plan. `read`: hold all
        frames against their checksums now; otherwise each when it is asked for.
        """
        path = self.folder / part.name
        try:
            shard = Shard(path)
            if shard.key != part.key or (
                read and next(shard.mismatches(part.modality), None) is not None
            ):
                raise DataError("not this part")
            _check_part(shard, part)
        except MerError:
            path.unlink(missing_ok=True)
            return False
        for at, key in enumerate(shard.ids):
            self.frames[part.modality, key] = shard, at
        for row, stage, reason in shard.meta["failures"]:
            self.failures.setdefault(row, (stage, reason))
        return True

    def get(self, modality: str, key: str) -> tuple[np.ndarray, int]:
        """Frames of an item (T, D) as stored, and its flags.

        Raises StoreError when they are not there or do not match their checksum.
        """
        if (modality, key) not in self.frames:
            raise StoreError(
                f"{self.folder}: lacks {modality} of item {key}; remove that folder and run the "
                "same command again"
            )
        shard, at = self.frames[modality, key]
        frames = shard.frames(modality, at, at + 1)
        if next(shard.differing(modality, frames, at, at + 1), None) is not None:
            raise StoreError(f"{shard.path}: damaged; run the same command again")
        return frames, int(shard.flags[at])
