"""What an audio encoder's configuration says about its output: frame counts, rates and layers.

Pure arithmetic, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.runtime.terminal import shown

SAMPLE_RATE = 16_000
# their layers have other frames than their output, and a clip of one frame has none
SQUEEZED = ("sew", "sew-d")


@dataclass(frozen=True)
class Geometry:
    """Convolution arithmetic of the feature extractor: n samples give `frames(n)` frames, `hop`
    samples apart, each of `field` samples.
    """

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dim: int
    layers: int
    window: int = 0  # samples that are encoded at a time at most; 0: no limit

    whole: ClassVar[bool] = False  # clips are never cut

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Geometry:
        """Raises EncoderError for anything but a wav2vec2-family configuration at 16 kHz."""
        config, what = checkpoint.config, f"audio encoder {checkpoint.name}"
        try:
            kernels, strides = tuple(config["conv_kernel"]), tuple(config["conv_stride"])
            found = cls(
                kernels, strides, int(config["hidden_size"]), int(config["num_hidden_layers"])
            )
        except KeyError:
            kind = config.get("model_type")
            raise EncoderError(
                f"{what}: model type '{kind}' is not of the wav2vec2 family (it takes no waveform)"
            ) from None
        except (TypeError, ValueError):
            raise EncoderError(f"{what}: its config.json has no usable convolution sizes") from None
        _check(checkpoint)
        kind = config.get("model_type")
        if kind in SQUEEZED and config.get("squeeze_factor", 2) != 1:
            raise EncoderError(
                f"{what}: model type '{kind}' joins frames before its blocks (squeeze_factor), "
                "which is not supported"
            )
        return found

    @property
    def hop(self) -> int:
        return prod(self.strides)

    @property
    def field(self) -> int:
        """Samples that one frame sees: the shortest clip that gives a frame."""
        field, hop = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    @property
    def rate(self) -> float | None:
        """Frames per second; None: one for the whole clip."""
        return SAMPLE_RATE / self.hop

    def first(self, samples: int) -> int:
        """Steps after the first convolution."""
        return (samples - self.kernels[0]) // self.strides[0] + 1

    def frames(self, samples: int) -> int:
        """Frames of a clip; a clip below one receptive field is padded to it and gives one."""
        n = max(samples, self.field)
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            n = (n - kernel) // stride + 1
        return n

    def pieces(
        self, samples: int, longest: int, *, multiple: int = 1
    ) -> Iterator[tuple[int, int, int, int]]:
        """Cut a clip into pieces of at most `longest` samples that overlap by `CONTEXT` frames on
        each inner side.

        Yields (first sample, end sample, frames to skip, frames to keep). The kept frames join to
        exactly `frames(samples)`, on the same grid as the uncut clip's; every inner boundary is a
        multiple of `multiple` frames, so that pooling works piece by piece.
        """
        total = self.frames(samples)
        if samples <= longest:
            yield 0, samples, 0, total
            return
        widest = (longest - self.field) // self.hop + 1  # frames of a piece of `longest` samples
        core = (widest - 2 * CONTEXT) // multiple * multiple
        if core < 1:
            overlap = CONTEXT * self.hop / SAMPLE_RATE
            raise DataError(
                f"--max-seconds {longest / SAMPLE_RATE:g} is too short to cut clips with "
                f"{overlap:g} s of overlap"
            )
        count = -(-total // core)
        even = -(-total // (count * multiple)) * multiple  # pieces of about the same length
        for start in range(0, total, even):
            end = min(total, start + even)
            left = min(CONTEXT, start)
            last = (
                samples if end + CONTEXT >= total else (end + CONTEXT - 1) * self.hop + self.field
            )
            yield (start - left) * self.hop, last, left, end - start


@dataclass(frozen=True)
class WindowGeometry(Geometry):
    """Frames that begin every `hop` samples; the last frame may reach beyond the clip."""

    def frames(self, samples: int) -> int:
        return max(1, -(-samples // self.hop))


@dataclass(frozen=True)
class MelSettings:
    """Numbers of a log-mel spectrogram, in samples and bins."""

    n_fft: int
    hop: int
    bins: int


# frames (1 s at 50 Hz) on each inner side of a piece: more than the positional convolution's reach
# (64 frames on both sides)
CONTEXT = 50

WINDOW = "full"  # how much of its window Whisper computes: full, as it was trained, or clip
WINDOWS = ("full", "clip")


def mel_settings(checkpoint: Checkpoint) -> MelSettings:
    """How a Whisper checkpoint's feature extractor makes its mels. Raises EncoderError."""
    config, processor = checkpoint.config, checkpoint.processor
    what = f"audio encoder {checkpoint.name}"
    bins = _number(what, config, "num_mel_bins", 80)
    found = MelSettings(
        _number(what, processor, "n_fft", 400), _number(what, processor, "hop_length", 160), bins
    )
    if _number(what, processor, "feature_size", bins) != bins:
        raise EncoderError(
            f"{what}: its feature extractor gives {processor['feature_size']} mels, its model "
            f"takes {bins}; they do not fit"
        )
    if processor.get("dither"):
        raise EncoderError(
            f"{what}: its feature extractor adds noise (dither), so that no two runs would agree"
        )
    return found


