"""Runs as the first version of mer left them (`version1/`, made at commit 7672ae3: files have no
seals, run.json has neither the digests of split and log nor counts of labels) are read, evaluated,
compared, reported and known to be finished.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import report
from mer.fusion.evaluation import evaluate
from mer.fusion.report import figures
from mer.fusion.runs import records, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import typed
from mer.fusion.runtime.files import read_json
from mer.fusion.training import experiment
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import quiet

pytestmark = pytest.mark.usefixtures("few_resamples")

KEPT = Path(__file__).parent / "version1"
# the figures of the same predictions, computed by that version
SHOWN = {
    "concat": ("31.2 ± 8.8", "33.3 ± 0.0", "15.2 ± 7.4", "15.8 ± 3.4"),
    "drkf": ("25.0", "33.3", "10.0", "13.3"),
}


@pytest.fixture
def kept(tmp_path):
    """A copy of the folder, which tests may write into."""
    return Path(shutil.copytree(KEPT, tmp_path / "kept"))


def files_of(pattern: str) -> list[Path]:
    found = sorted(KEPT.rglob(pattern))
    assert found
    return found


@pytest.mark.parametrize("path", files_of("run.json"), ids=lambda path: path.parent.name)
def test_run_json_is_read_whole(path):
    said = json.loads(path.read_text())
    info = Run.open(path.parent).info
    assert typed.tree(info) == said
    assert isinstance(info, records.GroupInfo | records.FinishedInfo)


@pytest.mark.parametrize("path", files_of("metrics.json"), ids=lambda path: path.parent.name)
def test_metrics_json_is_read_whole(path):
    found = result_files.stored_metrics(Run.open(path.parent))
    assert found is not None and typed.tree(found) == json.loads(path.read_text())


@pytest.mark.parametrize("path", files_of("log.jsonl"), ids=lambda path: path.parent.name)
def test_a_log_is_read_whole(path):
    lines = path.read_text().splitlines()
    epochs = [read_json(path, records.Epoch, "", text=line) for line in lines]
    assert [typed.tree(epoch) for epoch in epochs] == [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", SHOWN)
def test_it_is_evaluated_to_the_same_figures(kept, name):
    run = Run.open(kept / "runs" / name)
    before = pq.read_table(run.path / "predictions.parquet")
    stored = result_files.stored_metrics(run)
    found = evaluate.evaluate(run, kept / "feats.h5", note=quiet)
    assert stored is not None
    assert found.metrics.figures == pytest.approx(stored.metrics.figures)
    after = pq.read_table(run.path / "predictions.parquet")
    assert after["pred"].to_pylist() == before["pred"].to_pylist()
    for column in ("p_calm", "p_glad", "p_sad"):
        assert after[column].to_pylist() == pytest.approx(before[column].to_pylist(), abs=1e-6)


def test_it_is_compared(kept):
    concat, drkf = (Run.open(kept / "runs" / name) for name in ("concat", "drkf"))
    found = report.compare(concat, drkf)
    assert found.n == 8 and found.seeds == (2, 1)
    # by hand: (3 + 2) / 16 of concat's two seeds, 2 / 8 of drkf
    assert found.metrics["wa"].first == pytest.approx(5 / 16)
    assert found.metrics["wa"].second == pytest.approx(2 / 8)


def test_it_is_reported_and_drawn(kept, tmp_path):
    runs = [Run.open(kept / "runs" / name) for name in SHOWN]
    page = report.page(runs)
    for cells in SHOWN.values():
        for cell in cells:
            assert f"<td>{cell}</td>" in page
    found = result_files.stored_metrics(runs[1])
    assert found is not None
    names = {
        path.stem for path in figures.write(runs[1], found, tmp_path, features=kept / "feats.h5")
    }
    assert {"confusion", "unimodal", "attention", "losses", "dev", "cosine", "mi-bounds"} <= names


@pytest.mark.parametrize("name", SHOWN)
def test_the_same_command_finds_it_trained(kept, name):
    run = Run.open(kept / "runs" / name)
    child, said = run.children[0], []
    with FeatureStore(kept / "feats.h5") as store:
        seeds = len(run.children)
        again = experiment.train(store, child.config, run.path, seeds=seeds, note=said.append)
    assert replace(again.info, features=run.info.features) == run.info
    assert [line for line in said if line.endswith("already trained")]


def test_from_the_command_line(kept):
    folder = str(kept / "runs" / "drkf")
    store = str(kept / "feats.h5")
    shown = CliRunner().invoke(main, ["evaluate", folder, "--features", store, "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["metrics"]["wa"] == 0.25
