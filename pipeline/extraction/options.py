"""What `mer extract` can be asked for, with every default, and the encoders of a corpus that names
none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mer.pipeline.datasets import corpora
from mer.pipeline.encoders import MODALITIES
from mer.pipeline.encoders.geometry import WINDOWS
from mer.pipeline.encoders.towers import POOLS
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.media.faces import CROPS, FALLBACKS
from mer.pipeline.runtime.limits import MEDIA_FPS, MEDIA_FPS_LEAST, MEDIA_SAMPLES
from mer.pipeline.runtime.terminal import shown

# Options that came later, as every earlier extraction had them: what a store says of its making
# does not name them.
BEFORE: dict[str, Any] = {"layer_means": False}


@dataclass(frozen=True)
class ExtractOptions:
    """What `mer extract` can be asked for.

    The first block is the recipe, the rest never changes a feature beyond rounding.
    """

    # hub id[@revision], directory or built-in; "" or "none": no audio features
    audio_encoder: str = ""
    text_encoder: str = ""
    vision_encoder: str = ""
    audio_layer: str = "last"  # last | N | mean:A-B | stack:A-B[:S]
    text_layer: str = "last"  # as for audio
    # keep the mean of every layer over an utterance's steps, too, where the encoder has layers
    layer_means: bool = True
    pool: int = 1  # mean over this many frames
    channel: str = "auto"  # auto | centre | mix | a number from 0
    audio_track: str = "auto"  # auto: the default one, else the first | a number from 0
    vision_layer: str = "last"  # last | N | mean:A-B | stack:A-B[:S]
    vision_fps: float = 4.0  # pictures a second, at the middle of each interval
    vision_pool: str = "auto"  # what becomes of a picture: auto | cls | mean | pooler
    vision_crop: str = "none"  # none | centre | left | right | side | faces
    vision_boxes: str = ""  # for faces: a table of boxes, or a folder of OpenFace's files
    vision_faces: str = ""  # for faces: the file of a detector's model (YuNet)
    vision_no_face: str = "centre"  # a picture without a face: centre | whole | fail
    max_seconds: float = 60.0  # longer clips are cut into overlapping pieces; 0: never
    audio_window: str = ""  # full | clip; "": the encoder's default
    text_windows: str = "cut"  # transcripts longer than the encoder takes: cut | windows
    dtype: str = "float16"  # as stored
    precision: str = "auto"  # as computed: auto | fp32 | bf16 | fp16

    device: str = "auto"
    # padded seconds per batch; "auto": found by trying; None: the device's fixed figure
    budget_seconds: float | str | None = None
    budget_tokens: int | str | None = None  # padded tokens per batch, as for seconds
    budget_pictures: int | str | None = None  # pictures per batch, as for seconds
    max_failures: int = 0
    offline: bool = False
    force: bool = False  # replace a store made by another recipe
    # batches computed side by side on a CPU, one core each; 0: as many as there are cores
    threads: int = 0
    # processes that decode ahead; -1: chosen by the number of cores; 0: decode in this process,
    # without a time-out
    decoders: int = -1
    decode_timeout: float = 120.0  # seconds after which a decoder counts as hanging
    shard_bytes: int = 96 << 20
    # audio whose features are published at a time: what a kill can cost
    part_seconds: float = 600.0
    part_tokens: int = 50_000
    part_pictures: int = 2_000
    window: int = 65_536  # utterances that are sorted together

    def __post_init__(self):
        if self.dtype not in ("float16", "float32"):
            raise DataError(f"--dtype '{shown(self.dtype)}' is not float16 or float32")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise DataError(
                f"--precision '{shown(self.precision)}' is not one of auto, fp32, bf16, fp16"
            )
        if self.channel not in ("auto", "centre", "mix") and not self.channel.isdecimal():
            raise DataError(
                f"--channel '{shown(self.channel)}' is not auto, centre, mix or a number from 0"
            )
        if self.text_windows not in ("cut", "windows"):
            raise DataError(f"--text-windows '{self.text_windows:.200}' is not cut or windows")
        track = self.audio_track
        if track != "auto" and not (track.isascii() and track.isdecimal()):
            raise DataError(f"--audio-track '{track:.200}' is not auto or a number from 0")
        if self.audio_window not in ("", *WINDOWS):
            raise DataError(f"--audio-window '{self.audio_window:.200}' is not full or clip")
        for name, value, least, most in (
            ("pool", self.pool, 1, MEDIA_SAMPLES),
            ("max-seconds", self.max_seconds, 0, MEDIA_SAMPLES),
            ("max-failures", self.max_failures, 0, math.inf),
        ):
            if not least <= value <= most:
                raise DataError(f"--{name} {value} is not from {least} to {most:,}")
        self._check_vision()
        _check_budget("budget-pictures", self.budget_pictures)
        _check_budget("budget-seconds", self.budget_seconds)
        _check_budget("budget-tokens", self.budget_tokens)

    def _check_vision(self) -> None:
        if not 0 < self.vision_fps <= MEDIA_FPS:
            raise DataError(
                f"--vision-fps {self.vision_fps} is not above 0 and at most {MEDIA_FPS:g}"
            )
        if self.vision_fps < MEDIA_FPS_LEAST:
            raise DataError(f"--vision-fps {self.vision_fps} is less than a picture an hour")
        for name, value, known in (
            ("pool", self.vision_pool, POOLS),
            ("crop", self.vision_crop, CROPS),
            ("no-face", self.vision_no_face, FALLBACKS),
        ):
            if value not in known:
                raise DataError(f"--vision-{name} '{value:.200}' is not one of {', '.join(known)}")


def _check_budget(name: str, budget: float | str | None) -> None:
    if budget is None or budget == "auto":
        return
    if isinstance(budget, str) or not 0 < budget < math.inf:
        raise DataError(f"--{name} {budget} is neither auto nor a number above 0")


def as_recorded(options: Mapping[str, Any]) -> ExtractOptions:
    """The options that a head file remembers, also those of an earlier mer.

    Raises TypeError for what this one does not know.
    """
    return ExtractOptions(**{**BEFORE, **options})


def with_defaults(manifest: Manifest, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options `asked` for, with the corpus's encoders where none were named, and with those
    the corpus's layers where none was asked for: a layer goes with its encoder.

    Raises DataError for a corpus that has no default encoders. A modality that no row has needs
    none.
    """
    found = dict(asked)
    known = {field.name for field in fields(ExtractOptions)}
    for name, kind in MODALITIES.items():
        if kind.optional or f"{name}_encoder" in found or f"{name}_encoder" not in known:
            continue
        if not has_defaults(manifest) and not any(
            map(kind.of(ExtractOptions()).has, manifest.rows)
        ):
            continue
        encoders, layers = defaults(manifest)
        found[f"{name}_encoder"] = encoders.get(name, "")
        if name in layers:
            found.setdefault(f"{name}_layer", layers[name])
    return found


def has_defaults(manifest: Manifest) -> bool:
    """Whether there are encoders for a corpus that names none."""
    return manifest.dataset in corpora.names() or manifest.language.split("-")[0] == "en"


def defaults(manifest: Manifest) -> tuple[dict[str, str], dict[str, str]]:
    """Modality → encoder id, and → layer of that encoder, for a corpus: those that its TOML
    names, else those for English.

    Raises DataError for any other language.
    """
    if manifest.dataset in corpora.names():
        info = corpora.corpus(manifest.dataset)
        return info.encoders, info.layers
    if has_defaults(manifest):
        return corpora.ENGLISH_ENCODERS, corpora.ENGLISH_LAYERS
    needed = {name: kind for name, kind in MODALITIES.items() if not kind.optional}
    names = [f"--{name}-encoder" for name in needed]
    tiny = [kind.built_in for kind in needed.values()]
    raise DataError(
        f"no default encoders for language '{manifest.language}'; name them with "
        f"{' and '.join(names)} (a hub id, a directory, {' or '.join(tiny)}, or none)"
    )
