"""Transcripts → token ids, by the tokenizer that comes with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer.pipeline.encoders import lean, tiny
from mer.pipeline.encoders.loading import VOCABULARY, Checkpoint, matching
from mer.pipeline.encoders.windows import Ends
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.terminal import first_line

# Tokenizers that know no limit say 10^30.
LONGEST = 2**20
PROBE = "a b"  # any text shows what is put at both ends of one


class Tokens:
    """A tokenizer: `limit` is the longest input of its model in tokens, `ends` count the special
    ones, `padding` is an id for what the attention mask hides.
    """

    def __init__(self, checkpoint: Checkpoint, *, vocabulary: int, positions: int | None):
        """`vocabulary` and `positions` are how many ids and tokens the model knows; None: any.

        Raises EncoderError for a checkpoint without a tokenizer, or with one that does not fit.
        """
        self.what = f"text encoder {checkpoint.name}"
        self.vocabulary = vocabulary
        self._tokenizer = _tokenizer(checkpoint, self.what)
        padding = self._tokenizer.pad_token_id
        # one that was added to a language model's tokenizer is not among the ids its model knows
        known = padding is not None and 0 <= padding < vocabulary
        self.padding = padding if known else 0
        limits = [self._tokenizer.model_max_length, LONGEST]
        if positions is not None:
            limits.append(positions)
        self.limit = int(min(limits))
        self.ends = self._ends()
        least = sum(self.ends) + 2  # so that windows can move on
        if self.limit < least:
            raise EncoderError(f"{self.what}: takes {self.limit} tokens, {least} are needed")

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (T,) of each transcript, with the special ones and however many."""
        ids = [np.array(row, dtype=np.int64) for row in self._ids(texts)]
        highest = max((int(row.max()) for row in ids if len(row)), default=0)
        if highest >= self.vocabulary:
            raise EncoderError(
                f"{self.what}: its tokenizer gives id {highest}, its model knows "
                f"{self.vocabulary}; they do not fit"
            )
        return ids

    def _ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        if isinstance(self._tokenizer, tiny.HashTokenizer):
            return self._tokenizer(list(texts), special=special)
        try:
            return self._tokenizer(
                list(texts),
                add_special_tokens=special,
                truncation=False,
                padding=False,
                verbose=False,
            )["input_ids"]
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise EncoderError(
                f"{self.what}: its tokenizer refuses a transcript ({first_line(error)})"
            ) from None

    def _ends(self) -> Ends:
        """Where the tokens of a text are between the special ones; (0, 0) for a tokenizer that
        does not keep them together.
        """
        (body,), (whole,) = self._ids([PROBE], special=False), self._ids([PROBE])
        if not body:
            return Ends(0, 0)
        for before in range(len(whole) - len(body) + 1):
            if whole[before : before + len(body)] == body:
                return Ends(before, len(whole) - len(body) - before)
        return Ends(0, 0)


def cut(ids: np.ndarray, limit: int, ends: Ends) -> np.ndarray:
    """At most `limit` tokens: what is too much is cut from the end of the body."""
    if len(ids) <= limit:
        return ids
    return np.concatenate([ids[: limit - ends.behind], ids[len(ids) - ends.behind :]])


def _tokenizer(checkpoint: Checkpoint, what: str):
    if checkpoint.folder is None:
        return tiny.HashTokenizer()
    if not matching(checkpoint.folder, VOCABULARY):  # transformers would make up an empty tokenizer
        raise EncoderError(f"{what}: no tokenizer in {checkpoint.folder}")
    lean.import_transformers()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise EncoderError(
            f"{what}: its tokenizer cannot be loaded ({first_line(error)})"
        ) from None
