"""A writer that dies, fills the disk or is stopped at any point leaves either the whole file or
none.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import numpy as np
import pytest

from mer.pipeline.runtime.files import leftovers
from mer.pipeline.store import FeatureStore, Shard, ShardWriter
from mer.pipeline.store import arrays as files

from tests.store.build import assert_holds, make_store

# The writer kills itself at the COUNT-th call of one of the steps that publishing consists of.
KILLED = """
import os, signal, sys
from pathlib import Path
from mer.pipeline.runtime import files
from mer.pipeline.store import arrays
from tests.store.build import make_store

step, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])

def dying(function):
    def call(*args, **kwargs):
        global count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

if step == "write":
    class File:
        def __init__(self, inner): self.inner = inner
        def __getattr__(self, name): return getattr(self.inner, name)
        def __enter__(self): return self
        def __exit__(self, *_): self.inner.close()
        @staticmethod
        def half(inner, part):
            inner.write(part[: len(part) // 2])
            inner.flush()
            return dying(lambda: inner.write(part[len(part) // 2 :]) + len(part) // 2)()
        def write(self, part): return File.half(self.inner, part)
    arrays.open = lambda *args: File(open(*args))
elif step in ("fsync", "replace"):
    setattr(files.os, step, dying(getattr(os, step)))
else:
    module = arrays if step == "_lay_out" else files
    setattr(module, step, dying(getattr(module, step)))
make_store(folder)
"""

POINTS = [
    ("write", 1),
    ("write", 30),
    ("_lay_out", 2),
    ("fsync", 1),
    ("replace", 4),
    ("sync_folder", 4),
]
MORE = [
    ("write", 3),
    ("write", 12),
    ("write", 60),
    *((s, n) for s in ("_lay_out", "fsync", "replace", "sync_folder") for n in (1, 2, 3)),
]


@pytest.mark.parametrize(
    ("step", "count"),
    POINTS + [pytest.param(*p, marks=pytest.mark.slow) for p in MORE if p not in POINTS],
)
def test_killed_while_writing_leaves_no_half_file(tmp_path, forks, step, count):
    run = forks.run(KILLED, step, count, tmp_path)
    assert run.returncode == -signal.SIGKILL, "the kill was meant to happen"
    for path in (tmp_path / "feats.shards").glob("shard-*.h5"):
        shard = Shard(path)
        assert [list(shard.mismatches(m)) for m in shard.modalities] == [[], []]
    if (tmp_path / "feats.h5").exists():
        assert_holds(FeatureStore(tmp_path / "feats.h5"))
    store = make_store(tmp_path)  # the same work again finishes it and sweeps up
    assert_holds(store)
    store.verify()
    assert not list(tmp_path.rglob("*.tmp-*"))


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from mer.pipeline.store import ShardWriter
sys.dont_write_bytecode = True  # it would be cut off, too
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with ShardWriter(Path(sys.argv[1]) / "a.h5", {"audio": 64}) as writer:
        writer.add("u", {"audio": np.ones((1000, 64))})
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.parametrize("limit", [0, 100, 1500, 5000, 20_000, 130_000])
def test_file_that_cannot_grow_is_one_plain_error(tmp_path, forks, limit):
    """As on a full disk, at each stage of the file: HDF5's own layout, the index, the frames."""
    run = forks.run(LIMITED, tmp_path, limit)
    assert run.returncode == 0 and not run.stderr, run.stderr
    assert run.stdout.split() == [str(errno.EFBIG), str(tmp_path / "a.h5")]
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path):
    """ENOSPC itself, on a file system of 256 kB where one may be mounted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        for steps in (2000, 100_000):
            with (
                pytest.raises(OSError, match="No space left") as caught,
                ShardWriter(tmp_path / "a.h5", {"audio": 64}) as writer,
            ):
                writer.add("u", {"audio": np.ones((steps, 64))})
            assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(
                tmp_path / "a.h5"
            )
            assert list(tmp_path.iterdir()) == []
        with ShardWriter(tmp_path / "a.h5", {"audio": 64}) as writer:
            writer.add("u", {"audio": np.ones((1000, 64))})
        (tmp_path / "ballast").write_bytes(
            bytes(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_bsize)
        )
        with (
            pytest.raises(OSError, match="No space left"),
            ShardWriter(tmp_path / "b.h5", {"audio": 64}) as writer,
        ):
            writer.add("u", {"audio": np.ones((1, 64))})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "ballast"]
        assert len(Shard(tmp_path / "a.h5")) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch, error):
    make_store(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.h5")}
    with (
        pytest.raises(error),
        ShardWriter(tmp_path / "feats.shards/shard-00000.h5", {"audio": 2}) as writer,
    ):
        writer.add("u", {"audio": [[1, 2]]})
        raise error

    def interrupted(_):
        raise error

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(error):
        make_store(tmp_path, seed=1)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_stale_temporary_of_a_dead_writer_is_removed_and_of_a_live_one_kept(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [
        f".a.h5.tmp-{dead.pid}",
        f".a.h5.tmp-{os.getpid()}",
        f".a.h5.tmp-{os.getppid()}",
        f".b.h5.tmp-{dead.pid}",
        ".a.h5.tmp-x",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    with ShardWriter(tmp_path / "a.h5", {"audio": 2}) as writer:
        writer.add("u", {"audio": [[1, 2]]})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.h5", *names[2:4]])


def test_leftovers_are_those_of_the_name_to_the_letter(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [f".{name}.tmp-{dead.pid}" for name in ("a*", "ab", "[b]", "b", "a?")]
    for name in (*names, f".tmp-{dead.pid}", "a*"):
        (tmp_path / name).touch()
    for name, left in (("a*", names[0]), ("[b]", names[2]), ("a?", names[4])):
        assert leftovers(tmp_path, name) == [tmp_path / left]
    assert {path.name for path in leftovers(tmp_path)} == set(names)
    assert leftovers(tmp_path / "gone") == []


def test_reader_of_the_old_file_goes_on_while_it_is_replaced(tmp_path):
    store = make_store(tmp_path)
    row = int(np.argmax(store.lengths("audio")))
    before = store.features("audio", row)
    make_store(tmp_path, seed=5)
    np.testing.assert_array_equal(store.features("audio", row), before)
