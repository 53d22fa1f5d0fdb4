"""What a reader says of files that are not as they were written: one line that names the file,
never zeros, never a crash.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from mer.pipeline.errors import DataError, StoreError, StoreVersionError
from mer.pipeline.store import Damage, FeatureStore, Shard, ShardWriter, verify_shards
from mer.pipeline.store import arrays as files

from tests.store.build import DIMS, assert_holds, make_store


def read_everything(path: Path) -> None:
    store = FeatureStore(path)
    for m in store.header.modalities:
        store.packed(m)
        store.pooled(m)
        for row in range(len(store)):
            store.features(m, row)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error) and len(str(error)) < 400
    return str(error)


def test_missing_shard_is_named_and_never_read_as_zeros(tmp_path):
    store = make_store(tmp_path)
    gone = tmp_path / "feats.shards/shard-00001.h5"
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(
        StoreError, match="shard-00001.h5: shard is missing; run `mer verify --repair .*feats.h5`"
    ):
        FeatureStore(tmp_path / "feats.h5")
    here = store.table()["shard"].to_pylist().index(1)
    with pytest.raises(
        StoreError, match="shard-00001.h5: shard is missing; run `mer verify --repair .*feats.h5`"
    ):
        store.features("audio", here)
    with pytest.raises(
        StoreError, match="shard-00001.h5: shard is missing; run `mer verify --repair .*feats.h5`"
    ):
        store.packed("audio")
    head = tmp_path / "feats.h5"
    assert verify_shards(head) == [Damage(1, str(gone), "shard is missing", str(head))]


@pytest.mark.parametrize("keep", [0, 1, 100, 600, 4096, -1])
def test_truncated_shard(tmp_path, keep):
    make_store(tmp_path)
    path = tmp_path / "feats.shards/shard-00002.h5"
    raw = path.read_bytes()
    path.write_bytes(raw[:keep])
    with pytest.raises(StoreError, match="shard-00002.h5: shard has") as caught:
        FeatureStore(tmp_path / "feats.h5")
    one_line(caught.value)
    with pytest.raises(StoreError):
        Shard(path)
    assert [d.shard for d in verify_shards(tmp_path / "feats.h5")] == [2]


@pytest.mark.parametrize("keep", [0, 1, 100, 600, 4096, -1])
def test_truncated_head(tmp_path, keep):
    make_store(tmp_path)
    path = tmp_path / "feats.h5"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match="feats.h5: not a readable store") as caught:
        FeatureStore(path)
    assert caught.value.exit_code == 5
    one_line(caught.value)


def test_every_flipped_byte_of_the_frames_is_found(tmp_path):
    make_store(tmp_path)
    path = tmp_path / "feats.shards/shard-00000.h5"
    with h5py.File(path, "r") as file:
        place = {
            m: (file[f"{m}/x"].id.get_offset(), file[f"{m}/x"].id.get_storage_size()) for m in DIMS
        }
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    for m, (start, size) in place.items():
        for at in [start, start + size - 1, *(start + rng.integers(0, size, 10)).tolist()]:
            flipped = bytearray(raw)
            flipped[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            (found,) = verify_shards(tmp_path / "feats.h5")
            assert (
                found.shard == 0
                and f"1 of 4 utterances differ from their checksums ({m}; first 'u" in found.reason
            )
    with pytest.raises(
        StoreError, match="shard-00000.h5: 1 of 4 utterances differ .* run `mer verify --repair"
    ):
        FeatureStore(tmp_path / "feats.h5").verify()
    path.write_bytes(raw)
    FeatureStore(tmp_path / "feats.h5").verify()


# A flipped byte can make HDF5 itself crash or loop, so every trial has a process of its own for the
# slow sweep; here the same is done in one process for the bytes that carry the layout.
def flips(raw: bytes, count: int, seed: int):
    rng = np.random.default_rng(seed)
    # gaps between arrays are zeros that nobody reads
    used = np.flatnonzero(np.frombuffer(raw, np.uint8))
    for at in rng.choice(used, count, replace=False).tolist():
        flipped = bytearray(raw)
        flipped[at] ^= 1 << int(rng.integers(8))
        yield at, bytes(flipped)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 10))]
)
def test_any_flipped_byte_of_a_shard_is_found(tmp_path, seed):
    make_store(tmp_path, n=6, shards=1)
    path = tmp_path / "feats.shards/shard-00000.h5"
    for at, flipped in flips(path.read_bytes(), 30, seed):
        path.write_bytes(flipped)
        assert [d.shard for d in verify_shards(tmp_path / "feats.h5")] == [0], at
        try:
            read_everything(tmp_path / "feats.h5")  # may pass: bulk is only checked by verify
        except StoreError as error:
            one_line(error)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 10))]
)
def test_any_flipped_byte_of_the_head_is_found_or_harmless(tmp_path, seed):
    make_store(tmp_path, n=6, shards=2)
    path = tmp_path / "feats.h5"
    silent = 0
    for _, flipped in flips(path.read_bytes(), 30, seed):
        path.write_bytes(flipped)
        try:
            assert_holds(FeatureStore(path), n=6)
            silent += 1  # e.g. in the links for other tools, which this reader does not follow
        except StoreError as error:
            one_line(error)
    assert silent < 6


def test_swapped_shards(tmp_path):
    make_store(tmp_path)
    a, b = (tmp_path / f"feats.shards/shard-0000{i}.h5" for i in range(2))
    a.rename(tmp_path / "t")
    b.rename(a)
    (tmp_path / "t").rename(b)
    with pytest.raises(StoreError, match="shard-0000[01].h5: "):
        read_everything(tmp_path / "feats.h5")
    assert [d.shard for d in verify_shards(tmp_path / "feats.h5")] == [0, 1]


@pytest.mark.parametrize(("seed", "key"), [(0, "other"), (1, "same!")])
def test_shard_of_another_cache_in_its_place(tmp_path, seed, key):
    """The same ids and size, but another recipe's key; the same key, but other content."""
    make_store(tmp_path / "a", key="same!")
    make_store(tmp_path / "b", seed=seed, key=key)
    shutil.copy(
        tmp_path / "b/feats.shards/shard-00001.h5", tmp_path / "a/feats.shards/shard-00001.h5"
    )
    with pytest.raises(StoreError, match="shard-00001.h5: "):
        read_everything(tmp_path / "a/feats.h5")
    assert [d.shard for d in verify_shards(tmp_path / "a/feats.h5")] == [1]


