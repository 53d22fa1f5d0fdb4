"""Step 5, `run`: parts are encoded and shards assembled, here or elsewhere.

A `Runner` does pieces of a plan. `LocalRunner` does them in this process; `ClusterRunner`
(cluster.py) hands them to workers, each of which has a `LocalRunner`. Whoever does it, the bytes
are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from mer.pipeline.encoders import MODALITIES
from mer.pipeline.encoders.modality import Encoder
from mer.pipeline.errors import MerError, StoreError
from mer.pipeline.extraction.decoding import open_decoders
from mer.pipeline.extraction.fingerprint import Chosen
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.parts import (
    Done,
    Finished,
    Source,
    Tally,
    nobody_listens,
    run_parts,
    stored,
)
from mer.pipeline.extraction.plan import Inputs, Part, Plan, ShardPlan
from mer.pipeline.extraction.request import Place
from mer.pipeline.extraction.sound import check_sound, copied
from mer.pipeline.media.stages import Flag, Problem
from mer.pipeline.media.workers import Decoders
from mer.pipeline.runtime.hold import appear
from mer.pipeline.runtime.machine import cores, one_thread
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.store import Shard, ShardWriter

# Batches in flight on a GPU: while one thread looks at its results the other's batch computes.
GPU_THREADS = 2
NO_DURATION = float("nan")


class Runner(Protocol):
    """Does pieces of a plan; asked to stop, fewer than it was given."""

    def encode(self, window: int, parts: Sequence[Part], done: Done, stop: Stop) -> Tally:
        """Encode and publish parts of a window."""
        ...

    def assemble(self, window: int, shards: Sequence[ShardPlan], stop: Stop) -> None:
        """Write shards of a window from its finished parts and from older shards."""
        ...


@dataclass(frozen=True)
class Assignment:
    """What every process has to know to do any piece of a plan."""

    inputs: Inputs
    plan: Plan
    options: ExtractOptions
    place: Place
    dims: Mapping[str, int]
    layers: Mapping[str, int]  # how many layer means each modality has


class Standing:
    """What of a plan is there: it looks at the disk.

    `resumed`: what is there was written by another run, perhaps long ago, and is checked once.
    """

    def __init__(self, assignment: Assignment, *, resumed: bool):
        self.plan, self.place, self.resumed = assignment.plan, assignment.place, resumed
        self._sound: set[str] = set()  # names of shards that were found to be so

    def missing(self, window: int) -> list[ShardPlan]:
        """Shards of a window that are not there yet."""
        return [shard for shard in self.plan.windows[window] if not self._is_there(shard)]

    def _is_there(self, shard: ShardPlan) -> bool:
        try:
            found = Shard(self.place.folder / shard.name)
            if found.key != shard.key:
                return False
            # the unsound one lies there under the same name until it is replaced
            rebuilt = shard.name in self.plan.settings.rebuilt
            if (rebuilt or self.resumed) and shard.name not in self._sound:
                check_sound(found)
                self._sound.add(shard.name)
            return True
        except MerError:
            return False

    def unfinished(self, window: int) -> list[Part]:
        """Parts of a window that are not there, or not sound."""
        finished = Finished(self.place.parts)
        return [part for part in self.plan.parts[window] if not finished.add(part)]

    def is_unfinished(self, window: int) -> bool:
        """Whether a window lacks shards, and parts to assemble them from."""
        return bool(self.missing(window) and self.unfinished(window))

    def clear(self, window: int) -> None:
        """Delete a window's parts, once its shards are there."""
        for part in self.plan.parts[window]:
            (self.place.parts / part.name).unlink(missing_ok=True)
            (self.place.parts / part.begun).unlink(missing_ok=True)


def _files_to_read(inputs: Inputs, part: Part) -> int:
    """How many items of a part are decoded from media files."""
    modality = next(choice.modality for choice in inputs.chosen if choice.name == part.modality)
    utterances = (inputs.rows.utterances[item.row] for item in part.items)
    return sum(modality.file(u) is not None for u in utterances)


def load_encoders(chosen: Sequence[Chosen], options: ExtractOptions) -> dict[str, Encoder]:
    """The encoder of each chosen modality, on its device. Raises EncoderError and DataError."""
    found = {}
    for choice in chosen:
        found[choice.name] = choice.modality.load(
            choice.checkpoint, device=options.device, precision=options.precision
        )
    return found


def threads_for(encoders: Mapping[str, Encoder], options: ExtractOptions) -> int:
    """Batches that are computed side by side."""
    on_cpu = all(encoder.device.type == "cpu" for encoder in encoders.values())
    return (options.threads or cores()) if on_cpu else GPU_THREADS


def sources(
    inputs: Inputs,
    encoders: Mapping[str, Encoder],
    decoders: Decoders,
    one_by_one: Sequence[str] = (),
) -> dict[str, Source]:
    """Where the items of each modality come from, and what they go through."""
    found = {}
    for choice in inputs.chosen:
        encoder = encoders[choice.name]
        read = partial(
            choice.modality.read,
            rows=inputs.rows,
            lengths=inputs.lengths[choice.name],
            encoder=encoder,
            decoders=decoders,
        )
        found[choice.name] = Source(encoder, read, choice.modality.pool, choice.name in one_by_one)
    return found


