"""What an audio encoder's configuration says about its output: frame counts, rates and layers.

Pure arithmetic, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.errors import DataError, EncoderError

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Geometry:
    """Convolution arithmetic of the feature extractor: n samples give `frames(n)` frames, `hop`
    samples apart, each of `field` samples.
    """

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dim: int
    layers: int

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
        if config.get("add_adapter"):
            raise EncoderError(
                f"{what}: has a convolutional adapter after the encoder, which is not supported"
            )
        rate = checkpoint.processor.get("sampling_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            raise EncoderError(f"{what}: expects {rate} Hz; mer decodes to {SAMPLE_RATE} Hz")
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
    def rate(self) -> float:
        """Frames per second."""
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


# frames (1 s at 50 Hz) on each inner side of a piece: more than the positional convolution's reach
# (64 frames on both sides)
CONTEXT = 50
