"""The modality `text`: transcripts, counted in tokens.

Its length is known once the tokenizer is loaded. A transcript longer than the encoder takes is cut
at its end, or encoded in windows that overlap. Rows with the same transcript share its items.
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
from mer.pipeline.encoders.windows import Ends, windows
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag
from mer.pipeline.media.workers import Decoders

CUT, WINDOWS = "cut", "windows"  # what becomes of a transcript that is too long


class Tokenising(Encoder, Protocol):
    """An encoder of transcripts: the token ids of each, and whether it is longer than `limit`.

    `ends` count the special tokens around a transcript; `causal`: a token sees only what is before
    it.
    """

    limit: int
    ends: Ends
    causal: bool

    def tokens(
        self, texts: Sequence[str], *, whole: bool = False
    ) -> tuple[list[np.ndarray], list[bool]]: ...


def is_encoder_decoder(config: dict[str, Any]) -> bool:
    """transformers is asked only when an encoder is loaded, which takes it anyway."""
    from mer.pipeline.encoders import seq2seq

    return seq2seq.takes(config)


def is_causal(config: dict[str, Any]) -> bool:
    """Likewise."""
    from mer.pipeline.encoders import causal

    return causal.takes(config)


# One line adds a family: its module has `load`, `takes` tells its checkpoints from others.
FAMILIES: list[Family] = [
    Family("seq2seq", "mer.pipeline.encoders.seq2seq", is_encoder_decoder),
    Family("causal", "mer.pipeline.encoders.causal", is_causal),
    Family("bert", "mer.pipeline.encoders.bert"),
]


@dataclass(frozen=True)
class Tokenised:
    """What is read again when items are encoded: the ids of each distinct transcript, and how
    those that are too long are cut into windows.
    """

    ids: Mapping[str, np.ndarray]
    limit: int
    ends: Ends
    causal: bool


@dataclass(frozen=True)
class Text(Modality):
    """`layer`, `layer_means` and `long` belong to the recipe, where they are not what they were
    before there was a choice.
    """

    name: ClassVar[str] = "text"
    unit: ClassVar[str] = "tokens"
    per_unit: ClassVar[int] = 1
    fixed_budget: ClassVar[Mapping[str, float]] = {"cpu": 512, "cuda": 16_384}
    candidate_budgets: ClassVar[Mapping[str, Sequence[float]]] = {
        "cpu": (256, 512, 1024, 2048, 4096),
        "cuda": (2048, 4096, 8192, 16_384, 32_768),
    }
    families: ClassVar[Sequence[Family]] = FAMILIES
    absent: ClassVar[tuple[str, ...]] = ("",)
    clip_option: ClassVar[str] = "--text TEXT"
    built_in: ClassVar[str] = tiny.NAMES["text"]

    layer: str = "last"
    layer_means: bool = False
    long: str = CUT  # cut | windows: transcripts longer than the encoder takes

    @classmethod
    def of(cls, options: Any) -> Text:
        return cls(
            encoder=options.text_encoder,
            budget=options.budget_tokens,
            part=options.part_tokens,
            layer=options.text_layer,
            layer_means=options.layer_means,
            long=options.text_windows,
        )

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
        choice = self.choice(checkpoint)
        if choice.kind != "last":  # stores made before it could be asked for keep their key
            recipe["layer"] = choice.text
        if self.long != CUT:
            recipe["windows"] = self.long
        if self.layer_means:
            recipe["layer_means"] = True
        return recipe

    @classmethod
    def options_of(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "text_layer": recipe.get("layer", "last"),
            "text_windows": recipe.get("windows", CUT),
            "layer_means": recipe.get("layer_means", False),
        }

    @classmethod
    def differs(cls, key: str, old: Any, new: Any) -> str:
        usual = {"layer": "last", "windows": CUT}.get(key)  # in the recipe only where it is not
        return super().differs(key, old or usual, new or usual)

    def measure(self, rows: Rows, probed: Sequence[int], encoder: Encoder) -> Lengths:
        """A transcript that gives no token at all has no length, and is noted."""
        texts = list(dict.fromkeys(u.text for u in rows.utterances if u.text))
        by = cast(Tokenising, encoder)
        ids, longer = by.tokens(texts, whole=self.long == WINDOWS) if texts else ([], [])
        tokens = dict(zip(texts, ids, strict=True))
        noted = {}
        for text, is_longer in zip(texts, longer, strict=True):
            if not len(tokens[text]):
                noted[text] = Flag.wordless
            elif is_longer and self.long == CUT:
                noted[text] = Flag.text_cut
        lengths = tuple(len(tokens[u.text]) if u.text else 0 for u in rows.utterances)
        flags = tuple(noted.get(u.text or "", Flag(0)) for u in rows.utterances)
        return Lengths(lengths, lengths, flags, Tokenised(tokens, by.limit, by.ends, by.causal))

    def items(
        self, chosen: Sequence[int], rows: Rows, lengths: Lengths, checkpoint: Checkpoint
    ) -> list[Item]:
        """One item for each distinct transcript, several for one that is encoded in windows."""
        owners = self.owners(chosen, rows)
        by: Tokenised = lengths.prepared
        found = []
        for row in chosen:
            length = lengths.lengths[row]
            if not length or row in owners:
                continue
            if length <= by.limit:
                found.append(Item(row, length))
                continue
            special = sum(by.ends)
            cuts = windows(length, by.limit, by.ends, causal=by.causal)
            for piece, (first, end, skip, keep) in enumerate(cuts):
                found.append(Item(row, end - first + special, piece, first, end, skip, keep))
        return found

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
        """Token ids of each transcript, or of a window over one between the special tokens."""
        by: Tokenised = lengths.prepared
        for item in items:
            ids = by.ids[rows.utterances[item.row].text or ""]
            if not item.end:
                yield ReadItem(ids)
                continue
            before, behind = ids[: by.ends.before], ids[len(ids) - by.ends.behind :]
            body = ids[by.ends.before : len(ids) - by.ends.behind]
            yield ReadItem(np.concatenate([before, body[item.first : item.end], behind]))

    def describe(self, checkpoint: Checkpoint) -> Described:
        choice = self.choice(checkpoint)
        return Described(None, choice.text, stack=choice.stack)
