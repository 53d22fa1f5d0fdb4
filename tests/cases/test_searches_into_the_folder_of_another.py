"""`mer tune` into the folder of another search did not say in what they differ, and with fewer
trials than are there it wrote the preset anew, from the few.
"""

from __future__ import annotations

import json

import pytest

from mer.fusion import config
from mer.fusion.runtime import files
from mer.fusion.training import tuning, tuning_results
from mer.fusion.training.tuning import TrialResult
from mer.pipeline.errors import DataError

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_tune import SMALL, SPACE, searched


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """Trial n has the dev figure n / 10, and nothing is trained."""
    monkeypatch.setattr(
        tuning, "_trained", lambda task, tell: TrialResult((task.number / 10,), (3,))
    )
    monkeypatch.setattr(tuning.prune, "spare", lambda folder: folder)
    monkeypatch.setattr(tuning.prune, "remove", lambda found: None)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"seed": 7}, "seed: 0 -> 7"),
        ({"method": "tpe"}, "method: random -> tpe"),
        ({"folds": "session"}, "folds: None -> session"),
        ({"models": ("concat", "text")}, "models: ['concat'] -> ['concat', 'text']"),
        (
            {"text": SPACE.replace("0.5", "0.4")},
            "space of concat: model_args.dropout.high: 0.5 -> 0.4",
        ),
        (
            {"text": SPACE.replace("[8, 16, 32]", "[8, 16]")},
            "space of concat: train.batch_size.values: [8, 16, 32] -> [8…",
        ),
        (
            {"sets": (*SMALL, "optim.warmup=0.2")},
            "configuration of concat: optim.warmup: 0.05 -> 0.2",
        ),
        (
            {"sets": (*SMALL, "data.context_width=3")},
            "configuration of concat: data.context_width: 8 -> 3",
        ),
    ],
)
def test_what_differs_is_named(tmp_path, more, says):
    if more.get("method") == "tpe":
        pytest.importorskip("optuna")
    store = make_store(tmp_path, n=60)
    searched(store, tmp_path / "out", trials=1)
    before = (tmp_path / "out" / files.SEARCH).read_bytes()
    with pytest.raises(DataError) as caught:
        searched(store, tmp_path / "out", trials=1, **more)
    assert f"holds another search ({says}" in str(caught.value)
    assert str(caught.value).endswith("); choose another --out") and len(str(caught.value)) <= 300
    assert (tmp_path / "out" / files.SEARCH).read_bytes() == before


def test_stores_are_told_apart(tmp_path):
    searched(make_store(tmp_path / "a", n=60), tmp_path / "out", trials=1)
    with pytest.raises(DataError, match=r"\(store: a/feats.h5 -> b/feats.h5\)"):
        searched(make_store(tmp_path / "b", n=60, seed=1), tmp_path / "out", trials=1)
    (tmp_path / "a" / "feats.h5").unlink()
    with pytest.raises(DataError, match=r"\(store: other features, labels or splits than before\)"):
        searched(make_store(tmp_path / "a", n=60, seed=1), tmp_path / "out", trials=1)


def test_many_differences_are_counted(tmp_path):
    store = make_store(tmp_path, n=60)
    searched(store, tmp_path / "out", trials=1)
    sets = ("model_args.hidden=9", "train.epochs=4", "train.patience=1", "optim.clip=0.5")
    with pytest.raises(DataError) as caught:
        searched(store, tmp_path / "out", trials=1, sets=sets)
    assert "configuration of concat: model_args.hidden: 8 -> 9; " in str(caught.value)
    assert " and 1 more); choose" in str(caught.value) and len(str(caught.value)) <= 300


