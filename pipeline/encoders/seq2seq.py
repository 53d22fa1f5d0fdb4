"""Transcripts → token states, with the encoder of any encoder-decoder text model that
transformers knows (T5, mT5, BART, mBART, Marian, M2M-100, …). The decoder is not used, and may be
missing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mer.pipeline.encoders import lean
from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.frozen import load_model
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Modality
from mer.pipeline.errors import EncoderError

# model type → the class of transformers that loads the encoder alone; others are loaded whole
ENCODERS = {
    "longt5": "LongT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
# where positions are sinusoids, which checkpoints do not hold: their classes compute them
SINUSOIDS = {"marian": "embed_positions.weight", "pegasus": "embed_positions.weight"}


def takes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint is an encoder-decoder model, or the encoder of one, by its
    config.json.
    """
    return bool(config.get("is_encoder_decoder")) or str(config.get("model_type")) in ENCODERS


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> EncoderOfPair:
    """The encoder of transcripts on its device; the modality says which states are kept."""
    return EncoderOfPair.of(checkpoint, modality, device, precision)


class EncoderOfPair(TextEncoder):
    """The encoder of an encoder-decoder model."""

    def network(self, checkpoint: Checkpoint, device: torch.device) -> nn.Module:
        """Raises EncoderError for a model that has no encoder of its own."""
        lean.import_transformers()
        import transformers

        kind = str(checkpoint.config.get("model_type"))
        architecture = getattr(transformers, ENCODERS.get(kind, "AutoModel"))
        unused = ["decoder.", *(SINUSOIDS[name] for name in SINUSOIDS if name == kind)]
        whole = load_model(checkpoint, torch.device("cpu"), architecture, unused=unused)
        encoder = getattr(whole, "encoder", None)
        if not isinstance(encoder, nn.Module) or getattr(whole, "decoder", encoder) is None:
            raise EncoderError(f"{self.what}: has no encoder of its own")
        return encoder.to(device)
