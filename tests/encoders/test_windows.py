"""Windows over transcripts that are longer than an encoder takes: the arithmetic, against plain
lists of tokens.
"""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from mer.pipeline.encoders import windows as module
from mer.pipeline.encoders.tokens import cut
from mer.pipeline.encoders.windows import Ends, Window, windows

ENDS = [Ends(before, behind) for before in range(3) for behind in range(3)]


def test_the_examples_of_the_docstring():
    found = doctest.testmod(module)
    assert found.attempted == 3 and not found.failed


def texts():
    """Limits as small as they may be, and transcripts from nothing to many windows."""
    for ends in ENDS:
        for limit in (*range(sum(ends) + 2, sum(ends) + 9), 40):
            for tokens in (*range(max(1, sum(ends)), 3 * limit), 1000):
                yield tokens, limit, ends


@pytest.mark.parametrize("causal", [True, False])
def test_every_token_is_kept_once_in_order(causal):
    for tokens, limit, ends in texts():
        ids = list(range(tokens))
        body, kept = ids[ends.before : tokens - ends.behind], []
        for window in windows(tokens, limit, ends, causal=causal):
            item = [*ids[: ends.before], *body[window.first : window.end]]
            item += ids[tokens - ends.behind :]
            assert len(item) <= limit and window.keep > 0
            kept += item[window.skip : window.skip + window.keep]
        assert kept == ids, (tokens, limit, ends)


@pytest.mark.parametrize("causal", [True, False])
def test_windows_are_full_and_each_kept_token_has_its_neighbourhood(causal):
    """A causal encoder sees half a window or more before a token; another one a quarter of a window
    or more on both sides, where the transcript has as much (less half a token, for odd overlaps).
    """
    for tokens, limit, ends in texts():
        found = windows(tokens, limit, ends, causal=causal)
        if len(found) == 1:
            assert tokens <= limit and found == [Window(0, tokens - sum(ends), 0, tokens)]
            continue
        room = limit - sum(ends)
        assert all(window.end - window.first == room for window in found)
        assert (found[0].first, found[-1].end) == (0, tokens - sum(ends))
        for window in found[1:]:
            before = window.skip - ends.before  # tokens of the body seen before the first kept
            assert before >= (room / 2 if causal else room / 4 - 0.5)
        for window in found[:-1]:
            behind = window.end - window.first + ends.before - window.skip - window.keep
            assert behind == 0 if causal else behind >= room / 4 - 0.5


def test_there_are_no_more_windows_than_needed():
    """They move on by half a window: at most twice the work."""
    for tokens, limit, ends in texts():
        room, body = limit - sum(ends), tokens - sum(ends)
        if tokens > limit:
            count = len(windows(tokens, limit, ends, causal=False))
            assert count == 1 + -(-(body - room) // (room // 2))


def test_what_is_too_much_is_cut_before_the_closing_tokens():
    ids = np.arange(10)
    assert list(cut(ids, 6, Ends(1, 1))) == [0, 1, 2, 3, 4, 9]
    assert list(cut(ids, 6, Ends(1, 2))) == [0, 1, 2, 3, 8, 9]
    assert list(cut(ids, 6, Ends(1, 0))) == [0, 1, 2, 3, 4, 5]
    assert list(cut(ids, 10, Ends(1, 1))) == list(ids)