def test_a_search_of_an_earlier_mer_goes_on_and_says_what_it_can(tmp_path):
    """Its tune.json has neither the configuration nor the store."""
    store = make_store(tmp_path, n=60)
    searched(store, tmp_path / "out", trials=1)
    path = tmp_path / "out" / files.SEARCH
    tree = json.loads(path.read_text())
    for name in (files.SEAL, "settings", "store", "store_key", "further"):
        tree.pop(name)
    files.write_json(path, tree)
    with pytest.raises(DataError, match="space of concat: model_args.dropout.high: 0.5 -> 0.4"):
        searched(store, tmp_path / "out", trials=1, text=SPACE.replace("0.5", "0.4"))
    with pytest.raises(DataError, match=r"\(another store or configuration\)"):
        searched(store, tmp_path / "out", trials=1, sets=(*SMALL, "optim.warmup=0.2"))
    assert len(searched(store, tmp_path / "out", trials=2)[0].trials) == 2
    assert json.loads(path.read_text())["store"] == str(store.path)


def test_fewer_trials_than_are_there_leave_the_preset_of_the_best_of_all(tmp_path):
    store = make_store(tmp_path, n=60)
    many = searched(store, tmp_path / "out", trials=4)[0]
    assert many.best.number == 3 and many.there is None
    preset = (tmp_path / "out" / "concat.toml").read_bytes()
    said: list[str] = []
    few = searched(store, tmp_path / "out", trials=2, note=said.append)[0]
    assert (
        "concat: 4 trials are there and 2 asked for: the table is of these, the preset of the best "
        "of all" in said
    )
    assert (tmp_path / "out" / "concat.toml").read_bytes() == preset
    assert [trial.number for trial in few.trials] == [0, 1] and few.best.number == 1
    assert (few.there, few.winner) == (4, many.best)
    lines = tuning_results.lines([few], store.path)
    assert lines[0].startswith("concat, trial 3, the best of all 4 there: ")
    assert f"optim.lr={many.best.settings['optim.lr']}" in lines[0]
    assert tuning_results.as_json([few])[0]["winner"] == 3
    made = config.load(preset=str(tmp_path / "out" / "concat.toml"))
    assert made.optim.lr == many.best.settings["optim.lr"]
    # and as many as there are is as before
    said.clear()
    again = searched(store, tmp_path / "out", trials=4, note=said.append)[0]
    assert again == many and not any("asked for" in line for line in said)


def test_few_that_all_failed_are_no_failure_where_others_did_not(tmp_path, monkeypatch):
    def trained(task, tell):
        return TrialResult((), (), "no") if task.number == 0 else TrialResult((0.5,), (3,))

    monkeypatch.setattr(tuning, "_trained", trained)
    store = make_store(tmp_path, n=60)
    searched(store, tmp_path / "out", trials=2)
    (few,) = found = searched(store, tmp_path / "out", trials=1)
    assert few.best is None and few.winner.number == 1
    tuning_results.check_found(found)
    assert "every trial failed" not in " ".join(tuning_results.lines(found, store.path))
    tuning_results.table(found, 1)


@pytest.mark.parametrize("given", ["inf", "[12.5, inf]"])
def test_infinity_is_a_setting_like_any_other(tmp_path, given):
    """`pool_hz = inf` in a space, as stored: JSON has no such number."""
    store = make_store(tmp_path, n=60)
    text = f"{SPACE}[data]\npool_hz = {given}\n"
    first = searched(store, tmp_path / "out", trials=3, text=text)
    assert searched(store, tmp_path / "out", trials=3, text=text) == first
    (told,) = tuning_results.as_json(first)
    json.dumps(told, allow_nan=False)
    drawn = [trial["settings"].get("data.pool_hz", "inf") for trial in told["trials"]]
    assert "inf" in drawn and set(drawn) <= {12.5, "inf"}
    with pytest.raises(DataError, match=r"space of concat: .*pool_hz.*inf.* -> "):
        searched(store, tmp_path / "out", trials=3, text=text.replace("inf", "25.0"))


def test_a_trial_beyond_that_is_another_searchs_is_refused(tmp_path):
    store = make_store(tmp_path, n=60)
    searched(store, tmp_path / "out", trials=2)
    path = tmp_path / "out" / "concat" / "trial-001.json"
    tree = json.loads(path.read_text())
    tree.pop(files.SEAL)
    tree["settings"]["optim.lr"] = 0.5
    files.write_json(path, tree)
    with pytest.raises(DataError, match="trial-001.json: not the settings of this trial"):
        searched(store, tmp_path / "out", trials=1, note=quiet)
