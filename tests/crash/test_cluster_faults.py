"""Workers and schedulers that die for good: one line that names the remedy, and the same command
goes on from what is on disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.crash.runs import ROOT, again, check, finished, fresh, in_workers

pytestmark = pytest.mark.slow

# The worker of whom too much memory is wanted is killed by the kernel, and so is each that tries
# the same again.
HUNGRY = """
import os
from mer.pipeline.encoders.bert import TextEncoder
def killed(self, batch, **keywords):
    (folder / "tried").touch()
    os.kill(os.getpid(), 9)
TextEncoder.forward = killed
"""

CLUSTER = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    options = {"processes": False, "protocol": "tcp", "silence_logs": 50}
    options["dashboard_address"] = "127.0.0.1:0"
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        print(cluster.scheduler_address, flush=True)
        time.sleep(600)
"""


def test_a_worker_that_runs_out_of_memory_again_and_again(run, undisturbed, tmp_path):
    """Audio parts that the others have finished stay; without the cause the same
    command goes on.
    """
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    environment = in_workers(folder, HUNGRY)
    stopped = run.start(
        folder, "--workers", "1", environment=environment, cluster={"DEATHS": 1, "LOST_SECONDS": 30}
    )
    status, _ = stopped.wait()
    assert (folder / "tried").exists() and status == 1
    last = stopped.stderr.splitlines()[-1]
    assert "workers died over one piece of work" in last or "all workers are gone" in last
    assert "out of memory" in last and "--budget-seconds" in last
    assert finished(folder, "audio-*.h5") and not finished(folder, "text-*.h5")
    again(folder)
    check(folder, made)


def test_a_scheduler_that_dies(run, undisturbed, tmp_path):
    made, _ = undisturbed
    folder = fresh(made, tmp_path / "x")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (tmp_path / "cluster.py").write_text(CLUSTER)
    cluster = subprocess.Popen(
        [sys.executable, str(tmp_path / "cluster.py")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        address = cluster.stdout.readline().strip()
        stopped = run.start(folder, "--scheduler", address)
        stopped.wait_for(lambda: finished(folder, "audio-*.h5"), "the first part")
        cluster.send_signal(signal.SIGKILL)
        status, _ = stopped.wait()
    finally:
        cluster.kill()
        cluster.wait()
        cluster.stdout.close()
    assert status == 1, stopped.stderr
    assert (
        "the Dask scheduler went away; run the same command again to go on"
        in stopped.stderr.splitlines()[-1]
    )
    again(folder)
    check(folder, made)
