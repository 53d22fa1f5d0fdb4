"""`feats` and `feats.h5` would have one folder of shards: the second to be made took those of the
first away, with exit status 0."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction import extract
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.importing import write_store
from mer.pipeline.interchange.npz import read
from mer.pipeline.store import FeatureStore, refuse_twin

from tests.extract import corpus


@pytest.mark.parametrize("first, second", [("feats.h5", "feats"), ("feats", "feats.h5")])
def test_the_store_that_is_there_keeps_its_shards(tmp_path, first, second):
    np.savez(
        tmp_path / "f.npz",
        id=np.array(["a", "b"]),
        label=np.array(["x", "y"]),
        audio=np.ones((2, 3), np.float32),
    )
    foreign = read(tmp_path / "f.npz", ImportOptions())
    write_store(foreign, tmp_path / first, ImportOptions())
    manifest, _ = corpus.make(tmp_path / "c", 2)
    for make in (
        lambda: extract(manifest, tmp_path / second, corpus.options()),
        lambda: write_store(foreign, tmp_path / second, ImportOptions()),
    ):
        with pytest.raises(DataError, match=rf"/{second}: its shards .* those of {first} are"):
            make()
    FeatureStore(tmp_path / first).verify()
    assert not (tmp_path / second).exists()


def test_other_neighbours_are_no_matter(tmp_path):
    (tmp_path / "feats").mkdir()
    (tmp_path / "notes").write_text("no store")
    manifest, _ = corpus.make(tmp_path / "c", 2)
    extract(manifest, tmp_path / "feats.h5", corpus.options())
    extract(manifest, tmp_path / "notes.h5", corpus.options())
    again = dataclasses.replace(manifest, rows=manifest.rows[:1])
    assert extract(again, tmp_path / "feats.h5", corpus.options()).utterances == 1
    refuse_twin(tmp_path / "feats.h5.h5")
