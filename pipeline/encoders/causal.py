"""Transcripts → token states, with any decoder-only language model that transformers knows
(GPT-2, Llama, Qwen, Mistral, Phi, OPT, Gemma, …).

A token's state knows the tokens before it and itself. Batches are padded on the right, where no
token looks: positions are those of the transcript alone, and no padding token is needed. Special
tokens are those that the tokenizer adds (Llama: one at the beginning, GPT-2: none). The head that
predicts the next token is not used.
"""

from __future__ import annotations

from typing import Any

import torch

from mer.pipeline.encoders import lean
from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Modality

# known to transformers as language models, but a token sees those behind it, too
BOTH_WAYS = {"bert-generation", "xlnet"}


def takes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint is a decoder-only model, by its config.json."""
    lean.import_transformers()
    from transformers.models.auto import modeling_auto as known

    kind = str(config.get("model_type"))
    if config.get("is_decoder"):
        return True
    looks_ahead = config.get("use_bidirectional_attention") is True
    if kind in BOTH_WAYS or looks_ahead or config.get("is_causal") is False:
        return False  # as in models that were trained on into encoders of texts
    others = (
        known.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    masked = any(kind in names for names in others)
    return kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> CausalEncoder:
    """The encoder of transcripts on its device; the modality says which states are kept."""
    return CausalEncoder.of(checkpoint, modality, device, precision)


class CausalEncoder(TextEncoder):
    """A decoder-only model as an encoder."""

    causal = True

    def network(self, checkpoint: Checkpoint, device: torch.device) -> Any:
        """Raises EncoderError."""
        model = super().network(checkpoint, device)
        model.config.use_cache = False  # keys and values are for making text
        return model