def test_head_of_another_cache_in_its_place(tmp_path):
    make_store(tmp_path / "a")
    make_store(tmp_path / "b", seed=1)
    shutil.copy(tmp_path / "b/feats.h5", tmp_path / "a/feats.h5")
    with pytest.raises(StoreError, match="shard-0000"):
        read_everything(tmp_path / "a/feats.h5")
    assert [d.shard for d in verify_shards(tmp_path / "a/feats.h5")] == [0, 1, 2]


def test_values_changed_with_care_are_found_by_verify(tmp_path):
    """Means rewritten; frames and their crc32 rewritten together: the shard's own index no longer
    fits.
    """
    make_store(tmp_path)
    path = tmp_path / "feats.shards/shard-00000.h5"
    with h5py.File(path, "r+") as file:
        file["audio/pooled"][0] += 1
    (found,) = verify_shards(tmp_path / "feats.h5")
    assert "audio/pooled does not match its checksum" in found.reason
    with h5py.File(path, "r+") as file:
        file["crc32"][0] += 1
    (found,) = verify_shards(tmp_path / "feats.h5")
    assert "its index does not match its own checksum" in found.reason


def test_a_byte_that_nothing_reads_still_counts(tmp_path):
    """In the gap before the first page: the values are whole, the file is not the one that was
    written.
    """
    make_store(tmp_path)
    path = tmp_path / "feats.shards/shard-00000.h5"
    raw = bytearray(path.read_bytes())
    assert raw[4095] == 0
    raw[4095] = 1
    path.write_bytes(raw)
    assert_holds(FeatureStore(tmp_path / "feats.h5"))
    assert [d.reason for d in verify_shards(tmp_path / "feats.h5")] == [
        "its bytes differ from the recorded sha256"
    ]


@pytest.mark.parametrize(
    ("which", "version", "known"),
    [
        *(("feats.h5", version, "1, 2, 3 and 4") for version in (0, 5, 999)),
        *(("feats.shards/shard-00000.h5", version, "1 and 2") for version in (0, 3, 999)),
    ],
)
def test_another_format_version_is_said_as_such(tmp_path, which, version, known):
    make_store(tmp_path)
    with h5py.File(tmp_path / which, "r+") as file:
        file.attrs.modify("version", np.int64(version))
    with pytest.raises(
        StoreVersionError, match=f"format version {version}, this mer reads {known}"
    ) as caught:
        read_everything(tmp_path / "feats.h5")
    assert caught.value.exit_code == 1


