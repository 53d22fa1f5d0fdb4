"""`mer runs` and `mer prune`: many run folders, whole, unfinished and damaged."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import report
from mer.fusion.evaluation import evaluate
from mer.fusion.runs import checkpoint, prune, records, result_files, run_rows, runs_columns
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.run_rows import RunRow
from mer.fusion.runtime import files
from mer.fusion.runtime.typed import tree
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.hold import hold

from tests.fusion.made_runs import make
from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings
from tests.whole_way.mer import mer, refused

pytestmark = pytest.mark.usefixtures("few_resamples")

ROOT = Path(__file__).parent.parent.parent


def train(folder, *more: str, **options) -> Run:
    store = make_store(folder.parent / "store")
    config = settings("train.epochs=2", *more)
    done = experiment.train(store, config, folder, note=quiet, **options)
    evaluate.evaluate(done, note=quiet)
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "run", command="mer train feats.h5").path


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return train(tmp_path_factory.mktemp("group") / "seeds", seeds=3).path


@pytest.fixture
def search(trained, tmp_path):
    """A search of twelve runs, all whole."""
    for number in range(12):
        make(trained, tmp_path / "runs", number)
    return tmp_path / "runs"


def rows_of(outcome) -> list[dict]:
    return [json.loads(line) for line in outcome.out.splitlines()]


def names_of(outcome) -> list[str]:
    return [Path(row["run"]).name for row in rows_of(outcome)]


def as_read_by_hand(path: Path) -> dict:
    return json.loads((path / "run.json").read_text())


# ---- The list


def test_a_row_says_what_the_files_say(trained):
    row = run_rows.read(trained)
    info, found = as_read_by_hand(trained), json.loads((trained / "metrics.json").read_text())
    assert row.state == "finished" and row.model == "concat" and row.seeds == (0,)
    assert (row.date, row.command, row.mer) == (
        info["date"],
        "mer train feats.h5",
        info["versions"]["mer"],
    )
    assert row.dev == info["dev"] and row.test["wf1"] == found["metrics"]["wf1"]
    assert "n" not in row.test and row.opened == 1
    assert row.settings["optim.lr"] == 3e-3 and row.settings["model_args.hidden"] == 16
    assert row.size == sum(path.stat().st_size for path in trained.iterdir())
    assert row.spare == (trained / "last.safetensors").stat().st_size
    assert (run_rows.FORMAT, run_rows.VERSION) == (records.RUN_FORMAT, records.RUN_VERSION)


def test_a_group_is_one_row_of_means_and_each_of_its_runs_can_be_asked_for(group):
    (row,) = run_rows.find([group.parent])
    dev = [as_read_by_hand(group / f"seed-{seed}")["dev"]["wf1"] for seed in range(3)]
    mean = sum(dev) / 3
    assert row.dev["wf1"] == pytest.approx(mean) and row.seeds == (0, 1, 2)
    deviation = (sum((one - mean) ** 2 for one in dev) / 2) ** 0.5
    assert row.dev_sd["wf1"] == pytest.approx(deviation)
    found = json.loads((group / "metrics.json").read_text())
    assert row.test["wf1"] == found["metrics"]["wf1"] and row.test_sd["wf1"] == found["sd"]["wf1"]
    assert "train.seed" not in row.settings and row.command == "" and row.mer
    each = run_rows.find([group.parent], each=True)
    assert [Path(one.run).name for one in each] == ["seed-0", "seed-1", "seed-2"]
    assert [one.dev["wf1"] for one in each] == dev


def test_each_run_is_read_once(group, trained, monkeypatch):
    read, given = [], files.read_text
    monkeypatch.setattr(
        files,
        "read_text",
        lambda path, *rest, **more: read.append(path) or given(path, *rest, **more),
    )
    found = run_rows.find([group, trained], each=True)
    assert [Path(row.run) for row in found] == [*(group / f"seed-{n}" for n in range(3)), trained]
    assert len(read) == len(set(read)) and trained / files.INFO in read
    # of the group only who is in it
    assert [path for path in read if path.parent == group] == [group / files.INFO]


def test_only_settings_that_differ_are_columns(search):
    out = mer("runs", search).out
    head = out.splitlines()[1].split()
    assert head[:4] == ["run", "state", "date", "model"] and {"lr", "hidden"} <= set(head)
    assert not {"epochs", "batch_size", "seeds", "mer", "store"} & set(head)
    assert out.splitlines()[0] == "12 runs: 12 finished"


def test_the_best_configuration_and_its_settings_in_one_command(search):
    outcome = mer("runs", search, "--sort", "dev", "--limit", "1")
    head, row = (line.split() for line in outcome.out.splitlines()[1:3])
    assert row[0].endswith("run-11") and "51.1" in row and "50.1" in row
    assert outcome.out.startswith("1 run: 1 finished (12 in all)")
    assert "command" not in head and "in 12 runs" in outcome.err
    # a date is two words
    best = {name: row[head.index(name) + 1] for name in ("hidden", "lr")}
    assert best == {"hidden": "64", "lr": "0.001"}
    shown = rows_of(mer("runs", search, "--sort", "dev", "--limit", "1", "--json"))[0]["settings"]
    assert (shown["optim.lr"], shown["model_args.hidden"]) == (1e-3, 64)


def test_how_many_match_and_how_many_are_alike_is_told(search):
    some = mer("runs", search, "--where", "lr=1e-4", "--sort", "hidden", "--limit", "1")
    assert some.out.startswith("1 run: 1 finished (4 match, 12 in all)")
    alike = mer("runs", search, "--sort", "lr", "--limit", "2").err
    assert "4 runs have lr 0.0001, of which 2 shown, by name" in alike
    assert "shown, by name" not in mer("runs", search, "--sort", "lr", "--limit", "4").err
    assert "shown, by name" not in mer("runs", search, "--sort", "dev", "--limit", "2").err


def test_trials_of_a_search_are_said_to_be_such(search, trained, group):
    """Found by a user: the best run by dev was one of many trials, which nothing said."""
    tuned = search / "tune-toy"
    for number in range(2):
        shutil.copytree(trained, tuned / "concat" / f"trial-{number:03d}")
    alone = shutil.copytree(trained, search / "drafts" / "concat" / "trial-000")
    assert "mer tune" not in mer("runs", search).err, "a name alone makes no trial"
    (tuned / "tune.json").write_text("{}")
    assert "2 of 15 runs shown are trials of `mer tune`: " in mer("runs", search).err
    first = mer("runs", tuned, "--limit", "1").err
    assert "1 of 1 run shown is a trial of `mer tune`: " in first
    assert "mer tune" not in mer("runs", alone).err
    shutil.copytree(group, tuned / "concat" / "trial-002")
    inside = mer("runs", ".", "--each", cwd=tuned / "concat" / "trial-002").err
    assert "3 of 3 runs shown are trials" in inside


def test_the_command_is_shown_where_nothing_else_differs(search):
    assert "mer train --features feats.h5" in mer("runs", search / "run-0").out
    assert "mer train --features feats.h5" not in mer("runs", search).out
    assert "mer train --features feats.h5" in mer("runs", search, "--columns", "run,command").out


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["lr=1e-4"], [0, 3, 6, 9]),
        (["lr==1e-4"], [0, 3, 6, 9]),
        (["optim.lr<3e-4", "hidden=16"], [0]),
        (["hidden!=16", "lr>=1e-3"], [5, 8, 11]),
        (["dev>50.8"], [9, 10, 11]),
        (["test<=49.15"], [0, 1]),
        (["date~11-03"], [2]),
        (["model=drkf"], []),
        (["state=finished", "run~run-1"], [1, 10, 11]),
        (["size>1000"], []),
    ],
)
def test_filters(search, conditions, expected):
    asked = [word for one in conditions for word in ("--where", one)]
    assert names_of(mer("runs", search, *asked, "--json")) == [f"run-{n}" for n in expected]


def test_sorting(search):
    by_name = [f"run-{number}" for number in range(12)]
    assert names_of(mer("runs", search, "--json")) == by_name, "run-10 behind run-9"
    assert names_of(mer("runs", search, "--json", "--sort", "dev")) == by_name[::-1]
    assert names_of(mer("runs", search, "--json", "--sort", "dev", "--reverse")) == by_name
    assert names_of(mer("runs", search, "--json", "--sort", "date")) == by_name[::-1]
    by_rate = names_of(mer("runs", search, "--json", "--sort", "lr"))
    assert [int(name[4:]) % 3 for name in by_rate] == [0] * 4 + [1] * 4 + [2] * 4
    lowest = names_of(mer("runs", search, "--json", "--sort", "dev", "--metric", "loss"))
    assert sorted(lowest) == sorted(by_name)


def test_csv_has_all_of_it_and_can_be_read(search):
    found = list(csv.DictReader(io.StringIO(mer("runs", search, "--csv").out)))
    assert len(found) == 12 and float(found[3]["dev.wf1"]) == 0.503
    assert float(found[3]["optim.lr"]) == 1e-4 and found[3]["optim.betas"] == "0.9,0.98"
    assert found[3]["run"] == str(search / "run-3")


def test_a_csv_is_no_formula(trained, tmp_path):
    path = make(trained, tmp_path, 1)
    info = as_read_by_hand(path)
    info.pop(files.SEAL)
    files.write_json(path / "run.json", info | {"command": "=HYPERLINK(1)\x1b[2J"})
    (row,) = csv.DictReader(io.StringIO(mer("runs", tmp_path, "--csv").out))
    assert row["command"] == "'=HYPERLINK(1)\\x1b[2J"


def test_chosen_columns(search):
    out = mer("runs", search, "--columns", "run,dev,lr", "--metric", "ua", "--limit", "2").out
    assert out.splitlines()[1].split() == ["run", "dev", "UA", "lr"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--where", "learning_rate<1"], "did you mean 'lr'"),
        (["--where", "modle=drkf"], "did you mean 'model'"),
        (["--where", "drkf"], "expected COLUMN=VALUE"),
        (["--where", "dev>abc"], "dev is a number, which 'abc' is not"),
        (["--sort", "lrr"], "did you mean 'lr'"),
        (["--columns", "run,devv"], "did you mean 'dev'"),
        (["--metric", "accuracy"], "did you mean 'wa'"),
        (["--where", "dropout.x=1"], "no such column"),
    ],
)
def test_what_is_mistyped_is_told(search, options, says):
    refused("runs", search, *options, says=[says])


def test_other_folders(search, tmp_path):
    refused("runs", tmp_path / "gone", says=["no such folder"])
    (tmp_path / "file").touch()
    refused("runs", tmp_path / "file", says=["not a folder"])
    (tmp_path / "none").mkdir()
    assert mer("runs", cwd=tmp_path / "none").out == ""
    assert mer("runs", tmp_path / "none").out.startswith("0 runs")
    assert len(rows_of(mer("runs", "--json", cwd=tmp_path))) == 12, "the folder runs"
    (search / "again").symlink_to(search)
    assert len(run_rows.find([search, search / "run-3", search])) == 12, "each folder once"


# ---- What is not whole


def test_the_unfinished_and_the_damaged_are_rows_with_a_word(search, trained):
    def spoil(number: int, name: str, raw: bytes | None) -> None:
        path = search / f"run-{number}" / name
        path.unlink()
        if raw is not None:
            path.write_bytes(raw)

    spoil(0, "run.json", b"{")
    spoil(1, "config.toml", b"model = 'concat'\n")
    spoil(2, "model.safetensors", None)
    spoil(3, "run.json", None)
    spoil(4, "metrics.json", b"[]")
    text = (search / "run-5" / "run.json").read_text()
    spoil(5, "run.json", text.replace('"wf1": 0.505', '"wf1": 0.905').encode())
    info = as_read_by_hand(search / "run-6")
    info.pop(files.SEAL)
    files.write_json(search / "run-6" / "run.json", info | {"finished": False})
    for name in ("model.safetensors", "last.safetensors", "run.json"):
        (search / "run-7" / name).unlink()
    outcome = mer("runs", search, "--json")
    rows = {Path(row["run"]).name: row for row in rows_of(outcome)}
    states = [rows[f"run-{number}"]["state"] for number in range(12)]
    assert states == ["damaged"] * 6 + ["unfinished"] * 2 + ["finished"] * 4
    said = {name: row["why"] for name, row in rows.items()}
    assert "run.json: damaged" in said["run-0"] and "config.toml" in said["run-1"]
    assert said["run-2"] == "no model.safetensors" and said["run-3"] == "no run.json"
    assert "metrics.json" in said["run-4"] and "checksum" in said["run-5"]
    assert said["run-6"].startswith("2 epochs so far") and "goes on" in said["run-6"]
    assert "before its first epoch" in said["run-7"]
    assert rows["run-1"]["model"] == "concat" and rows["run-2"]["dev"]["wf1"] == 0.502
    listed = mer("runs", search)
    assert listed.out.startswith("12 runs: 4 finished, 2 unfinished, 6 damaged")
    assert listed.err.count(": damaged: ") == 6
    for run in (search / "run-0", search / "run-6"):  # sorting by what they lack
        assert mer("runs", run, "--sort", "dev", "--where", "state!=x").out


def test_a_pipe_a_device_and_a_folder_for_a_file_are_rows(search):
    for number, name in enumerate(("run.json", "config.toml", "metrics.json", "test_log.jsonl")):
        path = search / f"run-{number}" / name
        path.unlink()
        os.mkfifo(path)
    (search / "run-4" / "run.json").unlink()
    (search / "run-4" / "run.json").mkdir()
    found = run_rows.find([search])
    damaged = [row.state == "damaged" for row in found]
    # of what is no file nothing was logged
    assert damaged == [True, True, True, False, True] + [False] * 7


def test_a_group_without_one_of_its_runs(group, tmp_path):
    cut = shutil.copytree(group, tmp_path / "cut")
    shutil.rmtree(cut / "seed-1")
    row = run_rows.read(cut)
    assert (row.state, row.why) == ("damaged", "2 of 3 runs are finished") and row.dev
    files.write_json(cut / "run.json", tree(replace(Run.open(cut).info, finished=False)))
    assert run_rows.read(cut).state == "unfinished"
    (cut / "seed-2" / "config.toml").write_text("x")
    assert run_rows.read(cut).why.startswith("seed-2: config.toml")


def test_a_group_in_itself_ends(group, tmp_path):
    loop = shutil.copytree(group, tmp_path / "loop")
    info = as_read_by_hand(loop)
    info.pop(files.SEAL)
    files.write_json(loop / "run.json", info | {"children": ["a", "b", "seed-0"]})
    for name in ("a", "b"):
        (loop / name).symlink_to(loop)
    row = run_rows.read(loop)
    assert (row.state, row.why) == ("damaged", "a: run.json: a group within a group")
    assert [one.state for one in run_rows.find([loop], each=True)] == [
        "damaged",
        "damaged",
        "finished",
    ]


def test_a_run_that_is_being_trained_is_told_and_nothing_is_written(search):
    run = search / "run-0"
    info = as_read_by_hand(run)
    info.pop(files.SEAL)
    files.write_json(run / "run.json", info | {"finished": False})
    before = sorted(path.name for path in run.iterdir())
    assert run_rows.read(run).state == "unfinished"
    assert sorted(path.name for path in run.iterdir()) == before
    with hold(run / checkpoint.HOLD):
        assert run_rows.read(run).state == "training"
    assert run_rows.read(run).state == "unfinished"


def test_runs_of_an_earlier_mer_have_the_date_of_their_file(tmp_path):
    folder = shutil.copytree(ROOT / "tests" / "fusion" / "version1" / "runs", tmp_path / "runs")
    os.utime(folder / "drkf" / "run.json", (1_700_000_000, 1_700_000_000))
    rows = {Path(row.run).name: row for row in run_rows.find([folder])}
    assert all(row.state == "finished" and row.mer == "" for row in rows.values())
    assert not rows["drkf"].date_recorded
    assert runs_columns.cell(rows["drkf"], "date").startswith("~2023-11-1")


def test_five_hundred_runs_without_torch(trained, tmp_path):
    """In two seconds of a core, which is what is counted here, so that others on the machine do not
    matter; the bound has room for a slow one. Nothing that is large is read: the weights of all are
    one file of a terabyte, a hole.
    """
    template = shutil.copytree(trained, tmp_path / "template")
    for name in (files.MODEL, files.LAST):
        os.truncate(template / name, 1 << 40)
    for number in range(500):
        make(template, tmp_path / "runs", number)
    code = (
        "import sys\nfrom mer.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, "runs", str(tmp_path / "runs"), "--sort", "dev"],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.startswith("500 runs: 500 finished")
    assert "run-499" in done.stdout.splitlines()[2]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 4, f"{seconds:.1f} s"


# ---- What was written of the beginning


def test_run_json_says_when_by_what_and_with_which_versions(tmp_path):
    make_store(tmp_path)
    quick = ["--model", "concat", "--set", "train.epochs=1", "--set", "model_args.hidden=8"]
    mer("train", "--features", "feats.h5", *quick, "--out", "a b", cwd=tmp_path)
    info = as_read_by_hand(tmp_path / "a b")
    typed = "mer train --features feats.h5 --model concat --set train.epochs=1 --set "
    assert info["command"] == typed + "model_args.hidden=8 --out 'a b'"
    assert {"mer", "torch", "numpy", "python"} <= info["versions"].keys()
    (row,) = rows_of(mer("runs", tmp_path / "a b", "--json"))
    assert row["command"] == info["command"] and row["date"] == info["date"]


def test_a_resumed_run_keeps_its_date_and_command(tmp_path):
    store = make_store(tmp_path)

    def stop(line: str) -> None:
        if line.startswith("epoch"):
            raise KeyboardInterrupt

    for options in ({}, {"seeds": 2}):
        folder = tmp_path / f"run{len(options)}"
        with pytest.raises(KeyboardInterrupt):
            experiment.train(store, settings(), folder, note=stop, command="first", **options)
        begun = as_read_by_hand(folder)
        done = experiment.train(store, settings(), folder, note=quiet, command="again", **options)
        assert done.info.command == "first" and as_read_by_hand(folder)["date"] == begun["date"]


# ---- Pruning


def test_a_pruned_run_does_all_that_it_did(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    info = as_read_by_hand(run)
    before = result_files.stored_metrics(Run.open(run))
    (run / ".run.json.tmp-4194305").touch()
    outcome = mer("prune", run, "--yes")
    assert "last.safetensors" in outcome.out and "freed" in outcome.err
    assert not (run / "last.safetensors").exists() and not list(run.glob(".*.tmp-*"))
    assert as_read_by_hand(run) == info
    opened = Run.open(run).sound()
    again = tree(evaluate.evaluate(opened, note=quiet))
    assert again == {key: value for key, value in tree(before).items() if key in again}
    assert report.page([opened])
    store, notes = make_store(trained.parent / "store"), []
    experiment.train(store, settings("train.epochs=2"), run, note=notes.append)
    assert any("already trained" in line for line in notes)
    assert "nothing to remove" in mer("prune", run).err
    assert run_rows.read(run).spare == 0 and run_rows.read(run).state == "finished"


def test_pruning_asks_and_a_dry_run_removes_nothing(group):
    there = sorted(group.rglob("*"))
    outcome = mer("prune", group, "--dry-run")
    assert outcome.out.count("last.safetensors") == 3 and "nothing was removed" in outcome.err
    refused("prune", group, code=2, says=["--yes"])
    twice = mer("prune", group, group / "seed-1", group, "--dry-run")
    assert twice.out == outcome.out and twice.err == outcome.err, "counted once"
    assert sorted(group.rglob("*")) == there


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
def test_the_answer_counts(trained, tmp_path, monkeypatch, answer, left):
    run = shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr("mer.commands.runs.somebody_is_there", lambda: True)
    done = CliRunner().invoke(main, ["prune", str(run)], input=answer)
    assert done.exit_code == 0 and "for good; go on?" in done.stderr
    assert len(list(run.glob("last.safetensors"))) == left
    assert ("nothing was removed" if left else "freed ") in done.stderr


def test_a_question_is_not_broken_inside_a_word(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr("mer.commands.runs.somebody_is_there", lambda: True)
    monkeypatch.setattr("mer.commands.output.terminal_columns", lambda stream: 30)
    asked = CliRunner().invoke(main, ["prune", str(run)], input="n\n").stderr.splitlines()
    assert asked[0].startswith("this removes 1 file, ") and max(map(len, asked)) <= 30
    assert "for good; go on? [y/N]: n" in " ".join(map(str.strip, asked))


def test_a_run_that_may_need_it_is_left_and_named_and_the_others_are_pruned(search, trained):
    cut, damaged, held = search / "run-0", search / "run-1", search / "run-2"
    info = as_read_by_hand(cut)
    info.pop(files.SEAL)
    files.write_json(cut / "run.json", info | {"finished": False})
    (damaged / "model.safetensors").unlink()
    (damaged / "model.safetensors").write_bytes(b"x")
    with hold(held / checkpoint.HOLD):
        outcome = mer("prune", *sorted(search.iterdir()), search / "gone", "--yes", code=1)
    for name, why in (("run-0", "not finished"), ("run-1", "model.safetensors: not the weights")):
        assert any(name in line and why in line for line in outcome.err.splitlines())
    assert "run-2: somebody is writing there" in outcome.err and "gone" in outcome.err
    left = {path.parent.name for path in search.rglob("last.safetensors")}
    assert left == {"run-0", "run-1", "run-2"}
    assert "4 of 13 runs left as they are" in outcome.err


def test_what_is_no_run_is_said_in_one_line(search):
    outcome = mer("prune", search, "--yes", code=1)
    [line] = outcome.err.splitlines()
    assert line.startswith("mer: ") and "the runs are in it" in line
    two = mer("prune", search, search / "gone", "--yes", code=1).err
    assert "nothing to remove" not in two and len(two.splitlines()) == 3


def test_a_group_is_pruned_only_when_all_of_it_is_finished(group, tmp_path):
    cut = shutil.copytree(group, tmp_path / "cut")
    info = as_read_by_hand(cut / "seed-1")
    info.pop(files.SEAL)
    files.write_json(cut / "seed-1" / "run.json", info | {"finished": False})
    with pytest.raises(DataError, match="not finished"):
        prune.spare(cut)
    prune.remove([prune.spare(cut / "seed-0")])
    assert not (cut / "seed-0" / "last.safetensors").exists()


def test_a_figure_of_one_target_is_compared_as_it_is_printed():
    """MAE and CCC of a target are no percentages."""
    rows = []
    for name, error in (("a", 0.4), ("b", 0.9)):
        dev = {"mae_valence": error, "ccc_valence": 1 - error}
        row = RunRow(
            run=name, state="finished", kind="single", select_metric="mae_valence", dev=dev
        )
        rows.append(row)
    assert [row.run for row in runs_columns.matching(rows, ["dev<0.5"])] == ["a"]
    assert [row.run for row in runs_columns.matching(rows, ["dev<0.5"], "ccc_valence")] == ["b"]
    assert runs_columns.cell(rows[0], "dev") == "0.400"
