"""Windows over transcripts that are longer than an encoder takes. Pure arithmetic, no torch.

A transcript's tokens are its *body* between the special tokens that the tokenizer puts at both
ends. A window is as many tokens of the body as the encoder takes, between the same special tokens.
Windows overlap by half or more, and every token is kept once, from the window that shows it most of
its neighbourhood; the special tokens at the beginning are kept from the first window, those at the
end from the last.
"""

from __future__ import annotations

from typing import NamedTuple


class Ends(NamedTuple):
    """How many special tokens a tokenizer puts before and behind a transcript."""

    before: int
    behind: int


class Window(NamedTuple):
    """The tokens [first, end) of a body, between the special tokens; of its steps, `keep` are kept
    after the first `skip`.
    """

    first: int
    end: int
    skip: int
    keep: int


def windows(tokens: int, limit: int, ends: Ends, *, causal: bool) -> list[Window]:
    """The windows of a transcript of `tokens` tokens, special ones included.

    All windows of a transcript are equally long, and their kept steps join to `tokens` steps. A
    causal encoder sees nothing behind a token: there the overlap is all in front, half a window or
    more; elsewhere a quarter of a window or more is on both inner sides.

    Args:
        tokens: of the transcript, special ones included.
        limit: the longest input of the encoder, at least two tokens more than `ends`.
        ends: of the tokenizer.
        causal: whether a token sees only what is before it.

    >>> windows(8, 8, Ends(1, 1), causal=False)
    [Window(first=0, end=6, skip=0, keep=8)]
    >>> windows(12, 8, Ends(1, 1), causal=False)
    [Window(first=0, end=6, skip=0, keep=5), Window(first=2, end=8, skip=3, keep=2), \
Window(first=4, end=10, skip=3, keep=5)]
    >>> windows(8, 6, Ends(0, 0), causal=True)
    [Window(first=0, end=6, skip=0, keep=6), Window(first=2, end=8, skip=4, keep=2)]
    """
    special = ends.before + ends.behind
    body, room = tokens - special, limit - special
    if tokens <= limit:
        return [Window(0, body, 0, tokens)]
    moves = -(-(body - room) // (room // 2))  # by half a window at most
    starts = [move * (body - room) // moves for move in range(moves + 1)]
    cuts = [0]
    for left, right in zip(starts, starts[1:], strict=False):
        cuts.append(left + room if causal else (right + left + room) // 2)
    cuts.append(body)
    found = []
    for number, start in enumerate(starts):
        skip = ends.before + cuts[number] - start if number else 0
        keep = cuts[number + 1] - cuts[number]
        keep += ends.before * (number == 0) + ends.behind * (number == moves)
        found.append(Window(start, start + room, skip, keep))
    return found