def test_what_is_not_a_store(tmp_path):
    make_store(tmp_path)
    with pytest.raises(StoreError, match="this is a shard; open the head file"):
        FeatureStore(tmp_path / "feats.shards/shard-00000.h5")
    with pytest.raises(StoreError, match="HDF5, but not a mer shard"):
        Shard(tmp_path / "feats.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(
        StoreError,
        match="HDF5, but not a mer store; features made elsewhere come in with `mer import`",
    ):
        FeatureStore(tmp_path / "foreign.h5")
    for name, raw in (
        ("empty", b""),
        ("text", b"id,label\n1,a\n"),
        ("garbage", np.random.default_rng(0).bytes(5000)),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(StoreError, match=f"{name}: not a readable store") as caught:
            FeatureStore(tmp_path / name)
        one_line(caught.value)
    with pytest.raises(DataError, match="absent.h5: no such store"):
        FeatureStore(tmp_path / "absent.h5")
    (tmp_path / "absent.shards" / ".work").mkdir(parents=True)
    with pytest.raises(
        DataError, match="absent.h5: not finished; repeat the `mer extract` that makes it"
    ):
        FeatureStore(tmp_path / "absent.h5")
    with pytest.raises(DataError, match="not a store"):
        FeatureStore(tmp_path)
    with pytest.raises(DataError, match="no modality 'vision'; it has audio, text"):
        FeatureStore(tmp_path / "feats.h5").features("vision", 0)


HOSTILE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
from mer.pipeline.errors import StoreError
from mer.pipeline.store import FeatureStore, Shard
try:
    (FeatureStore if sys.argv[2] == "head" else Shard)(sys.argv[1])
except StoreError as error:
    print("refused", str(error).count("\\n"))
"""


def claim(path: Path, name: str, shape: tuple[int, ...], dtype: str, **options) -> None:
    """Put an array in the file that claims `shape` and holds nothing."""
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, shape, dtype, **options)


@pytest.mark.parametrize(
    ("which", "name", "shape", "dtype", "options"),
    [
        ("head", "header", (1 << 40,), "u1", {}),
        ("head", "index/id/offsets", (1 << 37,), "<i8", {}),
        ("head", "index/id/offsets", (1 << 37,), "<i8", {"chunks": (1 << 16,)}),
        ("head", "shard/sha256", (1 << 34,), "S64", {}),
        ("shard", "ids/x", (1 << 40,), "u1", {"chunks": (1 << 20,), "compression": "gzip"}),
        ("shard", "audio/offsets", (1 << 37,), "<i8", {}),
        ("shard", "crc32", (1 << 37, 2), "<u4", {}),
        ("shard", "audio/x", (1 << 37, 6), "<f2", {}),
        ("shard", "audio/x", (1 << 37, 6), "<f2", {"chunks": (1 << 16, 6)}),
    ],
)
def test_absurd_claims_allocate_nothing(tmp_path, forks, which, name, shape, dtype, options):
    make_store(tmp_path)
    path = tmp_path / ("feats.h5" if which == "head" else "feats.shards/shard-00000.h5")
    claim(path, name, shape, dtype, **options)
    run = forks.run(HOSTILE, path, which)
    assert run.stdout.split() == ["refused", "0"], run.stderr


def relayout(path: Path, name: str, **options) -> None:
    """Store one array another way, as a tool that repacks HDF5 would."""
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values, **options)


@pytest.mark.parametrize(
    "options", [{"chunks": (4, 6)}, {"chunks": (4, 6), "compression": "gzip"}, {"dtype": ">f2"}]
)
def test_frames_stored_another_way_are_refused(tmp_path, options):
    """The format has contiguous little-endian arrays; a chunk that was never written would read as
    zeros.
    """
    make_store(tmp_path, n=6, shards=1)
    path = tmp_path / "feats.shards/shard-00000.h5"
    relayout(path, "audio/x", **options)
    with pytest.raises(
        StoreError, match="audio/x is (not stored in one piece|big-endian|.* recorded as)"
    ) as caught:
        Shard(path)
    one_line(caught.value)


def test_unreadable_file_keeps_its_own_error(tmp_path, monkeypatch):
    make_store(tmp_path)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "feats.h5"))

    monkeypatch.setattr(files.h5py, "File", denied)
    with pytest.raises(PermissionError):
        FeatureStore(tmp_path / "feats.h5")


def test_writer_refuses_to_publish_less_than_it_laid_out(tmp_path):
    short = files.Stream("<f2", (4, 2), [np.zeros((3, 2), "<f2")])
    with pytest.raises(StoreError, match="has 12 bytes, laid out for 16"):
        files.write(tmp_path / "a.h5", attrs={}, arrays={"x": short})
    wrong = files.Stream("<f2", (4, 2), [np.zeros((2, 2), "<f4")])
    with pytest.raises(StoreError, match="x is float32, laid out as"):
        files.write(tmp_path / "a.h5", attrs={}, arrays={"x": wrong})
    assert list(tmp_path.iterdir()) == []


def test_stale_temporary_beside_a_store_is_no_part_of_it(tmp_path):
    make_store(tmp_path)
    (tmp_path / "feats.shards/.shard-00000.h5.tmp-1").write_bytes(b"half a shard")
    store = FeatureStore(tmp_path / "feats.h5")
    assert_holds(store)
    store.verify()


def test_shard_written_again_after_its_head(tmp_path):
    """A shard redone with other content under an old head: the head says so instead of mixing."""
    make_store(tmp_path)
    with ShardWriter(tmp_path / "feats.shards/shard-00000.h5", DIMS) as writer:
        writer.add("u0", {"audio": np.ones(6)})
    with pytest.raises(StoreError, match="shard-00000.h5"):
        read_everything(tmp_path / "feats.h5")
