"""openSMILE's hand-made features of a clip (Eyben et al. 2010), as an audio encoder:
`opensmile:SET` gives the functionals of a set, one step for the whole clip, and `opensmile:SET:lld`
its low-level descriptors, one step every 10 ms.

They are computed by the package `opensmile`, which `pip install "mer[opensmile]"` installs and
whose licence allows research and personal use only.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import numpy as np

from mer.pipeline.encoders.geometry import SAMPLE_RATE, Geometry
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Kept, Modality, States
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.machine import choose_device
from mer.pipeline.runtime.terminal import plural, shown

PREFIX = "opensmile:"
MODEL_TYPE = "opensmile"
FULL_SCALE = 32767 / 32768  # the largest sample of 16 bits
LICENCE = "openSMILE's licence allows research and personal use only"


class Sizes(NamedTuple):
    """How many numbers a step of a set is."""

    functionals: int
    descriptors: int


# sets whose descriptors have the frames of `SmileGeometry`
SETS = {
    "eGeMAPSv02": Sizes(88, 25),
    "eGeMAPSv01b": Sizes(88, 23),
    "GeMAPSv01b": Sizes(62, 18),
    "ComParE_2016": Sizes(6373, 65),
}


def asked(encoder: str) -> bool:
    """Whether an encoder's name is one of openSMILE's."""
    return encoder.startswith(PREFIX)


def takes(config: dict) -> bool:
    """Whether a checkpoint is one of these, by its configuration."""
    return config.get("model_type") == MODEL_TYPE


def resolve(encoder: str) -> Checkpoint:
    """What stands for a checkpoint's files: the set, and the version of the package. Raises
    EncoderError.
    """
    name, _, level = encoder.removeprefix(PREFIX).partition(":")
    if name not in SETS or level not in ("", "lld") or encoder.endswith(":"):
        raise EncoderError(
            f"audio encoder '{shown(encoder)}': expected {PREFIX}SET or {PREFIX}SET:lld with SET "
            f"one of {', '.join(SETS)}"
        )
    try:
        version = metadata.version("opensmile")
    except metadata.PackageNotFoundError:
        raise EncoderError(
            f"audio encoder {encoder}: the package opensmile is not installed; pip install "
            f"'mer[opensmile]' ({LICENCE})"
        ) from None
    config = {"model_type": MODEL_TYPE, "set": name, "lld": level == "lld"}
    made_by = f"opensmile {version} {name} {level or 'functionals'}"
    digest = hashlib.sha256(made_by.encode()).hexdigest()
    return Checkpoint("audio", encoder, "", None, config, {}, True, digest)


class SmileGeometry(Geometry):
    """Clips are never cut. The longest window of any set is 60 ms."""

    whole = True

    def frames(self, samples: int) -> int:
        if self.hop == 0:
            return 1
        return max(0, samples - self.field) // self.hop + 2

    @property
    def rate(self) -> float | None:
        return SAMPLE_RATE / self.hop if self.hop else None


def geometry(checkpoint: Checkpoint) -> Geometry:
    """Windows of 60 ms, and for descriptors a step every 10 ms."""
    lld, sizes = checkpoint.config["lld"], SETS[checkpoint.config["set"]]
    field, hop = SAMPLE_RATE * 60 // 1000, SAMPLE_RATE // 100
    width = sizes.descriptors if lld else sizes.functionals
    return SmileGeometry((field,), (hop if lld else 0,), width, layers=0)


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> Smile:
    """The set that a modality of waveforms asks for; it is computed on the CPU, in fp32."""
    return Smile(checkpoint, layer=getattr(modality, "layer", "last"))


class Smile:
    """Waveforms (n,) float32 at 16 kHz → (1, width) functionals, or (T, width) descriptors."""

    layer_count = 0
    precision = "fp32"

    def __init__(self, checkpoint: Checkpoint, *, layer: str = "last") -> None:
        """Raises EncoderError where the package is not there or gives other features than its name
        says, DataError for a wrong layer setting.
        """
        import opensmile

        self.checkpoint = checkpoint
        self.geometry = geometry(checkpoint)
        self.choice = parse_layers(layer, 0)
        self.dim = self.width = self.geometry.dim
        self.device = choose_device("cpu")
        levels = opensmile.FeatureLevel
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # older sets are still the ones papers name
            self._smile = opensmile.Smile(
                feature_set=opensmile.FeatureSet[checkpoint.config["set"]],
                feature_level=levels.LowLevelDescriptors
                if checkpoint.config["lld"]
                else levels.Functionals,
            )
        if self._smile.num_features != self.width:
            raise EncoderError(
                f"audio encoder {checkpoint.name}: this version of openSMILE gives "
                f"{self._smile.num_features} features, not {self.width}"
            )

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        """The waveform, with zeros up to the longest window. The package makes 16-bit samples of it
        that wrap around from full scale on, so those are held, as in a 16-bit file.
        """
        waveform = np.clip(waveform, -1.0, FULL_SCALE)
        short = self.geometry.field - len(waveform)
        return np.pad(waveform, (0, short)) if short > 0 else waveform

    def collate(
        self, waveforms: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> tuple[np.ndarray, ...]:
        """The waveforms as they are."""
        return tuple(waveforms)

    def forward(
        self, batch: tuple[np.ndarray, ...], *, precision: str | None = None
    ) -> list[States]:
        """The features of each waveform. Raises EncoderError where there are not as many steps as
        foretold.
        """
        found = []
        for waveform in batch:
            table = self._smile.process_signal(waveform, SAMPLE_RATE)
            frames = np.ascontiguousarray(table.to_numpy(), dtype=np.float32)
            expected = self.geometry.frames(len(waveform))
            if len(frames) != expected:
                raise EncoderError(
                    f"audio encoder {self.checkpoint.name}: gave {plural(len(frames), 'step')} of "
                    f"{len(waveform):,} samples, {expected} were expected"
                )
            found.append(States(frames))
        return found

    def encode(
        self,
        waveforms: Sequence[np.ndarray],
        kept: Sequence[Kept | None] | None = None,
        *,
        precision: str | None = None,
    ) -> list[States]:
        """The features of each *prepared* waveform."""
        return self.forward(self.collate(waveforms), precision=precision)

    def self_test(self, waveforms: Sequence[np.ndarray]) -> dict[str, str]:
        """What is to be said wherever it is used."""
        return {"note": LICENCE}
