"""The modality `text`: transcripts, counted in tokens.

Its length is known once the tokenizer is loaded. Rows of a window with the same transcript share
one item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np

from mer.pipeline.encoders import tiny
from mer.pipeline.encoders.layers import LayerChoice, parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import (
    Described,
    Encoder,
    Family,
    Item,
    Lengths,
    Modality,
    ReadItem,
    Rows,
)
from mer.pipeline.encoders.shape import Shape
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag
from mer.pipeline.media.workers import Decoders


class Tokenising(Encoder, Protocol):
    """An encoder of transcripts: token ids of each, and whether it had to be cut."""

    def tokens(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[bool]]: ...


# One line adds a family: its module has `load`, `takes` tells its checkpoints from others.
FAMILIES: list[Family] = [
    Family("bert", "mer.pipeline.encoders.bert"),
]


@dataclass(frozen=True)
class Text(Modality):
    """`layer` and `layer_means` belong to the recipe, beside the encoder."""

    name: ClassVar[str] = "text"
    unit: ClassVar[str] = "tokens"
    per_unit: ClassVar[int] = 1
    fixed_budget: ClassVar[Mapping[str, float]] = {"cpu": 512, "cuda": 16_384}
    candidate_budgets: ClassVar[Mapping[str, Sequence[float]]] = {
        "cpu": (256, 512, 1024, 2048, 4096),
        "cuda": (2048, 4096, 8192, 16_384, 32_768),
    }
    absent: ClassVar[tuple[str, ...]] = ("",)
    built_in: ClassVar[str] = tiny.NAMES["text"]

    layer: str = "last"
    layer_means: bool = False

    @classmethod
    def of(cls, options: Any) -> Text:
        return cls(
            encoder=options.text_encoder,
            budget=options.budget_tokens,
            part=options.part_tokens,
            layer=options.text_layer,
            layer_means=options.layer_means,
        )

    @property
    def families(self) -> tuple[Family, ...]:  # type: ignore[override]
        return tuple(FAMILIES)

    def has(self, u: Utterance) -> bool:
        return bool(u.text)

    def content(self, u: Utterance, digest: str) -> tuple[str, ...]:
        return (u.text or "",)

    def check(self, checkpoint: Checkpoint) -> None:
        self.choice(checkpoint)

    def choice(self, checkpoint: Checkpoint) -> LayerChoice:
        """The layers that are kept as states. Raises DataError and EncoderError."""
        return parse_layers(self.layer, Shape.of(checkpoint).blocks, "--text-layer")

    def recipe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        recipe: dict[str, Any] = {"encoder": checkpoint.hash}
        # stores made before these could be asked for keep their key
        layer = self.choice(checkpoint).text
        if layer != "last":
            recipe["layer"] = layer
        if self.layer_means:
            recipe["layer_means"] = True
        return recipe

    @classmethod
    def options_of(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "text_layer": recipe.get("layer", "last"),
            "layer_means": recipe.get("layer_means", False),
        }

    @classmethod
    def differs(cls, key: str, old: Any, new: Any) -> str:
        if key == "layer":  # in the recipe only where it is not the last
            return f"text layer: {old or 'last'} there, {new or 'last'} now"
        return super().differs(key, old, new)

    def measure(self, rows: Rows, probed: Sequence[int], encoder: Encoder) -> Lengths:
        texts = list(dict.fromkeys(u.text for u in rows.utterances if u.text))
        ids, cut = cast(Tokenising, encoder).tokens(texts) if texts else ([], [])
        tokens = dict(zip(texts, ids, strict=True))
        shortened = {text for text, was_cut in zip(texts, cut, strict=True) if was_cut}
        lengths = tuple(len(tokens[u.text]) if u.text else 0 for u in rows.utterances)
        cut_rows = (u.text in shortened for u in rows.utterances)
        flags = tuple(Flag.text_cut if is_cut else Flag(0) for is_cut in cut_rows)
        return Lengths(lengths, lengths, flags, tokens)

    def items(
        self, chosen: Sequence[int], rows: Rows, lengths: Lengths, checkpoint: Checkpoint
    ) -> list[Item]:
        """One item for each distinct transcript."""
        owners = self.owners(chosen, rows)
        first = [row for row in chosen if rows.utterances[row].text and row not in owners]
        return [Item(row, lengths.lengths[row]) for row in first]

    def owners(self, chosen: Sequence[int], rows: Rows) -> dict[int, int]:
        first: dict[str, int] = {}
        found = {}
        for row in chosen:
            text = rows.utterances[row].text
            if text and first.setdefault(text, row) != row:
                found[row] = first[text]
        return found

    def read(
        self,
        items: Iterable[Item],
        rows: Rows,
        lengths: Lengths,
        encoder: Encoder,
        decoders: Decoders,
    ) -> Iterator[ReadItem]:
        """Token ids of each transcript."""
        for item in items:
            yield ReadItem(lengths.prepared[rows.utterances[item.row].text])

    def describe(self, checkpoint: Checkpoint) -> Described:
        choice = self.choice(checkpoint)
        return Described(None, choice.text, stack=choice.stack)
