"""RGB pictures → pixel values, by a checkpoint's own image processor.

It runs in the decoding processes, so a `Processor` can be pickled and is built where it is used.
Free of torch until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mer.pipeline.encoders import tiny
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.terminal import shown


@dataclass(frozen=True, slots=True)
class Processor:
    """`(height, width, 3) uint8 → (channels, h, w) float32`, as transformers' processor in `folder`
    does it ("": that of the built-in encoder).
    """

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


def processor_of(checkpoint: Checkpoint) -> Processor:
    """The image processor of a checkpoint. Raises EncoderError when it has none."""
    if checkpoint.folder is None:
        return Processor("")
    if not checkpoint.processor:
        raise EncoderError(
            f"vision encoder {checkpoint.name}: no preprocessor_config.json in "
            f"{checkpoint.folder}; it says how pictures are scaled"
        )
    return Processor(str(checkpoint.folder))


@lru_cache(maxsize=2)
def _load(folder: str) -> Any:
    """transformers' processor; without torchvision or with it, that of Pillow, so that features do
    not depend on what else is installed.
    """
    from transformers import ViTImageProcessorPil

    # the name in `transformers` itself asks for torchvision, which it does not need
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    if not folder:
        return ViTImageProcessorPil(**tiny.PICTURES)
    try:
        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # the libraries below raise classes of their own
        said = shown((str(error).strip() or type(error).__name__).splitlines()[0])
        raise EncoderError(
            f"vision encoder {folder}: its image processor cannot be loaded ({said})"
        ) from None
