"""A file system without flock: one line that names the file and the way round, and `--no-lock` that
goes it.

huggingface/huggingface_hub#2399 (Lustre: ENOSYS), h5py/h5py#1082 (NFS: ENOLCK),
tox-dev/filelock#67.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from mer import cli
from mer.commands import features
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.hold import hold, turn
from mer.pipeline.store import FeatureStore

from tests.extract import corpus
from tests.store.build import make_store

NUMBERS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO, errno.EINVAL]


@pytest.fixture(params=NUMBERS, ids=lambda number: errno.errorcode[number])
def no_locks(request, monkeypatch) -> str:
    """flock fails as it does there; the value is what the system calls it."""

    def flock(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return os.strerror(request.param)


def mer(*args: object):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def test_a_hold_says_where_and_what_to_do(tmp_path, no_locks):
    with pytest.raises(DataError) as caught, hold(tmp_path / ".hold"):
        pass
    expected = (
        f"{tmp_path / '.hold'}: cannot be locked there ({no_locks}); add --no-lock if no other "
        "run works in that folder"
    )
    assert str(caught.value).startswith(expected)
    assert (tmp_path / ".hold").read_text() == ""


def test_a_turn_of_shares_has_no_way_round(tmp_path, no_locks):
    with (
        pytest.raises(DataError, match="shares of a run need locks, or choose another --out"),
        turn(tmp_path / ".turn"),
    ):
        pass


def test_without_a_lock_nothing_is_held_or_written(tmp_path, no_locks):
    with hold(tmp_path / "out" / ".hold", lock=False) as left_behind:
        assert left_behind is None
    assert list((tmp_path / "out").iterdir()) == []


def test_extract(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(features, "extract_options", lambda manifest, **given: corpus.options())
    corpus.make(tmp_path, 4)
    command = [
        "extract",
        "--manifest",
        tmp_path / "manifest.parquet",
        "--out",
        tmp_path / "feats.h5",
    ]
    refused = mer(*command)
    assert refused.exit_code == 1
    assert (
        str(tmp_path / "feats.shards" / ".hold") in refused.stderr.splitlines()[-1]
        and "--no-lock" in refused.stderr
    )
    share = mer(*command, "--shard", "1/2", "--no-lock")
    assert share.exit_code == 1 and "shares of a run need locks" in share.stderr.splitlines()[-1]
    assert mer(*command, "--no-lock").exit_code == 0
    FeatureStore(tmp_path / "feats.h5").verify()


def test_import_and_join(tmp_path, no_locks):
    """The remedy that is named works there, too."""
    features = {name: np.ones((3, 4, 2), np.float32) for name in ("audio", "text")}
    for name, x in features.items():
        np.savez(tmp_path / f"{name}.npz", id=["a", "b", "c"], label=["x", "y", "x"], **{name: x})
    imported = [tmp_path / f"{name}.h5" for name in features]
    asked = [["import", "npz", tmp_path / f"{path.stem}.npz", "--out", path] for path in imported]
    asked.append(["join", *imported, "--copy", "--out", tmp_path / "both.h5"])
    for words in asked:
        refused = mer(*words)
        assert refused.exit_code == 1 and not words[-1].exists()
        assert f"cannot be locked there ({no_locks}); add --no-lock" in refused.stderr
        assert mer(*words, "--no-lock").exit_code == 0
    with FeatureStore(tmp_path / "both.h5") as store:
        store.verify()
        assert set(store.header.modalities) == {"audio", "text"}


def test_repair(tmp_path, no_locks):
    manifest, file = corpus.make(tmp_path, 4)
    from mer.pipeline.extraction import Here, extract

    out = tmp_path / "feats.h5"
    extract(manifest, out, corpus.options(), source=file, where=Here(lock=False))
    shard = next((tmp_path / "feats.shards").glob("shard-*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "--no-lock" in mer("verify", tmp_path / "feats.h5", "--repair").stderr.splitlines()[-1]
    assert mer("verify", tmp_path / "feats.h5", "--repair", "--no-lock").exit_code == 0


def test_train(tmp_path, no_locks):
    make_store(tmp_path, n=24)
    command = [
        "train",
        "--features",
        tmp_path / "feats.h5",
        "--model",
        "audio",
        "--set",
        "train.epochs=1",
        "--out",
        tmp_path / "run",
    ]
    refused = mer(*command)
    assert refused.exit_code == 1 and "--no-lock" in refused.stderr.splitlines()[-1]
    shutil.rmtree(tmp_path / "run")
    assert mer(*command, "--no-lock").exit_code == 0