def whisper_geometry(checkpoint: Checkpoint) -> Geometry:
    """The frames of a Whisper encoder: two mels each. Raises EncoderError."""
    config, what = checkpoint.config, f"audio encoder {checkpoint.name}"
    _check(checkpoint)
    mel = mel_settings(checkpoint)
    hop = 2 * mel.hop
    window = hop * _number(what, config, "max_source_positions", 1500)
    seconds = checkpoint.processor.get("chunk_length", window / SAMPLE_RATE)
    if seconds != window / SAMPLE_RATE:
        raise EncoderError(
            f"{what}: its feature extractor gives windows of {shown(seconds)} s, its model takes "
            f"{window / SAMPLE_RATE:g} s; they do not fit"
        )
    width, layers = _number(what, config, "d_model"), _number(what, config, "encoder_layers")
    return WindowGeometry((hop,), (hop,), width, layers, window)


def wav2vec2_bert_geometry(checkpoint: Checkpoint) -> Geometry:
    """The frames of wav2vec2-BERT: windows of 25 ms every 10 ms, two of them a frame, and no frame
    for one that is left over. Raises EncoderError.
    """
    config, what = checkpoint.config, f"audio encoder {checkpoint.name}"
    _check(checkpoint)
    processor = checkpoint.processor
    bins, stride = _number(what, processor, "num_mel_bins", 80), processor.get("stride", 2)
    width = _number(what, config, "feature_projection_input_dim", 160)
    if stride != 2 or bins * stride != width:
        raise EncoderError(
            f"{what}: its feature extractor gives {bins} mels times {shown(stride)}, its model "
            f"takes {width} numbers; they do not fit"
        )
    dim, layers = _number(what, config, "hidden_size"), _number(what, config, "num_hidden_layers")
    return Geometry((400, 2), (160, 2), dim, layers)


def _check(checkpoint: Checkpoint) -> None:
    """Raise EncoderError for what no family here can take."""
    what = f"audio encoder {checkpoint.name}"
    if checkpoint.config.get("add_adapter"):
        raise EncoderError(
            f"{what}: has a convolutional adapter after the encoder, which is not supported"
        )
    rate = checkpoint.processor.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise EncoderError(f"{what}: expects {shown(rate)} Hz; mer decodes to {SAMPLE_RATE} Hz")


def _number(what: str, config: dict, name: str, default: int | None = None) -> int:
    """A size that a checkpoint's configuration must give. Raises EncoderError."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise EncoderError(f"{what}: its {name} is {shown(value)}, not a number above 0")
    return value
