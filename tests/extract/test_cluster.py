"""Many processes, one result: Dask workers, shares without a scheduler, and workers that die."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mer.pipeline.errors import DataError, FailuresError
from mer.pipeline.extraction import Scheduler, Share, Workers, extract
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.store import FeatureStore

from tests.extract import corpus

# Dask's own sockets
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def fresh(made, tmp_path):
    """The corpus without its store, and the digests that the store had."""
    digests = corpus.digests(made / "feats.shards")
    (made / "feats.h5").unlink()
    shutil.rmtree(made / "feats.shards")
    return made, digests


def call(folder, **keywords):
    changes = keywords.pop("changes", {})
    ways = {"share": lambda share: Share(*share), "workers": Workers, "scheduler": Scheduler}
    for name in ways.keys() & keywords.keys():
        keywords["where"] = ways[name](keywords.pop(name))
    manifest = Manifest.read(folder / "manifest.parquet")
    return extract(
        manifest,
        folder / "feats.h5",
        corpus.options(**changes),
        source=folder / "manifest.parquet",
        **keywords,
    )


def test_shares_make_the_same_bytes_in_any_order(fresh):
    folder, digests = fresh
    for index in (3, 1):
        assert call(folder, share=(index, 3)).action == "part"
        assert not (folder / "feats.h5").exists()
    report = call(folder, share=(2, 3))
    assert (report.action, report.extracted) == ("extracted", 24)
    assert corpus.digests(folder / "feats.shards") == digests
    assert call(folder, share=(1, 3)).action == "nothing"
    assert not list((folder / "feats.shards").glob(".work"))


def test_a_share_counts_its_own_parts_and_leaves_failures_to_the_last(fresh):
    """A clip that cannot be read ends the run that writes the store with an error, not the shares
    before it.
    """
    folder, _ = fresh
    (folder / "clip3.wav").write_bytes(b"no audio")
    totals = []

    class Counting(Silent):
        def task(self, what, total, unit, **how):
            totals.append((what, total))
            return super().task(what, total, unit, **how)

    done = call(folder, share=(1, 2), progress=Counting())
    assert (
        done.action == "part"
        and len(done.failures) == 1
        and "failures.jsonl" not in "\n".join(done.lines())
    )
    with pytest.raises(FailuresError, match="1 utterance failed"):
        call(folder, share=(2, 2), progress=Counting())
    shares = [total for what, total in totals if what == "extracting"]
    seconds = FeatureStore(folder / "feats.h5").header.provenance["extract"]["audio_seconds"]
    assert len(shares) >= 2 and shares[0] + shares[1] == pytest.approx(seconds)


def test_a_share_of_one_is_a_plain_run(fresh):
    folder, digests = fresh
    assert (
        call(folder, share=(1, 1)).action == "extracted"
        and corpus.digests(folder / "feats.shards") == digests
    )


def test_a_plain_run_finishes_what_shares_began(fresh):
    folder, digests = fresh
    call(folder, share=(1, 2))
    parts = {path.name for path in (folder / "feats.shards" / ".work").glob("*.h5")}
    assert parts
    assert call(folder).action == "extracted" and corpus.digests(folder / "feats.shards") == digests


def test_shares_go_together_but_not_with_a_plain_run(fresh):
    folder, _ = fresh
    with (
        hold(folder / "feats.shards" / ".hold", shared=True),
        hold(folder / "feats.shards" / ".hold-1-of-2"),
    ):
        with pytest.raises(DataError, match="is writing there"):
            call(folder)
        with pytest.raises(DataError, match="is writing there"):
            call(folder, share=(1, 2))
        assert call(folder, share=(2, 2)).action == "part"


def test_shares_of_another_recipe_do_not_take_the_plan_away(fresh):
    folder, digests = fresh
    call(folder, share=(1, 2))
    with hold(folder / "feats.shards" / ".hold-1-of-2"):
        with pytest.raises(DataError, match="other options"):
            call(folder, share=(2, 2), changes={"pool": 2})
    assert (
        call(folder, share=(2, 2)).action == "extracted"
        and corpus.digests(folder / "feats.shards") == digests
    )


@pytest.mark.parametrize("share", [(0, 2), (3, 2)])
def test_impossible_shares(fresh, share):
    with pytest.raises(DataError, match="expected i/n"):
        call(fresh[0], share=share)


def test_an_unreachable_scheduler_is_one_line(fresh, monkeypatch):
    import mer.pipeline.extraction.cluster

    monkeypatch.setattr(mer.pipeline.extraction.cluster, "CONNECT_SECONDS", 2)
    with pytest.raises(DataError, match="--scheduler tcp://127.0.0.1:9: cannot be reached"):
        call(fresh[0], scheduler="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_local_workers_make_the_same_bytes(fresh):
    folder, digests = fresh
    report = call(folder, workers=2)
    assert (report.action, report.extracted) == ("extracted", 24)
    assert corpus.digests(folder / "feats.shards") == digests
    FeatureStore(folder / "feats.h5").verify()


@pytest.mark.slow
def test_workers_of_a_scheduler_make_the_same_bytes_and_may_be_killed(
    fresh, tmp_path_factory, monkeypatch
):
    """Two workers under a nanny, started in another folder than the run; one is killed as soon as
    the first part is there. The nanny starts another, which loads its encoders.
    """
    from distributed import LocalCluster

    folder, digests = fresh
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:
        victim = next(iter(cluster.workers.values())).pid

        def kill():
            while not list((folder / "feats.shards" / ".work").glob("*.h5")):
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        monkeypatch.chdir(folder.parent)
        report = call(Path(folder.name), scheduler=cluster.scheduler_address)
        thread.join()
    assert report.extracted == 24 and corpus.digests(folder / "feats.shards") == digests
    assert {path.name for path in (folder / "feats.shards").iterdir()} - digests.keys() <= {".hold"}


class Lost:
    """A future that was finished; then the worker that had its result died, and there is no other
    to run it again.
    """

    status = "pending"

    def result(self, timeout):
        raise TimeoutError


def test_a_result_that_died_with_its_worker_is_not_waited_for_without_end(monkeypatch):
    from mer.pipeline.extraction import cluster as module

    monkeypatch.setattr(module, "LOOK_SECONDS", 0)
    monkeypatch.setattr(module, "LOST_SECONDS", 0)
    client = SimpleNamespace(scheduler_info=lambda: {"workers": {}})
    with pytest.raises(DataError, match="all workers are gone"):
        module.ClusterRunner(client, None, "plugin")._result(Lost())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_does_not_end_is_ended(tmp_path, monkeypatch):
    import multiprocessing

    from distributed import Client

    from mer.pipeline.extraction import cluster as module

    from tests.extract.hanging import Hanging

    monkeypatch.setattr(module, "CLOSE_SECONDS", 3)
    with module.local_cluster(1) as cluster:
        assert len(cluster.workers) == 1
        with Client(cluster) as client:
            client.register_plugin(Hanging(tmp_path))
        os.kill(cluster.workers[0].pid, signal.SIGKILL)
        while not (tmp_path / "second").exists():
            time.sleep(0.05)
        assert any(
            child.name.startswith(module.WORKER_NAME) for child in multiprocessing.active_children()
        )
    while any(
        child.name.startswith(module.WORKER_NAME) for child in multiprocessing.active_children()
    ):
        time.sleep(0.05)


# --- who may talk to the workers


def listening() -> list:
    """(address, port) of every port that this process and its children listen on."""
    import psutil

    own = psutil.Process()
    found = []
    for process in [own, *own.children(recursive=True)]:
        found += [
            connection.laddr
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
    return found


def test_local_workers_take_orders_from_nobody_else(recwarn):
    """Another user of the machine reaches every port of the run, and can do nothing there, without
    a key or with one of their own.
    """
    from distributed import Client
    from distributed.security import Security

    from mer.pipeline.extraction.cluster import local_cluster

    before = set(listening())
    with local_cluster(1) as cluster:
        opened = set(listening()) - before
        assert opened and {address.ip for address in opened} == {"127.0.0.1"}
        with Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result(timeout=30) == 3
            worker = next(iter(client.scheduler_info()["workers"]))
        for address in (cluster.scheduler_address, worker):
            assert address.startswith("tls://127.0.0.1:")
            plain = address.replace("tls://", "tcp://")
            for where, security in (
                (plain, None),
                (address, None),
                (address, Security.temporary()),
            ):
                with pytest.raises((OSError, TypeError)):
                    Client(where, security=security, timeout=2).close()
                # A refused client closes itself when it is collected. Were that in the thread of
                # the next one's event loop, it would wait for a lock which that one's start holds.
                gc.collect()


def test_the_ports_of_local_workers_show_no_pages():
    import urllib.error
    import urllib.request

    from mer.pipeline.extraction.cluster import local_cluster

    before = set(listening())
    with local_cluster(1):
        for address in set(listening()) - before:
            for page in (
                "status",
                "info/main/workers.html",
                "json/identity.json",
                "individual-task-stream",
            ):
                with pytest.raises((OSError, urllib.error.HTTPError)):
                    urllib.request.urlopen(
                        f"http://127.0.0.1:{address.port}/{page}", timeout=5
                    ).read()
