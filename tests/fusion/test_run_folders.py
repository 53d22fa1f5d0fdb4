"""What happens to a run folder when something is wrong: a second training, a mistake in the
settings, damaged or foreign files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mer.fusion import config, report
from mer.fusion.data import feature_sets, sources
from mer.fusion.evaluation import evaluate, means
from mer.fusion.report import pictures
from mer.fusion.runs import checkpoint, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import Subset
from mer.fusion.runtime import files
from mer.fusion.runtime.typed import tree
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.runtime.hold import hold

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import run as fit_alone
from tests.fusion.test_train import settings
from tests.fuzz.jsons import wrong_values

pytestmark = pytest.mark.usefixtures("few_resamples")

ROOT = Path(__file__).parent.parent.parent


def train(store, folder, *more: str, model: str = "concat", note=quiet, **options) -> Run:
    return experiment.train(
        store, settings("train.epochs=1", *more, model=model), folder, note=note, **options
    )


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    store = make_store(folder)
    return store, train(store, folder / "run", folds="session")


# ---- One training at a time


@pytest.mark.parametrize(
    "options", [{}, {"seeds": 2}, {"folds": "session"}], ids=["single", "seeds", "folds"]
)
def test_a_second_training_into_a_folder_is_refused_while_the_first_runs(tmp_path, options):
    store, refusals = make_store(tmp_path), []

    def meanwhile(line: str) -> None:
        if line.startswith("epoch") and not refusals:
            with pytest.raises(
                DataError,
                match=rf"process {os.getpid()} on .* is writing there; .*choose another --out",
            ) as raised:
                train(store, tmp_path / "run", **options)
            refusals.append(str(raised.value))

    done = train(store, tmp_path / "run", note=meanwhile, **options)
    assert done.finished and refusals and refusals[0].startswith(str(tmp_path / "run"))


def test_a_child_of_a_group_is_held_too(tmp_path):
    store = make_store(tmp_path)

    def stop(line: str) -> None:
        if line.endswith("seed-0"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "run", note=stop, seeds=2)
    with (
        hold(tmp_path / "run" / "seed-1" / checkpoint.HOLD),
        pytest.raises(DataError, match="seed-1: process .* is writing there"),
    ):
        train(store, tmp_path / "run", seeds=2)
    assert train(store, tmp_path / "run", seeds=2).finished


def test_the_hold_of_a_killed_training_is_taken_over_with_a_note(tmp_path):
    store, said = make_store(tmp_path), []
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from mer.pipeline.runtime.hold import hold\n"
        "with hold(Path(sys.argv[1])): os.abort()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run" / checkpoint.HOLD)],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    assert train(store, tmp_path / "run", note=said.append).finished
    assert [
        line for line in said if "taking over from process" in line and "which was killed" in line
    ]


def test_a_finished_run_and_a_foreign_folder_are_not_touched(tmp_path):
    store = make_store(tmp_path)
    done = train(store, tmp_path / "run")
    (done.path / checkpoint.HOLD).unlink()
    train(store, tmp_path / "run")
    assert not (done.path / checkpoint.HOLD).exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for options in ({}, {"seeds": 2}):
        with pytest.raises(DataError, match="not a run folder"):
            train(store, tmp_path / "mine", **options)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("options", [{}, {"seeds": 2}], ids=["single", "seeds"])
def test_what_a_killed_write_left_behind_is_no_stranger_and_goes(tmp_path, options):
    store, dead = make_store(tmp_path), 2**22 + 1  # above the highest number of a process
    (tmp_path / "run").mkdir()
    left = [
        tmp_path / "run" / f".{name}.tmp-{dead}"
        for name in ("run.json", *(() if options else ("config.toml", "split.json")))
    ]
    for path in left:
        path.touch()
    assert train(store, tmp_path / "run", **options).finished
    assert not [path for path in left if path.exists()]


def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        DataError,
        match="pipe: a device or pipe, which cannot be replaced by a file; name another place",
    ):
        files.write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


# ---- Mistakes are told before anything is made or read

MISTAKES = {
    "modality": ({}, ("data.modalities=smell",), "data.modalities = 'smell'"),
    "vision": ({"model": "vision"}, (), "no such features; the store has audio, text"),
    "model": ({"model": "vision"}, ("data.modalities=all",), "needs vision"),
    "metric": ({}, ("train.select_metric=foo",), "train.select_metric = foo: dev has .*loss"),
    "weights": (
        {"task": "regression"},
        ("train.class_weight=sqrt",),
        "a regression has no classes",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(
    "options", [{}, {"folds": "speaker"}, {"seeds": 2}], ids=["single", "folds", "seeds"]
)
def test_mistakes_leave_no_folder_and_read_no_features(tmp_path, monkeypatch, mistake, options):
    kind, sets, says = MISTAKES[mistake]
    store = make_store(tmp_path, splits=False, task=kind.get("task", "single"))
    monkeypatch.setattr(type(store), "packed", None)
    settings = config.load(model=kind.get("model", "concat"), sets=("train.epochs=1", *sets))
    with pytest.raises(DataError, match=says):
        experiment.train(store, settings, tmp_path / "run", note=quiet, **options)
    assert not (tmp_path / "run").exists()


def test_a_mistyped_set_costs_no_torch():
    code = (
        "import sys\nfrom mer.fusion import config\nfrom mer.pipeline.errors import DataError\n"
        "try:\n    config.load(model='concat', sets=['optim.lx=1'])\nexcept DataError as error:\n "
        "   print(error, 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "unknown key 'lx'" in said and said.strip().endswith("False")


# ---- Damaged features


@pytest.mark.parametrize("residence", ["device", "stream"])
def test_a_flipped_bit_ends_the_training(tmp_path, residence):
    store = make_store(tmp_path)
    path = store.shards[0].path
    frames = store.features("text", 0, dtype="stored").tobytes()
    raw = bytearray(path.read_bytes())
    raw[raw.index(frames)] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError) as raised:
        fit_alone(
            type(store)(store.path), tmp_path / "run", settings(f"data.residence={residence}")
        )
    assert (
        str(raised.value)
        == f"{path}: text of 'u000' does not match its checksum; run `mer verify --repair "
        f"{store.path}`"
    )
    assert raised.value.exit_code == 5


def test_a_row_is_checked_once(tmp_path, monkeypatch):
    store, checked = make_store(tmp_path), []
    shard = type(store.shard(0))
    check = shard.check
    monkeypatch.setattr(
        shard,
        "check",
        lambda self, m, x, i, j, remedy: (
            checked.append((m, i, j)) or check(self, m, x, i, j, remedy=remedy)
        ),
    )
    settings = config.DataConfig(residence="stream")
    part = sources.batch_source(
        store,
        feature_sets.spec(store, settings),
        settings,
        np.arange(10),
        np.zeros(10, np.int64),
        device="cpu",
    )
    for _ in range(2):
        list(part.batches(part.in_order(4)))
    assert sorted(
        i for m, start, stop in checked if m == "audio" for i in range(start, stop)
    ) == list(range(10))
    store.batch("audio", [20, 21])  # as for a copy of the store: no checks asked for
    assert {m for m, *_ in checked} == {"audio", "text"} and max(j for *_, j in checked) == 10


# ---- Foreign or unfinished runs


def test_weights_of_another_fold_are_refused(folds, tmp_path):
    shutil.copytree(folds[1].path, tmp_path / "run")
    a, b = Run.open(tmp_path / "run").children[:2]
    assert (
        re.fullmatch("[0-9a-f]{64}", a.info.model_sha256)
        and a.info.model_sha256 != b.info.model_sha256
    )
    shutil.copy(b.path / checkpoint.MODEL, a.path / checkpoint.MODEL)
    with pytest.raises(DataError, match="not the weights that this training wrote"):
        evaluate.evaluate(tmp_path / "run", note=quiet)
    older = replace(a.info, model_sha256=None)  # as an older mer left it
    files.write_json(a.path / checkpoint.INFO, tree(older))
    evaluate.evaluate(tmp_path / "run", note=quiet)


@pytest.mark.parametrize(
    "name", ["run.json", "fold-S0/run.json", "metrics.json", "fold-S0/log.jsonl"]
)
def test_a_wrong_value_anywhere_is_named_or_does_no_harm(folds, tmp_path, name):
    """Made by hand, or by another program: whatever is read of it, there is a DataError that names
    the file, and nothing else.
    """
    evaluate.evaluate(folds[1], note=quiet)
    shutil.copytree(folds[1].path, tmp_path / "run")
    path, refused = tmp_path / "run" / name, 0
    value = json.loads(
        path.read_text().splitlines()[0] if name.endswith("jsonl") else path.read_text()
    )
    value.pop("sha256", None)  # as an older mer left it: nothing but the shape is known
    if name.endswith("jsonl"):
        older = replace(Run.open(path.parent).info, log_sha256=None)
        files.write_json(path.parent / checkpoint.INFO, tree(older))
    for where, changed in wrong_values(value):
        path.write_text(json.dumps(changed))
        try:
            run = Run.open(tmp_path / "run").trained()
            figures = result_files.stored_metrics(run)
            if path.name == "run.json":
                children = [(child.fold, child.spec) for child in run.children]
                assert children and report.dev_table(run) and run.info.features + run.info.store_key
            elif path.name == "metrics.json":
                assert (
                    report.tables(figures)
                    and report.page([run])
                    and isinstance(report.remarks(figures), list)
                )
            else:
                assert pictures.read_log(run.children[0])
        except DataError as error:
            assert str(tmp_path / "run") in str(error) and (
                path.name in str(error) or "format" not in where
            ), (where, str(error))
            refused += 1
    assert refused > 40


def test_a_damaged_neighbour_does_not_stop_a_training(tmp_path):
    store, said = make_store(tmp_path), []
    first = train(store, None, runs=tmp_path / "runs")
    (first.path / checkpoint.INFO).write_text("")
    second = train(store, None, runs=tmp_path / "runs", note=said.append)
    assert second.path != first.path and second.finished
    assert [
        line
        for line in said
        if line.startswith(f"{first.path / checkpoint.INFO}: damaged (empty)")
        and "left aside" in line
    ]
    assert train(store, None, runs=tmp_path / "runs").path == second.path


def test_what_does_not_fit_is_named(folds, tmp_path):
    run = folds[1].children[0]
    tensors, meta = checkpoint.load_tensors(run.path / checkpoint.MODEL)
    model, first = run.model(), next(iter(tensors))
    for odd, says in (
        ({k: v for k, v in tensors.items() if k != first}, f"X (it has no {first}); train again"),
        (tensors | {"extra": torch.zeros(1)}, "X (the model has no extra); train again"),
        (
            tensors | {first: torch.zeros(1, 2, 3)},
            f"X ({first} is (1, 2, 3), expected {tuple(tensors[first].shape)}); train again",
        ),
        ({}, f"X (it has no {first}; and {len(tensors) - 1} more); train again"),
    ):
        with pytest.raises(DataError, match="^" + re.escape(says)):
            checkpoint.fill(model, odd, "X")


def test_unfinished_runs_say_what_helps(folds, tmp_path):
    store, done = folds
    evaluate.evaluate(done, note=quiet)
    shutil.copytree(done.path, tmp_path / "cut")
    files.write_json(
        tmp_path / "cut" / checkpoint.INFO,
        tree(replace(Run.open(tmp_path / "cut").info, finished=False)),
    )
    shutil.rmtree(tmp_path / "cut" / "fold-S0")
    cut = Run.open(tmp_path / "cut")
    told, left_out, lines = report.gather([done.path, cut.path])
    assert [one.run for one in told] == [done] and [one.path for one in left_out] == [cut.path]
    assert len(lines) == 1 and lines[0].startswith("1 run left out, ") and "cut" in lines[0]
    with pytest.raises(DataError, match="cut: the training is not finished"):
        report.gather([cut.path])
    for call in (
        lambda: report.page([done, cut]),
        lambda: report.compare(done, cut),
        lambda: evaluate.evaluate(cut, note=quiet),
    ):
        with pytest.raises(
            DataError,
            match="cut: the training is not finished; run the same `mer train` command again, or "
            "leave it out",
        ):
            call()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: not a run folder .*leave it out"):
        Run.open(tmp_path / "empty")


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        files.write_text(tmp_path / "folder", "x")
    assert raised.value.filename == str(tmp_path / "folder")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# ---- Tables of folds


def test_a_fold_without_rows_does_not_blank_the_others(folds, monkeypatch):
    run = folds[1]
    found = evaluate.evaluate(run, note=quiet)
    shares = ([0, None, 0.0], [6, 0.5, 0.2], [4, 1.0, 0.1])
    none = Subset(n=0, share=0.0, figures={"wa": None})
    results = []
    for child, (n, wa, share) in zip(run.children, shares, strict=True):
        agree = Subset(n=n, share=share, figures={"wa": wa})
        figures = result_files.stored_metrics(child)
        results.append(replace(figures, heads_agree=agree, heads_disagree=none))
    parts = means.mean_parts(results)
    assert tree(parts["heads_agree"]) == pytest.approx(
        {"n": 10 / 3, "share": 0.1, "wa": 0.75, "without": 1}
    )
    assert np.isnan(parts["heads_disagree"]["wa"]) and parts["heads_disagree"].without == 3
    said = report.remarks(replace(found, **parts))
    assert "1 of 3 runs have no utterances where the heads agree; that row leaves them out." in said


def test_the_unit_of_the_interval_is_told_as_it_is(folds):
    found = evaluate.evaluate(folds[1].children[0], note=quiet)
    found = replace(found, bootstrap=replace(found.bootstrap, unit="utterance"), unlabelled=0)
    assert "fewer than 8 dialogues, sessions or speakers" in report.remarks(found)[0]


def test_a_figure_that_is_the_same_in_every_draw_has_no_interval(folds):
    """Of answers that are all right each draw has 100 %, which is no certainty."""
    found = evaluate.evaluate(folds[1].children[0], note=quiet)
    assert not any("No interval" in line for line in report.remarks(found))
    perfect = replace(found, interval={**found.interval, "wa": (1.0, 1.0)})
    wa = next(row for row in report.tables(perfect)[0].rows if row[0] == "WA")
    assert wa[2] == "–"
    assert any(line.startswith("No interval (–) of WA:") for line in report.remarks(perfect))
