"""Transcripts → token states, with any encoder-only text checkpoint (RoBERTa, BERT, XLM-R,
DeBERTa, ModernBERT, MiniLM, …).

Every real token is kept, the special ones at both ends (`<s>`, `</s>`) included: `<s>` is what
classifiers of this family read. The families of `causal.py` and `seq2seq.py` differ in the network
that is loaded, and in what a token sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mer.pipeline.encoders.frozen import (
    choose_precision,
    computing,
    load_model,
    pad,
)
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Kept, Modality, States
from mer.pipeline.encoders.packed import pack
from mer.pipeline.encoders.shape import Shape
from mer.pipeline.encoders.taps import (
    LayerTaps,
    blocks_of,
    fetch,
    hooks_see,
    spans_of,
    states_of,
)
from mer.pipeline.encoders.tokens import Tokens, cut
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.machine import choose_device, is_out_of_memory
from mer.pipeline.runtime.terminal import first_line


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> TextEncoder:
    """The encoder of transcripts on its device; the modality says which states are kept."""
    return TextEncoder.of(checkpoint, modality, device, precision)


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

    `limit` is the longest input in tokens, `ends` count the tokenizer's special tokens.
    """

    causal: ClassVar[bool] = False  # whether a token sees only what is before it

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
        self.checkpoint, self.what = checkpoint, f"text encoder {checkpoint.name}"
        shape = Shape.of(checkpoint)
        self.choice = parse_layers(layer, shape.blocks, "--text-layer")
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model = self.network(checkpoint, self.device)
        pack(self.model, self.device, self.precision)
        positions = None if shape.positions is None else shape.positions - self._unused_positions()
        self.tokenizer = Tokens(checkpoint, vocabulary=shape.vocabulary, positions=positions)
        self.limit, self.ends = self.tokenizer.limit, self.tokenizer.ends
        needed = range(shape.blocks + 1) if layer_means else self.choice.layers
        self.width, hooks = self._look(shape, needed)
        self.dim = self.width * self.choice.copies
        self._taps = LayerTaps(self.model, self.choice, means=layer_means, hooks=hooks)
        self.layer_count = self._taps.count

    @classmethod
    def of(cls, checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> Self:
        """The encoder that a modality of transcripts asks for."""
        return cls(
            checkpoint,
            layer=getattr(modality, "layer", "last"),
            layer_means=getattr(modality, "layer_means", False),
            device=device,
            precision=precision,
        )

    def network(self, checkpoint: Checkpoint, device: torch.device) -> Any:
        """The part of the checkpoint that token states come from. Raises EncoderError."""
        return load_model(checkpoint, device)

    def _unused_positions(self) -> int:
        """RoBERTa-like models count positions from padding_idx + 1, so two of their 514 are not
        usable.
        """
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        return 0 if padding is None else padding + 1

    def _look(self, shape: Shape, needed: Sequence[int]) -> tuple[int, bool]:
        """(the width of the states of the `needed` layers, whether hooks on the blocks see them),
        from one pass over two short rows: where blocks are, and what enters them, differs between
        architectures.

        Raises EncoderError for a model that takes no transcripts, or has other layers than its
        configuration says, or layers of several widths.
        """
        highest = shape.vocabulary - 1
        rows = [[max(0, highest - at) for at in places] for places in ((0, 1, 2), (2, 0, 1))]
        ids = torch.tensor(rows, device=self.device)

        def run() -> Any:
            mask = torch.ones_like(ids)
            return self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)

        blocks = blocks_of(self.model, shape.blocks)
        try:
            with computing(self.device, "fp32"):
                output = run()
                last, states = output.last_hidden_state, output.get("hidden_states")
                hooks = False
                if blocks is not None and states is not None:
                    hooks = hooks_see(blocks, lambda: run().hidden_states)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            raise EncoderError(f"{self.what}: takes no transcripts ({reason})") from None
        if tuple(needed) == (shape.blocks,):
            return last.shape[-1], hooks
        remedy = "use --text-layer last and --no-layer-means"
        if states is None or len(states) != shape.blocks + 1:
            there = 0 if states is None else len(states) - 1
            raise EncoderError(
                f"{self.what}: tells hidden states of {there} blocks, its configuration says "
                f"{shape.blocks}; {remedy}"
            )
        widths = sorted({states[number].shape[-1] for number in needed})
        if len(widths) > 1:
            differ = " and ".join(map(str, widths))
            raise EncoderError(f"{self.what}: its layers are {differ} numbers wide; {remedy}")
        return widths[0], hooks

    def tokens(
        self, texts: Sequence[str], *, whole: bool = False
    ) -> tuple[list[np.ndarray], list[bool]]:
        """Token ids (T,) of each transcript with the special ones, and whether it is longer than
        `limit`: it is cut then, unless it is asked for `whole`.
        """
        ids = self.tokenizer(texts)
        longer = [len(row) > self.limit for row in ids]
        if not whole:
            ids = [cut(row, self.limit, self.ends) for row in ids]
        return ids, longer

    def collate(
        self, ids: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> TokenBatch:
        """Rows of token ids as one batch on the host, padded on the right."""
        padded, mask = pad(ids, self.tokenizer.padding, np.int64, self.device)
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
