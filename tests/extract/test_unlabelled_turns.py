"""Rows that a manifest has now and had not before, as IEMOCAP's turns without a label: an older
store is taken over and added to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mer.pipeline.datasets import prepare
from mer.pipeline.extraction import extract
from mer.pipeline.manifest import Manifest
from mer.pipeline.store import FeatureStore

from tests.datasets.trees import write_iemocap
from tests.extract import corpus


def extracted(manifest: Manifest, file: Path, out: Path):
    manifest.write(file)
    return extract(Manifest.read(file), out, corpus.options(), source=file)


def test_a_store_of_iemocaps_labelled_turns_is_added_to(tmp_path):
    manifest, _ = prepare("iemocap", write_iemocap(tmp_path / "release"))
    labelled = tuple(u for u in manifest.rows if u.label is not None)
    old = replace(manifest, rows=labelled)  # what an earlier mer prepared
    out = tmp_path / "feats.h5"
    before = extracted(old, tmp_path / "manifest.parquet", out)
    assert (before.extracted, before.reused) == (8, 0)
    with FeatureStore(out) as store:
        ids = store.table()["id"].to_pylist()
        kept = {m: [store.features(m, row) for row in range(8)] for m in ("audio", "text")}
    after = extracted(manifest, tmp_path / "manifest.parquet", out)
    assert (after.extracted, after.reused, after.utterances) == (6, 8, 14)
    with FeatureStore(out) as store:
        table = store.table()
        now = table["id"].to_pylist()
        assert table["label"].null_count == 6
        assert table["position"].to_pylist() == [u.position for u in manifest.rows]
        for row, name in enumerate(ids):
            for m, features in kept.items():
                assert np.array_equal(store.features(m, now.index(name)), features[row])
