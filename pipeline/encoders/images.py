"""RGB pictures → pixel values, by a checkpoint's own image processor.

It runs in the decoding processes, each of which would need seconds and most of a gigabyte to load
transformers. So what a processor does is written down as a `Scaling` where it consists of the usual
steps, and held against the processor itself on a few pictures; other processors are loaded there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mer.pipeline.encoders import lean, tiny
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.terminal import first_line

# (height, width, 3) uint8 → (channels, h, w) float32
Scale = Callable[[np.ndarray], np.ndarray]
# Methods of transformers' Pillow processors; one that a checkpoint's has of its own does more.
STEPS = ("_preprocess", "center_crop", "normalize", "preprocess", "process_image", "rescale")
WARPED_FROM = 384  # pixels, from which on ConvNeXt's processor cuts nothing off
TRIED_SIZES = ((64, 96), (97, 61), (50, 50), (33, 150))


@dataclass(frozen=True, slots=True)
class Scaling:
    """Resize, cut the centre out, bring to numbers around 0: as transformers does it with Pillow.

    Attributes:
        height: To which a picture is resized; 0: its shorter side becomes `width`.
        width: Likewise.
        resample: Pillow's number of the filter.
        crop: (height, width) of the centre that is kept.
        factor: By which values of 0 … 255 are multiplied.
        mean: Of each channel, taken off.
        std: Of each channel, divided by.
    """

    height: int
    width: int
    resample: int
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 → (3, h, w) float32."""
        from PIL import Image

        height, width = self._size(*pixels.shape[:2])
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        resized = np.asarray(picture.resize((width, height), Image.Resampling(self.resample)))
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            resized = resized[top : top + self.crop[0], left : left + self.crop[1]]
        values = self._values()
        found = np.empty((3, *resized.shape[:2]), np.float32)
        for channel in range(3):
            # nothing lies outside of 256 values, and "clip" is several times as fast as "raise"
            np.take(values[channel], resized[..., channel], out=found[channel], mode="clip")
        return found

    def _values(self) -> np.ndarray:
        """(3, 256): what becomes of 0 … 255 in each channel."""
        values = (np.arange(256, dtype=np.float64) * self.factor).astype(np.float32)
        table = np.repeat(values[:, None], 3, axis=1)
        table -= np.array(self.mean, np.float32)
        table /= np.array(self.std, np.float32)
        return np.ascontiguousarray(table.T)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.height:
            return self.height, self.width
        longer = int(self.width * max(height, width) / min(height, width))
        return (longer, self.width) if width <= height else (self.width, longer)


@dataclass(frozen=True, slots=True)
class Processor:
    """transformers' own processor in `folder`; it is loaded where it is first called."""

    folder: str

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Raises EncoderError for a processor that cannot be loaded or gives no single picture."""
        given = {"return_tensors": "np", "input_data_format": "channels_last"}
        found = _load(self.folder)(images=[pixels], **given)
        values = np.asarray(found.get("pixel_values", ()))
        if values.ndim != 4 or len(values) != 1:
            raise EncoderError(
                f"vision encoder {self.folder}: its processor gives no single picture of pixel "
                f"values, but an array of shape {values.shape}; this architecture is not supported"
            )
        return values[0].astype(np.float32, copy=False)


def check_processor(checkpoint: Checkpoint) -> None:
    """Raise EncoderError for a checkpoint that does not say how pictures are scaled."""
    if checkpoint.folder is not None and not checkpoint.processor:
        raise EncoderError(
            f"vision encoder {checkpoint.name}: no preprocessor_config.json in "
            f"{checkpoint.folder}, nor a part for pictures in processor_config.json; one of "
            "the two says how they are scaled"
        )


def scale_of(checkpoint: Checkpoint) -> Scale:
    """What scales pictures for a checkpoint, ready to be sent to another process.

    Raises EncoderError when its processor cannot be loaded.
    """
    check_processor(checkpoint)
    return _scale_in("" if checkpoint.folder is None else str(checkpoint.folder))


@lru_cache(maxsize=2)
def _scale_in(folder: str) -> Scale:
    if not folder:
        return _of_built_in()
    own = Processor(folder)
    scaling = _scaling_of(_load(folder))
    if scaling is None:
        return own
    random = np.random.default_rng(0)
    for size in TRIED_SIZES:
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        if not np.array_equal(scaling(pixels), own(pixels)):
            return own
    return scaling


def _of_built_in() -> Scaling:
    given = tiny.PICTURES
    size, bilinear = given["size"], 2
    mean, std = tuple(given["image_mean"]), tuple(given["image_std"])
    return Scaling(size["height"], size["width"], bilinear, None, 1 / 255, mean, std)


def _scaling_of(processor: Any) -> Scaling | None:
    """The steps of a processor; None where it has others than the usual ones."""
    from transformers.image_processing_backends import PilBackend

    kind, size = type(processor), processor.size
    share = getattr(processor, "crop_pct", None)  # ConvNeXt's way to say a crop
    own = [step for step in STEPS if getattr(kind, step, None) is not getattr(PilBackend, step)]
    wanted = ("do_resize", "do_rescale", "do_normalize")
    does = all(getattr(processor, step, False) for step in wanted)
    if (
        own != (["_preprocess"] if share else [])
        or not does
        or getattr(processor, "do_pad", False)
        or size is None
    ):
        return None
    height, width = size.get("height") or 0, size.get("width") or size.get("shortest_edge") or 0
    crop = None
    if processor.do_center_crop:
        crop = processor.crop_size["height"], processor.crop_size["width"]
    if share and width < WARPED_FROM:
        height, width, crop = 0, int(width / share), (width, width)
    elif share:
        height = width
    # a centre larger than the picture would have to be padded
    if not width or (crop is not None and max(crop) > min(height or width, width)):
        return None
    mean, std = processor.image_mean, processor.image_std
    factor, resample = processor.rescale_factor, int(processor.resample)
    return Scaling(height, width, resample, crop, factor, tuple(mean), tuple(std))


@lru_cache(maxsize=2)
def _load(folder: str) -> Any:
    """transformers' processor that uses Pillow, also where torchvision is installed, so that
    features do not depend on other packages.
    """
    lean.import_transformers()
    # the name in `transformers` itself asks for torchvision, which it does not need
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # the libraries below raise classes of their own
        said = first_line(error)
        raise EncoderError(
            f"vision encoder {folder}: its image processor cannot be loaded ({said})"
        ) from None
