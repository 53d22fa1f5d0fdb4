"""Frozen encoders: audio (any wav2vec2-family checkpoint), text (any encoder-only checkpoint), and
tiny untrained built-in ones.
"""

from __future__ import annotations

from mer.pipeline.datasets import corpora
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest

ENGLISH = ("facebook/wav2vec2-large-960h-lv60-self", "roberta-large")


def defaults(manifest: Manifest) -> tuple[str, str]:
    """(audio, text) encoder ids for a corpus: those its TOML names, else the English pair.

    Raises DataError for any other language.
    """
    if manifest.dataset in corpora.names():
        info = corpora.corpus(manifest.dataset)
        return info.audio_encoder, info.text_encoder
    if manifest.language.split("-")[0] == "en":
        return ENGLISH
    raise DataError(
        f"no default encoders for language '{manifest.language}'; name them with --audio-encoder "
        "and --text-encoder "
        "(a hub id, a directory, builtin:tiny-wav2vec2 or builtin:tiny-roberta, or none)"
    )
