"""A head file that is renamed finds its shards where they were, in the folder of its old name. The
next store of that name was made in the same folder, and its shards took the place of theirs: an
import overwrote them, an extraction cleared them away. Found by an adversary.
"""

from __future__ import annotations

import shutil

import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction.request import check_place
from mer.pipeline.interchange import npz
from mer.pipeline.store import FeatureStore

from tests.interchange.doors import arrays_file, imported


@pytest.fixture
def renamed(tmp_path):
    """A store that was called feats.h5."""
    arrays_file(tmp_path / "x.npz")
    imported(npz, tmp_path / "x.npz", tmp_path / "feats.h5")
    return (tmp_path / "feats.h5").rename(tmp_path / "mine.h5.backup")


def test_its_shards_are_not_replaced(renamed, tmp_path):
    arrays_file(tmp_path / "y.npz", audio=None)
    with pytest.raises(DataError, match="feats.shards, where those of mine.h5.backup are"):
        imported(npz, tmp_path / "y.npz", tmp_path / "feats.h5")
    with pytest.raises(DataError, match="give it its old name again"):
        check_place(tmp_path / "feats.h5")
    FeatureStore(renamed).verify()


def test_what_is_no_other_stores_is_no_hindrance(renamed, tmp_path):
    """Nor is a copy of the head file, while the store itself is there."""
    shutil.copy(renamed, tmp_path / "feats.h5")
    check_place(tmp_path / "feats.h5")
    imported(npz, tmp_path / "x.npz", tmp_path / "feats.h5")
    (tmp_path / "feats.h5").unlink()
    renamed.unlink()
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\nbroken")
    check_place(tmp_path / "feats.h5")
