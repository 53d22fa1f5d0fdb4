"""One store, many readers: forked, spawned, threads; and from a folder that cannot be written."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mer.pipeline.store import FeatureStore

from tests.store.build import assert_holds, digest, make_store, read_part

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_four_processes_read_what_one_reads(tmp_path, method):
    store = make_store(tmp_path, n=32, shards=2)
    expected = [digest(store, range(i, i + 8)) for i in range(0, 32, 8)]
    with multiprocessing.get_context(method).Pool(4) as pool:
        assert (
            pool.map(read_part, [(store, i, i + 8) for i in range(0, 32, 8)] * 5, chunksize=1)
            == expected * 5
        )


def test_a_forked_child_uses_the_store_it_inherits(tmp_path):
    store = make_store(tmp_path)
    store.packed("audio")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert_holds(store)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_holds(store)


def test_threads_share_a_store(tmp_path):
    store = make_store(tmp_path, n=32, shards=4)
    expected = digest(store, range(32))
    store.close()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: digest(store, range(32)), range(16))) == {expected}


def test_reads_from_a_folder_nobody_can_write(tmp_path):
    """Read-only mount where that is permitted, else read-only modes; no lock, no temporary, no
    change.
    """
    make_store(tmp_path / "s")
    code = (
        "import sys; from pathlib import Path; from mer.pipeline.store import FeatureStore; from "
        "tests.store.build import assert_holds\n"
    )
    code += (
        "store = FeatureStore(Path(sys.argv[1]) / 'feats.h5'); assert_holds(store); "
        "store.verify(); print('read')"
    )
    mounted = not subprocess.run(
        ["mount", "--bind", "-o", "ro", tmp_path / "s", tmp_path / "s"], capture_output=True
    ).returncode
    try:
        if mounted:
            with pytest.raises(OSError, match="Read-only"):
                (tmp_path / "s/new").write_bytes(b"")
        for path in (
            []
            if mounted
            else [tmp_path / "s", tmp_path / "s/feats.shards", *tmp_path.rglob("*.h5")]
        ):
            path.chmod(path.stat().st_mode & ~0o222)
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "s"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.stdout == "read\n", run.stderr
    finally:
        if mounted:
            subprocess.run(["umount", tmp_path / "s"], check=True)
        else:
            for path in (tmp_path / "s", tmp_path / "s/feats.shards"):
                path.chmod(0o755)


def test_the_same_bytes_from_another_process(tmp_path):
    first = make_store(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from tests.store.build import make_store; "
        "make_store(Path(sys.argv[1]))"
    )
    other = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "b"], cwd=ROOT, check=True, timeout=60, env=other
    )
    second = FeatureStore(tmp_path / "b/feats.h5")
    assert [s.sha256 for s in first.shards] == [s.sha256 for s in second.shards]
    assert first.path.read_bytes() == second.path.read_bytes()
