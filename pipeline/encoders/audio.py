"""The modality `audio`: clips of media files, counted in samples at 16 kHz.

A decoding process tells how long a clip is, and later reads it. A clip longer than `max_seconds` is
encoded in pieces that overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np

from mer.pipeline.encoders import smile, tiny
from mer.pipeline.encoders.geometry import (
    SAMPLE_RATE,
    WINDOW,
    Geometry,
    wav2vec2_bert_geometry,
    whisper_geometry,
)
from mer.pipeline.encoders.layers import LayerChoice, parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import (
    Described,
    Encoder,
    Family,
    Item,
    Lengths,
    Modality,
    ReadItem,
    Rows,
    Streams,
    problem_of,
)
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag
from mer.pipeline.media.workers import Decoders, Job
from mer.pipeline.runtime.files import sha256_file

CLIPS_AHEAD = 64  # decoded before they are asked for


class Preparing(Encoder, Protocol):
    """An encoder of waveforms: a clip is prepared whole, then cut into its pieces."""

    def prepare(self, waveform: np.ndarray) -> np.ndarray: ...


# One line adds a family: its module has `load`, `takes` tells its checkpoints from others.
FAMILIES: list[Family] = [
    Family("opensmile", "mer.pipeline.encoders.smile", smile.takes, smile.geometry),
    Family(
        "whisper",
        "mer.pipeline.encoders.whisper",
        lambda config: config.get("model_type") == "whisper",
        whisper_geometry,
    ),
    Family(
        "wav2vec2-bert",
        "mer.pipeline.encoders.wav2vec2_bert",
        lambda config: config.get("model_type") == "wav2vec2-bert",
        wav2vec2_bert_geometry,
    ),
    Family("wav2vec2", "mer.pipeline.encoders.wav2vec2", geometry=Geometry.of),
]


@dataclass(frozen=True)
class Audio(Modality):
    """`layer`, `layer_means`, `pool_frames`, `channel`, `track`, `max_seconds` (0: never cut) and
    `window` belong to the recipe.
    """

    name: ClassVar[str] = "audio"
    unit: ClassVar[str] = "s"
    per_unit: ClassVar[int] = SAMPLE_RATE
    fixed_budget: ClassVar[Mapping[str, float]] = {"cpu": 8.0, "cuda": 320.0}
    candidate_budgets: ClassVar[Mapping[str, Sequence[float]]] = {
        "cpu": (5, 10, 20, 40, 80, 160),
        "cuda": (40, 80, 160, 320, 640, 1280),
    }
    families: ClassVar[Sequence[Family]] = FAMILIES
    absent: ClassVar[tuple[str, ...]] = ("", "")
    sound: ClassVar[bool] = True
    clip_option: ClassVar[str] = "--audio FILE"
    built_in: ClassVar[str] = tiny.NAMES["audio"]

    layer: str = "last"
    layer_means: bool = False
    pool_frames: int = 1
    channel: str = "auto"
    track: str = "auto"
    max_seconds: float = 60.0
    window: str = ""  # full | clip, for encoders of fixed windows; "": their default

    @classmethod
    def of(cls, options: Any) -> Audio:
        return cls(
            encoder=options.audio_encoder,
            budget=options.budget_seconds,
            part=options.part_seconds,
            layer=options.audio_layer,
            layer_means=options.layer_means,
            pool_frames=options.pool,
            channel=options.channel,
            track=options.audio_track,
            max_seconds=options.max_seconds,
            window=options.audio_window,
        )

    def has(self, u: Utterance) -> bool:
        return bool(u.audio)

    def file(self, u: Utterance) -> str | None:
        return u.audio or None

    def found_in(self, u: Utterance, streams: Mapping[str, Streams]) -> bool:
        file = self.file(u)
        return file is not None and (file not in streams or streams[file][0])

    def content(self, u: Utterance, digest: str) -> tuple[str, ...]:
        return (digest, self.span(u)) if digest else self.absent

    def resolve(
        self,
        encoder: str,
        *,
        offline: bool = False,
        sha256: Callable[[Path], str] = sha256_file,
    ) -> Checkpoint:
        if smile.asked(encoder):
            return smile.resolve(encoder)
        return super().resolve(encoder, offline=offline, sha256=sha256)

    def check(self, checkpoint: Checkpoint) -> None:
        self.choice(checkpoint)
        if self.window and not self.geometry(checkpoint).window:
            raise DataError(
                f"--audio-window {self.window}: audio encoder {checkpoint.name} has no window of "
                "fixed length (Whisper has)"
            )

    def geometry(self, checkpoint: Checkpoint) -> Geometry:
        """The arithmetic of a checkpoint's frames. Raises EncoderError."""
        find = self.family(checkpoint).geometry
        return (find or Geometry.of)(checkpoint)

    def choice(self, checkpoint: Checkpoint) -> LayerChoice:
        """The layers that are kept as frames. Raises DataError and EncoderError."""
        return parse_layers(self.layer, self.geometry(checkpoint).layers, "--audio-layer")

    def recipe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        geometry = self.geometry(checkpoint)
        recipe: dict[str, Any] = {
            "encoder": checkpoint.hash,
            "layer": self.choice(checkpoint).text,
            "pool": self.pool_frames,
            "channel": self.channel,
            "max_seconds": float(self.max_seconds),
        }
        if geometry.whole:
            recipe["max_seconds"] = 0.0
        if geometry.window:
            longest = geometry.window / SAMPLE_RATE
            recipe["max_seconds"] = min(self.max_seconds or longest, longest)
            recipe["window"] = self._window(geometry)
        # stores made before these could be asked for keep their key
        if self.track != "auto":
            recipe["track"] = self.track
        if self.layer_means and geometry.layers:
            recipe["layer_means"] = True
        return recipe

    @classmethod
    def options_of(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "audio_layer": recipe["layer"],
            "pool": recipe["pool"],
            "channel": recipe["channel"],
            "max_seconds": recipe["max_seconds"],
            "audio_track": recipe.get("track", "auto"),
            "audio_window": recipe.get("window", ""),
            "layer_means": recipe.get("layer_means", False),
        }

    @classmethod
    def differs(cls, key: str, old: Any, new: Any) -> str:
        if key == "track":  # in the recipe only where one was asked for
            return f"audio track: {old or 'auto'} there, {new or 'auto'} now"
        if key == "window":  # only encoders of windows have it
            return f"audio window: {old or 'none'} there, {new or 'none'} now"
        return super().differs(key, old, new)

    # --- lengths

    def _job(self, what: str, row: int, rows: Rows) -> Job:
        u = rows.utterances[row]
        path = str(rows.root / cast(str, u.audio))
        seen = rows.seen.get(path)
        return Job(what, path, self.channel, u.start, u.end, seen, self.track)

    def probe_job(self, row: int, rows: Rows) -> Job | None:
        return self._job("probe", row, rows)

    def span(self, u: Utterance) -> str:
        start = "" if u.start is None else repr(float(u.start))
        end = "" if u.end is None else repr(float(u.end))
        track = "" if self.track == "auto" else f" of track {self.track}"
        return f"{start}:{end}{track}"

    def seconds(self, length: int) -> float | None:
        return length / SAMPLE_RATE

    def measure(self, rows: Rows, probed: Sequence[int], encoder: Encoder) -> Lengths:
        geometry = self.geometry(encoder.checkpoint)
        steps = [self._steps(samples, geometry) for samples in probed]
        short = [0 < samples < geometry.field for samples in probed]
        flags = [Flag.short if is_short else Flag(0) for is_short in short]
        return Lengths(tuple(probed), tuple(steps), tuple(flags))

    def _steps(self, samples: int, geometry: Geometry) -> int:
        return -(-geometry.frames(samples) // self.pool_frames) if samples else 0

    # --- encoding

    @property
    def pool(self) -> int:
        return self.pool_frames

    def items(
        self, chosen: Sequence[int], rows: Rows, lengths: Lengths, checkpoint: Checkpoint
    ) -> list[Item]:
        """One item for a clip, several for a clip longer than `max_seconds`."""
        geometry, found = self.geometry(checkpoint), []
        for row in chosen:
            samples = lengths.lengths[row]
            if not samples:
                continue
            longest = self._longest(geometry) or samples
            cuts = geometry.pieces(samples, longest, multiple=self.pool_frames)
            for piece, (first, end, skip, keep) in enumerate(cuts):
                # a short clip is padded to one receptive field
                length = max(end - first, geometry.field)
                if self._window(geometry) == "full":
                    length = geometry.window
                found.append(Item(row, length, piece, first, end, skip, keep))
        return found

    def _window(self, geometry: Geometry) -> str:
        """How much of an encoder's window is computed: full or clip; "" where it has none."""
        return (self.window or WINDOW) if geometry.window else ""

    def _longest(self, geometry: Geometry) -> int:
        """Samples of a piece at most; 0: no clip is cut."""
        if geometry.whole:
            return 0
        asked = round(self.max_seconds * SAMPLE_RATE)
        if asked and geometry.window:
            return min(asked, geometry.window)
        return asked or geometry.window

    def read(
        self,
        items: Iterable[Item],
        rows: Rows,
        lengths: Lengths,
        encoder: Encoder,
        decoders: Decoders,
    ) -> Iterator[ReadItem]:
        """Prepared waveforms, decoded ahead. A clip is normalised whole, then cut into pieces."""
        items = list(items)
        jobs = (self._job("load", item.row, rows) for item in items)
        clips = decoders.run(jobs, ahead=CLIPS_AHEAD)
        for item, clip in zip(items, clips, strict=True):
            path = self._job("load", item.row, rows).path
            problem = problem_of(clip, lengths.lengths[item.row], path, "samples")
            if problem is not None:
                yield ReadItem(problem=problem)
                continue
            whole = cast(Preparing, encoder).prepare(cast(np.ndarray, clip.waveform))
            # then `whole` may be longer: a short clip is padded
            uncut = (item.first, item.end) == (0, clip.samples)
            waveform = whole if uncut else whole[item.first : item.end]
            yield ReadItem(waveform, Flag.of(clip.flags))

    def describe(self, checkpoint: Checkpoint) -> Described:
        rate = self.geometry(checkpoint).rate
        if rate is not None:
            rate /= self.pool_frames
        choice = self.choice(checkpoint)
        return Described(rate, choice.text, {"pool": self.pool_frames}, choice.stack)
