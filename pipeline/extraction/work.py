"""What a process needs to turn a plan into shards: inputs, plan, encoders.

The same in the plain run and in every worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.encoders.geometry import SAMPLE_RATE, Geometry
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.errors import EncoderError, MerError, StoreError
from mer.pipeline.extraction.fingerprint import ExtractOptions
from mer.pipeline.extraction.parts import (
    BIT,
    Done,
    Finished,
    Source,
    Tally,
    audio_inputs,
    check_failures,
    run_parts,
    text_inputs,
)
from mer.pipeline.extraction.plan import Inputs, Item, Part, Plan, Settings, ShardPlan
from mer.pipeline.media.workers import AGAIN, Decoders, Job
from mer.pipeline.runtime.hold import appear
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.store import Shard, ShardWriter

# of batch against single, relative to the largest feature (at least 1)
TOLERANCE = {"fp32": 2e-5, "bf16": 5e-2, "fp16": 1e-2}
# Of half precision against fp32: rounding costs a percent or two; oneDNN's bfloat16 convolutions of
# groups with few channels are plainly wrong on processors with AMX
# (github.com/pytorch/pytorch/issues/163347).
FAULT = 0.2
ON_GPU = 2  # threads that encode: while one looks at its results the other's batch computes
SELF_TEST = (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9)  # quantiles of the lengths it takes


def load_encoders(checkpoints: dict[str, Checkpoint], options: ExtractOptions) -> dict:
    """The encoder of each modality, on its device."""
    from mer.pipeline.encoders.audio import AudioEncoder
    from mer.pipeline.encoders.text import TextEncoder

    encoders: dict = {}
    if "audio" in checkpoints:
        encoders["audio"] = AudioEncoder(
            checkpoints["audio"],
            layer=options.audio_layer,
            device=options.device,
            precision=options.precision,
        )
    if "text" in checkpoints:
        encoders["text"] = TextEncoder(
            checkpoints["text"], device=options.device, precision=options.precision
        )
    return encoders


@contextmanager
def one_thread():
    """Operations of this thread run on one core, as everywhere in an extraction: with another
    number of threads they round differently.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def open_decoders(options: ExtractOptions, jobs: int) -> Decoders:
    """As many decoding processes as the options and the cores say, and no more than
    there are jobs.
    """
    wanted = options.decoders if options.decoders >= 0 else max(1, min(16, cores() // 2))
    return Decoders(min(wanted, jobs), timeout=options.decode_timeout)


def make_job(inputs: Inputs, row: int, what: str, options: ExtractOptions) -> Job:
    path = inputs.paths[row]
    return Job(
        what, path, options.channel, *inputs.spans[row], inputs.seen.get(path), options.audio_track
    )


@dataclass
class Work:
    """`folder` holds the shards, `folder/.work` the parts."""

    inputs: Inputs
    plan: Plan
    options: ExtractOptions
    folder: Path
    geometry: Geometry | None
    encoders: dict
    dims: dict[str, int]
    # kept open between calls by a worker that does part after part
    decoders: Decoders | None = None
    resumed: bool = False  # then what is there was written by another run, perhaps long ago
    # names of shards that this process has found to be so
    sound: set[str] = field(default_factory=set)

    @property
    def work(self) -> Path:
        return self.folder / ".work"

    @property
    def threads(self) -> int:
        """Batches that are computed side by side."""
        on_cpu = all(encoder.device.type == "cpu" for encoder in self.encoders.values())
        return (self.options.threads or cores()) if on_cpu else ON_GPU

    def sources(self, decoders: Decoders) -> dict[str, Source]:
        """Where the items of each modality come from."""
        inputs, options, alone = self.inputs, self.options, self.plan.settings.one_by_one
        found = {}
        for modality, encoder in self.encoders.items():
            if modality == "audio":
                read = audio_inputs(
                    encoder,
                    decoders,
                    lambda row: make_job(inputs, row, "load", options),
                    inputs.samples,
                )
                found[modality] = Source(encoder, read, options.pool, modality in alone)
            else:
                found[modality] = Source(
                    encoder,
                    text_inputs(lambda row: inputs.token_ids[inputs.texts[row]]),
                    1,
                    modality in alone,
                )
        return found

    def self_test(self) -> dict[str, dict]:
        """For each modality with something to encode, features of up to eight items computed in one
        batch and one at a time, and in half precision against fp32.
        """
        from mer.pipeline.encoders.frozen import invariance

        results = {}
        with Decoders(0) as decoders, one_thread():
            sources = self.sources(decoders)
            for modality, encoder in self.encoders.items():
                chosen = self._sample(modality)
                inputs = [x.waveform for x in sources[modality].inputs(chosen) if x.stage is None]
                if not inputs:
                    continue
                absolute, relative = invariance(encoder.encode, inputs)
                if not np.isfinite(relative):  # a clip that overflows will fail alone, by its name
                    inputs = [x for x in inputs if np.isfinite(encoder.encode([x])[0]).all()]
                    absolute, relative = (
                        invariance(encoder.encode, inputs) if inputs else (absolute, relative)
                    )
                name = f"{modality} encoder {encoder.checkpoint.name}"
                if not np.isfinite(relative):
                    raise EncoderError(
                        f"{name}: gives values that are not finite in {encoder.precision}; try "
                        "--precision fp32"
                    )
                tolerance = TOLERANCE[encoder.precision]
                results[modality] = {
                    "items": len(inputs),
                    "absolute": absolute,
                    "relative": relative,
                    "tolerance": tolerance,
                    "precision": encoder.precision,
                    "passed": relative <= tolerance,
                }
                if encoder.precision != "fp32":
                    results[modality]["precision_error"] = error = _precision_error(encoder, inputs)
                    if error > FAULT:
                        raise EncoderError(
                            f"{name}: {error:.0%} off in {encoder.precision}, which is no "
                            "rounding; use --precision fp32"
                        )
        return results

    def by_length(self, modality: str) -> list[Item]:
        """Everything of a modality that is to be encoded, shortest first."""
        items = [
            item
            for parts in self.plan.parts
            for part in parts
            if part.modality == modality
            for item in part.items
        ]
        return sorted(items, key=lambda item: (item.length, item.key))

    def _sample(self, modality: str) -> list[Item]:
        items = self.by_length(modality)
        return (
            list(dict.fromkeys(items[int(q * (len(items) - 1))] for q in SELF_TEST))
            if items
            else []
        )

    def missing(self, window: int) -> list[ShardPlan]:
        """Shards of a window that are not there yet."""
        return [shard for shard in self.plan.windows[window] if not self._is_there(shard)]

    def _is_there(self, shard: ShardPlan) -> bool:
        try:
            found = Shard(self.folder / shard.name)
            if found.key != shard.key:
                return False
            # the unsound one lies there under the same name until it is replaced
            rebuilt = shard.name in self.plan.settings.rebuilt
            if (rebuilt or self.resumed) and shard.name not in self.sound:
                check_sound(found)
                self.sound.add(shard.name)
            return True
        except MerError:
            return False

    def unfinished(self, window: int) -> list[Part]:
        """Parts of a window that are not there, or not sound."""
        finished = Finished(self.work)
        return [part for part in self.plan.parts[window] if not finished.add(part)]

    def encode(
        self, window: int, parts: Sequence[Part], tally: Tally, done: Done, stop: Stop | None = None
    ) -> None:
        """Encode and publish parts of a window; fewer when asked to stop."""
        if not parts or (stop is not None and stop.asked):
            return
        clips = sum(1 for part in parts if part.modality == "audio" for _ in part.items)
        with ExitStack() as stack:
            decoders = self.decoders or stack.enter_context(open_decoders(self.options, clips))
            stack.enter_context(one_thread())
            run_parts(
                parts,
                self.sources(decoders),
                self.work,
                dtype=self.options.dtype,
                threads=self.threads,
                tally=tally,
                done=done,
                stop=stop,
            )

    def collect(self, window: int) -> Finished:
        """All parts of a window.

        Their frames are read once, when they are asked for: every worker collects, but takes its
        own rows only. Raises StoreError when one is absent or damaged.
        """
        finished = Finished(self.work)
        appear([self.work / part.name for part in self.plan.parts[window]])
        for part in self.plan.parts[window]:
            if not finished.add(part, read=False):
                raise StoreError(
                    f"{self.work / part.name}: absent or damaged; run the same command again"
                )
        return finished

    def assemble(
        self,
        window: int,
        shards: Sequence[ShardPlan],
        finished: Finished | None = None,
        *,
        stop: Stop | None = None,
    ) -> None:
        """Write shards of a window from its finished parts and from older shards; fewer when asked
        to stop.
        """
        finished = finished or self.collect(window)
        for shard in shards:
            if stop is None or not stop.asked:
                self._assemble(shard, window, finished)

    def _assemble(self, shard: ShardPlan, window: int, finished: Finished) -> None:
        inputs, settings = self.inputs, self.plan.settings
        older = {
            name: Shard(self.folder / name)
            for name in {settings.reused[row][0] for row in shard.rows if row in settings.reused}
        }
        contents, failures, rows = [], [], []
        for row in shard.rows:
            if row in settings.reused:
                name, at = settings.reused[row]
                frames, flags = copied(older[name], at, list(self.dims), inputs.contents[row])
            elif row in finished.failures:
                failures.append([inputs.ids[row], *finished.failures[row]])
                continue
            else:
                frames, flags = self._frames(row, window, finished)
            rows.append((row, frames, flags))
            contents.append(inputs.contents[row])
        meta = {"recipe": inputs.recipe_key, "contents": contents, "failures": failures}
        with ShardWriter(
            self.folder / shard.name, self.dims, dtype=self.options.dtype, meta=meta, key=shard.key
        ) as writer:
            for row, frames, flags in rows:
                seconds = inputs.samples[row] / SAMPLE_RATE if inputs.samples[row] else float("nan")
                writer.add(inputs.ids[row], frames, duration=seconds, flags=flags)

    def _frames(
        self, row: int, window: int, finished: Finished
    ) -> tuple[dict[str, np.ndarray], int]:
        """Features of a row from the parts, and its flags."""
        inputs, frames, flags = self.inputs, {}, 0
        if inputs.samples[row]:
            found = [
                finished.get("audio", f"{row}.{piece}") for piece in range(self.plan.pieces[row])
            ]
            frames["audio"] = (
                found[0][0] if len(found) == 1 else np.concatenate([x for x, _ in found])
            )
            for _, more in found:
                flags |= more
            flags |= BIT["chunked"] * (len(found) > 1) | BIT["short"] * (
                inputs.samples[row] < self.geometry.field
            )
        text = inputs.texts[row]
        if text:
            frames["text"], _ = finished.get("text", f"{self.plan.text_rows[window][text]}.0")
            flags |= BIT["text_cut"] * (text in inputs.cut_texts)
        return frames, flags

    def clear(self, window: int) -> None:
        """Delete a window's parts, once its shards are there."""
        for part in self.plan.parts[window]:
            (self.work / part.name).unlink(missing_ok=True)
            (self.work / part.begun).unlink(missing_ok=True)


def copied(
    shard: Shard, at: int, modalities: Sequence[str], content: str
) -> tuple[dict[str, np.ndarray], int]:
    """Features and flags of one utterance of an older shard.

    Raises StoreError unless its content is `content` and its frames match their checksums: written
    again they would get new ones, and nobody could tell.
    """
    contents = shard.meta.get("contents")
    if (
        not isinstance(contents, list)
        or len(contents) != len(shard)
        or at >= len(shard)
        or contents[at] != content
    ):
        raise StoreError(
            f"{shard.path}: changed while it was being copied from; run the same command again"
        )
    frames = {m: shard.frames(m, at, at + 1) for m in modalities}
    for m, x in frames.items():
        if next(shard.differing(m, x, at, at + 1), None) is not None:
            raise StoreError(
                f"{shard.path}: {m} of '{shard.ids[at]}' does not match its checksum; run the "
                "same command again"
            )
    return frames, int(shard.flags[at])


def unsound_sources(
    folder: Path, settings: Settings, modalities: Sequence[str], contents: Sequence[str]
) -> str | None:
    """Why a stored plan cannot be followed any more: what is wrong with the first older shard that
    it takes features from; None if nothing is. The plan has nothing else to make those features
    from. `contents` are the keys of the rows.
    """
    taken: dict[str, list[tuple[int, int]]] = {name: [] for name in settings.kept}
    for row, (name, at) in settings.reused.items():
        taken.setdefault(name, []).append((row, at))
    for name, places in sorted(taken.items()):
        try:
            shard = Shard(folder / name)
            check_sound(shard)
        except MerError as error:
            return str(error).partition("; ")[0]
        if list(shard.modalities) != list(modalities):
            return f"{shard.path}: holds {', '.join(shard.modalities)}"
        if not all(
            at < len(shard) and shard.meta["contents"][at] == contents[row] for row, at in places
        ):
            return f"{shard.path}: does not hold what the plan of an unfinished run takes from it"
    return None


def check_sound(shard: Shard) -> None:
    """Raise StoreError for a shard whose frames differ from their checksums, that does not say what
    is in it as extraction does, or in which a decoder ran out of time or was killed.
    """
    contents = shard.meta.get("contents")
    if (
        not isinstance(contents, list)
        or len(contents) != len(shard)
        or not all(isinstance(content, str) for content in contents)
    ):
        raise StoreError(f"{shard.path}: does not say what its utterances were made from")
    check_failures(shard, str)
    for modality in shard.modalities:
        if next(shard.mismatches(modality), None) is not None:
            raise StoreError(f"{shard.path}: {modality} differs from its checksums")
    again = [stage for _, stage, _ in shard.meta["failures"] if stage in AGAIN]
    if again:
        raise StoreError(
            f"{shard.path}: a decoder "
            f"{'ran out of time' if again[0] == 'timeout' else 'was killed'}"
        )


def existing(
    folder: Path, recipe_key: str, recorded: dict[str, str], sha256: Callable[[Path], str]
) -> Iterator[tuple[Path, Shard | str]]:
    """Shards of this recipe in the folder; for those that are not sound, the reason instead.

    `recorded` are the sha256 that a head file knows by name.
    """
    for path in sorted(folder.glob("shard-*.h5")) if folder.is_dir() else ():
        try:
            shard = Shard(path)
            if shard.meta.get("recipe") != recipe_key:
                continue
            check_sound(shard)
            if path.name in recorded and sha256(path) != recorded[path.name]:
                raise StoreError(f"{path}: its bytes differ from the recorded sha256")
            yield path, shard
        except MerError as error:
            yield path, str(error)


def _precision_error(encoder, inputs: Sequence[np.ndarray]) -> float:
    """Relative L2 distance of half-precision features from fp32 ones."""
    error = norm = 0.0
    for x in inputs:
        half, full = encoder.encode([x])[0], encoder.encode([x], precision="fp32")[0]
        error += float(np.square(half - full, dtype=np.float64).sum())
        norm += float(np.square(full, dtype=np.float64).sum())
    return float(np.sqrt(error / max(norm, 1e-30)))
