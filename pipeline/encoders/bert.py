"""Transcripts → token states, with any encoder-only text checkpoint (RoBERTa, BERT, XLM-R, DeBERTa,
…).

Every real token is kept, the special ones at both ends (`<s>`, `</s>`) included: `<s>` is what
classifiers of this family read. A transcript longer than the model takes is cut at the end, and
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from mer.pipeline.encoders import tiny
from mer.pipeline.encoders.frozen import (
    choose_precision,
    computing,
    load_model,
    pad,
)
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.encoders.loading import VOCABULARY, Checkpoint, matching
from mer.pipeline.encoders.modality import Kept, Modality, States
from mer.pipeline.encoders.taps import LayerTaps, fetch, spans_of, states_of
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.machine import choose_device
from mer.pipeline.runtime.terminal import shown


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> TextEncoder:
    """The encoder of transcripts on its device; the modality's `layer` says which states are
    kept.
    """
    return TextEncoder(
        checkpoint,
        layer=getattr(modality, "layer", "last"),
        layer_means=getattr(modality, "layer_means", False),
        device=device,
        precision=precision,
    )


class TokenBatch(NamedTuple):
    """Rows of token ids, padded on the host: ids (B, T), mask (B, T), true lengths, and the steps
    that layer means are over.
    """

    ids: Tensor
    mask: Tensor
    lengths: list[int]
    spans: list[Kept]


class TextEncoder:
    """`tokens` turns transcripts into ids, `encode` turns ids into states (T, dim) float32, one a
    token.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layer: str = "last",
        layer_means: bool = False,
        device: str = "auto",
        precision: str = "auto",
    ):
        """Raises EncoderError for a checkpoint that is incomplete or no text encoder, DataError for
        a wrong option.
        """
        check_text(checkpoint)
        self.checkpoint = checkpoint
        self.width = int(checkpoint.config["hidden_size"])
        blocks = int(checkpoint.config["num_hidden_layers"])
        self.choice = parse_layers(layer, blocks, "--text-layer")
        self.dim = self.width * self.choice.copies
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model = cast(Any, load_model(checkpoint, self.device))
        self._taps = LayerTaps(self.model, self.choice, means=layer_means)
        self.layer_count = self._taps.count
        self._tokenizer = _tokenizer(checkpoint)
        self.limit = self._limit()

    def _limit(self) -> int:
        """Longest input in tokens.

        RoBERTa-like models count positions from padding_idx + 1, so two of their 514 are not
        usable.
        """
        positions = self.checkpoint.config.get("max_position_embeddings")
        limit = self._tokenizer.model_max_length
        if positions:
            table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
            padding = getattr(table, "padding_idx", None)
            limit = min(limit, positions - (0 if padding is None else padding + 1))
        return int(min(limit, 2**20))

    def tokens(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[bool]]:
        """Token ids (T,) of each transcript with the special ones, and whether it had to be cut to
        `limit`.
        """
        ids, cut = [], []
        for row in _ids(self._tokenizer, list(texts)):
            cut.append(len(row) > self.limit)
            row = [*row[: self.limit - 1], row[-1]] if cut[-1] else row  # the closing token stays
            ids.append(np.array(row, dtype=np.int64))
        highest = max((int(row.max()) for row in ids if len(row)), default=0)
        if highest >= self.checkpoint.config["vocab_size"]:
            known, name = self.checkpoint.config["vocab_size"], self.checkpoint.name
            raise EncoderError(
                f"text encoder {name}: its tokenizer gives id {highest}, its model knows {known}; "
                "they do not fit"
            )
        return ids, cut

    def collate(
        self, ids: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> TokenBatch:
        """Rows of token ids as one padded batch on the host."""
        padded, mask = pad(ids, self._tokenizer.pad_token_id or 0, np.int64, self.device)
        lengths = [len(row) for row in ids]
        return TokenBatch(padded, mask, lengths, spans_of(kept, lengths))

    def forward(self, batch: TokenBatch, *, precision: str | None = None) -> list[States]:
        """States of each row of a collated batch.

        `precision` overrides the encoder's own.
        """
        self._taps.begin(batch.spans)
        with computing(self.device, precision or self.precision):
            output = self.model(
                input_ids=batch.ids.to(self.device, non_blocking=True),
                attention_mask=batch.mask.to(self.device, non_blocking=True),
                **self._taps.arguments,
            )
            fetched = fetch(*self._taps.end(output))
            del output
        frames, means = fetched()
        return states_of(frames, means, batch.lengths)

    def encode(
        self,
        ids: Sequence[np.ndarray],
        kept: Sequence[Kept | None] | None = None,
        *,
        precision: str | None = None,
    ) -> list[States]:
        """States of each row of token ids, one for each token, computed as one batch."""
        return self.forward(self.collate(ids, kept), precision=precision)


def check_text(checkpoint: Checkpoint) -> None:
    """Raise EncoderError for a configuration that is not an encoder-only text model."""
    config, what = checkpoint.config, f"text encoder {checkpoint.name}"
    if config.get("is_encoder_decoder") or config.get("is_decoder"):
        raise EncoderError(
            f"{what}: model type '{config.get('model_type')}' is a decoder; an encoder-only model "
            "is needed"
        )
    if "conv_kernel" in config or "vocab_size" not in config or "hidden_size" not in config:
        raise EncoderError(f"{what}: model type '{config.get('model_type')}' is not a text encoder")


def _tokenizer(checkpoint: Checkpoint):
    if checkpoint.folder is None:
        return tiny.HashTokenizer()
    from transformers import AutoTokenizer

    if not matching(checkpoint.folder, VOCABULARY):  # transformers would make up an empty tokenizer
        raise EncoderError(f"text encoder {checkpoint.name}: no tokenizer in {checkpoint.folder}")
    try:
        return AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = shown((str(error).strip() or type(error).__name__).splitlines()[0])
        raise EncoderError(
            f"text encoder {checkpoint.name}: its tokenizer cannot be loaded ({reason})"
        ) from None


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    if isinstance(tokenizer, tiny.HashTokenizer):
        return tokenizer(texts)
    return tokenizer(
        texts, add_special_tokens=True, truncation=False, padding=False, verbose=False
    )["input_ids"]
