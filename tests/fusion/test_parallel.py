"""Training by several processes under torchrun gives what one process gives, to rounding, for every
model, dropout included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mer.fusion import config
from mer.fusion.data.splits import assign, targets
from mer.fusion.runtime.parallel import Processes
from mer.fusion.training.train import fit
from mer.pipeline.errors import DataError

from tests.fusion.models import SMALL
from tests.fusion.stores import make_store, quiet

ROOT = Path(__file__).parent.parent.parent
# Twenty batches in steps of three, so that the last step is smaller and the processes have unequal
# shares of every step.
LOOP = ("train.epochs=2", "train.batch_size=4", "optim.accumulate=3", "train.patience=9")
MODELS = {"slow": ("concat", "drkf"), "exhaustive": ("fusion", "dmd", "dhmd")}


def sets(model: str) -> list[str]:
    def text(value) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [*LOOP, *(f"model_args.{k}={text(v)}" for k, v in SMALL.get(model, {}).items())]


def torchrun(folder: Path, *command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *command,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, timeout=800)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


WORKER = """
import sys
from pathlib import Path
from mer.fusion import config
from mer.fusion.runtime.parallel import processes
from mer.fusion.data.splits import assign, targets
from mer.fusion.training.train import fit
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore
from tests.fusion.test_parallel import sets

store = FeatureStore("feats.h5")
target = targets(store.table(), store.header.task, store.header.labels)
with processes() as together:
    for model in sys.argv[1:]:
        settings = config.load(model=model, sets=sets(model))
        split = assign(store.table(), target, settings.data)
        folder = Path("two") / model
        same = {"split": split, "device": "cpu", "note": print, "processes": together}
        fit(store, settings, folder, **same)
        try:
            fit(store, config.load(model="text"), folder, **same)
        except DataError as error:
            print(f"process {together.rank}: {error}", file=sys.stderr)
left = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
assert not any("gloo" in name for name in left), left  # they abort a process that ends before them
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "models",
    [
        pytest.param(names, id="-".join(names), marks=getattr(pytest.mark, m))
        for m, names in MODELS.items()
    ],
)
def test_two_processes_train_what_one_trains(tmp_path, models):
    store = make_store(tmp_path, modalities={"audio": 8, "text": 6, "vision": 5})
    (tmp_path / "worker.py").write_text(WORKER)
    done = torchrun(tmp_path, "worker.py", *models)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):  # what the first process finds wrong stops them all
        assert f"process {rank}: " in done.stderr and "optim.accumulate = 1 batches" in done.stderr
    target = targets(store.table(), store.header.task, store.header.labels)
    for model in models:
        settings = config.load(model=model, sets=sets(model))
        fit(
            store,
            settings,
            tmp_path / "one" / model,
            split=assign(store.table(), target, settings.data),
            device="cpu",
            note=quiet,
        )
        for alone, together in zip(
            log(tmp_path / "one" / model), log(tmp_path / "two" / model), strict=True
        ):
            assert (
                alone["step"] == together["step"]
                and alone["train"].keys() == together["train"].keys()
            )
            for name in alone["train"]:
                assert together["train"][name] == pytest.approx(
                    alone["train"][name], rel=1e-4, abs=1e-6
                ), (model, name)
            assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-3), (
                model
            )
            assert together["dev"]["loss"] == pytest.approx(alone["dev"]["loss"], rel=1e-3), model


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mer_train_under_torchrun(tmp_path):
    """The command: one run folder, one table, and a step with fewer batches than processes is one
    line.
    """
    make_store(tmp_path)
    mer = [
        "--no-python",
        str(Path(sys.executable).parent / "mer"),
        "train",
        "--features",
        "feats.h5",
        "--model",
        "concat",
    ]
    options = [word for one in LOOP for word in ("--set", one)]
    done = torchrun(tmp_path, *mer, *options, "--seeds", "2", "--json")
    assert done.returncode == 0, done.stderr
    # one JSON object: the second process prints nothing
    assert json.loads(done.stdout)["kind"] == "group"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["toy-concat-1"]
    refused = torchrun(tmp_path, *mer)
    assert (
        refused.returncode != 0
        and "mer: 2 processes, but a step has optim.accumulate = 1 batches" in refused.stderr
    )


def test_a_step_is_dealt_out_whole():
    for size in (1, 2, 3, 4):
        dealt = [Processes(rank, size).share(range(10)) for rank in range(size)]
        assert sorted(i for share in dealt for i in share) == list(range(10))
    with pytest.raises(DataError, match="optim.accumulate=4"):
        Processes(0, 4).check(3)
    Processes(0, 4).check(4)
