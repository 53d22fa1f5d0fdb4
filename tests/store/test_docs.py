"""docs/store.md: its example runs, its tables name the arrays that are there, and a store of each
version is still read.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import pytest

from mer.pipeline.interchange.joining import join
from mer.pipeline.store import FeatureStore
from mer.pipeline.store.schema import COLUMNS, FOLDS_VERSION, UNIMODAL_VERSION, VERSIONS

from tests.store.build import DIMS, assert_holds, make_store

PAGE = Path(__file__).parents[2] / "docs/store.md"
PAST = Path(__file__).parent / "versions"


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    exec(compile(code, str(PAGE), "exec"), {})
    FeatureStore("feats.h5").verify()


def test_the_tables_name_every_array(tmp_path):
    stores = [make_store(tmp_path, layers=True, name=name) for name in ("feats", "other")]
    paths = [store.path for store in stores]
    named = {
        name
        for row in re.findall(r"^\| (.*?) \|", PAGE.read_text(), re.M)
        for name in re.findall(r"`([^`]+)`", row)
    }
    columns = {f"index/{c}" for c in COLUMNS.names}

    def known(path: str) -> bool:
        path = re.sub(rf"^({'|'.join(DIMS)})/", "<modality>/", path)
        path = re.sub(rf"n_({'|'.join(DIMS)})$", "n_<modality>", path)
        return path in named or path.rsplit("/", 1)[0] in named | columns

    left_out = dict.fromkeys(["feats.h5:audio", "other.h5:text"], "")
    join(paths, tmp_path / "joined.h5", renamed=left_out)
    for name in ("feats.h5", "feats.shards/shard-00000.h5", "joined.h5"):
        found: list[str] = []
        with h5py.File(tmp_path / name) as file:
            file.visititems(
                lambda path, item, found=found: (
                    found.append(path) if isinstance(item, h5py.Dataset) else None
                )
            )
            assert set(file.attrs) <= named
        assert len(found) > 8 and [path for path in found if not known(path)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_stores_of_every_version_are_read(version):
    store = FeatureStore(PAST / f"v{version}" / "kept.h5")
    assert store.header.version == version
    assert bool(store.header.modalities["audio"].layers) == (version > 1)
    assert ("folds" in store.table().column_names) == (version >= FOLDS_VERSION)
    assert ("unimodal" in store.table().column_names) == (version >= UNIMODAL_VERSION)
    assert_holds(store, n=6)
    store.verify()
