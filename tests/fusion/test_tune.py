"""`mer tune`: the same trials whatever happens, dev alone decides, and bad input is one line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from mer import cli
from mer.fusion import config
from mer.fusion.data import splits
from mer.fusion.measures import tables
from mer.fusion.models import REGISTRY
from mer.fusion.training import experiment, space, tuning, tuning_results
from mer.fusion.training.tuning import TrialResult
from mer.fusion.training.tuning_results import expected_best
from mer.pipeline.errors import DataError, MerError
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import make_store, quiet

SMALL = ("model_args.hidden=8", "train.epochs=3", "train.patience=2")
SPACE = """
model = "concat"
[optim]
lr = { low = 1e-4, high = 1e-2, log = true }
[train]
batch_size = [8, 16, 32]
[model_args]
dropout = { low = 0.0, high = 0.5 }
"""


def space_of(folder: Path, text: str = SPACE) -> Path:
    path = folder / "space.toml"
    path.write_text(text)
    return path


def searched(store, folder, *, models=("concat",), sets=SMALL, text=SPACE, **more):
    bases = [config.load(model=name, sets=sets) for name in models]
    paths = [space_of(folder.parent, text)] if "concat" in models else []
    spaces = space.spaces_of(models, paths)
    return tuning.tune(store, bases, spaces, folder, **{"trials": 4, "note": quiet} | more)


def records(folder: Path) -> dict[str, bytes]:
    """What a search has written down, by name."""
    found = [*folder.glob("*/trial-*.json"), *folder.glob("*.toml")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# ---- The same trials, and nothing twice


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_killed_search_goes_on_with_the_same_trials_and_does_none_twice(
    tmp_path, monkeypatch, where
):
    """Killed before a trial is trained, or when it is and nothing has been written down of it."""
    store = make_store(tmp_path, n=60)
    models = ("concat", "text")
    whole = searched(store, tmp_path / "whole", models=models, trials=1)
    trained: list[Path] = []
    plain = experiment.train
    kill = True

    def counted(store_, config_, folder, **more):
        if kill and where == "before" and len(trained) == 1:
            raise Killed
        already = (folder / "run.json").exists()
        run = plain(store_, config_, folder, **more)
        trained.extend([] if already else [folder])
        if kill and where == "after" and len(trained) > 1:
            raise Killed
        return run

    monkeypatch.setattr(tuning, "train", counted)
    with pytest.raises(Killed):
        searched(store, tmp_path / "cut", models=models, trials=1)
    kill = False
    said: list[str] = []
    again = searched(store, tmp_path / "cut", models=models, trials=1, note=said.append)
    assert len(trained) == len(set(trained)) == 2
    assert any("done before" in line for line in said)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert [one.trials for one in again] == [one.trials for one in whole]


def test_more_trials_are_added_to_a_search_and_the_first_stay(tmp_path):
    store = make_store(tmp_path, n=60)
    few = searched(store, tmp_path / "out", trials=1)[0]
    many = searched(store, tmp_path / "out", trials=2)[0]
    assert many.trials[:1] == few.trials and len(many.trials) == 2
    assert searched(store, tmp_path / "out", trials=1)[0].trials == few.trials


def test_every_model_gets_the_same_budget_of_seeds_and_trials(tmp_path):
    store = make_store(tmp_path, n=60)
    found = searched(store, tmp_path / "out", models=("concat", "audio"), trials=1, seeds=2)
    assert [one.model for one in found] == ["concat", "audio"]
    assert [[len(trial.figures) for trial in one.trials] for one in found] == [[2], [2]]
    for one in found:
        assert one.best == max(one.trials, key=lambda trial: trial.score)
        for trial in one.trials:
            child = tmp_path / "out" / one.model / f"trial-{trial.number:03d}" / "seed-1"
            run = json.loads((child / "run.json").read_text())
            assert run["dev"]["wf1"] == trial.figures[1]
            assert not (child / "last.safetensors").exists(), "only its training needed it"


def test_another_search_in_the_folder_is_left_alone(tmp_path):
    store = make_store(tmp_path, n=60)
    searched(store, tmp_path / "out", trials=1)
    for more, why in (({"seed": 1}, "seed: 0 -> 1"), ({"seeds": 2}, "seeds: 1 -> 2")):
        with pytest.raises(DataError, match=f"holds another search .{why}"):
            searched(store, tmp_path / "out", trials=1, **more)
    with pytest.raises(DataError, match="space of concat: model_args.dropout.high: 0.5 -> 0.4"):
        searched(store, tmp_path / "out", trials=1, text=SPACE.replace("0.5", "0.4"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not a search of mer's"):
        searched(store, tmp_path / "full", trials=1)


def test_changed_settings_of_a_finished_trial_are_named(tmp_path):
    store = make_store(tmp_path, n=60)
    searched(store, tmp_path / "out", trials=1)
    path = tmp_path / "out" / "concat" / "trial-000.json"
    value = json.loads(path.read_text())
    del value["sha256"]
    value["settings"]["optim.lr"] = 1.0
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"trial-000.json: not the settings"):
        searched(store, tmp_path / "out", trials=1)


# ---- Dev alone


def test_the_test_part_is_never_opened_and_its_labels_change_nothing(tmp_path, monkeypatch):
    """No function that gives test rows is called, no feature of them is read, and with other labels
    on them the same trials have the same figures.
    """
    store = make_store(tmp_path, n=80)
    test = set(splits.held_out(store.table()).tolist())
    assert test

    def opened(*args, **more):
        raise AssertionError("the test part was opened")

    monkeypatch.setattr(splits, "held_out", opened)
    for name in ("features", "batch", "packed", "pooled"):
        original = getattr(FeatureStore, name)

        def read(self, modality, rows=None, *args, _original=original, **more):
            touched = range(len(self)) if rows is None else np.atleast_1d(rows).tolist()
            assert not test & set(touched), "a test row was read"
            return _original(self, modality, *([] if rows is None else [rows]), *args, **more)

        monkeypatch.setattr(FeatureStore, name, read)
    plain = searched(store, tmp_path / "plain", trials=1)
    whole = FeatureStore.table

    def poisoned(self):
        table = whole(self)
        labels = table["label"].to_pylist()
        labels = ["sad" if row in test else label for row, label in enumerate(labels)]
        place = table.column_names.index("label")
        return table.set_column(place, "label", pa.array(labels, table["label"].type))

    monkeypatch.setattr(FeatureStore, "table", poisoned)
    other = searched(store, tmp_path / "poisoned", trials=1)
    assert [one.trials for one in other] == [one.trials for one in plain]
    assert not list(tmp_path.rglob("test_log.jsonl")) + list(tmp_path.rglob("metrics.json"))


# ---- What it says


@pytest.mark.parametrize("lower", [False, True])
def test_the_expected_best_is_the_mean_over_all_draws(lower):
    """By hand: every draw of n of the scores, with replacement."""
    scores = [0.3, 0.9, 0.9, 0.1]
    for n in (1, 2, 3, 4):
        best = [(min if lower else max)(draw) for draw in itertools.product(scores, repeat=n)]
        assert expected_best(scores, n, lower=lower) == pytest.approx(np.mean(best))
    failed = expected_best([0.3, None, 0.9, 0.1], 2, lower=lower)
    worst = 0.9 if lower else 0.1
    assert failed == expected_best([0.3, worst, 0.9, 0.1], 2, lower=lower)


def test_trials_that_diverge_are_counted_and_never_win(tmp_path, monkeypatch):
    store = make_store(tmp_path, n=60)

    def trained(task, tell):
        tell((0.5, "epoch 1"))
        if task.number == 1:
            return TrialResult((), (), "the loss is no longer finite")
        return TrialResult((0.1 * task.number,), (3,))

    monkeypatch.setattr(tuning, "_trained", trained)
    monkeypatch.setattr(tuning.prune, "spare", lambda folder: folder)
    monkeypatch.setattr(tuning.prune, "remove", lambda found: None)
    said: list[str] = []
    found = searched(store, tmp_path / "out", note=said.append)
    assert "concat, trial 1 of 4 failed: the loss is no longer finite" in said
    text = tables.plain(tuning_results.table(found, 1))
    assert text.splitlines()[2].split()[:5] == ["concat", "4", "1", "30.0", "3"]


def test_the_winner_is_a_preset_that_trains_to_the_same_run(tmp_path):
    store = make_store(tmp_path, n=60)
    found = searched(store, tmp_path / "out", trials=2)[0]
    made = config.load(preset=found.preset)
    assert made.optim.lr == found.best.settings["optim.lr"]
    run = experiment.train(store, made, tmp_path / "run", note=quiet)
    assert (run.result.dev["wf1"],) == found.best.figures


def test_a_search_without_a_winner_is_a_failure(tmp_path):
    """What calls it goes on to a preset that is not there."""
    path = make_store(tmp_path, n=60).path
    words = ["tune", str(path), "--model", "concat", "--space", str(space_of(tmp_path))]
    words += ["--trials", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    for one in (*SMALL, "optim.lr=1e25"):
        words += ["--set", one]
    done = CliRunner().invoke(cli.main, words)
    line = done.stderr.strip().splitlines()[-1]
    assert done.exit_code == 1 and "the only trial of concat failed (epoch 1: the loss" in line
    assert len(line) <= 300 and "concat: every trial failed" in done.stdout
    assert not (tmp_path / "out" / "concat.toml").exists()


def test_command(tmp_path):
    path = make_store(tmp_path, n=60).path
    words = ["tune", str(path), "--model", "concat", "--space", str(space_of(tmp_path))]
    words += ["--trials", "2", "--out", str(tmp_path / "out"), "--device", "cpu"]
    for one in (*SMALL, "optim.lr=1e-3"):
        words += ["--set", one]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.output
    assert f"mer train {path} --preset {tmp_path / 'out'}/concat.toml" in done.output
    assert "optim.lr=" not in done.stdout, "a setting that --set fixes is not drawn"
    again = CliRunner().invoke(cli.main, [*words, "--json"])
    assert len(json.loads(again.stdout)[0]["trials"]) == 2


# ---- Bad input


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[optim]", "[optm]", "unknown key 'optm' (did you mean 'optim'"),
        ("lr = {", "lrr = {", "unknown key 'lrr' (did you mean 'lr'"),
        ("dropout = {", "dropuot = {", "unknown key 'dropuot' (did you mean 'dropout'"),
        ("low = 1e-4", "lo = 1e-4", "unknown 'lo' (did you mean 'low'"),
        ("low = 1e-4, high = 1e-2", "low = 1e-2, high = 1e-4", "the bounds are reversed"),
        ("high = 1e-2", "high = 1e-4", "the bounds are equal"),
        ("low = 1e-4", "low = 0.0", "has no logarithm"),
        ("low = 1e-4, ", "", "low is missing"),
        ("high = 0.5", "high = inf", "no finite number"),
        ("high = 0.5", "high = 1.5", "dropout = 1.5: must be between 0 and 1"),
        ("[8, 16, 32]", "[]", "an empty list"),
        ("[8, 16, 32]", "[8, 0]", "batch_size = 0: must be at least 1"),
        ("[8, 16, 32]", "[8, 'many']", "expected a whole number"),
        ("[8, 16, 32]", "{ low = 8.5, high = 16 }", "write whole numbers"),
        ("log = true", "log = 1", "expected true or false"),
        ("batch_size = [8, 16, 32]", "seed = [1, 2]", "decides what is measured"),
        (
            "batch_size = [8, 16, 32]",
            "epochs = 9\n[data]\nsoft_labels = [true, false]",
            "decides what is measured",
        ),
        ("batch_size = [8, 16, 32]", "precision = { low = 1, high = 2 }", "so it has no bounds"),
        ("batch_size = [8, 16, 32]", "epochs = 0", "epochs = 0: must be at least 1"),
        ('"concat"', '"dmd"', "is for dmd, not for concat"),
        ('"concat"', '"conact"', "is for conact, not for concat"),
        ("[optim]", "[optim", "not valid TOML"),
    ],
)
def test_a_wrong_space_is_one_line(tmp_path, old, new, says):
    assert old in SPACE
    with pytest.raises(DataError) as raised:
        space.spaces_of(["concat"], [space_of(tmp_path, SPACE.replace(old, new))])
    assert says in str(raised.value)
    assert str(raised.value).startswith(f"--space {tmp_path}/space.toml: ")
    assert "\n" not in str(raised.value) and len(str(raised.value)) <= 300 + len(str(tmp_path))


def test_settings_that_are_all_fixed_leave_nothing_to_search(tmp_path):
    """Twenty trials of one configuration are no search, and their expected best is none."""
    path = make_store(tmp_path, n=60).path
    words = ["tune", str(path), "--model", "concat", "--space", str(space_of(tmp_path))]
    words += ["--trials", "2", "--out", str(tmp_path / "out")]
    for one in (*SMALL, "optim.lr=1e-3", "train.batch_size=8", "model_args.dropout=0.1"):
        words += ["--set", one]
    done = CliRunner().invoke(cli.main, words)
    (line,) = done.stderr.strip().splitlines()
    assert done.exit_code == 1 and "nothing is left to draw" in line
    assert len(line.replace(str(tmp_path), "")) <= 300 and not (tmp_path / "out").exists()


def test_a_space_that_draws_class_weights_alone_has_nothing_for_a_regression(tmp_path):
    store = make_store(tmp_path, n=60, task="regression")
    text = '[train]\nclass_weight = ["none", "sqrt"]\n'
    with pytest.raises(DataError, match="nothing is left to draw"):
        searched(store, tmp_path / "out", text=text)


def test_a_space_with_nothing_to_draw_or_no_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="nothing to draw"):
        space.spaces_of(["concat"], [space_of(tmp_path, "[optim]\nlr = 1e-3\n")])
    with pytest.raises(DataError, match="no such file"):
        space.spaces_of(["concat"], [tmp_path / "none.toml"])
    with pytest.raises(DataError, match="says no model"):
        space.spaces_of(["concat", "text"], [space_of(tmp_path, "[optim]\nlr = [1, 2]\n")])
    with pytest.raises(DataError, match="named twice"):
        space.spaces_of(["concat", "concat"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"trials": 0}, "--trials 0: expected at least 1"),
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"processes": 0}, "--jobs 0: expected at least 1"),
        ({"seed": -1}, "--seed -1: expected at least 0"),
    ],
)
def test_numbers_that_make_no_sense_are_one_line(tmp_path, more, says):
    store = make_store(tmp_path, n=60)
    with pytest.raises(DataError, match=says):
        searched(store, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_a_store_without_dev_is_carved_or_refused_in_one_line(tmp_path):
    """Without a dev part one is carved by group, as in every training; without groups, too, there
    is none to be had.
    """
    bare = make_store(tmp_path / "bare", n=60, splits=False)
    with pytest.raises(MerError, match="no training rows.*--folds"):
        searched(bare, tmp_path / "out")
    alone = make_store(tmp_path / "alone", n=60, groups=False)
    whole = FeatureStore.table
    with pytest.MonkeyPatch.context() as patch:

        def undivided(self):
            table = whole(self)
            names = ["train" if name == "dev" else name for name in table["split"].to_pylist()]
            place = table.column_names.index("split")
            return table.set_column(place, "split", pa.array(names, table["split"].type))

        patch.setattr(FeatureStore, "table", undivided)
        with pytest.raises(MerError, match="no dev split"):
            searched(alone, tmp_path / "out2")


def test_a_configuration_that_cannot_be_built_is_told_before_anything_is_trained(tmp_path):
    store = make_store(tmp_path, n=60)
    bases = [config.load(model="fusion")]
    text = 'model = "fusion"\n[model_args]\nheads = [4, 3]\n'
    spaces = space.spaces_of(["fusion"], [space_of(tmp_path, text)])
    with pytest.raises(DataError, match="trial [0-9]+: .*does not divide by 3 heads"):
        tuning.tune(store, bases, spaces, tmp_path / "out", trials=8, note=quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_model_has_a_space_that_stays_within_its_bounds(name):
    one = space.spaces_of([name])[0]
    base = config.load(model=name)
    for trial in range(20):
        settings = one.draw(0, trial)
        one.applied(base, settings)
        for key, value in settings.items():
            known = one.drawn[key]
            if isinstance(known, space.Between):
                assert known.low <= value <= known.high
            else:
                assert value in known.values
    assert one.draw(0, 3) == one.draw(0, 3) != one.draw(1, 3)


# ---- TPE, and processes


def test_tpe_goes_on_as_if_it_had_not_been_killed_and_finds_the_peak(tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="mer[tune] is not installed")
    store = make_store(tmp_path, n=60)

    def trained(task, tell):
        made = config.from_toml(task.config, "test")
        return TrialResult(
            (1 - abs(np.log10(made.optim.lr) + 3) - abs(made.model_args.dropout - 0.2),), (1,)
        )

    monkeypatch.setattr(tuning, "_trained", trained)
    monkeypatch.setattr(tuning.prune, "spare", lambda folder: folder)
    monkeypatch.setattr(tuning.prune, "remove", lambda found: None)
    whole = searched(store, tmp_path / "whole", trials=30, method="tpe")[0]
    searched(store, tmp_path / "cut", trials=14, method="tpe")
    (tmp_path / "cut" / "concat" / "trial-013.json").unlink()
    assert searched(store, tmp_path / "cut", trials=30, method="tpe")[0].trials == whole.trials
    scores = [trial.score for trial in whole.trials]
    assert np.mean(scores[-10:]) > np.mean(scores[:10]) + 0.2
    assert whole.expected == {}, "its trials are no draws at random"
    found = tuning_results.table([whole], 1)
    assert "best of" not in found.title and found.columns[-1] == "trial"


@pytest.mark.slow
def test_several_jobs_find_what_one_finds(tmp_path):
    store = make_store(tmp_path, n=60)
    alone = searched(store, tmp_path / "alone", trials=3)[0]
    together = searched(store, tmp_path / "together", trials=3, processes=2)[0]
    assert together.trials == alone.trials
