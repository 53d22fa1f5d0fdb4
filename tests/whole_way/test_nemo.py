"""Real speech from a table to a figure: nEMO, nine speakers who act six emotions with the same
sentences.
"""

from __future__ import annotations

import json

import pytest

from tests.whole_way.mer import TINY, mer

CHANCE = 1 / 6


@pytest.mark.slow
def test_the_voice_tells_and_the_words_do_not(test_data, tmp_path):
    source = test_data / "nemo-mini"
    columns = [
        a
        for c in (
            "id=file_id",
            "audio=file_id",
            "text=raw_text",
            "label=emotion",
            "speaker=speaker_id",
        )
        for a in ("--column", c)
    ]
    mer(
        "prepare",
        "table",
        "--from",
        source / "data.tsv",
        "--audio-dir",
        source / "samples",
        *columns,
        "--split",
        "none",
        "--name",
        "nemo",
        "--language",
        "pl",
        "--out",
        tmp_path / "manifest.parquet",
    )
    mer("extract", "--manifest", "manifest.parquet", *TINY, cwd=tmp_path)
    interval = {}
    for model in ("audio", "text"):
        out = mer(
            "train",
            "--features",
            "feats.h5",
            "--model",
            model,
            "--folds",
            "speaker",
            "--json",
            cwd=tmp_path,
        ).out
        found = json.loads(out)
        assert found["n"] == 212
        interval[model] = found["interval"]["ua"]
    assert interval["audio"][0] > CHANCE, "the lower bound for the voice is above chance"
    assert interval["text"][0] < CHANCE < interval["text"][1], (
        "the sentences are the same for every emotion"
    )