@dataclass(frozen=True)
class LocalRunner:
    """Does pieces of a plan in this process, with its encoders.

    `decoders` are kept open between calls by a worker that does part after part.
    """

    assignment: Assignment
    encoders: Mapping[str, Encoder]
    decoders: Decoders | None = None

    def encode(
        self,
        window: int,
        parts: Sequence[Part],
        done: Done = nobody_listens,
        stop: Stop | None = None,
    ) -> Tally:
        """Encode and publish parts of a window; fewer when asked to stop."""
        if not parts or (stop is not None and stop.asked):
            return Tally()
        work, options = self.assignment, self.assignment.options
        clips = sum(_files_to_read(work.inputs, part) for part in parts)
        with ExitStack() as stack:
            decoders = self.decoders or stack.enter_context(open_decoders(options, clips))
            stack.enter_context(one_thread())
            one_by_one = work.plan.settings.one_by_one
            return run_parts(
                parts,
                sources(work.inputs, self.encoders, decoders, one_by_one),
                work.place.parts,
                dtype=options.dtype,
                threads=threads_for(self.encoders, options),
                done=done,
                stop=stop,
            )

    def collect(self, window: int) -> Finished:
        """All parts of a window.

        Their frames are read once, when they are asked for: every worker collects, but takes its
        own rows only. Raises StoreError when one is absent or damaged.
        """
        folder, parts = self.assignment.place.parts, self.assignment.plan.parts[window]
        finished = Finished(folder)
        appear([folder / part.name for part in parts])
        for part in parts:
            if not finished.add(part, read=False):
                raise StoreError(
                    f"{folder / part.name}: absent or damaged; run the same command again"
                )
        return finished

    def assemble(self, window: int, shards: Sequence[ShardPlan], stop: Stop | None = None) -> None:
        """Write shards of a window; fewer when asked to stop."""
        finished = self.collect(window)
        for shard in shards:
            if stop is None or not stop.asked:
                assemble_shard(self.assignment, shard, window, finished)


def assemble_shard(work: Assignment, shard: ShardPlan, window: int, finished: Finished) -> None:
    """Write one shard from the parts of its window and from older shards."""
    inputs, settings, folder = work.inputs, work.plan.settings, work.place.folder
    names = {settings.reused[row].shard for row in shard.rows if row in settings.reused}
    older = {name: Shard(folder / name) for name in names}
    contents, failures, rows = [], [], []
    for row in shard.rows:
        taken = settings.taken(row, inputs.modalities)
        computed = [name for name in inputs.modalities if name not in taken]
        problem = _problem(work, row, window, finished, computed)
        if problem is not None:
            id = inputs.rows.utterances[row].id
            failures.append([id, problem.stage, problem.reason])
            continue
        frames, means, flags = _joined(work, row, window, finished, computed)
        if taken:
            copy, content = settings.reused[row], inputs.content(row, tuple(taken))
            old = copied(older[copy.shard], copy.at, taken, content)
            frames, means, flags = frames | old[0], means | old[1], flags | Flag(old[2])
        rows.append((row, frames, means, flags))
        contents.append(inputs.contents[row])
    meta = {"recipe": inputs.recipe_key, "contents": contents, "failures": failures}
    with ShardWriter(
        folder / shard.name,
        work.dims,
        dtype=work.options.dtype,
        meta=meta,
        key=shard.key,
        layers=work.layers,
        layer_dtype=work.options.dtype,
    ) as writer:
        for row, frames, means, flags in rows:
            seconds = inputs.seconds(row)
            duration = NO_DURATION if seconds is None else seconds
            id = inputs.rows.utterances[row].id
            writer.add(id, frames, duration=duration, flags=int(flags), layer_means=means)


def _problem(
    work: Assignment, row: int, window: int, finished: Finished, computed: Sequence[str]
) -> Problem | None:
    """Why a row has no features, from the first of the computed modalities that failed."""
    for modality in computed:
        owner = work.plan.owners[window].get(modality, {}).get(row, row)
        problem = finished.failures.get((modality, owner))
        if problem is not None:
            return problem
    return None


def _joined(
    work: Assignment, row: int, window: int, finished: Finished, computed: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Flag]:
    """Features and layer means of a row in the computed modalities, from the parts, and its
    flags.
    """
    frames, means, flags = {}, {}, Flag(0)
    for modality in computed:
        lengths = work.inputs.lengths[modality]
        flags |= lengths.flags[row]
        if not lengths.lengths[row]:
            continue
        found = [finished.get(modality, key) for key in work.plan.keys_of(modality, window, row)]
        steps = [part_row.steps for part_row in found]
        frames[modality] = steps[0] if len(steps) == 1 else np.concatenate(steps)
        mean = finished.layer_means(modality, found)
        if mean is not None:
            means[modality] = stored(mean, work.options.dtype)
        for part_row in found:
            flags |= Flag(part_row.flags)
        if len(found) > 1:
            flags |= MODALITIES[modality].cut
    return frames, means, flags
