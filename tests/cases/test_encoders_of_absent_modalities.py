"""A corpus in a language without default encoders, of which no row has text, was refused for want
of a text encoder: EmoBox's cafe (French) and urdu, found by their whole way.
"""

from __future__ import annotations

import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction.options import with_defaults
from mer.pipeline.manifest import Manifest, Utterance


def corpus(*rows: Utterance) -> Manifest:
    return Manifest("mine", "single", ("no", "yes"), rows, ".", language="fr")


def test_no_encoder_is_needed_of_what_no_row_has():
    sound = corpus(Utterance("a", audio="a.wav"), Utterance("b", audio="b.wav"))
    assert with_defaults(sound, {"audio_encoder": "x"}) == {"audio_encoder": "x"}
    words = corpus(Utterance("a", text="oui"))
    assert with_defaults(words, {"text_encoder": "y"}) == {"text_encoder": "y"}


def test_of_what_one_row_has_it_is():
    both = corpus(Utterance("a", audio="a.wav"), Utterance("b", audio="b.wav", text="oui"))
    with pytest.raises(DataError, match="no default encoders for language 'fr'"):
        with_defaults(both, {"audio_encoder": "x"})
    with pytest.raises(DataError, match="no default encoders for language 'fr'"):
        with_defaults(both, {})
